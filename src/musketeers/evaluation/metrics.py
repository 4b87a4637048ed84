"""Ranking metrics: each takes hits by rank and gives one number per user.

All three are NaN for a user without relevant items, whom no ranking can serve well or badly.
"""

from collections.abc import Callable, Mapping
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32
from numba import njit

from musketeers.data.interactions import Interactions


def hits_of(
    ranked: Int32[np.ndarray, "user k"],
    users: Int[np.ndarray, " user"],
    relevant: Interactions,
) -> Bool[np.ndarray, "user k"]:
    """Whether each ranked item is one of the user's relevant ones; -1, an empty place, is not."""
    hits = np.zeros(ranked.shape, dtype=np.bool_)
    _mark_hits(ranked, users, relevant.indptr, relevant.items, hits)
    return hits


def precision(
    hits: Bool[np.ndarray, "user k"], n_relevant: Int[np.ndarray, " user"]
) -> Float64[np.ndarray, " user"]:
    """Hits over k, even where the catalogue has fewer than k items to offer."""
    return _defined(hits.sum(axis=1) / hits.shape[1], n_relevant)


def recall(
    hits: Bool[np.ndarray, "user k"], n_relevant: Int[np.ndarray, " user"]
) -> Float64[np.ndarray, " user"]:
    """Share of a user's relevant items among the first k; below 1 for those with more than k."""
    return _defined(hits.sum(axis=1) / np.maximum(n_relevant, 1), n_relevant)


def ndcg(
    hits: Bool[np.ndarray, "user k"], n_relevant: Int[np.ndarray, " user"]
) -> Float64[np.ndarray, " user"]:
    r"""DCG over that of the best ranking of k, so 1 is within reach of every user.

    $\sum_r h_r / \log_2(r + 1)$, ranks from 1, over the same sum of $\min(k, n)$ hits in front
    (Järvelin and Kekäläinen, 2002, with binary gain).
    """
    k = hits.shape[1]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    # Rank by rank, as the ideal is summed: a perfect ranking gets exactly 1.
    gain = np.zeros(len(hits))
    for rank in range(k):
        gain += hits[:, rank] * discounts[rank]
    ideal = np.cumsum(discounts)[np.clip(n_relevant, 1, k) - 1]
    return _defined(gain / ideal, n_relevant)


METRICS: Mapping[str, Callable[..., np.ndarray]] = {
    "precision": precision,
    "recall": recall,
    "ndcg": ndcg,
}
"""Name -> metric, in the order of every table."""


def _defined(
    values: Float64[np.ndarray, " user"], n_relevant: Int[np.ndarray, " user"]
) -> Float64[np.ndarray, " user"]:
    return np.where(n_relevant > 0, values, np.nan)


@njit(nogil=True, cache=True)
@no_type_check
def _mark_hits(ranked, users, indptr, items, hits):
    for row in range(len(users)):
        relevant = items[indptr[users[row]] : indptr[users[row] + 1]]
        for rank in range(ranked.shape[1]):
            place = np.searchsorted(relevant, ranked[row, rank])
            hits[row, rank] = place < len(relevant) and relevant[place] == ranked[row, rank]
