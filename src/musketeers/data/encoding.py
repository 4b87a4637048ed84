"""Columns of ids as numbers, from the first chunk on: no id is held more than once."""

from typing import no_type_check

import numpy as np
import polars as pl
from jaxtyping import Int32, Int64, UInt8, UInt64
from numba import njit

from musketeers.data.columns import alike, checked_ids, numbers_if_all
from musketeers.data.vocabulary import Vocabulary, plain
from musketeers.splitmix import mix

_FEWEST_SLOTS = 1 << 12
"""Of a new table; a power of 2, as is every number of slots."""
_FREE = -1
"""The code in a slot that has none."""
_BLOCK = 64
"""Ids looked up at a time; their slots stay in the first-level cache."""
_NARROW = (
    pl.Boolean, pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32
)  # fmt: skip

_loop = njit(nogil=True, cache=True)


class Column:
    """One column of ids, met chunk by chunk."""

    def __init__(self) -> None:
        self._encoders: dict[pl.DataType, _Encoder] = {}
        self._codes = np.empty(0, np.int32)
        self._ends: list[tuple[pl.DataType, int]] = []
        """Of each chunk: whose its codes are, and where they end."""

    def __len__(self) -> int:
        return self._ends[-1][1] if self._ends else 0

    def add(self, ids: pl.Series) -> None:
        """The next ids, of any type that `vocabulary.plain` leaves as it is.

        Raises what `columns.checked_ids` raises, but with a row and a count of no meaning.
        """
        start, end = len(self), len(self) + len(ids)
        if end > len(self._codes):
            # one long array, which grows where it is: short ones would not all be given back
            self._codes.resize(max(end, len(self._codes) * 5 // 4), refcheck=False)
        encoder = self._encoders.setdefault(ids.dtype, _Encoder())
        encoder.encode(ids, self._codes[start:end])
        self._ends.append((ids.dtype, end))

    def rows(self, *, numbers: bool) -> tuple[Vocabulary, Int32[np.ndarray, " id"]]:
        """All distinct ids, in the type of `columns.alike`, and the row of each id.

        With `numbers`, text becomes integers if `columns.numbers_if_all` can make it such.  To be
        asked once, as the column keeps nothing.
        """
        own = [encoder.ids() for encoder in self._encoders.values()]
        own = alike([numbers_if_all(ids) for ids in own] if numbers else own)
        vocabulary = Vocabulary.of(pl.concat(own))
        rows = {
            dtype: vocabulary.rows(ids).astype(np.int32)
            for dtype, ids in zip(self._encoders, own, strict=True)
        }
        codes, self._codes = self._codes, np.empty(0, np.int32)
        codes.resize(len(self), refcheck=False)
        start = 0
        for dtype, end in self._ends:
            codes[start:end] = rows[dtype][codes[start:end]]
            start = end
        return vocabulary, codes


def text_hashes(ids: pl.Series) -> UInt64[np.ndarray, " id"]:
    """64 bits of each id as it is written: 7, "7" and b"7" have the same, everywhere and always.

    What lies on disk is sorted by them, so they never change.  Raises `DataError` for types that
    are no ids.
    """
    return _hashed(*_texts(plain(ids))).view(np.uint64)


class _Encoder:
    """Ids of one type to codes 0, 1, 2, ... in the order in which they first come.

    A hash table with linear probing.  Its keys are 64 bits: of numbers and dates a form in which
    they stay distinct, of text a hash, behind which the texts themselves are compared.
    """

    def __init__(self) -> None:
        self._slots = np.full((_FEWEST_SLOTS, 2), _FREE, np.int64)
        """Key and code."""
        self._starts, self._bytes = np.zeros(1, np.int64), np.empty(0, np.uint8)
        """The texts behind the codes, one after the other; a start more than texts."""
        self._n = 0
        self._ids: list[pl.Series] = []

    def encode(self, ids: pl.Series, codes: Int32[np.ndarray, " id"]) -> None:
        """Write the code of each id into `codes`; see `Column.add` for what is raised."""
        if ids.has_nulls():
            checked_ids(ids, "")
        new = np.empty(len(ids), np.int32)
        values, starts, texts = _numbers(ids), None, None
        if values is not None:
            keys = _mixed(values)
        else:
            starts, texts = _texts(ids)
            keys = _hashed(starts, texts)
            self._starts = _with_room(self._starts, self._n + 1, len(ids))
            self._bytes = _with_room(self._bytes, int(self._starts[self._n]), len(texts))
        row, n_before = 0, self._n
        while row < len(ids):
            row, self._n = _encode(
                keys, starts, texts, self._slots, self._starts, self._bytes,
                codes, new, row, n_before, self._n,
            )  # fmt: skip
            if row < len(ids):
                self._slots = _doubled(self._slots)
        self._ids.append(checked_ids(ids.gather(new[: self._n - n_before]), ""))

    def ids(self) -> pl.Series:
        """The id of every code."""
        return pl.concat(self._ids)


def _numbers(ids: pl.Series) -> Int64[np.ndarray, " id"] | None:
    """Different numbers of 64 bits for different ids; None for text and what is wider."""
    ids = ids.to_physical()
    if ids.dtype == pl.UInt64:
        return ids.reinterpret(signed=True).to_numpy()
    if isinstance(ids.dtype, _NARROW):
        return ids.cast(pl.Int64).to_numpy()
    return None


def _texts(ids: pl.Series) -> tuple[Int64[np.ndarray, " id_plus_one"], UInt8[np.ndarray, " byte"]]:
    """Where each text starts, and the bytes of all."""
    text = ids if isinstance(ids.dtype, pl.String | pl.Binary) else ids.cast(pl.String)
    arrow = text.rechunk().to_arrow()
    _, starts, content = arrow.buffers()
    found = np.frombuffer(starts, np.int64)[arrow.offset : arrow.offset + len(ids) + 1]
    return found, np.frombuffer(content or b"", np.uint8)


def _with_room(array: np.ndarray, used: int, more: int) -> np.ndarray:
    """The array, or if it is too short for so many more a copy of at least twice its length."""
    if used + more <= len(array):
        return array
    longer = np.empty(max(used + more, 2 * len(array)), array.dtype)
    longer[:used] = array[:used]
    return longer


# `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@_loop
@no_type_check
def _hash(texts, start, stop):
    """Of a text's bytes, eight at a time."""
    found = np.uint64(stop - start)
    while start < stop:
        word = np.uint64(0)
        if start + 8 <= stop:
            for n in range(8):
                word |= np.uint64(texts[start + n]) << np.uint64(8 * n)
        else:
            for n in range(stop - start):
                word |= np.uint64(texts[start + n]) << np.uint64(8 * n)
        found = (found ^ word) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(32)
        start += 8
    return np.int64(mix(found))


@_loop
@no_type_check
def _mixed(values):
    keys = np.empty(len(values), np.int64)
    for n in range(len(values)):
        # no two numbers become the same
        keys[n] = np.int64(mix(np.uint64(values[n])))
    return keys


@_loop
@no_type_check
def _hashed(starts, texts):
    keys = np.empty(len(starts) - 1, np.int64)
    for n in range(len(keys)):
        keys[n] = _hash(texts, starts[n], starts[n + 1])
    return keys


@_loop
@no_type_check
def _same(texts, starts, row, others, other_starts, other_row):
    start, other = starts[row], other_starts[other_row]
    size = starts[row + 1] - start
    if other_starts[other_row + 1] - other != size:
        return False
    n = 0
    while n < size and texts[start + n] == others[other + n]:
        n += 1
    return n == size


@_loop
@no_type_check
def _encode(keys, starts, texts, slots, known_starts, known, codes, new, row, n_before, n):
    """The rows from `row` on, until the slots are half taken; texts are compared, if there are any.

    Gives the row reached, and the number of codes.  `new` gets the rows of ids not met before the
    chunk, in which there were `n_before` codes.
    """
    last, near = len(slots) - 1, np.empty(_BLOCK, np.int64)
    for block in range(row, len(codes), _BLOCK):
        rows = range(block, min(block + _BLOCK, len(codes)))
        # many loads at once, so that the steps below, which depend on each other, need not wait
        for at in rows:
            near[at - block] = slots[keys[at] & last, 1]
        if starts is not None:
            for at in rows:
                near[at - block] = known[known_starts[max(near[at - block], 0)]]
        for at in rows:
            if 2 * n > last:
                return at, n
            key = keys[at]
            slot = key & last
            while True:
                code = slots[slot, 1]
                if code == _FREE:
                    slots[slot, 0], slots[slot, 1] = key, n
                    if starts is not None:
                        end = known_starts[n] + starts[at + 1] - starts[at]
                        known[known_starts[n] : end] = texts[starts[at] : starts[at + 1]]
                        known_starts[n + 1] = end
                    new[n - n_before] = at
                    code = n
                    n += 1
                    break
                if slots[slot, 0] == key and (
                    starts is None or _same(texts, starts, at, known, known_starts, code)
                ):
                    break
                slot = (slot + 1) & last
            codes[at] = code
    return len(codes), n


@_loop
@no_type_check
def _doubled(slots):
    """The same keys in twice as many slots."""
    more = np.full((2 * len(slots), 2), _FREE, np.int64)
    last = len(more) - 1
    for old in range(len(slots)):
        if slots[old, 1] != _FREE:
            slot = slots[old, 0] & last
            while more[slot, 1] != _FREE:
                slot = (slot + 1) & last
            more[slot] = slots[old]
    return more
