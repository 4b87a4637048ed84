"""Vectors that were made elsewhere: read, checked, and brought to the width of the run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as arrow_parquet
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load

from musketeers.config import GivenConfig
from musketeers.data.columns import checked_ids, kind
from musketeers.data.domains import Domain
from musketeers.data.files import one_line
from musketeers.data.interactions import Interactions
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import DataError
from musketeers.pretrain.ials import IalsSettings, solve, transposed
from musketeers.ranking import Factors

_LEAST_KNOWN = 0.5
"""Share of a domain's users, or items, that must be among the ids; with fewer they are others'."""

_MOST_SPREAD = 1000.0
"""Times the median length that a vector may have."""

_IDS, _VECTORS = "ids", "vectors"


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """One domain's vectors, a row for each of its users and items, as they were made."""

    users: Float32[np.ndarray, "user width"]
    items: Float32[np.ndarray, "item width"] | None
    """None where they are to be found from the users'."""
    missing: Mapping[str, int]
    """``users``, ``items`` -> how many of the domain's have no vector."""

    def digest(self) -> str:
        """Of all numbers: equal for equal vectors."""
        digest = hashlib.sha256(self.users.data)
        digest.update(b"none" if self.items is None else self.items.data)
        return digest.hexdigest()


def read(config: GivenConfig, domain: Domain, users: Vocabulary, *, base: Path) -> Given:
    """The vectors in the files that `config` names; relative paths count from `base`.

    A file is Parquet, with a column of ids and one of lists of numbers, or with several columns of
    numbers beside the first, the ids; or safetensors with the integers ``ids`` and, row by row,
    ``vectors``.  Ids are those of the data.  Ids that the domain does not have are left out; who
    has no vector gets the mean of the others.

    Raises `DataError`, one line, for a file that is not so; for ids of another kind than the
    data's, missing or repeated ones, and where fewer than half of the domain's users, or items, are
    among them; for vectors that are not finite, differ in width, or are all zero; and for lengths
    of which one is more than a thousand times the median.
    """
    known = np.flatnonzero(domain.pairs.known_users())
    of_users, missing = _placed(base / config.users, users, known, "users")
    if config.items is None:
        return Given(of_users, None, {"users": missing})
    rows = np.arange(len(domain.items))
    of_items, missing_items = _placed(base / config.items, domain.items, rows, "items")
    if of_items.shape[1] != of_users.shape[1]:
        raise DataError(
            f"{base / config.items}: vectors have {of_items.shape[1]} numbers, those of "
            f"{base / config.users} {of_users.shape[1]}; give both from one model"
        )
    return Given(of_users, of_items, {"users": missing, "items": missing_items})


def factors(given: Given, train: Interactions, *, dim: int, n_threads: int) -> Factors:
    """Vectors of `dim` numbers whose scores are those of the given ones, or as near as can be.

    Wider ones are cut by a singular value decomposition: of the matrix of all scores, which leaves
    the nearest matrix of that rank, or of the users' vectors where no items are given.  Narrower
    ones get zeros.  Items that are not given are the least-squares ones for the users' vectors in
    units of their mean length (`pretrain.ials.solve`, by default settings).
    """
    users, items = given.users, given.items
    if items is not None:
        if users.shape[1] > dim:
            users, items = _nearest(users, items, dim)
        return Factors(_widened(users, dim), _widened(items, dim))
    users = narrowed(users, dim)
    known = train.known_users()
    users = _widened(users, dim) / np.linalg.norm(users[known], axis=1).mean()
    items = np.zeros((train.n_items, dim), np.float32)
    solve(transposed(train), users * known[:, None], items, IalsSettings(), n_threads=n_threads)
    return Factors(users, items)


def _nearest(
    users: Float32[np.ndarray, "user width"], items: Float32[np.ndarray, "item width"], dim: int
) -> tuple[Float32[np.ndarray, "user dim"], Float32[np.ndarray, "item dim"]]:
    """Tables of `dim` columns whose products are nearest to these tables' products."""
    # U V' = Q (R S') P' with small R, S: the decomposition of the scores without the scores
    (left, upper), (right, lower) = (np.linalg.qr(t.astype(np.float64)) for t in (users, items))
    turned, values, back = np.linalg.svd(upper @ lower.T)
    roots = np.sqrt(values[:dim])
    return (
        (left @ (turned[:, :dim] * roots)).astype(np.float32),
        (right @ (back[:dim].T * roots)).astype(np.float32),
    )


def _widened(table: Float32[np.ndarray, "row width"], dim: int) -> Float32[np.ndarray, "row dim"]:
    return np.pad(table, ((0, 0), (0, dim - table.shape[1])))


def _placed(
    path: Path, vocabulary: Vocabulary, wanted: np.ndarray, what: str
) -> tuple[Float32[np.ndarray, "row width"], int]:
    """The file's vectors at the rows of their ids, and how many `wanted` rows have none."""
    ids, vectors = read_vectors(path)
    if kind(ids) != kind(vocabulary.values):
        raise DataError(
            f"{path}: ids are {kind(ids)}, those of the data {kind(vocabulary.values)}; convert "
            "them"
        )
    rows = vocabulary.rows(ids)
    found = len(np.intersect1d(rows, wanted))
    if found < _LEAST_KNOWN * len(wanted):
        raise DataError(
            f"{path}: holds vectors of {found:,} of {len(wanted):,} {what} of the domain, fewer "
            f"than half; are these the {what} of this domain, with the ids of the data?"
        )
    table = np.tile(vectors[rows >= 0].mean(axis=0), (len(vocabulary), 1))
    table[rows[rows >= 0]] = vectors[rows >= 0]
    return table, len(wanted) - found


