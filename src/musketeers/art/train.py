"""A target domain learns what to take from the others."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Generator

from musketeers import modules
from musketeers.art import network
from musketeers.art.model import AttentionTransfer
from musketeers.art.network import Told, Weights
from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.pretrain.lanes import ItemLanes
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit


@dataclass(frozen=True, slots=True, eq=False)
class Transferred:
    """A target domain that learned from the others."""

    factors: Factors
    kept: bool
    """Whether validation told the gain from noise; if not, the factors are the domain's alone."""
    attention: Mapping[str, float]
    """Mean weight of each source over the target's users whom any source knows, as
    `config.art.sources` has it; empty if nothing was kept, or if no source is asked."""
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
    """The target's best model by validation NDCG@10, or its start, the domain alone.

    The start stays unless the best is better by more than one standard error of the gain
    (`Validation.is_better`).

    Every user embedding is fixed (Algorithm 1 of the paper); the network learns, and the
    target's items go on learning unless `config.art.items` is fixed.  Given
    ``shared.hidden()`` this is the items control: the same training without any transfer.
    """
    training = _Transfer(target, split, validation, alone, shared, aligned, config, seed)
    start = {name: value.copy() for name, value in training.state().items()}
    history = fit(
        training,
        max_epochs=config.art.max_epochs,
        patience=config.art.patience,
        checkpoint=job.checkpoint("art"),
        on_epoch=job.on_epoch,
    )
    kept = validation.is_better(training.factors(), alone.factors)
    if not kept:
        training.restore(start)
    attention = training.mean_attention() if kept else {}
    weights = modules.weights_of(training.model)
    return Transferred(training.factors(), kept, attention, weights, history)


def served(
    target: str,
    made: Transferred,
    alone: Pretrained,
    shared: UserEmbeddings,
    aligned: Float32[np.ndarray, "user dim"],
    config: RunConfig,
) -> Factors:
    """The trained target, told of other embeddings than it learned from: what of them matters?

    Given those it learned from, this is ``made.factors``.  Items stay as they are.
    """
    inputs = _Inputs.of(target, alone, shared, aligned, config)
    return inputs.factors(Weights(**made.weights), made.factors.items)


def attention(
    target: str,
    made: Transferred,
    alone: Pretrained,
    shared: UserEmbeddings,
    aligned: Float32[np.ndarray, "user dim"],
    config: RunConfig,
) -> Float32[np.ndarray, "user source"]:
    """How much each source counts for each user of any domain, as `config.art.sources` has it."""
    inputs, weights = _Inputs.of(target, alone, shared, aligned, config), Weights(**made.weights)
    return np.concatenate([inputs.attention(weights, rows) for rows in _blocks(len(aligned))])


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """All that a target's users have to say in stage 3."""

    everybody: Told
    sources: tuple[str, ...]
    alone: Float32[np.ndarray, "user dim"]
    length: np.float32
    """Of the target's vectors; what the network adds is in this unit."""
    sharpness: float
    weighing: Float32[np.ndarray, "user source"]

    @classmethod
    def of(
        cls,
        target: str,
        alone: Pretrained,
        shared: UserEmbeddings,
        aligned: Float32[np.ndarray, "user dim"],
        config: RunConfig,
    ) -> "_Inputs":
        index, sources = shared.index(target), shared.without(target)
        everybody = Told(
            shared.values[:, index],
            shared.known[:, index],
            sources.values.transpose(1, 0, 2),
            sources.known,
            aligned if config.art.shared else np.zeros_like(aligned),
        )
        sharpness, factors = network.weighing(config.art.sources, sources.known, aligned.shape[1])
        length = np.float32(shared.lengths[index])
        return cls(everybody, sources.domains, alone.factors.users, length, sharpness, factors)

    def forward(
        self, weights: Weights, rows: Int[np.ndarray, " batch"]
    ) -> tuple[np.ndarray, network.Trace]:
        """What transfer adds, in units of the target's length, without any dropout."""
        nobody_hidden = np.ones(len(rows), np.bool_)
        told = network.told_of(self.everybody, rows, nobody_hidden, weights.pad)
        return network.forward(weights, told, self.sharpness, self.weighing[rows])

    def attention(
        self, weights: Weights, rows: Int[np.ndarray, " batch"]
    ) -> Float32[np.ndarray, "batch source"]:
        """The weights in use; 0 for a source that does not know the user."""
        _, trace = self.forward(weights, rows)
        return trace.attention * self.weighing[rows]

    def factors(self, weights: Weights, items: Float32[np.ndarray, "item dim"]) -> Factors:
        """The model; user vectors of all users."""
        users = self.alone.copy()
        for rows in _blocks(len(users)):
            users[rows] += self.length * self.forward(weights, rows)[0]
        return Factors(users, items)


