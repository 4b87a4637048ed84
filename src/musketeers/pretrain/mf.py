"""Matrix factorisation of one domain alone (SMF): a user's taste for an item is u.v, by BPR."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from jaxtyping import Float32

from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.pretrain import kernels
from musketeers.pretrain.lanes import ItemLanes, even_parts
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit

SQUARES_AT_START = 1e-3
"""Adagrad's sums before the first step; bounds the first steps at about 30 learning rates."""

MERGES = 4
"""Merges in an epoch at least, however few interactions there are."""


@dataclass(frozen=True, slots=True, eq=False)
class Pretrained:
    """One domain that learned alone, and what its next stage goes on from."""

    factors: Factors
    item_squares: Float32[np.ndarray, " item"]
    """Adagrad's sums of the items: how far each has settled."""
    regularization: float
    """The strength that validation chose."""
    history: tuple[History, ...]
    """One for each strength tried, in that order."""


def pretrain(
    split: Split,
    validation: Validation,
    config: PretrainConfig,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> Pretrained:
    """The domain's best model by validation NDCG@10.

    How much regularisation a data set needs differs tenfold between the ones tried, and a wrong
    strength costs more than any transfer gains.  So a domain is trained at
    `config.regularization`, then anew at half of it, until a halving brings nothing better.
    (Going on from the stronger model instead costs less and ends worse: dimensions that
    strong regularisation has emptied do not come back.)
    """
    best: tuple[_Factorization, float] | None = None
    histories: list[History] = []
    for halving in range(config.halvings + 1):
        strength = config.regularization / 2**halving
        model = _Factorization(split, validation, config, seed, dim=dim, strength=strength)
        history = fit(
            model,
            max_epochs=config.max_epochs,
            patience=config.patience,
            checkpoint=job.checkpoint(f"regularization-{halving}"),
            on_epoch=job.on_epoch,
        )
        histories.append(history)
        if best is not None and history.best.valid <= max(h.best.valid for h in histories[:-1]):
            break
        best = model, strength
    return _result(split, *cast(tuple[_Factorization, float], best), tuple(histories))


def _result(
    split: Split, model: "_Factorization", strength: float, history: tuple[History, ...]
) -> Pretrained:
    # one who has no history here is taken for the mean user until another domain says more
    known = split.train.known_users()
    model.users[~known] = model.users[known].mean(axis=0)
    factors = Factors(model.users, model.lanes.items)
    return Pretrained(factors, model.lanes.squares, strength, history)


class _Factorization:
    """The `Trainable` of stage 1."""

    def __init__(
        self,
        split: Split,
        validation: Validation,
        config: PretrainConfig,
        seed: Seed,
        *,
        dim: int,
        strength: float,
    ) -> None:
        train = split.train
        self._train, self._config, self._seed = train, config, seed
        self._validation = validation
        self._known = np.flatnonzero(train.known_users())
        self._counts = train.counts()
        rng = seed.child("init").numpy()
        scale = np.float32(config.init_scale / np.sqrt(dim))
        self.users = scale * rng.standard_normal((train.n_users, dim), dtype=np.float32)
        items = scale * rng.standard_normal((train.n_items, dim), dtype=np.float32)
        self._squares = np.full(train.n_users, SQUARES_AT_START, np.float32)
        squares = np.full(train.n_items, SQUARES_AT_START, np.float32)
        self.lanes = ItemLanes(items, squares, n_lanes=validation.n_threads)
        self._strength = np.float32(strength)

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        stream = self._seed.child("epoch", str(number))
        order = stream.numpy().permutation(self._known)
        key = np.uint64(stream.child("negatives").integer())
        n_blocks = max(MERGES, len(self._train) // self.lanes.block)
        loss = 0.0
        for block in even_parts(self._counts[order], n_blocks):
            users = order[block]
            job = partial(self._train_users, users, key)
            loss += sum(self.lanes.run(self._counts[users], job))
            self.lanes.merge()
        return loss / max(len(self._train), 1)

    def _train_users(
        self,
        users: np.ndarray,
        key: np.uint64,
        part: slice,
        items: np.ndarray,
        squares: np.ndarray,
        touched: np.ndarray,
    ) -> float:
        """One lane's work in a block (`lanes.Job`)."""
        return kernels.train_users(
            users[part], self._train.indptr, self._train.items,
            self.users, self._squares, items, squares, touched,
            np.float32(self._config.learning_rate), self._strength,
            self._config.candidates, key,
        )  # fmt: skip

    def validate(self) -> float:
        """See `Trainable.validate`."""
        return self._validation.ndcg(Factors(self.users, self.lanes.items))

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        return {
            "users": self.users,
            "user_squares": self._squares,
            "items": self.lanes.items,
            "item_squares": self.lanes.squares,
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self.users[:], self._squares[:] = state["users"], state["user_squares"]
        self.lanes.restore(state["items"], state["item_squares"])
