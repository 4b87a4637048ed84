"""The best items by inner product, most of them ruled out by bounds in 8-bit integers.

Vectors are rounded to multiples of a scale, ``u = s q + e`` with q in -127..127.  Then, for a user u
and an item v whose scale is r and whose rounding is p + f (v = r p + f),

    u.v <= s r (q.p) + |e| |r p| + |u| |f|

by Cauchy and Schwarz.  The integers' product costs a quarter of the same in float32, and the rest
is known before.  Whoever cannot reach the k-th best score so far is never looked at again; whoever
can is scored exactly, so that what is found does not depend on the rounding.

Items come in descending norm: no score exceeds ``|u| |v|``, so a user may stop early.
"""

import math
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64, UInt8
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from musketeers.data.interactions import Interactions
from musketeers.parallel import each

_LANES = 16
"""32-bit sums in a register, each of 4 products of bytes in one step."""
_REGISTERS = 4
_STEP = 4
_GROUP = _LANES * _REGISTERS
"""Items that are multiplied at once."""
_PANEL = 4 * _GROUP
"""Items that share a scale; their bytes and the users' fit the first cache."""
_TOGETHER = 6
"""Users that are multiplied at once: their sums, 6 x 4 registers of 32, never leave these."""
_TILE = 192
"""Users for whom a panel of items is read once."""
_WAITING = 8
"""Items of a user that are scored exactly at once, so that sums need not wait for each other."""
_ROUNDING = 2.0**-50
"""Per dimension; eight times what float64 sums of so many terms can be off by, relatively."""
_MOST_DIMENSIONS = 2**15
"""With more, a sum of products of bytes may exceed 32 bits."""
_CHUNKS = 8
"""Shares of the users for each thread, since some users stop earlier than others."""

_INT32_LEAST, _INT32_MOST = -(2.0**31), 2.0**31 - 1


