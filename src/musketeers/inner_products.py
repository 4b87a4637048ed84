"""The best items by inner product, most of them ruled out by bounds in 8-bit integers.

Vectors are rounded to multiples of a scale: ``u = s q + e`` for a user and ``v = r p + f`` for an
item, with q and p of whole numbers in -127..127.  By Cauchy and Schwarz

    u.v <= s r (q.p) + |e| |r p| + |u| |f|

where the product of whole numbers is exact and costs a quarter of one in float32, and the rest is
known before.  Whoever cannot reach the user's k-th best score so far is never looked at again;
whoever can is scored exactly, so that what is found does not depend on the rounding.  Items come in
descending norm: no score exceeds ``|u| |v|``, so a user may stop early.
"""

import math
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, UInt8
from numba import njit

from musketeers.data.interactions import Interactions
from musketeers.instructions import GROUP, STEP, TOGETHER, ask, compiled_for, lowest_bit, reached
from musketeers.memory import on_cache_lines
from musketeers.parallel import each

_GROUPS = 4
"""Groups whose items share a scale; their bytes and those of the users fit the first cache."""
_PANEL = _GROUPS * GROUP
_TILE = 192
"""Users for whom a panel of items is fetched once."""
_WAITING = 4
"""Items of a user that are scored exactly at once, so that no sum waits for its own last step."""
_ROUNDING = 2.0**-50
"""Per dimension; eight times what a float64 sum of so many terms can be off by, relatively."""
_MOST_DIMENSIONS = 2**15
"""With more, a sum of products of bytes may exceed 32 bits."""
_SHARES = 8
"""Shares of the users for each thread, since some users stop earlier than others."""
_INT32_LEAST, _INT32_MOST = -(2.0**31), 2.0**31 - 1

# Columns of the limits of panels and of users; the last two are the users' alone.
_PER_SCALE, _LENGTH, _ERROR, _NORM, _SHIFT, _LEAST = range(6)


def supported(dim: int) -> bool:
    """Whether the loops below can be compiled here: for AVX-512 with its product of bytes."""
    return compiled_for("avx512vnni") and 0 < dim <= _MOST_DIMENSIONS


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Items made ready for any number of users."""

    items: Float32[np.ndarray, "item dim"]
    order: Int32[np.ndarray, " item"]
    """Rows of the items, largest norm first."""
    rounded: UInt8[np.ndarray, "group byte"]
    """p + 128 of each group in turn: four dimensions of all its items, then the next four."""
    limits: Float64[np.ndarray, "panel 4"]
    """1 / r and the largest |p|, |f| / r and |v| of each panel, in the columns named above."""

    @classmethod
    def of(cls, items: Float32[np.ndarray, "item dim"]) -> "Catalogue":
        """Sort and round items, whose numbers must all be finite."""
        items = _plain(items)
        norms = np.einsum("id,id->i", items, items, dtype=np.float64)
        order = _plain(np.argsort(-norms, kind="stable").astype(np.int32))
        n_panels = math.ceil(len(items) / _PANEL)
        width = GROUP * STEP * math.ceil(items.shape[1] / STEP)
        # as the loads of whole registers want it
        rounded = on_cache_lines(n_panels * _GROUPS, width, dtype=np.uint8)
        limits = np.empty((n_panels, 4))
        _round_items(items, order, rounded, limits)
        return cls(items, order, _plain(rounded), _plain(limits))


def rank(
    vectors: Float32[np.ndarray, "row dim"],
    catalogue: Catalogue,
    users: Int[np.ndarray, " user"],
    seen: Interactions,
    items: Int32[np.ndarray, "user k"],
    scores: Float64[np.ndarray, "user k"],
    *,
    n_threads: int,
) -> None:
    """Fill in the best unseen items of ``vectors[users]``, best first, and their scores.

    Scores are float64 sums in the order of the dimensions; among equal ones lower rows win.
    Places beyond a user's last unseen item stay as they are.  All vectors must be finite.
    """
    vectors, indptr, skipped = _plain(vectors), _plain(seen.indptr), _plain(seen.items)
    n_parts = n_threads * min(_SHARES, math.ceil(len(users) / (_TILE * n_threads)))
    edges = np.linspace(0, len(users), n_parts + 1).astype(np.int64)

    def fill(number: int) -> None:
        part = slice(edges[number], edges[number + 1])
        rows = users[part].astype(np.int64)
        _rank_users(
            vectors, rows, catalogue.items, catalogue.order, catalogue.rounded, catalogue.limits,
            indptr, skipped, items[part], scores[part],
        )  # fmt: skip

    each(fill, n_parts, n_threads=n_threads)


def _plain(array: np.ndarray) -> np.ndarray:
    """The same, without gaps and not to be written to: one type, so that loops compile once."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.

