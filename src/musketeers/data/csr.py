"""The compiled loops over compressed sparse rows: build, sort, drop, merge, count.

A table is `indptr` and one value or more for each pair, and no loop needs a number of eight bytes
for each.  Loops that take a range of rows may run on several ranges at once.
"""

from collections.abc import Callable
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Shaped
from numba import njit

from musketeers.parallel import available_threads, each

_NEAR = 1 << 22
"""Pairs whose items, of four bytes each, stay in the third-level cache."""

_loop = njit(nogil=True, cache=True)

Table = tuple[
    Int64[np.ndarray, " row_plus_one"],
    Int32[np.ndarray, " distinct"],
    Int64[np.ndarray, " distinct"] | None,
]
"""Distinct pairs, each row ascending: `indptr`, item, and time if there is one."""


def built(
    users: Int32[np.ndarray, " row"],
    items: Int32[np.ndarray, " row"],
    times: Int64[np.ndarray, " row"] | None = None,
    *,
    n_users: int,
) -> Table:
    """The distinct pairs of these rows in any order, each with its latest time.

    A counting sort by user, then a sort within each user.
    """
    indptr = np.zeros(n_users + 1, dtype=np.int64)
    _count(users, indptr[1:])
    np.cumsum(indptr, out=indptr)
    free = indptr[:-1].copy()
    sorted_items = np.empty_like(items)
    sorted_times = None if times is None else np.empty_like(times)

    def build(start: int, stop: int) -> None:
        # reading all rows for some users only costs less than writing all over the memory
        _scatter(users, items, times, free, sorted_items, sorted_times, start, stop)
        _sort_rows(indptr, sorted_items, sorted_times, start, stop)

    on_even_rows(build, indptr)
    n = _drop_repeats(indptr, sorted_items, sorted_times)
    for values in (sorted_items, sorted_times):
        if values is not None:
            values.resize(n, refcheck=False)  # in place
    return indptr, sorted_items, sorted_times


