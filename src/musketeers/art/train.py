"""A target domain learns what to take from the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Generator, Tensor

from musketeers import modules
from musketeers.art.model import AttentionTransfer
from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.pretrain import kernels
from musketeers.pretrain.lanes import ItemLanes
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit


@dataclass(frozen=True, slots=True, eq=False)
class Transferred:
    """A target domain that learned from the others."""

    factors: Factors
    attention: Mapping[str, float]
    """Mean attention weight of each source over the target's users whom any source knows."""
    weights: Mapping[str, np.ndarray]
    history: History


def transfer(
    target: str,
    split: Split,
    validation: Validation,
    alone: Pretrained,
    shared: UserEmbeddings,
    aligned: Float32[np.ndarray, "user dim"],
    config: RunConfig,
    seed: Seed,
    job: Job,
) -> Transferred:
    """The target's best model by validation NDCG@10, its start (the domain alone) included.

    Every user embedding is fixed (Algorithm 1 of the paper); the network learns, and the
    target's items go on learning unless `config.art.items` is fixed.  Given
    ``shared.hidden()`` this is the items control: the same training without any transfer.
    """
    training = _Transfer(target, split, validation, alone, shared, aligned, config, seed)
    history = fit(
        training,
        max_epochs=config.art.max_epochs,
        patience=config.art.patience,
        checkpoint=job.checkpoint("art"),
        on_epoch=job.on_epoch,
    )
    return Transferred(
        training.factors(), training.mean_attention(), modules.weights_of(training.model), history
    )