def read_vectors(path: Path) -> tuple[pl.Series, Float32[np.ndarray, "row width"]]:
    """The ids in a file, each once, and as many vectors; see `read`."""
    ids, vectors = _read(path)
    if (repeated := ids.is_duplicated()).any():
        raise DataError(
            f"{path}: {repeated.sum()} rows repeat an id, such as {ids.filter(repeated)[0]!r}; "
            "give one vector for each id"
        )
    _check(path, ids, vectors)
    return ids, vectors


def narrowed(users: Float32[np.ndarray, "user width"], dim: int) -> Float32[np.ndarray, "user dim"]:
    """Vectors of `dim` numbers or fewer, whose products are as near to those given as can be."""
    return users if users.shape[1] <= dim else users @ directions(users)[:, :dim]


def directions(table: Float32[np.ndarray, "row width"]) -> Float32[np.ndarray, "width width"]:
    """In which the rows differ, as columns, the most important first: right singular vectors."""
    *_, axes = np.linalg.svd(np.linalg.qr(table.astype(np.float64), mode="r"))
    return np.ascontiguousarray(axes.T.astype(np.float32))


def _check(path: Path, ids: pl.Series, vectors: Float32[np.ndarray, "row width"]) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise DataError(
            f"{path}: the vector of {ids[bad]!r} holds NaN or infinity, and so do "
            f"{(~finite).sum() - 1} others; repair or leave them out"
        )
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    middle = float(np.median(lengths))
    if not middle:
        raise DataError(f"{path}: half of the vectors or more are zero; leave those ids out")
    longest = int(lengths.argmax())
    if lengths[longest] > _MOST_SPREAD * middle:
        raise DataError(
            f"{path}: the vector of {ids[longest]!r} has length {lengths[longest]:.3g}, the median "
            f"is {middle:.3g}; vectors of one model differ by less than {_MOST_SPREAD:g} times"
        )


def _read(path: Path) -> tuple[pl.Series, Float32[np.ndarray, "row width"]]:
    """Checked ids, and as many vectors."""
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            return _of_tensors(path, load(data))
        if path.suffix == ".parquet":
            return _of_table(path, arrow_parquet.read_table(pa.BufferReader(data)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except (SafetensorError, KeyError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path}: is damaged or not what its ending says ({one_line(error)})"
        ) from None
    raise DataError(f"{path}: unknown ending; vectors are in .parquet or .safetensors files")


def _of_tensors(
    path: Path, tensors: Mapping[str, np.ndarray]
) -> tuple[pl.Series, Float32[np.ndarray, "row width"]]:
    if set(tensors) != {_IDS, _VECTORS}:
        raise DataError(f"{path}: holds {sorted(tensors)}; it must hold {_IDS!r} and {_VECTORS!r}")
    ids, vectors = tensors[_IDS], tensors[_VECTORS]
    if (
        ids.dtype.kind not in "iu"
        or vectors.dtype.kind != "f"
        or (ids.ndim, vectors.ndim) != (1, 2)
    ):
        raise DataError(
            f"{path}: {_IDS!r} is {ids.dtype} of shape {ids.shape}, {_VECTORS!r} "
            f"{vectors.dtype} of shape {vectors.shape}; give integers, and for each a row of floats"
        )
    return _paired(path, pl.Series(_IDS, ids), vectors)


def _of_table(path: Path, table: pa.Table) -> tuple[pl.Series, Float32[np.ndarray, "row width"]]:
    frame = pl.DataFrame(pl.from_arrow(table))
    first, *others = frame.get_columns() or [pl.Series([None])]
    ids = checked_ids(first, f"{path}: column {first.name!r}")
    if len(others) == 1 and others[0].dtype.is_nested():
        return _paired(path, ids, _of_lists(path, others[0]))
    if not others or not all(column.dtype.is_numeric() for column in others):
        raise DataError(
            f"{path}: the columns are {_described(frame)}; give the ids first, then a column "
            "of lists of numbers, or columns of numbers"
        )
    return _paired(path, ids, pl.DataFrame(others).fill_null(np.nan).to_numpy())


def _of_lists(path: Path, lists: pl.Series) -> np.ndarray:
    lists = lists.cast(pl.List(pl.Float32))
    widths = lists.list.len().fill_null(0).unique().sort().to_list()
    if len(widths) > 1:
        raise DataError(
            f"{path}: vectors have from {widths[0]} to {widths[-1]} numbers; give all alike"
        )
    flat = lists.explode().fill_null(np.nan).to_numpy()
    return flat.reshape(len(lists), widths[0] if widths else 0)


def _paired(
    path: Path, ids: pl.Series, vectors: np.ndarray
) -> tuple[pl.Series, Float32[np.ndarray, "row width"]]:
    if len(ids) != len(vectors) or not vectors.size:
        raise DataError(
            f"{path}: holds {len(ids)} ids and {len(vectors)} vectors of {vectors.shape[1]} "
            "numbers; give as many of both, and at least one number each"
        )
    return ids, np.ascontiguousarray(vectors, dtype=np.float32)


def _described(frame: pl.DataFrame) -> str:
    return ", ".join(f"{c.name!r} ({c.dtype})" for c in frame.get_columns()[:5])
