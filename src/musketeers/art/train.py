"""A target domain learns what to take from the others."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int
from torch import Generator, Tensor

from musketeers.art.inputs import Batch, Inputs, Lesson, blocks
from musketeers.art.lanes import Lanes
from musketeers.art.model import AttentionTransfer
from musketeers.art.network import Weights
from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.device import gpu
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.group import group, in_steps, mean_of, own, total
from musketeers.modules import Adam, weights_of
from musketeers.parallel import available_threads
from musketeers.pretrain.lanes import lanes_for
from musketeers.pretrain.mf import Pretrained
from musketeers.pretrain.sharded import ItemTable, item_table, rows_held
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
    weights = weights_of(training.model)
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
    inputs = Inputs.of(target, alone, shared, aligned, config)
    weights, items = Weights(**made.weights), made.factors.items
    return inputs.factors(weights, items, n_threads=available_threads())


def attention(
    target: str,
    made: Transferred,
    alone: Pretrained,
    shared: UserEmbeddings,
    aligned: Float32[np.ndarray, "user dim"],
    config: RunConfig,
) -> Float32[np.ndarray, "user source"]:
    """How much each source counts for each user of any domain, as `config.art.sources` has it."""
    inputs, weights = Inputs.of(target, alone, shared, aligned, config), Weights(**made.weights)
    return np.concatenate(
        [inputs.attention(weights, rows) for rows in blocks(np.arange(len(aligned)))]
    )


@runtime_checkable
class Computer(Protocol):
    """Where a step of stage 3 is computed."""

    def learn(self, batches: Iterable[Batch], key: np.uint64) -> Iterator[float | Tensor]:
        """Batch by batch the summed loss; the network's parameters have its slopes then.

        Items have learned by the end.  `key` is that of the negatives.
        """
        ...


def _computer(
    model: AttentionTransfer, inputs: Inputs, lesson: Lesson, items: ItemTable
) -> Computer:
    """The GPU if there is one to be used, with the model moved there."""
    device = gpu()
    if device is None:
        return Lanes(model, inputs, lesson, items)
    from musketeers.art.on_gpu import OnGpu  # without a GPU there may be no Triton

    return OnGpu(model.to(device), inputs, lesson, items, device)


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
        self._inputs = Inputs.of(target, alone, shared, aligned, config)
        init = Generator().manual_seed(seed.child("init").integer())
        n_sources = len(self._inputs.sources)
        self.model = AttentionTransfer(n_sources, aligned.shape[1], generator=init)
        n_lanes = lanes_for(validation.n_threads)
        how, n_items = config.pretrain, split.train.n_items
        rows = rows_held(n_items, how.item_tables)
        self.lanes = item_table(
            alone.factors.items[rows], alone.item_squares[rows], how.item_tables,
            n_items=n_items, n_lanes=n_lanes, n_candidates=how.candidates,
        )  # fmt: skip
        lesson = Lesson(
            split.train,
            mean_of(alone.factors.users[self._trained]),
            alone.learning_rate,
            alone.regularization,
            config.pretrain.candidates,
        )
        self._computer = _computer(self.model, self._inputs, lesson, self.lanes)
        self._optimizer = Adam(self.model, learning_rate=config.art.learning_rate)

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        stream = own(self._seed).child("epoch", str(number))
        key = np.uint64(stream.child("negatives").integer())
        loss: float | Tensor = 0.0
        for one in self._computer.learn(self._batches(stream), key):
            self._optimizer.step()
            loss = loss + one
        # asked for once an epoch: each time a GPU is waited for
        return total(float(loss)) / max(total(len(self._train)), 1)

    def validate(self) -> float:
        """See `Trainable.validate`."""
        return self._validation.ndcg(self.factors(of=self._validation.users))

    def factors(self, *, of: Int[np.ndarray, " row"] | None = None) -> Factors:
        """The model as it is now; see `Inputs.factors`."""
        return self._inputs.factors(
            self.model.weights(), self.lanes.table(), n_threads=self._validation.n_threads, of=of
        )

    def mean_attention(self) -> dict[str, float]:
        """See `Transferred.attention`."""
        if self._config.sources == "none":
            return {}
        inputs, told = self._inputs, self._inputs.everybody
        somewhere = told.known[:, told.sources].any(1)
        rows = np.flatnonzero(told.known[:, told.target] & somewhere)
        sums = np.zeros(len(inputs.sources), np.float32)
        for block in blocks(rows):
            sums += inputs.attention(self.model.weights(), block).sum(0)
        group().add(sums)
        means = sums / max(int(total(len(rows))), 1)
        return dict(zip(inputs.sources, means.tolist(), strict=True))

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        items = {"items": self.lanes.items, "item_squares": self.lanes.squares}
        return {**self._optimizer.state(), **items}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self._optimizer.restore(state)
        self.lanes.restore(state["items"], state["item_squares"])

    def _batches(self, stream: Seed) -> Iterator[Batch]:
        """An epoch's users in a random order, with what dropout leaves of their inputs."""
        order = stream.numpy().permutation(self._trained)
        dropout = stream.child("dropout").numpy()
        how, told = self._config, self._inputs.everybody
        for users in in_steps(order, how.batch_size):
            known = told.known[users][:, told.sources]
            # whoever is known nowhere else keeps the own vector: nothing could stand in for it
            seen = (dropout.random(len(users)) >= how.target_dropout) | ~known.any(1)
            kept = dropout.random(known.shape) >= how.dropout
            kept = (kept / (1 - how.dropout)).astype(np.float32)
            # items learn from users as they will be served, the network from both
            learns = seen & (how.items == "tuned")
            strengths = (how.regularization * self._counts[users]).astype(np.float32)
            yield Batch(users, seen, self._inputs.weighing[users] * kept, learns, strengths)
