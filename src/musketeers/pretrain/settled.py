"""Vectors that BPR did not make, as stage 3 can go on from them."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.pretrain import kernels
from musketeers.pretrain.mf import Pretrained
from musketeers.pretrain.tables import SQUARES_AT_START
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History

_EPOCHS = 30
"""Passes that items count as having learned: about as many as stage 1 takes."""

_REGULARIZATION = 0.02
"""Near where stage 1's search ends on most data."""

_LOG_SCALES = (-15.0, 15.0)


def settled(
    factors: Factors,
    split: Split,
    config: PretrainConfig,
    seed: Seed,
    history: tuple[History, ...],
) -> Pretrained:
    """The vectors in BPR's units, and Adagrad's sums as if BPR had ended there; the same ranking.

    Stage 3 learns by BPR, to which a score is a logit.  So all scores are multiplied by the number
    at which the validation pairs, each against one item drawn for it, have the least mean
    softplus(-x), and users and items get the same mean length.  The items' sums are `_EPOCHS` times
    what one pass over the training pairs adds while nothing moves; with sums of 0 the first steps
    would throw away where the items are.  A user without training pairs gets the mean of the
    others, as in `mf.pretrain`.
    """
    known = split.train.known_users()
    users, items = factors.users.copy(), factors.items
    users[~known] = users[known].mean(axis=0)
    lengths = [np.linalg.norm(table, axis=1).mean() for table in (users[known], items)]
    # a regularisation that is far too strong leaves vectors of 0, which no factor changes
    balance = np.sqrt(lengths[1] / lengths[0]) if all(lengths) else 1.0
    root = np.sqrt(_scale(users, items, split, seed))
    users *= np.float32(root * balance)
    items = items * np.float32(root / balance)
    squares = np.full(len(items), SQUARES_AT_START, np.float32)
    kernels.train_users(
        np.flatnonzero(known), split.train.indptr, split.train.items,
        users.copy(), np.full(len(users), SQUARES_AT_START, np.float32),
        items.copy(), squares, np.zeros(len(items), np.bool_), None,
        np.float32(0), np.float32(_REGULARIZATION), config.candidates,
        np.uint64(seed.child("squares").integer()),
    )  # fmt: skip
    return Pretrained(
        Factors(users, items), _EPOCHS * squares, _REGULARIZATION, config.learning_rate, history
    )


def _scale(users: np.ndarray, items: np.ndarray, split: Split, seed: Seed) -> float:
    """What makes logits of the scores; above 0."""
    rows, liked = split.valid.users(), split.valid.items
    drawn = seed.child("scale").numpy().integers(len(items), size=len(liked))
    gaps = np.einsum("pd,pd->p", users[rows], items[liked] - items[drawn], dtype=np.float64)

    def loss(log_scale: float) -> float:
        return float(np.logaddexp(0, -np.exp(log_scale) * gaps).mean())

    found: Any = minimize_scalar(loss, bounds=_LOG_SCALES, method="bounded")
    return float(np.exp(found.x))
