"""Ids as JSON has them <-> rows of a vocabulary, for a few at a time.

A column of one id takes polars longer to make than a few steps of bisection take.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int, Int64

from musketeers.data.columns import kind
from musketeers.data.pseudonyms import Secret
from musketeers.data.vocabulary import Vocabulary

Id = int | str
"""As JSON has it."""


@dataclass(frozen=True, slots=True, eq=False)
class Ids:
    """One vocabulary's ids, as callers write them and as answers give them back.

    Integers are JSON numbers, all others strings: dates as ``2026-11-28``, booleans as ``true``,
    bytes as the text that they are in UTF-8 or, if some are none, all of them in base64.  A caller
    may write an integer as a string, too, such as in a path.
    """

    kind: str
    """What they are: integers, text, bytes, dates, booleans."""
    written: np.ndarray | pl.Series
    """Each row's id as answers have it: integers, or text."""
    ascending: np.ndarray | pl.Series
    """The same in ascending order."""
    order: Int64[np.ndarray, " id"] | None
    """The row of each that is `ascending`; None where it is its place."""
    secret: Secret | None
    """What callers' ids are made pseudonyms with, where these are pseudonyms."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, secret: Secret | None = None) -> "Ids":
        """For the ids of users, with the `secret` of their pseudonyms if they are, or of items."""
        values = vocabulary.values
        if values.dtype.is_integer():
            numbers = values.to_numpy()
            return cls(kind(values), numbers, numbers, None, secret)
        if values.dtype == pl.String:
            return cls(kind(values), values, values, None, secret)
        text = _text(values)
        order = text.arg_sort()
        rows = order.cast(pl.Int64).to_numpy()
        return cls(kind(values), text, text.gather(order), rows, secret)

    def __len__(self) -> int:
        return len(self.written)

    def rows(self, ids: Sequence[Id]) -> Int64[np.ndarray, " id"]:
        """The row of each, -1 for one that there is not."""
        if self.secret:
            ids = self.secret.of(pl.Series([str(one) for one in ids], dtype=pl.String)).to_list()
        if isinstance(self.ascending, np.ndarray):
            return _numbers(ids, self.ascending)
        found = np.fromiter((_place(str(one), self.ascending) for one in ids), np.int64, len(ids))
        return found if self.order is None else np.where(found < 0, -1, self.order[found])

    def as_written(self, one: Id) -> Id:
        """An id of a caller as answers have it, whether it is known or not."""
        if isinstance(self.written, np.ndarray) and not self.secret:
            number = one if isinstance(one, int) else _integer(one)
            return one if number is None else number
        return str(one)

    def ids(self, rows: Int[np.ndarray, " row"]) -> list[Id]:
        """As answers have them."""
        if isinstance(self.written, np.ndarray):
            return self.written[rows].tolist()
        return [self.written[row] for row in rows.tolist()]


def _numbers(ids: Iterable[Id], ascending: np.ndarray) -> Int64[np.ndarray, " id"]:
    limits = np.iinfo(ascending.dtype)
    numbers = [one if isinstance(one, int) else _integer(one) for one in ids]
    there = np.array([n is not None and limits.min <= n <= limits.max for n in numbers], np.bool_)
    some = [n for n, is_there in zip(numbers, there, strict=True) if is_there]
    known = np.array(some, ascending.dtype)
    found = np.full(len(numbers), -1)
    place = np.searchsorted(ascending, known)
    at = place.clip(max=max(len(ascending) - 1, 0))
    found[there] = np.where(ascending[at] == known, at, -1) if len(ascending) else -1
    return found


def _integer(text: str) -> int | None:
    """The integer that is written so, in the usual way and no other."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text else None


def _place(text: str, ascending: pl.Series) -> int:
    # both order text by code points
    place = bisect_left(ascending, text)  # pyright: ignore[reportArgumentType]
    return place if place < len(ascending) and ascending[place] == text else -1


def _text(values: pl.Series) -> pl.Series:
    """Ids that JSON does not have, as text: different ones stay different."""
    if values.dtype != pl.Binary:
        return values.cast(pl.String)
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        return values.bin.encode("base64")