def _blocks(n_users: int) -> Iterator[Int[np.ndarray, " row"]]:
    """All users, as many at a time as need little memory."""
    for start in range(0, n_users, 8192):
        yield np.arange(start, min(start + 8192, n_users))


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
        self._inputs = _Inputs.of(target, alone, shared, aligned, config)
        # what stage 1 gives a user without history
        self._mean = alone.factors.users[self._trained].mean(0)
        self._regularization = np.float32(alone.regularization)
        self._rate = np.float32(alone.learning_rate)
        self._candidates = config.pretrain.candidates
        init = Generator().manual_seed(seed.child("init").integer())
        n_sources = len(self._inputs.sources)
        self.model = AttentionTransfer(n_sources, aligned.shape[1], generator=init)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.art.learning_rate, weight_decay=0, fused=True
        )
        self.lanes = ItemLanes(
            alone.factors.items, alone.item_squares, n_lanes=validation.n_threads
        )

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        stream = self._seed.child("epoch", str(number))
        order = stream.numpy().permutation(self._trained)
        dropout = stream.child("dropout").numpy()
        key = np.uint64(stream.child("negatives").integer())
        loss, waiting = 0.0, 0
        for start in range(0, len(order), self._config.batch_size):
            users = order[start : start + self._config.batch_size]
            loss += self._step(users, dropout, key)
            waiting += int(self._counts[users].sum())
            if waiting >= self.lanes.block:
                self.lanes.merge()
                waiting = 0
        self.lanes.merge()
        return loss / max(len(self._train), 1)

    def validate(self) -> float:
        """See `Trainable.validate`."""
        return self._validation.ndcg(self.factors())

    def factors(self) -> Factors:
        """The model as it is now; user vectors of all users."""
        return self._inputs.factors(self.model.weights(), self.lanes.items)

    def mean_attention(self) -> dict[str, float]:
        """See `Transferred.attention`."""
        if self._config.sources == "none":
            return {}
        inputs, told = self._inputs, self._inputs.everybody
        rows = np.flatnonzero(told.target_known & told.sources_known.any(1))
        means = inputs.attention(self.model.weights(), rows).sum(0) / max(len(rows), 1)
        return dict(zip(inputs.sources, means.tolist(), strict=True))

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        items = {"items": self.lanes.items, "item_squares": self.lanes.squares}
        return {**modules.state_of(self.model, self._optimizer), **items}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        modules.restore(self.model, self._optimizer, state)
        self.lanes.restore(state["items"], state["item_squares"])

    def _step(
        self, users: Int[np.ndarray, " batch"], dropout: np.random.Generator, key: np.uint64
    ) -> float:
        """One pass over all items of a batch of users, one step of the network; the summed loss."""
        known = self._inputs.everybody.sources_known[users]
        # whoever is known nowhere else keeps the own vector: nothing could stand in for it
        seen = (dropout.random(len(users)) >= self._config.target_dropout) | ~known.any(1)
        kept = dropout.random(known.shape) >= self._config.dropout
        kept = (kept / (1 - self._config.dropout)).astype(np.float32)
        factors = self._inputs.weighing[users] * kept
        job = partial(self._learn, self.model.weights(), users, seen, factors, key)
        losses, gradients = zip(*self.lanes.run(self._counts[users], job), strict=True)
        for weight, *parts in zip(self.model.parameters(), *gradients, strict=True):
            weight.grad = torch.from_numpy(reduce(np.add, parts))
        self._optimizer.step()
        return sum(losses)

    def _learn(
        self,
        weights: Weights,
        users: np.ndarray,
        seen: np.ndarray,
        factors: np.ndarray,
        key: np.uint64,
        part: slice,
        items: np.ndarray,
        squares: np.ndarray,
        touched: np.ndarray,
    ) -> tuple[float, Weights]:
        """One lane's part of a step (`lanes.Job`)."""
        users, seen, factors = users[part], seen[part], factors[part]
        inputs = self._inputs
        # items learn from users as they will be served, the network from both
        learns = seen & (self._config.items == "tuned")
        strengths = (self._config.regularization * self._counts[users]).astype(np.float32)
        return network.learn(
            weights, inputs.everybody, users, seen, inputs.sharpness, factors,
            inputs.alone, self._mean, inputs.length, strengths, learns,
            self._train.indptr, self._train.items, items, squares, touched,
            self._rate, self._regularization, self._candidates, key,
        )  # fmt: skip
