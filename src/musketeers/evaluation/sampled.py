"""Each test item among a few random ones: to stand beside papers that measure so, and no more.

These numbers are no estimate of the full ranking's.  A list of a hundred is easy to lead, and how
much easier depends on the model: two models can change places (Krichene and Rendle, On Sampled
Metrics for Item Recommendation, KDD 2020).  So nothing is chosen by them.
"""

import math
from typing import no_type_check

import numpy as np
from jaxtyping import Float64, Int64
from numba import njit

from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.evaluation.evaluate import PerUser, check_tables, evaluate
from musketeers.parallel import each
from musketeers.protocols import Scorer
from musketeers.ranking import check_finite
from musketeers.seeding import Seed

PREFIX = "sampled_"
"""What the names of these metrics begin with."""

_BLOCK = 1024
"""Test pairs that share a random stream, whatever the threads; part of the result."""


def among_random(
    scorer: Scorer,
    test: Interactions,
    seen: Interactions,
    seed: Seed,
    *,
    n_negatives: int = 99,
    k: int = 10,
    n_threads: int,
) -> PerUser:
    r"""``sampled_hr@k`` and ``sampled_ndcg@k``, the mean of each user's test items.

    A test item at rank r among itself and the negatives gives 1 and $1 / \log_2(r + 1)$ if
    $r \le k$, else 0.  The negatives are distinct, uniform among the items that are neither in
    `seen` (train and valid) nor in `test` for this user, and drawn for each test item anew; a user
    who has fewer such items gets them all.  They depend on `seed` alone, so all models face the
    same.

    Where negatives have the same exact score as the test item, it gets the mean over all orders of
    them (McSherry and Najork, ECIR 2008): a model that scores everything alike has a hit rate of
    k / (1 + negatives), as one that guesses.

    Raises `DataError` for a `k` or `n_negatives` below 1, tables of other shapes, and scores that
    are not finite.
    """
    for what, number in (("k", k), ("n_negatives", n_negatives)):
        if number < 1:
            raise DataError(f"{what} is {number}; it must be at least 1")
    check_tables(test, seen)
    users = np.flatnonzero(test.known_users())
    check_finite(scorer, users)
    pair_users, known = test.users(), test.union(seen)
    hits, gains = np.empty(len(test)), np.empty(len(test))
    # what the first 0, 1, ... ranks hold in all
    ranks = np.arange(n_negatives + 2)
    all_hits = np.minimum(ranks, k).astype(np.float64)
    all_gains = np.cumsum(
        np.where(ranks > 0, 1 / np.log2(np.maximum(ranks, 1) + 1), 0) * (ranks <= k)
    )

    def measure(number: int) -> None:
        block = slice(number * _BLOCK, (number + 1) * _BLOCK)
        rows = pair_users[block]
        uniform = seed.child(str(number)).numpy().random((len(rows), n_negatives))
        # the places of missing negatives hold the test item, a row that every scorer has
        items = np.repeat(test.items[block, np.newaxis], 1 + n_negatives, axis=1)
        counts = np.empty(len(rows), dtype=np.int64)
        _draw(uniform, rows, known.indptr, known.items, known.n_items, items[:, 1:], counts)
        exact = scorer.exact(rows, items)
        there = np.arange(n_negatives) < counts[:, np.newaxis]
        above = np.count_nonzero(there & (exact[:, 1:] > exact[:, :1]), axis=1)
        equal = np.count_nonzero(there & (exact[:, 1:] == exact[:, :1]), axis=1)
        hits[block] = _mean_over_ranks(all_hits, above, equal)
        gains[block] = _mean_over_ranks(all_gains, above, equal)

    each(measure, math.ceil(len(test) / _BLOCK), n_threads=n_threads)
    found = {f"{PREFIX}hr@{k}": hits, f"{PREFIX}ndcg@{k}": gains}
    n_test = test.counts()[users]
    return PerUser(
        users, {name: np.bincount(pair_users, all_)[users] / n_test for name, all_ in found.items()}
    )


def measure(scorer: Scorer, split: Split, seed: Seed, *, sampled: bool, n_threads: int) -> PerUser:
    """`evaluate` on the split's test items, and after its metrics the sampled ones if asked for.

    `seed` is the stream of the negatives.
    """
    seen = split.seen()
    found = evaluate(scorer, split.test, seen, n_threads=n_threads)
    if not sampled:
        return found
    return found.joined(among_random(scorer, split.test, seen, seed, n_threads=n_threads))


def _mean_over_ranks(
    totals: Float64[np.ndarray, " rank"],
    above: Int64[np.ndarray, " pair"],
    equal: Int64[np.ndarray, " pair"],
) -> Float64[np.ndarray, " pair"]:
    """The mean value of ranks above + 1 ... above + equal + 1."""
    return (totals[above + equal + 1] - totals[above]) / (equal + 1)


# A compiled loop: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@njit(nogil=True, cache=True)
@no_type_check
def _draw(uniform, users, indptr, known, n_items, negatives, counts):
    """Distinct items that are none of the user's known ones, and how many there are to have.

    Floyd's algorithm draws places among the unknown items (Bentley and Floyd, CACM 1987); the
    known ones, which ascend, then push each place up to its item.
    """
    for row in range(len(users)):
        mine = known[indptr[users[row]] : indptr[users[row] + 1]]
        n_unknown = n_items - len(mine)
        count = min(negatives.shape[1], n_unknown)
        places = np.empty(count, dtype=np.int64)
        for n in range(count):
            last = n_unknown - count + n
            place = int(uniform[row, n] * (last + 1))
            places[n] = last if np.any(places[:n] == place) else place
        for n in range(count):
            low, high = 0, len(mine)
            while low < high:
                middle = (low + high) // 2
                if mine[middle] - middle <= places[n]:
                    low = middle + 1
                else:
                    high = middle
            negatives[row, n] = places[n] + low
        counts[row] = count
