"""What a column of ids or times must be, and its one form inside the library."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with the values of a column, or of a part of it; rows are counted from 1."""

    n: int = 0
    """Values, faulty or not."""
    missing: int = 0
    first_missing: int = 0
    """Its row; 0 if there is none, as with the others."""
    no_id: str = ""
    """Why the type cannot name anything."""
    first_wrong: int = 0
    """Of an overlong id, or of what is no time."""
    n_bytes: int = 0
    """Of the first overlong id."""

    @property
    def is_fine(self) -> bool:
        """Whether there is no fault."""
        return not (self.missing or self.no_id or self.first_wrong)

    def then(self, later: "Faults") -> "Faults":
        """Of this part of a column and the one after it, together."""
        return Faults(
            self.n + later.n,
            self.missing + later.missing,
            self.first_missing or (later.first_missing and self.n + later.first_missing),
            self.no_id or later.no_id,
            self.first_wrong or (later.first_wrong and self.n + later.first_wrong),
            self.n_bytes or later.n_bytes,
        )


def id_faults(ids: pl.Series) -> Faults:
    """Missing and blank ids, text of more than `LONGEST_ID` bytes, types that name nothing."""
    missing, no_id, first_wrong, n_bytes = _missing(ids), "", 0, 0
    try:
        ids = plain(ids)
    except DataError as error:
        no_id = str(error)
    if isinstance(ids.dtype, pl.String | pl.Binary):
        size = ids.str.len_bytes() if ids.dtype == pl.String else ids.bin.size()
        if first_wrong := _first(size > LONGEST_ID):
            n_bytes = int(size[first_wrong - 1])
    found = int(missing.sum()), _first(missing)
    return Faults(len(ids), *found, no_id, first_wrong, n_bytes)


def refuse_ids(faults: Faults, where: str) -> None:
    """Raise `DataError`, which begins with `where`, if there is any fault."""
    _refuse_missing(faults, where, "ids", "remove or repair those rows")
    if faults.no_id:
        raise DataError(f"{where}: {faults.no_id}")
    if faults.first_wrong:
        raise DataError(
            f"{where}: the id in row {faults.first_wrong} has {faults.n_bytes} bytes, more than "
            f"{LONGEST_ID}; is this the id column?"
        )


def checked_ids(ids: pl.Series, where: str) -> pl.Series:
    """The ids, categories as text.

    Raises `DataError`, which begins with `where`, for missing, blank or overlong ids and for
    types that cannot name a user or an item.
    """
    refuse_ids(id_faults(ids), where)
    return plain(ids)


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
    refuse_times(_missing_times(times), where)  # text that is missing is no number either
    times = _parsed(times) if times.dtype == pl.String else times
    check_times(times, where)
    found = counted(times)
    refuse_times(Faults(first_wrong=_first(found.is_null())), where)
    return found.to_numpy().copy(), unit(times)


def check_times(times: pl.Series, where: str) -> None:
    """Raise `DataError` for a type whose values are no times; text is to be parsed before."""
    dtype = times.dtype
    if not (dtype.is_float() or dtype.is_integer() or isinstance(dtype, pl.Date | pl.Datetime)):
        raise DataError(f"{where}: {dtype} is no time; use integers, seconds or dates")


def unit(times: pl.Series) -> str:
    """What times of this type count."""
    return "integers" if times.dtype.is_integer() else "microseconds"


def counted(times: pl.Series) -> pl.Series:
    """Times of a type that passes `check_times` as int64; null where there is no such number."""
    if times.dtype.is_float():
        return (times.cast(pl.Float64) * _MICROSECONDS).round().cast(pl.Int64, strict=False)
    if isinstance(times.dtype, pl.Date | pl.Datetime):
        return times.cast(pl.Datetime("us"), strict=False).cast(pl.Int64)
    return times.cast(pl.Int64, strict=False)


def time_faults(times: pl.Series) -> Faults:
    """Missing times, and those that are no number of 64 bits; the type passes `check_times`."""
    return replace(_missing_times(times), first_wrong=_first(counted(times).is_null()))


def refuse_times(faults: Faults, where: str) -> None:
    """Raise `DataError`, which begins with `where`, if there is any fault."""
    remedy = "remove those rows or configure no timestamp"
    _refuse_missing(faults, where, "times", remedy)
    if faults.first_wrong:
        raise DataError(
            f"{where}: the time in row {faults.first_wrong} is no number or date of 64 bits; "
            f"{remedy}"
        )


def _missing_times(times: pl.Series) -> Faults:
    missing = _missing(times)
    return Faults(len(times), int(missing.sum()), _first(missing))


def _parsed(text: pl.Series) -> pl.Series:
    """Text as integers, else as float seconds, else as dates; null where it is none."""
    numbers = numbers_if_all(text)
    if numbers.dtype == pl.String:
        numbers = text.cast(pl.Float64, strict=False)
    if not numbers.has_nulls():
        return numbers
    return text.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")


def _missing(values: pl.Series) -> pl.Series:
    """Which are null, NaN, infinite or blank."""
    missing = values.is_null()
    if values.dtype.is_float():
        missing |= ~values.is_finite().fill_null(value=False)
    elif values.dtype == pl.String:
        missing |= (values.str.strip_chars() == "").fill_null(value=True)
    elif values.dtype == pl.Binary:
        missing |= (values.bin.size() == 0).fill_null(value=True)
    return missing


def _refuse_missing(faults: Faults, where: str, what: str, remedy: str) -> None:
    if faults.missing:
        raise DataError(
            f"{where}: {faults.missing} of {faults.n} {what} are missing (null, NaN or blank), "
            f"the first in row {faults.first_missing}; {remedy}"
        )


def _first(rows: pl.Series) -> int:
    """The number, from 1, of the first true row; 0 if there is none."""
    found = rows.arg_true()
    return int(found[0]) + 1 if len(found) else 0
