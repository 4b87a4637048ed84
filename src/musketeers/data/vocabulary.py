"""The callers' own ids <-> row numbers."""

import io
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Int, Int64

from musketeers.errors import ArtifactError, DataError


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Distinct outside ids in ascending order; an id's place is its row number."""

    values: pl.Series

    @classmethod
    def of(cls, ids: pl.Series) -> "Vocabulary":
        """The distinct values of `ids`, in an order that depends on the values alone.

        Raises `DataError` for ids that are missing, floats, or nested.
        """
        ids = plain(ids)
        if missing := ids.null_count():
            raise DataError(f"{missing} of {len(ids)} ids are null; every row needs an id")
        return cls(ids.unique().sort().alias("id"))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Vocabulary":
        """What `to_bytes` wrote; `ArtifactError` for anything else."""
        try:
            frame = pl.read_parquet(io.BytesIO(data))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            raise ArtifactError("the vocabulary is no Parquet file; save the model again") from None
        values = frame.to_series() if frame.columns == ["id"] else pl.Series([None])
        if values.has_nulls() or not (values[1:] > values[:-1]).all():
            raise ArtifactError("the vocabulary is not one sorted column; save the model again")
        return cls(values)

    def to_bytes(self) -> bytes:
        """The ids as one Parquet file, types included."""
        buffer = io.BytesIO()
        self.values.to_frame("id").write_parquet(buffer, compression="zstd")
        return buffer.getvalue()

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, ids: object) -> Int64[np.ndarray, " id"]:
        """The row of each id, -1 for an unknown or missing one.

        Takes a list, a NumPy array, or a pandas, polars or Arrow column.  Ids of another
        type are found if they read the same: the text "7" is the integer 7, "007" is not.
        Raises `DataError` for mixed types, floats, and anything that is no column of ids.
        """
        query = _column(ids)
        values = self.values
        if query.dtype == values.dtype:
            return _lookup(values, query)
        if query.dtype.is_integer() and values.dtype.is_integer():
            return _lookup(values, query.cast(values.dtype, strict=False))
        if query.dtype == pl.String and values.dtype.is_integer():
            return _lookup(values, canonical_integers(query, values))
        if values.dtype == pl.Binary and query.dtype != pl.Binary:
            return _lookup(values, query.cast(pl.String).cast(pl.Binary))
        if query.dtype == pl.Binary:
            return _joined(values.cast(pl.String).cast(pl.Binary), query)
        return _joined(values.cast(pl.String), query.cast(pl.String))

    def ids(self, rows: Int[np.ndarray, " row"]) -> pl.Series:
        """The ids of `rows`, in the type they came in; `DataError` for a row out of range."""
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise DataError(f"rows span {rows.min()}..{rows.max()}, outside 0..{len(self) - 1}")
        return self.values.gather(rows)


def canonical_integers(text: pl.Series, like: pl.Series) -> pl.Series:
    """Text as integers of the type of `like`; null where not in usual form or out of range.

    Leading zeros, a plus sign, "-0" and blanks carry information that a number would lose.
    """
    usual = text.str.contains(r"^(0|-?[1-9][0-9]*)$")
    return text.set(~usual, None).cast(like.dtype, strict=False)


def plain(ids: pl.Series) -> pl.Series:
    """Categories as the text they stand for; `DataError` for types that are no ids."""
    if isinstance(ids.dtype, pl.Categorical | pl.Enum):
        return ids.cast(pl.String)  # categories sort in an order of their own
    if ids.dtype.is_float() or ids.dtype.is_nested() or ids.dtype == pl.Object:
        raise DataError(f"ids are {ids.dtype}; use integers, text, bytes, dates or booleans")
    return ids


def _column(ids: object) -> pl.Series:
    if not isinstance(ids, pl.Series):
        try:
            if ids is None or isinstance(ids, str | bytes):
                raise TypeError
            ids = pl.Series(values=ids)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError, OverflowError, pa.ArrowException, pl.exceptions.PolarsError):
            raise DataError(
                f"{type(ids).__name__} is no column of ids; give a list or array of one type"
            ) from None
    return plain(ids)


def _lookup(values: pl.Series, query: pl.Series) -> Int64[np.ndarray, " id"]:
    """Where each element of `query` stands in the sorted `values`, -1 if nowhere."""
    if len(query) * 16 > len(values):
        return _joined(values, query)
    # a few ids in a large vocabulary: building a hash table would cost more than it saves
    place = values.search_sorted(query).to_numpy().astype(np.int64)
    at = place.clip(max=len(values) - 1)
    found = (values.gather(at) == query).fill_null(value=False).to_numpy()
    return np.where(found, at, -1)


def _joined(values: pl.Series, query: pl.Series) -> Int64[np.ndarray, " id"]:
    table = pl.DataFrame({"id": values}).with_row_index("row")
    found = query.to_frame("id").join(table, on="id", how="left", maintain_order="left")
    return found["row"].cast(pl.Int64).fill_null(-1).to_numpy().copy()
