"""Learn what of a user is the same in every domain."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Generator, Tensor

from musketeers import modules
from musketeers.cat.losses import info_nce, reconstruction
from musketeers.cat.model import ContrastiveAutoencoder
from musketeers.config import CatConfig
from musketeers.device import gpu
from musketeers.exchange import UserEmbeddings
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
        model.to(_device())
        return _encoded(model, *_tensors(shared)) / np.float32(self.length)


def align(shared: UserEmbeddings, config: CatConfig, seed: Seed, job: Job) -> Aligned:
    """One domain-independent embedding for every user, known in however many domains."""
    training = _Alignment(shared, config, seed)
    history = fit(
        training,
        max_epochs=config.max_epochs,
        patience=config.patience,
        checkpoint=job.checkpoint("cat"),
        on_epoch=job.on_epoch,
    )
    users = training.encode()
    length = float(np.linalg.norm(users, axis=1).mean()) or 1.0
    weights = modules.weights_of(training.model)
    return Aligned(users / np.float32(length), length, weights, history)


def mask_one(
    known: Bool[Tensor, "user domain"], generator: Generator
) -> Bool[Tensor, "user domain"]:
    """Hide one random known domain of each user, but never the only one."""
    noise = torch.rand(known.shape, generator=generator, device=known.device)
    noise = noise.masked_fill(~known, -1.0)
    hidden = torch.zeros_like(known).scatter_(1, noise.argmax(1, keepdim=True), value=True)
    return known & ~(hidden & (known.sum(1, keepdim=True) > 1))


class _Alignment:
    """The `Trainable` of stage 2."""

    def __init__(self, shared: UserEmbeddings, config: CatConfig, seed: Seed) -> None:
        _, n_domains, dim = shared.values.shape
        self._values, self._known = _tensors(shared)
        self._config, self._seed = config, seed
        init = Generator().manual_seed(seed.child("init").integer())
        self.model = ContrastiveAutoencoder(n_domains, dim, generator=init).to(_device())
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=0
        )
        somewhere = np.flatnonzero(shared.known.any(axis=1))
        order = seed.child("held out").numpy().permutation(somewhere)
        n_held_out = max(1, round(config.held_out * len(order)))
        self._held_out = torch.from_numpy(order[:n_held_out]).to(_device())
        # with so few users that none is left, train on all of them
        self._rows = order[n_held_out:] if len(order) > n_held_out else order

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        stream = self._seed.child("epoch", str(number))
        order = torch.from_numpy(stream.numpy().permutation(self._rows)).to(_device())
        generator = _generator(stream.child("masks"))
        losses: list[Tensor] = []
        for rows in order.split(self._config.batch_size):
            self._optimizer.zero_grad()
            loss = self._loss(rows, generator)
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach().double() * len(rows))
        # asked for once an epoch: each time a GPU is waited for
        return float(sum(losses)) / len(order)

    def validate(self) -> float:
        """Minus the loss on held-out users, under masks that are the same every time."""
        generator = _generator(self._seed.child("valid"))
        with torch.no_grad():
            losses = [
                self._loss(rows, generator).double() * len(rows)
                for rows in self._held_out.split(self._config.batch_size)
            ]
        return -float(sum(losses)) / len(self._held_out)

    def encode(self) -> Float32[np.ndarray, "user dim"]:
        """Every user's embedding from all that is known of them."""
        return _encoded(self.model, self._values, self._known)

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        return modules.state_of(self.model, self._optimizer)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        modules.restore(self.model, self._optimizer, state)

    def _loss(self, rows: Tensor, generator: Generator) -> Float[Tensor, ""]:
        """0.2 contrast + 0.4 reconstruction of each view, at the default weight.

        For the plain autoencoder, the reconstruction of the whole view alone.
        """
        values, known = self._values[rows], self._known[rows]
        whole, rebuilt = self.model(values, known)
        rebuild = reconstruction(rebuilt, values, known)
        if self._config.loss == "reconstruction":
            return rebuild
        visible = mask_one(known, generator)
        part, rebuilt_from_part = self.model(values, visible)
        contrast = info_nce(
            whole, part, (visible != known).any(1), temperature=self._config.temperature
        )
        rebuild_from_part = reconstruction(rebuilt_from_part, values, known)
        weight = self._config.contrast_weight
        return weight * contrast + (1 - weight) / 2 * (rebuild + rebuild_from_part)


def _tensors(shared: UserEmbeddings) -> tuple[Tensor, Tensor]:
    # coordinates of about unit variance, which the initial weights are made for
    scale = np.float32(np.sqrt(shared.values.shape[2]))
    values, known = torch.from_numpy(shared.values * scale), torch.from_numpy(shared.known)
    return values.to(_device()), known.to(_device())


def _device() -> torch.device:
    return gpu() or torch.device("cpu")


def _generator(seed: Seed) -> Generator:
    return Generator(_device()).manual_seed(seed.integer())


def _encoded(
    model: ContrastiveAutoencoder,
    values: Float[Tensor, "user domain dim"],
    known: Bool[Tensor, "user domain"],
) -> Float32[np.ndarray, "user dim"]:
    with torch.no_grad():
        parts = [
            model.encode(*part) for part in zip(values.split(8192), known.split(8192), strict=True)
        ]
    return torch.cat(parts).cpu().numpy()