class _Transfer:
    """The `Trainable` of stage 3."""

    def __init__(
        self,
        target: str,
        split: Split,
        validation: Validation,
        alone: Pretrained,
        shared: UserEmbeddings,
        aligned: Float32[np.ndarray, "user dim"],
        config: RunConfig,
        seed: Seed,
    ) -> None:
        self._train, self._config, self._seed = split.train, config.art, seed
        self._validation = validation
        self._trained = np.flatnonzero(split.train.known_users())
        self._counts = split.train.counts()
        index, sources = shared.index(target), shared.without(target)
        self._sources = sources.domains
        self._length = float(shared.lengths[index])
        self._alone = torch.from_numpy(alone.factors.users)
        # what stage 1 gives a user without history
        self._mean = self._alone[shared.known[:, index]].mean(0)
        self._target = torch.from_numpy(shared.values[:, index])
        self._target_known = torch.from_numpy(shared.known[:, index])
        self._values = torch.from_numpy(sources.values)
        self._known = torch.from_numpy(sources.known)
        self._aligned = torch.from_numpy(aligned)
        self._regularization = alone.regularization
        self._rate = np.float32(config.pretrain.learning_rate if config.art.items == "tuned" else 0)
        self._candidates = config.pretrain.candidates
        init = Generator().manual_seed(seed.child("init").integer())
        self.model = AttentionTransfer(
            len(sources.domains), aligned.shape[1], dropout=config.art.dropout, generator=init
        )
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.art.learning_rate, weight_decay=0, fused=True
        )
        self.lanes = ItemLanes(
            alone.factors.items.copy(), alone.item_squares.copy(), n_lanes=validation.n_threads
        )

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        stream = self._seed.child("epoch", str(number))
        order = stream.numpy().permutation(self._trained)
        generator = Generator().manual_seed(stream.child("dropout").integer())
        key = np.uint64(stream.child("negatives").integer())
        size = self._config.batch_size
        batches = (order[start : start + size] for start in range(0, len(order), size))
        loss = sum(self._step(users, generator, key) for users in batches)
        return loss / max(len(self._train), 1)

    def validate(self) -> float:
        """See `Trainable.validate`."""
        return self._validation.ndcg(self.factors())

    def factors(self) -> Factors:
        """The model as it is now; user vectors of all users."""
        with torch.no_grad():
            rows = torch.arange(len(self._alone)).split(8192)
            users = torch.cat([self._alone[part] + self._added(part) for part in rows])
        return Factors(users.numpy(), self.lanes.items)

    def mean_attention(self) -> dict[str, float]:
        """See `Transferred.attention`."""
        rows = (self._target_known & self._known.any(1)).nonzero().flatten()
        with torch.no_grad():
            weights = self.model.attention(
                self._target[rows],
                self._target_known[rows],
                self.model.adapted(self._values[rows]),
                self._known[rows],
            )
        means = weights.sum(0) / max(len(rows), 1)
        return dict(zip(self._sources, means.tolist(), strict=True))

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        items = {"items": self.lanes.items, "item_squares": self.lanes.squares}
        return {**modules.state_of(self.model, self._optimizer), **items}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        modules.restore(self.model, self._optimizer, state)
        self.lanes.restore(state["items"], state["item_squares"])

    def _added(
        self,
        rows: Int[Tensor, " batch"],
        seen: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """What transfer adds; `seen` says whose own target vector may be looked at."""
        known = self._target_known[rows] if seen is None else seen
        added = self.model(
            self._target[rows], known, self._values[rows], self._known[rows],
            self._aligned[rows], generator=generator,
        )  # fmt: skip
        return self._length * added

    def _step(
        self, users: Int[np.ndarray, " batch"], generator: Generator, key: np.uint64
    ) -> float:
        """One pass over all items of a batch of users, one step of the network; the summed loss.

        The transferred vector depends on the user alone, so one forward and one backward
        pass serve all of a user's items.
        """
        rows = torch.from_numpy(users)
        dropped = torch.rand(len(rows), generator=generator) < self._config.target_dropout
        # whoever is known nowhere else keeps the own vector: nothing could stand in for it
        hidden = dropped & self._known[rows].any(1)
        added = self._added(rows, self._target_known[rows] & ~hidden, generator)
        own = self._alone[rows].where(~hidden.unsqueeze(-1), self._mean)
        vectors = (own + added.detach()).numpy()
        gradients = np.empty_like(vectors)
        loss = 0.0
        # items learn from users as they will be served, the network from both
        for which, rate in ((~hidden, self._rate), (hidden, np.float32(0))):
            loss += self._pass(
                users, which.nonzero().flatten().numpy(), vectors, gradients, rate, key
            )
        weights = torch.from_numpy(self._config.regularization * self._counts[users]).float()
        self._optimizer.zero_grad()
        added.backward(torch.from_numpy(gradients) + weights.unsqueeze(-1) * added.detach())
        self._optimizer.step()
        return loss

    def _pass(
        self,
        users: Int[np.ndarray, " batch"],
        which: Int[np.ndarray, " part"],
        vectors: Float32[np.ndarray, "batch dim"],
        gradients: Float32[np.ndarray, "batch dim"],
        rate: np.float32,
        key: np.uint64,
    ) -> float:
        """The summed loss of those users, their gradients filled in; items learn at `rate`."""
        chosen, own_vectors = users[which], vectors[which]
        own_gradients = np.empty_like(own_vectors)

        job = partial(self._train_items, chosen, own_vectors, own_gradients, rate, key)
        loss = self.lanes.run(self._counts[chosen], job)
        gradients[which] = own_gradients
        return loss

    def _train_items(
        self,
        users: np.ndarray,
        vectors: np.ndarray,
        gradients: np.ndarray,
        rate: np.float32,
        key: np.uint64,
        part: slice,
        items: np.ndarray,
        squares: np.ndarray,
        touched: np.ndarray,
    ) -> float:
        """One lane's work in a batch (`lanes.Job`)."""
        return kernels.train_items(
            users[part], vectors[part], gradients[part],
            self._train.indptr, self._train.items, items, squares, touched,
            rate, np.float32(self._regularization), self._candidates, key,
        )  # fmt: skip