def on_even_rows(
    loop: Callable[[int, int], object], indptr: Int64[np.ndarray, " row_plus_one"]
) -> None:
    """Run ``loop(start, stop)`` over all rows, some of about `_NEAR` pairs at a time.

    For loops whose result is the same on any number of threads, as the rows do not touch.
    """
    n_threads = available_threads()
    n = max(n_threads, -(-int(indptr[-1] - indptr[0]) // _NEAR))
    cuts = np.searchsorted(indptr, np.linspace(indptr[0], indptr[-1], n + 1)[1:-1])
    edges = [0, *cuts.tolist(), len(indptr) - 1]
    each(lambda part: loop(edges[part], edges[part + 1]), n, n_threads=n_threads)


def counts(values: Int32[np.ndarray, " pair"], *, size: int) -> Int64[np.ndarray, " value"]:
    """How often each of the numbers below `size` occurs."""
    found = np.zeros(size, dtype=np.int64)
    _count(values, found)
    return found


def marked(
    indptr: Int64[np.ndarray, " row_plus_one"], keep: Bool[np.ndarray, " pair"]
) -> Int64[np.ndarray, " row_plus_one"]:
    """The `indptr` of the marked pairs alone."""
    found = np.zeros_like(indptr)
    _count_marked(indptr, keep, found[1:])
    return np.cumsum(found, out=found)


def gathered(
    indptr: Int64[np.ndarray, " row_plus_one"],
    values: Shaped[np.ndarray, " pair"],
    rows: Int[np.ndarray, " asked"],
) -> tuple[Int64[np.ndarray, " asked_plus_one"], Shaped[np.ndarray, " found"]]:
    """The asked rows, one after the other, and their `indptr`; -1 asks for an empty row.

    Rows that are all there are, in their order, keep their `values` without a copy.
    """
    found = np.zeros(len(rows) + 1, dtype=np.int64)
    asked = rows[rows >= 0]
    found[1:][rows >= 0] = indptr[asked + 1] - indptr[asked]
    np.cumsum(found, out=found)
    if found[-1] == len(values) and np.all(np.diff(asked) > 0):
        return found, values
    taken = np.empty(found[-1], dtype=values.dtype)
    _gather(indptr, values, rows, found, taken)
    return found, taken


def united(
    one: tuple[Int64[np.ndarray, " row_plus_one"], Int32[np.ndarray, " pair"]],
    other: tuple[Int64[np.ndarray, " row_plus_one"], Int32[np.ndarray, " other_pair"]],
) -> tuple[Int64[np.ndarray, " row_plus_one"], Int32[np.ndarray, " union"]]:
    """What is in either table; rows of both ascend."""
    indptr = np.zeros_like(one[0])
    items = np.empty(len(one[1]) + len(other[1]), dtype=np.int32)
    n = _merge(*one, *other, indptr, items)
    items.resize(n, refcheck=False)
    return indptr, items


def held(
    one: tuple[Int64[np.ndarray, " row_plus_one"], Int32[np.ndarray, " pair"]],
    other: tuple[Int64[np.ndarray, " row_plus_one"], Int32[np.ndarray, " other_pair"]],
) -> Bool[np.ndarray, " pair"]:
    """Which pairs of the one table are in the other, too; rows of both ascend."""
    found = np.zeros(len(one[1]), dtype=np.bool_)
    _mark_held(*one, *other, found)
    return found


# `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@_loop
@no_type_check
def _count(values, found):
    for value in values:
        found[value] += 1


@_loop
@no_type_check
def _scatter(users, items, times, free, sorted_items, sorted_times, start, stop):
    """Put each pair of some users at its user's next free place."""
    for pair in range(len(users)):
        user = users[pair]
        if start <= user < stop:
            place = free[user]
            free[user] += 1
            sorted_items[place] = items[pair]
            if times is not None:
                sorted_times[place] = times[pair]


@_loop
@no_type_check
def _sort_rows(indptr, items, times, start, stop):
    """By item, then time."""
    for row in range(start, stop):
        pairs = slice(indptr[row], indptr[row + 1])
        if times is None:
            items[pairs].sort()
        else:
            order = np.argsort(times[pairs], kind="mergesort")
            order = order[np.argsort(items[pairs][order], kind="mergesort")]
            items[pairs] = items[pairs][order]
            times[pairs] = times[pairs][order]


@_loop
@no_type_check
def _drop_repeats(indptr, items, times):
    """Keep the last of equal neighbours, moved together at the front; how many are left."""
    n, begin = 0, 0
    for row in range(len(indptr) - 1):
        end = indptr[row + 1]
        for pair in range(begin, end):
            if pair + 1 < end and items[pair + 1] == items[pair]:
                continue
            items[n] = items[pair]
            if times is not None:
                times[n] = times[pair]
            n += 1
        begin = end
        indptr[row + 1] = n
    return n


@_loop
@no_type_check
def _count_marked(indptr, keep, found):
    for row in range(len(indptr) - 1):
        for pair in range(indptr[row], indptr[row + 1]):
            found[row] += keep[pair]


@_loop
@no_type_check
def _gather(indptr, values, rows, found, taken):
    for n in range(len(rows)):
        if rows[n] >= 0:
            taken[found[n] : found[n + 1]] = values[indptr[rows[n]] : indptr[rows[n] + 1]]


@_loop
@no_type_check
def _merge(indptr, items, other_indptr, other_items, new_indptr, new_items):
    """How many pairs the merged rows have."""
    n = 0
    for row in range(len(indptr) - 1):
        a, end = indptr[row], indptr[row + 1]
        b, other_end = other_indptr[row], other_indptr[row + 1]
        while a < end and b < other_end:
            smaller = min(items[a], other_items[b])
            a += items[a] == smaller
            b += other_items[b] == smaller
            new_items[n] = smaller
            n += 1
        for rest in range(a, end):
            new_items[n] = items[rest]
            n += 1
        for rest in range(b, other_end):
            new_items[n] = other_items[rest]
            n += 1
        new_indptr[row + 1] = n
    return n


@_loop
@no_type_check
def _mark_held(indptr, items, other_indptr, other_items, found):
    for row in range(len(indptr) - 1):
        b, other_end = other_indptr[row], other_indptr[row + 1]
        for pair in range(indptr[row], indptr[row + 1]):
            while b < other_end and other_items[b] < items[pair]:
                b += 1
            found[pair] = b < other_end and other_items[b] == items[pair]