_loop = njit(nogil=True, cache=True, error_model="numpy")
_part = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


@_part
@no_type_check
def _scale(vectors, rows):
    """The scale by which the largest number of these rows becomes 127."""
    largest = 0.0
    for row in rows:
        for d in range(vectors.shape[1]):
            largest = max(largest, abs(np.float64(vectors[row, d])))
    return largest / 127.0 if largest > 0.0 else 1.0


@_loop
@no_type_check
def _round_items(items, order, rounded, limits):
    """Fill in `Catalogue.rounded` and `Catalogue.limits`."""
    dim = items.shape[1]
    rounded[:] = 128  # what is left over, dimensions and items, counts as 0
    for panel in range(len(limits)):
        first = panel * _PANEL
        rows = order[first : first + _PANEL]
        scale = _scale(items, rows)
        norm, length, error = 0.0, 0.0, 0.0
        for n in range(len(rows)):
            group, lane = (first + n) // GROUP, (first + n) % GROUP
            squares, integer_squares, error_squares = 0.0, 0.0, 0.0
            for d in range(dim):
                value = np.float64(items[rows[n], d])
                integer = np.rint(value / scale)
                place = (d // STEP) * (GROUP * STEP) + lane * STEP + d % STEP
                rounded[group, place] = np.uint8(integer + 128.0)
                squares += value * value
                integer_squares += integer * integer
                error_squares += (value - scale * integer) ** 2
            norm = max(norm, np.sqrt(squares))
            length = max(length, np.sqrt(integer_squares))
            error = max(error, np.sqrt(error_squares))
        limits[panel, _PER_SCALE] = 1.0 / scale
        limits[panel, _LENGTH] = length * (1.0 + _ROUNDING)
        limits[panel, _ERROR] = (error + dim * _ROUNDING * norm) / scale
        limits[panel, _NORM] = norm * (1.0 + dim * _ROUNDING)


@_loop
@no_type_check
def _round_users(vectors, users, rounded, exact, limits):
    """Each user's q, u in float64, and limits.

    These are 1 / s, |u| / s, |e| / s, |u|, what items' bytes of p + 128 add to q.p, and the score
    that an item must reach to be among the best, -inf until there are k.
    """
    dim = vectors.shape[1]
    for place in range(len(users)):
        scale = _scale(vectors, users[place : place + 1])
        squares, error_squares, total = 0.0, 0.0, 0.0
        for d in range(dim):
            value = np.float64(vectors[users[place], d])
            integer = np.rint(value / scale)
            exact[place, d] = value
            rounded[place, d] = np.int8(integer)
            total += integer
            squares += value * value
            error_squares += (value - scale * integer) ** 2
        norm = np.sqrt(squares)
        limits[place, _PER_SCALE] = 1.0 / scale
        limits[place, _LENGTH] = norm * (1.0 + dim * _ROUNDING) / scale
        limits[place, _ERROR] = (np.sqrt(error_squares) + dim * _ROUNDING * norm) / scale
        limits[place, _NORM] = norm * (1.0 + dim * _ROUNDING)
        limits[place, _SHIFT] = 128.0 * total
        limits[place, _LEAST] = -np.inf


@_loop
@no_type_check
def _rank_users(
    vectors, users, items, order, groups, panels, indptr, seen, best_items, best_scores
):
    """See `rank`; for one thread, a tile of users after the other."""
    k = min(best_items.shape[1], len(items))
    rounded = np.zeros((_TILE, groups.shape[1] // GROUP), np.int8)
    exact = np.empty((_TILE, vectors.shape[1]))
    limits = np.empty((_TILE, 6))
    for first in range(0, len(users), _TILE):
        tile = users[first : first + _TILE]
        _round_users(vectors, tile, rounded, exact, limits)
        _rank_tile(
            tile, rounded, exact, limits, items, order, groups, panels, indptr, seen,
            best_items[first : first + _TILE, :k], best_scores[first : first + _TILE, :k],
        )  # fmt: skip


@_loop
@no_type_check
def _rank_tile(
    users, rounded, exact, limits, items, order, groups, panels, indptr, seen,
    best_items, best_scores,
):  # fmt: skip
    """Pass by all items, panel by panel, until nobody can find anything better."""
    k = best_items.shape[1]
    waiting = np.empty((len(users), _WAITING), np.int32)
    n_waiting = np.zeros(len(users), np.int64)
    n_found = np.zeros(len(users), np.int64)
    walking = np.zeros(len(users) + TOGETHER, np.int64)
    cuts = np.empty(TOGETHER, np.int32)
    masks = np.empty(TOGETHER, np.uint64)
    n_walking = _with_a_preference(walking, len(users), limits)
    for panel in range(len(panels)):
        n_walking = _still_hopeful(walking, n_walking, limits, panels[panel, _NORM])
        for start in range(0, n_walking, TOGETHER):
            _set_cuts(cuts, walking, start, n_walking, limits, panels, panel)
            for group in range(panel * _GROUPS, (panel + 1) * _GROUPS):
                if not reached(groups, group, rounded, walking, start, cuts, masks):
                    continue
                risen = False
                for j in range(TOGETHER):
                    place, mask = walking[start + j], masks[j]
                    while mask:
                        position = group * GROUP + lowest_bit(mask)
                        mask &= mask - np.uint64(1)
                        if position >= len(order):
                            break
                        ask(items, order[position])
                        waiting[place, n_waiting[place]] = order[position]
                        n_waiting[place] += 1
                        if n_waiting[place] < _WAITING:
                            continue
                        n_found[place] = _admit(
                            exact[place], items, waiting[place], _WAITING,
                            seen[indptr[users[place]] : indptr[users[place] + 1]],
                            best_items[place], best_scores[place], n_found[place],
                        )  # fmt: skip
                        n_waiting[place] = 0
                        if n_found[place] == k:
                            limits[place, _LEAST] = best_scores[place, 0]
                            risen = True
                if risen:
                    _set_cuts(cuts, walking, start, n_walking, limits, panels, panel)
    for place in range(len(users)):
        skipped = seen[indptr[users[place]] : indptr[users[place] + 1]]
        if limits[place, _NORM] > 0.0:
            n_found[place] = _admit(
                exact[place], items, waiting[place], n_waiting[place], skipped,
                best_items[place], best_scores[place], n_found[place],
            )  # fmt: skip
            _sort(best_items[place], best_scores[place], n_found[place])
        else:
            _take_lowest(len(items), skipped, best_items[place], best_scores[place])


@_part
@no_type_check
def _with_a_preference(walking, n_users, limits):
    """Note the users whose vectors are not 0; how many they are."""
    n_walking = 0
    for place in range(n_users):
        if limits[place, _NORM] > 0.0:
            walking[n_walking] = place
            n_walking += 1
    return n_walking


@_part
@no_type_check
def _still_hopeful(walking, n_walking, limits, norm):
    """Drop those whom no item of this norm can please; how many are left."""
    n_left = 0
    for j in range(n_walking):
        place = walking[j]
        # an equal score may still win by a lower row
        if limits[place, _NORM] * norm >= limits[place, _LEAST]:
            walking[n_left] = place
            n_left += 1
    return n_left


@_part
@no_type_check
def _set_cuts(cuts, walking, start, n_walking, limits, panels, panel):
    """What the sum of bytes must exceed for the bound to reach the user's least score."""
    for j in range(TOGETHER):
        place = walking[start + j]
        cut = limits[place, _LEAST] * limits[place, _PER_SCALE] * panels[panel, _PER_SCALE]
        cut -= limits[place, _ERROR] * panels[panel, _LENGTH]
        cut -= limits[place, _LENGTH] * panels[panel, _ERROR]
        # one below what must be reached, and one more for the rounding of this sum
        cut += limits[place, _SHIFT] - 2.0
        # where there is no user nothing is found
        cut = cut if start + j < n_walking else np.inf
        cuts[j] = np.int32(np.floor(min(max(cut, _INT32_LEAST), _INT32_MOST)))


@_loop
@no_type_check
def _admit(vector, items, rows, n_rows, skipped, best_items, best_scores, n_found):
    """Score the first of the rows; the best unseen stay, in a heap under the worst; how many."""
    k = len(best_items)
    rows[n_rows:] = 0
    scores = _four_scores(vector, items, rows)
    for n in range(n_rows):
        row, score = rows[n], scores[n]
        if n_found == k and not _is_worse(best_scores[0], best_items[0], score, row):
            continue
        where = np.searchsorted(skipped, row)
        if where < len(skipped) and skipped[where] == row:
            continue
        if n_found < k:
            _rise(best_items, best_scores, n_found, row, score)
            n_found += 1
        else:
            _sink(best_items, best_scores, k, row, score)
    return n_found


# Products are exact in float64, so that fusing them with the sum changes no bit.
@njit(nogil=True, cache=True, error_model="numpy", forceinline=True, fastmath={"contract"})
@no_type_check
def _four_scores(vector, items, rows):
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    total_a = total_b = total_c = total_d = 0.0
    for n in range(len(vector)):
        factor = vector[n]
        total_a += factor * np.float64(items[a, n])
        total_b += factor * np.float64(items[b, n])
        total_c += factor * np.float64(items[c, n])
        total_d += factor * np.float64(items[d, n])
    return total_a, total_b, total_c, total_d


@_part
@no_type_check
def _is_worse(score, row, other_score, other_row):
    return score < other_score or (score == other_score and row > other_row)


@_part
@no_type_check
def _rise(items, scores, place, item, score):
    """Put an item at the end of the heap, and the better of its ancestors below it."""
    while place > 0:
        parent = (place - 1) // 2
        if not _is_worse(score, item, scores[parent], items[parent]):
            break
        items[place], scores[place] = items[parent], scores[parent]
        place = parent
    items[place], scores[place] = item, score


@_part
@no_type_check
def _sink(items, scores, size, item, score):
    """Put an item in the place of the root of the heap, and the worse of its children above it."""
    place = 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _is_worse(
            scores[child + 1], items[child + 1], scores[child], items[child]
        ):
            child += 1
        if not _is_worse(scores[child], items[child], score, item):
            break
        items[place], scores[place] = items[child], scores[child]
        place = child
    items[place], scores[place] = item, score


@_loop
@no_type_check
def _sort(items, scores, size):
    """Turn the heap into a list, best first."""
    for last in range(size - 1, 0, -1):
        item, score = items[last], scores[last]
        items[last], scores[last] = items[0], scores[0]
        _sink(items, scores, last, item, score)


@_loop
@no_type_check
def _take_lowest(n_items, skipped, best_items, best_scores):
    """What a user of no preference gets: a score of 0 for everything."""
    n_found, place = 0, 0
    for row in range(n_items):
        if n_found == len(best_items):
            break
        if place < len(skipped) and skipped[place] == row:
            place += 1
            continue
        best_items[n_found], best_scores[n_found] = row, 0.0
        n_found += 1
