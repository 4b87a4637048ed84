"""Learn what of a user is the same in every domain."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Generator, Tensor

from musketeers.cat.lanes import Lanes
from musketeers.cat.model import ContrastiveAutoencoder
from musketeers.cat.on_gpu import OnGpu
from musketeers.config import CatConfig
from musketeers.device import gpu
from musketeers.exchange import UserEmbeddings
from musketeers.group import mean_of, own, total
from musketeers.modules import Adam, weights_of
from musketeers.parallel import available_threads
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """The domain-independent embeddings, and the network that made them."""

    users: Float32[np.ndarray, "user dim"]
    """Divided by their mean length, like `UserEmbeddings.values`."""
    length: float
    """That mean length."""
    weights: Mapping[str, np.ndarray]
    history: History

    def of(self, shared: UserEmbeddings) -> Float32[np.ndarray, "user dim"]:
        """What the trained network makes of others than it learned from, in the unit of `users`."""
        _, n_domains, dim = shared.values.shape
        model = ContrastiveAutoencoder(n_domains, dim, generator=Generator())
        model.load_state_dict({name: torch.from_numpy(w) for name, w in self.weights.items()})
        users = _computer(model, shared, CatConfig(), n_threads=available_threads()).encode()
        users /= np.float32(self.length)
        return users


@runtime_checkable
class Computer(Protocol):
    """Where the network of stage 2 is computed, for the users of some exchange."""

    def learn(
        self, rows: Int[np.ndarray, " user"], visible: Bool[np.ndarray, "user domain"]
    ) -> Iterator[float | Tensor]:
        """Batch by batch the loss, times the users in it; the parameters have its slopes then.

        0.2 contrast + 0.4 reconstruction of each view, at the default weight; for the plain
        autoencoder, the reconstruction of the whole view alone.  `visible` is what the other view
        shows of each of the `rows`.
        """
        ...

    def losses(
        self, rows: Int[np.ndarray, " user"], visible: Bool[np.ndarray, "user domain"]
    ) -> Iterator[float | Tensor]:
        """The same without slopes."""
        ...

    def encode(self) -> Float32[np.ndarray, "user dim"]:
        """Every user's embedding from all that is known of them."""
        ...


def align(
    shared: UserEmbeddings, config: CatConfig, seed: Seed, job: Job, *, n_threads: int
) -> Aligned:
    """One domain-independent embedding for every user, known in however many domains."""
    training = _Alignment(shared, config, seed, n_threads=n_threads)
    history = fit(
        training,
        max_epochs=config.max_epochs,
        patience=config.patience,
        checkpoint=job.checkpoint("cat"),
        on_epoch=job.on_epoch,
    )
    users = training.encode()
    length = float(mean_of(np.linalg.norm(users, axis=1))) or 1.0
    users /= np.float32(length)
    return Aligned(users, length, weights_of(training.model), history)


def mask_one(
    known: Bool[np.ndarray, "user domain"], noise: Float[np.ndarray, "user domain"]
) -> Bool[np.ndarray, "user domain"]:
    """What is left with the known domain of most `noise` (0..1) hidden, but never the only one."""
    hidden = np.where(known, noise, -1).argmax(axis=1)
    several = np.flatnonzero(known.sum(axis=1) > 1)
    visible = known.copy()
    visible[several, hidden[several]] = False
    return visible


def _computer(
    model: ContrastiveAutoencoder, shared: UserEmbeddings, config: CatConfig, *, n_threads: int
) -> Computer:
    """The GPU if there is one to be used, with the model moved there."""
    device = gpu()
    if device is None:
        return Lanes(model, shared, config, n_threads=n_threads)
    return OnGpu(model.to(device), shared, config, device)


class _Alignment:
    """The `Trainable` of stage 2."""

    def __init__(
        self, shared: UserEmbeddings, config: CatConfig, seed: Seed, *, n_threads: int
    ) -> None:
        _, n_domains, dim = shared.values.shape
        self._known, self._seed = shared.known, seed
        init = Generator().manual_seed(seed.child("init").integer())
        self.model = ContrastiveAutoencoder(n_domains, dim, generator=init)
        self._computer = _computer(self.model, shared, config, n_threads=n_threads)
        self._optimizer = Adam(self.model, learning_rate=config.learning_rate)
        somewhere = np.flatnonzero(shared.known.any(axis=1))
        order = own(seed).child("held out").numpy().permutation(somewhere)
        n_held_out = max(1, round(config.held_out * len(order)))
        self._held_out = order[:n_held_out]
        # with so few users that none is left, train on all of them
        self._rows = order[n_held_out:] if len(order) > n_held_out else order

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        stream = own(self._seed).child("epoch", str(number))
        order = stream.numpy().permutation(self._rows)
        loss: float | Tensor = 0.0
        for one in self._computer.learn(order, self._visible(order, stream.child("masks"))):
            self._optimizer.step()
            loss = loss + one
        # asked for once an epoch: each time a GPU is waited for
        return total(float(loss)) / total(len(order))

    def validate(self) -> float:
        """Minus the loss on held-out users, under masks that are the same every time."""
        visible = self._visible(self._held_out, own(self._seed).child("valid"))
        losses = self._computer.losses(self._held_out, visible)
        return -total(float(sum(losses))) / total(len(self._held_out))

    def encode(self) -> Float32[np.ndarray, "user dim"]:
        """See `Computer.encode`."""
        return self._computer.encode()

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        return self._optimizer.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self._optimizer.restore(state)

    def _visible(
        self, rows: Int[np.ndarray, " user"], seed: Seed
    ) -> Bool[np.ndarray, "user domain"]:
        known, generator = self._known[rows], Generator().manual_seed(seed.integer())
        return mask_one(known, torch.rand(known.shape, generator=generator).numpy())