def supported(dim: int) -> bool:
    """Whether the compiled loops may run here: on AVX-512 with its instruction for bytes."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return "+avx512vnni" in features.split(",") and 0 < dim <= _MOST_DIMENSIONS


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Items made ready for any number of users."""

    items: Float32[np.ndarray, "item dim"]
    order: Int32[np.ndarray, " item"]
    """Rows of the items, largest norm first."""
    rounded: UInt8[np.ndarray, "group byte"]
    """p + 128 of 64 items each: four dimensions of all 64, then the next four."""
    limits: Float64[np.ndarray, "panel 4"]
    """Of each panel: 1 / r, the largest |p|, the largest |f| / r, the largest |v|."""

    @classmethod
    def of(cls, items: Float32[np.ndarray, "item dim"]) -> "Catalogue":
        """Sort and round items that are all finite."""
        items = _plain(items)
        norms = np.sqrt(np.einsum("id,id->i", items, items, dtype=np.float64))
        order = np.argsort(-norms, kind="stable").astype(np.int32)
        n_panels = math.ceil(len(items) / _PANEL)
        rounded = _aligned(n_panels * (_PANEL // _GROUP), _GROUP * _padded(items.shape[1]))
        limits = np.empty((n_panels, 4))
        _round_items(items, _plain(order), rounded, limits)
        return cls(items, _plain(order), _plain(rounded), _plain(limits))


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
    n_parts = n_threads * min(_CHUNKS, math.ceil(len(users) / (_TILE * n_threads)))
    edges = np.linspace(0, len(users), n_parts + 1).astype(np.int64)

    def fill(number: int) -> None:
        part = slice(edges[number], edges[number + 1])
        _rank_users(
            vectors, users[part].astype(np.int64), catalogue.items, catalogue.order,
            catalogue.rounded, catalogue.limits, indptr, skipped, items[part], scores[part],
        )  # fmt: skip

    each(fill, n_parts, n_threads=n_threads)


def _plain(array: np.ndarray) -> np.ndarray:
    """The same, one after the other and not to be written to: compiled once for all callers."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _padded(dim: int) -> int:
    return -(-dim // _STEP) * _STEP


def _aligned(n_rows: int, width: int) -> UInt8[np.ndarray, "group byte"]:
    """Rows that begin with a cache line; a register that straddles two takes twice as long."""
    memory = np.empty(n_rows * width + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_rows * width].reshape(n_rows, width)


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.

_loop = njit(nogil=True, cache=True, error_model="numpy")
_part = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


@intrinsic
@no_type_check
def _reached(_typing, groups, _group, users, places, _first, cuts, _masks):
    """Mark in ``_masks[j]`` which of a group's items exceed ``cuts[j]``; whether any does.

    The products are those of ``users[places[_first + j]]`` for j below `_TOGETHER`.
    """

    @no_type_check
    def codegen(context, builder, signature, arguments):
        byte, number, word = ir.IntType(8), ir.IntType(32), ir.IntType(64)
        register = ir.VectorType(number, _LANES)
        zeros, unknown = ir.Constant(register, None), ir.Constant(register, ir.Undefined)

        @no_type_check
        def array(place):
            return context.make_array(signature.args[place])(context, builder, arguments[place])

        @no_type_check
        def row_of(table, row):
            width = cgutils.unpack_tuple(builder, table.strides)[0]
            start = builder.bitcast(table.data, byte.as_pointer())
            return builder.gep(start, [builder.mul(row, width)])

        @no_type_check
        def at(pointer, offset, kind):
            return builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())

        @no_type_check
        def in_all_lanes(value):
            one = builder.insert_element(unknown, value, number(0))
            return builder.shuffle_vector(one, unknown, zeros)

        table, vectors, chosen, least, marks = (array(place) for place in (0, 2, 3, 5, 6))
        group = row_of(table, arguments[1])
        rows = [
            builder.load(builder.gep(chosen.data, [builder.add(arguments[4], word(j))]))
            for j in range(_TOGETHER)
        ]
        rows = [row_of(vectors, row) for row in rows]
        sums = [
            [cgutils.alloca_once_value(builder, zeros) for _ in range(_REGISTERS)] for _ in rows
        ]
        # unsigned bytes of the items times signed ones of the user, four at a time
        kind = ir.FunctionType(register, [register] * 3)
        multiply = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.x86.avx512.vpdpbusd.512"
        )
        n_steps = builder.udiv(cgutils.unpack_tuple(builder, vectors.shape)[1], word(_STEP))
        with cgutils.for_range(builder, n_steps) as step:
            start = builder.mul(step.index, word(_GROUP * _STEP))
            items = [
                builder.load(at(group, builder.add(start, word(64 * part)), register), align=64)
                for part in range(_REGISTERS)
            ]
            for row, row_sums in zip(rows, sums, strict=True):
                four = at(row, builder.mul(step.index, word(_STEP)), number)
                factor = in_all_lanes(builder.load(four, align=1))
                for place, part in zip(row_sums, items, strict=True):
                    builder.store(builder.call(multiply, [builder.load(place), part, factor]), place)
        anywhere = word(0)
        for j, row_sums in enumerate(sums):
            cut = in_all_lanes(builder.load(builder.gep(least.data, [word(j)])))
            mask = word(0)
            for part, place in enumerate(row_sums):
                above = builder.icmp_signed(">", builder.load(place), cut)
                bits = builder.zext(builder.bitcast(above, ir.IntType(_LANES)), word)
                mask = builder.or_(mask, builder.shl(bits, word(_LANES * part)))
            builder.store(mask, builder.gep(marks.data, [word(j)]))
            anywhere = builder.or_(anywhere, mask)
        return builder.icmp_unsigned("!=", anywhere, word(0))

    arguments = (groups, types.intp, users, places, types.intp, cuts, _masks)
    return types.boolean(*arguments), codegen


@intrinsic
@no_type_check
def _lowest_bit(_typing, _mask):
    """The place of the lowest bit of a number that is not 0."""

    @no_type_check
    def codegen(_context, builder, _signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), codegen


@intrinsic
@no_type_check
def _prefetch(_typing, table, _row, _column):
    """Ask for the cache line of ``table[_row, _column]``, to be there when it is needed."""

    @no_type_check
    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, kind, array, arguments[1:])
        place = builder.bitcast(place, cgutils.voidptr_t)
        number = ir.IntType(32)
        hint = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, hint, "llvm.prefetch.p0")
        # for reading, kept near, data
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(table, types.intp, types.intp), codegen


@_part
@no_type_check
def _ask(table, row):
    for d in range(0, table.shape[1], 16):
        _prefetch(table, row, d)


@_part
@no_type_check
def _scale(largest):
    return largest / 127.0 if largest > 0.0 else 1.0


@_loop
@no_type_check
def _round_items(items, order, rounded, limits):
    """Fill in `Catalogue.rounded` and `Catalogue.limits`."""
    dim = items.shape[1]
    rounded[:] = 128  # what pads dimensions and the last group is 0
    for panel in range(len(limits)):
        first = panel * _PANEL
        rows = order[first : first + _PANEL]
        largest = 0.0
        for row in rows:
            for d in range(dim):
                largest = max(largest, abs(np.float64(items[row, d])))
        scale = _scale(largest)
        longest, furthest, norm = 0.0, 0.0, 0.0
        for n in range(len(rows)):
            group, lane = (first + n) // _GROUP, (first + n) % _GROUP
            squares, errors, integers = 0.0, 0.0, 0.0
            for d in range(dim):
                value = np.float64(items[rows[n], d])
                integer = np.rint(value / scale)
                place = (d // _STEP) * (_GROUP * _STEP) + lane * _STEP + d % _STEP
                rounded[group, place] = np.uint8(integer + 128.0)
                error = value - scale * integer
                squares += value * value
                errors += error * error
                integers += integer * integer
            longest = max(longest, np.sqrt(integers))
            norm = max(norm, np.sqrt(squares))
            furthest = max(furthest, np.sqrt(errors))
        limits[panel, 0] = 1.0 / scale
        limits[panel, 1] = longest * (1.0 + _ROUNDING)
        limits[panel, 2] = (furthest + dim * _ROUNDING * norm) / scale
        limits[panel, 3] = norm * (1.0 + dim * _ROUNDING)


@_loop
@no_type_check
def _round_users(vectors, users, rounded, limits, exact):
    """Each user's bytes q, numbers as float64, and limits.

    These are 1 / s, |e| / s, |u| / s, 128 times the sum of q, and |u|.
    """
    dim = vectors.shape[1]
    for place in range(len(users)):
        largest = 0.0
        for d in range(dim):
            exact[place, d] = vectors[users[place], d]
            largest = max(largest, abs(exact[place, d]))
        scale = _scale(largest)
        squares, errors, total = 0.0, 0.0, 0.0
        for d in range(dim):
            value = exact[place, d]
            integer = np.rint(value / scale)
            rounded[place, d] = np.int8(integer)
            error = value - scale * integer
            squares += value * value
            errors += error * error
            total += integer
        norm = np.sqrt(squares)
        limits[place, 0] = 1.0 / scale
        limits[place, 1] = (np.sqrt(errors) + dim * _ROUNDING * norm) / scale
        limits[place, 2] = norm * (1.0 + dim * _ROUNDING) / scale
        limits[place, 3] = 128.0 * total
        limits[place, 4] = norm * (1.0 + dim * _ROUNDING)


@_loop
@no_type_check
def _rank_users(
    vectors, users, items, order, groups, panels, indptr, seen, best_items, best_scores
):
    """See `rank`; users in tiles, each of which walks through the groups of items."""
    dim = vectors.shape[1]
    k = min(best_items.shape[1], len(items))
    rounded = np.zeros((_TILE, groups.shape[1] // _GROUP), np.int8)
    limits = np.empty((_TILE, 5))
    exact = np.empty((_TILE, dim))
    for first in range(0, len(users), _TILE):
        tile = users[first : first + _TILE]
        _round_users(vectors, tile, rounded, limits, exact)
        _rank_tile(
            tile, rounded, limits, exact, items, order, groups, panels, indptr, seen,
            best_items[first : first + _TILE, :k], best_scores[first : first + _TILE, :k],
        )  # fmt: skip


@_loop
@no_type_check
def _rank_tile(
    users, rounded, limits, exact, items, order, groups, panels, indptr, seen,
    best_items, best_scores,
):  # fmt: skip
    k = best_items.shape[1]
    waiting = np.empty((len(users), _WAITING), np.int32)
    n_waiting = np.zeros(len(users), np.int64)
    n_found = np.zeros(len(users), np.int64)
    least = np.full(len(users), -np.inf)
    walking = np.zeros(len(users) + _TOGETHER, np.int64)
    cuts = np.empty(_TOGETHER, np.int32)
    masks = np.empty(_TOGETHER, np.uint64)
    n_walking = 0
    for place in range(len(users)):
        if limits[place, 4] > 0.0:
            walking[n_walking] = place
            n_walking += 1
    for panel in range(len(panels)):
        n_walking = _still_hopeful(walking, n_walking, least, limits, panels[panel, 3])
        if n_walking == 0:
            break
        group_stop = min((panel + 1) * (_PANEL // _GROUP), len(groups))
        for start in range(0, n_walking, _TOGETHER):
            _set_cuts(cuts, least, limits, walking, start, n_walking, panels[panel])
            for group in range(panel * (_PANEL // _GROUP), group_stop):
                if not _reached(groups, group, rounded, walking, start, cuts, masks):
                    continue
                changed = False
                for j in range(_TOGETHER):
                    place, mask = walking[start + j], masks[j]
                    while mask:
                        position = group * _GROUP + _lowest_bit(mask)
                        mask &= mask - np.uint64(1)
                        if position >= len(order):
                            break
                        row = order[position]
                        _ask(items, row)
                        waiting[place, n_waiting[place]] = row
                        n_waiting[place] += 1
                        if n_waiting[place] == _WAITING:
                            skipped = seen[indptr[users[place]] : indptr[users[place] + 1]]
                            n_found[place] = _admit(
                                exact[place], items, waiting[place], _WAITING, skipped,
                                best_items[place], best_scores[place], n_found[place],
                            )
                            n_waiting[place] = 0
                            if n_found[place] == k:
                                least[place] = best_scores[place, 0]
                                changed = True
                if changed:
                    _set_cuts(cuts, least, limits, walking, start, n_walking, panels[panel])
    for place in range(len(users)):
        skipped = seen[indptr[users[place]] : indptr[users[place] + 1]]
        if limits[place, 4] > 0.0:
            n_found[place] = _admit(
                exact[place], items, waiting[place], n_waiting[place], skipped,
                best_items[place], best_scores[place], n_found[place],
            )
            _sort(best_items[place], best_scores[place], n_found[place])
        else:
            _lowest_rows(len(items), skipped, best_items[place], best_scores[place])


@_part
@no_type_check
def _still_hopeful(walking, n_walking, least, limits, longest):
    """Close the gaps of those who cannot find anything better any more; how many are left."""
    n_left = 0
    for j in range(n_walking):
        place = walking[j]
        if limits[place, 4] * longest >= least[place]:
            walking[n_left] = place
            n_left += 1
    return n_left


@_part
@no_type_check
def _set_cuts(cuts, least, limits, walking, start, n_walking, panel):
    """What an item's integer sum must exceed for its bound to reach the user's least score."""
    for j in range(_TOGETHER):
        place = walking[start + j]
        cut = least[place] * limits[place, 0] * panel[0]
        cut -= limits[place, 1] * panel[1]
        cut -= limits[place, 2] * panel[2]
        # the cut is a whole number below, for what rounding does to this sum
        cut += limits[place, 3] - 2.0
        # where nobody is left there is nothing to find
        cut = cut if start + j < n_walking else np.inf
        cuts[j] = np.int32(np.floor(min(max(cut, _INT32_LEAST), _INT32_MOST)))


@_loop
@no_type_check
def _admit(vector, items, rows, n_rows, skipped, best_items, best_scores, n_found):
    """Score the first `n_rows` of `rows`, all those of a batch; how many have been found.

    The best unseen ones are in a heap whose root is the worst of them.
    """
    for n in range(n_rows, _WAITING):
        rows[n] = 0
    a, b, c, d, e, f, g, h = rows[0],rows[1],rows[2],rows[3],rows[4],rows[5],rows[6],rows[7]
    ta=tb=tc=td=te=tf=tg=th=0.0
    for i in range(len(vector)):
        u = vector[i]
        ta += u*np.float64(items[a,i])
        tb += u*np.float64(items[b,i])
        tc += u*np.float64(items[c,i])
        td += u*np.float64(items[d,i])
        te += u*np.float64(items[e,i])
        tf += u*np.float64(items[f,i])
        tg += u*np.float64(items[g,i])
        th += u*np.float64(items[h,i])
    totals = (ta,tb,tc,td,te,tf,tg,th)
    k = len(best_items)
    for n in range(n_rows):
        row, score = rows[n], totals[n]
        if n_found == k and not _is_worse(best_scores[0], best_items[0], score, row):
            continue
        place = np.searchsorted(skipped, row)
        if place < len(skipped) and skipped[place] == row:
            continue
        if n_found < k:
            _rise(best_items, best_scores, n_found, row, score)
            n_found += 1
        else:
            _sink(best_items, best_scores, k, row, score)
    return n_found


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
def _lowest_rows(n_items, skipped, best_items, best_scores):
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
