"""What a column of ids or times must be, and its one form inside the library."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int64

from musketeers.data.vocabulary import canonical_integers, plain
from musketeers.errors import DataError

LONGEST_ID = 256
"""Bytes; longer text is a description that stands in the wrong column."""
_MICROSECONDS = 1_000_000
_KINDS: dict[type[pl.DataType], str] = {
    pl.String: "text",
    pl.Binary: "bytes",
    pl.Boolean: "booleans",
    pl.Date: "dates",
}


def checked_ids(ids: pl.Series, where: str) -> pl.Series:
    """The ids, categories as text.

    Raises `DataError`, which begins with `where`, for missing, blank or overlong ids and for
    types that cannot name a user or an item.
    """
    _refuse_missing(ids, where, "ids", "remove or repair those rows")
    try:
        ids = plain(ids)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not isinstance(ids.dtype, pl.String | pl.Binary):
        return ids
    size = ids.str.len_bytes() if ids.dtype == pl.String else ids.bin.size()
    if (long := size > LONGEST_ID).any():
        row = _first(long)
        raise DataError(
            f"{where}: the id in row {row} has {size[row - 1]} bytes, more than {LONGEST_ID}; "
            "is this the id column?"
        )
    return ids


def numbers_if_all(text: pl.Series) -> pl.Series:
    """Text as integers if every value is written the usual way; else unchanged."""
    numbers = canonical_integers(text, like=pl.Series(dtype=pl.Int64))
    return text if numbers.has_nulls() else numbers


def kind(ids: pl.Series) -> str:
    """What a caller would call ids of this type; those of two kinds are never equal."""
    if ids.dtype.is_integer():
        return "integers"
    return _KINDS.get(ids.dtype.base_type(), str(ids.dtype))


def alike(columns: Sequence[pl.Series]) -> list[pl.Series]:
    """The columns in one type: their own, a wider integer, or else text.

    Raises `DataError` for bytes beside another type if they are not UTF-8.
    """
    if len({column.dtype for column in columns}) == 1:
        return list(columns)
    if all(column.dtype.is_integer() for column in columns):
        for wide in (pl.Int64, pl.UInt64):
            cast = [column.cast(wide, strict=False) for column in columns]
            if not any(column.has_nulls() for column in cast):
                return cast
    try:
        return [column.cast(pl.String) for column in columns]
    except pl.exceptions.PolarsError:
        raise DataError(
            "ids are bytes in one place and not in another, and some are not UTF-8; "
            "write one type everywhere"
        ) from None


def moments(times: pl.Series, where: str) -> tuple[Int64[np.ndarray, " pair"], str]:
    """Times as int64 and what they count, "integers" or "microseconds".

    Integers keep their own unit; float seconds, dates and text dates become microseconds
    (without a time zone: UTC).  Raises `DataError`, which begins with `where`, if one is
    missing or no time.
    """
    remedy = "remove those rows or configure no timestamp"
    _refuse_missing(times, where, "times", remedy)
    times = _parsed(times) if times.dtype == pl.String else times
    unit = "microseconds"
    if times.dtype.is_float():
        counted = (times.cast(pl.Float64) * _MICROSECONDS).round().cast(pl.Int64, strict=False)
    elif isinstance(times.dtype, pl.Date | pl.Datetime):
        counted = times.cast(pl.Datetime("us"), strict=False).cast(pl.Int64)
    elif times.dtype.is_integer():
        counted, unit = times.cast(pl.Int64, strict=False), "integers"
    else:
        raise DataError(f"{where}: {times.dtype} is no time; use integers, seconds or dates")
    if (wrong := counted.is_null()).any():
        raise DataError(
            f"{where}: the time in row {_first(wrong)} is no number or date of 64 bits; {remedy}"
        )
    return counted.to_numpy().copy(), unit


def _parsed(text: pl.Series) -> pl.Series:
    """Text as integers, else as float seconds, else as dates; null where it is none."""
    numbers = numbers_if_all(text)
    if numbers.dtype == pl.String:
        numbers = text.cast(pl.Float64, strict=False)
    if not numbers.has_nulls():
        return numbers
    return text.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")


def _refuse_missing(values: pl.Series, where: str, what: str, remedy: str) -> None:
    missing = values.is_null()
    if values.dtype.is_float():
        missing |= ~values.is_finite().fill_null(value=False)
    elif values.dtype == pl.String:
        missing |= (values.str.strip_chars() == "").fill_null(value=True)
    elif values.dtype == pl.Binary:
        missing |= (values.bin.size() == 0).fill_null(value=True)
    if missing.any():
        raise DataError(
            f"{where}: {missing.sum()} of {len(values)} {what} are missing (null, NaN or blank), "
            f"the first in row {_first(missing)}; {remedy}"
        )


def _first(rows: pl.Series) -> int:
    """The number, from 1, of the first true row."""
    return int(rows.arg_true()[0]) + 1
