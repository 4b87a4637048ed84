"""Exact top-k over a whole catalogue, seen items skipped."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64
from numba import njit

from musketeers import inner_products
from musketeers.data.interactions import Interactions
from musketeers.device import gpu
from musketeers.errors import DataError
from musketeers.parallel import each
from musketeers.protocols import OnDevice, Scorer, ScoresOnDevice

if TYPE_CHECKING:
    import torch

    from musketeers.shortlist import Shortlists

TILE_BYTES = 30 * 2**20
"""Size of the scores that all threads hold at once; below 32 MB the C library hands the same pages
out again."""

BOUNDED_FROM = 256
"""So many users at once are worth sorting and rounding the items for (docs/decisions/0027)."""

ITEMS_AT_A_TIME = 1 << 18
"""Of a table on the disk, which are ranked before others are read."""

_BLOCK = 128
_GROUPS_PER_ITEM = 4
_HALF_ULP = 2.0**-24
_TINY = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """What every ranking needs of the items, worked out once."""

    longest: float
    """The largest norm of an item."""
    catalogue: inner_products.Catalogue | None
    """None where this machine has no use for one."""


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A model whose score is an inner product: one vector per user, one per item."""

    users: Float32[np.ndarray, "user dim"]
    items: Float32[np.ndarray, "item dim"]
    ready: Ready | None = None
    """Of these items, which then must not change; see `made_ready`."""

    @property
    def n_items(self) -> int:
        """See `Scorer.n_items`."""
        return len(self.items)

    def made_ready(self) -> "Factors":
        """The same, for many rankings of a few users: each then does without a pass over all items.

        Raises `DataError` for items that are not finite.
        """
        longest = float(_norms(self.items).max(initial=0))
        if not math.isfinite(longest):
            raise DataError("an item's vector is not finite; the model diverged, train it again")
        usable = inner_products.supported(self.items.shape[1])
        catalogue = inner_products.Catalogue.of(self.items) if usable else None
        return replace(self, ready=Ready(longest, catalogue))

    def score(self, users: Int[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch item"]:
        """See `Scorer.score`; one matrix product."""
        return self.users[users] @ self.items.T

    def scores_on(self, device: "torch.device") -> ScoresOnDevice | None:
        """See `OnDevice.scores_on`; one matrix product."""
        import torch

        items = torch.from_numpy(self.items).to(device).T
        return lambda users: torch.from_numpy(self.users[users]).to(device) @ items

    def exact(
        self, users: Int[np.ndarray, " batch"], items: Int[np.ndarray, "batch k"]
    ) -> Float64[np.ndarray, "batch k"]:
        """See `Scorer.exact`; float64 sums, in the order of the dimensions.

        A product of two float32 numbers is exact in float64, so a machine that fuses the
        multiplication with the addition gets the same bits as one that does not.
        """
        result = np.empty(items.shape, dtype=np.float64)
        _inner_products(self.users, self.items, users, items, result)
        return result

    def error(self, users: Int[np.ndarray, " batch"]) -> Float64[np.ndarray, " batch"]:
        r"""See `Scorer.error`; 0 for a user whose vector is 0, inf where float32 may overflow.

        Twice $\gamma_n \lVert u \rVert \max_i \lVert v_i \rVert$ with
        $\gamma_n = n\epsilon / (1 - n\epsilon)$, which holds for any order of summation
        (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and n times the
        smallest normal number for underflow.
        """
        dim = self.items.shape[1]
        gamma = dim * _HALF_ULP / (1 - dim * _HALF_ULP)
        lengths = _norms(self.users[users])
        with np.errstate(invalid="ignore"):
            largest = lengths * (
                self.ready.longest if self.ready else _norms(self.items).max(initial=0)
            )
        bounds = np.where(lengths > 0, 2 * (gamma * largest + dim * _TINY), 0.0)
        return np.where(largest < _LARGEST, bounds, np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best items of each user, best first; equal scores stand in the order of their rows."""

    items: Int32[np.ndarray, "user k"]
    """-1 where a user has fewer than k unseen items."""
    scores: Float64[np.ndarray, "user k"]
    """`Scorer.exact` of each item; NaN where there is none."""


def top_k(
    scorer: Scorer,
    users: Int[np.ndarray, " user"],
    *,
    k: int,
    seen: Interactions | None,
    n_threads: int,
) -> Ranking:
    """The `k` unseen items of the largest exact score for each user, rows of `users` in order.

    Bitwise the same whatever the other users of the call, the threads, and the machine's matrix
    product: fast scores only choose who is scored exactly, with a margin of twice their error.
    Users without anything to tell items apart get the lowest unseen rows.  `k` may exceed the
    catalogue.  Memory beside the result does not grow with users.

    Raises `DataError` for a `k` below 1, users outside the tables, `seen` of another catalogue,
    and scores that are not finite.
    """
    _check(scorer, users, k=k, seen=seen)
    if isinstance(scorer, Factors) and isinstance(scorer.items, np.memmap):
        return _one_range_after_the_other(scorer, users, k=k, seen=seen, n_threads=n_threads)
    margins = 2 * check_finite(scorer, users)
    skip = seen or _nothing(users, n_items=scorer.n_items)
    ranking = Ranking(
        np.full((len(users), k), -1, dtype=np.int32), np.full((len(users), k), np.nan)
    )
    shortlists = _on_gpu(scorer, skip, k=min(k, scorer.n_items))
    if shortlists:
        n_threads, size = 1, shortlists.size
    elif isinstance(scorer, Factors) and (catalogue := _catalogue(scorer, n_users=len(users))):
        inner_products.rank(
            scorer.users, catalogue, users, skip, ranking.items, ranking.scores,
            n_threads=n_threads,
        )  # fmt: skip
        return ranking
    else:
        # as many users in a tile as memory allows, as many tiles for one thread as for another
        size = max(1, TILE_BYTES // (4 * max(1, scorer.n_items) * n_threads))
    n_tiles = math.ceil(len(users) / (size * n_threads)) * n_threads
    edges = np.linspace(0, len(users), n_tiles + 1).astype(np.int64)

    def rank(number: int) -> None:
        tile = slice(edges[number], edges[number + 1])
        part = Ranking(ranking.items[tile], ranking.scores[tile])
        _rank_tile(scorer, users[tile], margins[tile], skip, part, shortlists)

    each(rank, n_tiles, n_threads=n_threads)
    return ranking


def _one_range_after_the_other(
    factors: Factors,
    users: Int[np.ndarray, " user"],
    *,
    k: int,
    seen: Interactions | None,
    n_threads: int,
) -> Ranking:
    """As `top_k`, of items on the disk: memory holds some of them and the best so far."""
    shape = (len(users), k)
    best = Ranking(np.full(shape, -1, np.int32), np.full(shape, np.nan))
    for start in range(0, factors.n_items, ITEMS_AT_A_TIME):
        some = np.asarray(factors.items[start : start + ITEMS_AT_A_TIME])
        found = top_k(
            Factors(factors.users, some), users,
            k=k, seen=seen.within(start, start + len(some)) if seen else None, n_threads=n_threads,
        )  # fmt: skip
        items = np.where(found.items < 0, -1, found.items + np.int32(start))
        scores = np.hstack([best.scores, found.scores])
        # of equal scores those of the range before come first, and nothing (NaN) is last
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best.items[:] = np.take_along_axis(np.hstack([best.items, items]), order, axis=1)
        best.scores[:] = np.take_along_axis(scores, order, axis=1)
    return best


def _catalogue(factors: Factors, *, n_users: int) -> inner_products.Catalogue | None:
    """The items sorted and rounded, where that is done already or worth it."""
    if factors.ready:
        return factors.ready.catalogue
    pays = n_users >= BOUNDED_FROM and inner_products.supported(factors.items.shape[1])
    return inner_products.Catalogue.of(factors.items) if pays else None


def _on_gpu(scorer: Scorer, seen: Interactions, *, k: int) -> "Shortlists | None":
    """What finds candidates on a GPU; None without one, and for a model that does not fit."""
    device = gpu()
    if device is None or not isinstance(scorer, OnDevice):
        return None
    import torch

    from musketeers.shortlist import Shortlists

    try:
        scores = scorer.scores_on(device)
    except torch.OutOfMemoryError:
        return None
    return Shortlists(scores, device, seen, k=k, room=_room(k)) if scores else None


def _room(k: int) -> int:
    """For so many candidates of each user; with more, one is ranked by itself."""
    return 2 * k + 32


def check_finite(scorer: Scorer, users: Int[np.ndarray, " user"]) -> Float64[np.ndarray, " user"]:
    """`Scorer.error` of the users; raises `DataError` where their scores may not be finite."""
    errors = scorer.error(users)
    if not np.isfinite(errors).all():
        user = users[np.flatnonzero(~np.isfinite(errors))[0]]
        raise DataError(
            f"the scores of user row {user} are not finite or exceed float32; the model diverged, "
            "train it again with smaller steps or a stronger regularization"
        )
    return errors


def _check(
    scorer: Scorer, users: Int[np.ndarray, " user"], *, k: int, seen: Interactions | None
) -> None:
    if k < 1:
        raise DataError(f"k is {k}; ask for at least 1 item per user")
    if users.size and users.min() < 0:
        raise DataError(f"user row {users.min()} is negative; rows count from 0")
    if seen is None:
        return
    if seen.n_items != scorer.n_items:
        raise DataError(
            f"the seen items come from a catalogue of {seen.n_items}, the model ranks "
            f"{scorer.n_items}; use the interactions of the domain that the model was trained on"
        )
    if users.size and users.max() >= seen.n_users:
        raise DataError(f"user row {users.max()} is outside the table of {seen.n_users} users")


def _nothing(users: Int[np.ndarray, " user"], *, n_items: int) -> Interactions:
    n_users = int(users.max(initial=-1)) + 1
    no_items = np.empty(0, dtype=np.int32)
    return Interactions.from_csr(np.zeros(n_users + 1, dtype=np.int64), no_items, n_items=n_items)


def _rank_tile(
    scorer: Scorer,
    users: Int[np.ndarray, " user"],
    margins: Float64[np.ndarray, " user"],
    seen: Interactions,
    out: Ranking,
    shortlists: "Shortlists | None",
) -> None:
    """Fill `out` for as many users as have their scores in memory at once."""
    k = min(out.items.shape[1], scorer.n_items)
    if k == 0 or not len(users):
        return
    if shortlists:
        candidates, counts = shortlists.of(users, margins)
    else:
        scores = np.ascontiguousarray(scorer.score(users))
        # Padding is item 0, a row that every scorer has, and is cut off by the counts.
        candidates = np.zeros((len(users), _room(k)), dtype=np.int32)
        counts = np.empty(len(users), dtype=np.int64)
        _select(scores, margins, users, seen.indptr, seen.items, k, candidates, counts)
    _order(scorer, users, candidates[:, : max(counts.max(), 1)], counts, out)
    for row in np.flatnonzero(counts < 0):
        one = slice(row, row + 1)
        scores = scorer.score(users[one])[0]
        chosen = _near_best(scores, float(margins[row]), seen.of(int(users[row])), k)
        part = Ranking(out.items[one], out.scores[one])
        _order(scorer, users[one], chosen[None], np.array([len(chosen)]), part)


def _order(
    scorer: Scorer,
    users: Int[np.ndarray, " user"],
    candidates: Int32[np.ndarray, "user candidate"],
    counts: Int64[np.ndarray, " user"],
    out: Ranking,
) -> None:
    """Sort the first `counts` candidates of each user by exact score; keep as many as fit."""
    k = min(out.items.shape[1], candidates.shape[1])
    padding = np.arange(candidates.shape[1]) >= counts[:, None]
    exact = scorer.exact(users, candidates)
    # Candidates ascend, so a stable sort leaves equal scores in the order of their rows.
    best = np.argsort(np.where(padding, np.inf, -exact), axis=1, kind="stable")[:, :k]
    missing = np.take_along_axis(padding, best, axis=1)
    items = np.take_along_axis(candidates, best, axis=1)
    out.items[:, :k] = np.where(missing, -1, items)
    out.scores[:, :k] = np.where(missing, np.nan, np.take_along_axis(exact, best, axis=1))


def _near_best(
    scores: Float32[np.ndarray, " item"],
    margin: float,
    seen: Int32[np.ndarray, " seen"],
    k: int,
) -> Int32[np.ndarray, " candidate"]:
    """All unseen items within `margin` of the k-th best score, for users with very many of them."""
    items = np.delete(np.arange(len(scores), dtype=np.int32), seen)
    rest = scores[items]
    if len(items) <= k:
        return items
    kth = float(np.partition(rest, len(rest) - k)[len(rest) - k])
    return items[rest.astype(np.float64) >= kth - margin]


def _norms(vectors: Float32[np.ndarray, "row dim"]) -> Float64[np.ndarray, " row"]:
    return np.sqrt(np.einsum("rd,rd->r", vectors, vectors, dtype=np.float64))


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@njit(nogil=True, cache=True)
@no_type_check
def _inner_products(users, items, rows, columns, out):
    for i in range(len(rows)):
        user = users[rows[i]]
        for j in range(columns.shape[1]):
            item = items[columns[i, j]]
            total = 0.0
            for d in range(len(user)):
                total += np.float64(user[d]) * np.float64(item[d])
            out[i, j] = total


@njit(nogil=True, cache=True)
@no_type_check
def kth_largest(values, k):
    """The k-th largest of `values`, which are reordered on the way (Hoare's Find, CACM 1961).

    Compiled code that calls `np.partition` instead takes seconds longer to compile.
    """
    low, high = 0, len(values) - 1
    while low < high:
        pivot = values[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while values[left] > pivot:
                left += 1
            while values[right] < pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if k - 1 <= right:
            high = right
        elif k - 1 >= left:
            low = left
        else:
            break
    return values[k - 1]


@njit(nogil=True, cache=True)
@no_type_check
def _select(scores, margins, users, indptr, seen, k, candidates, counts):
    """Each user's unseen items that may be among the best k, ascending; how many, -1 if too many.

    Seen items' scores become -inf.

    An item outside the exact top k scores at most its k-th best exact score, so whoever is within
    twice the error of the k-th best fast score is kept.
    """
    room = candidates.shape[1]
    items = np.empty(2 * room, dtype=np.int32)
    values = np.empty(2 * room, dtype=np.float32)
    maxima = np.empty(_GROUPS_PER_ITEM * k, dtype=np.float32)
    for row in range(len(users)):
        # out of the way first, so that only items that count set the cut
        for place in range(indptr[users[row]], indptr[users[row] + 1]):
            scores[row, seen[place]] = -np.inf
        cut = _below(_surely_reached(scores[row], k, maxima) - margins[row])
        counts[row] = _scan(scores[row], margins[row], k, room, cut, items, values)
        for j in range(counts[row]):
            candidates[row, j] = items[j]


@njit(nogil=True, cache=True)
@no_type_check
def _surely_reached(scores, needed, maxima):
    """A value that at least `needed` items reach: the needed-th largest maximum of item groups.

    Starting near the k-th best score spares the scan almost all of its climbing.
    """
    width = len(maxima)
    if needed > width or len(scores) < 2 * width:
        return np.float32(-np.inf)
    maxima[:] = scores[:width]
    for first in range(width, len(scores) - width + 1, width):
        group = scores[first : first + width]
        for j in range(width):
            maxima[j] = group[j] if group[j] > maxima[j] else maxima[j]
    return kth_largest(maxima, needed)


@njit(nogil=True, cache=True)
@no_type_check
def _below(bound):
    return np.nextafter(np.float32(bound), np.float32(-np.inf))


@njit(nogil=True, cache=True)
@no_type_check
def _scan(scores, margin, k, room, cut, items, values):
    count = 0
    for first in range(0, len(scores), _BLOCK):
        block = scores[first : first + _BLOCK]
        if not _any_above(block, cut):
            continue
        for j in range(len(block)):
            if not block[j] > cut:
                continue
            items[count] = first + j
            values[count] = block[j]
            count += 1
            if count == len(items):
                count, cut = _drop_hopeless(items, values, count, k, margin, cut)
                if count > room:
                    return -1
    count, _ = _drop_hopeless(items, values, count, k, margin, cut)
    return count if count <= room else -1


@njit(nogil=True, cache=True)
@no_type_check
def _any_above(block, cut):
    # Counting, without an early exit, compiles to vector instructions.
    count = 0
    for j in range(len(block)):
        count += block[j] > cut
    return count > 0


@njit(nogil=True, cache=True)
@no_type_check
def _drop_hopeless(items, values, count, k, margin, cut):
    """Close the gaps that items too far below the k-th best leave; the rest and the new cut.

    With a margin of 0 the scores are exact, and among equal ones the first rows win.
    """
    if count <= k:
        return count, cut
    kth = kth_largest(values[:count].copy(), k)
    cut, ties = kth, 0
    if margin == 0:
        ties = k
        for j in range(count):
            ties -= values[j] > kth
    else:
        cut = _below(kth - margin)
    left = 0
    for j in range(count):
        tied = values[j] == cut and ties > 0
        if tied:
            ties -= 1
        if tied or values[j] > cut:
            items[left] = items[j]
            values[left] = values[j]
            left += 1
    return left, cut
