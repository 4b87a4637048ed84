"""One domain's Parquet and CSV files, found, checked, and read some rows at a time.

Arrow does the parsing: unlike the faster readers it refuses ragged rows and survives
damaged files.
"""

import csv
import gzip
import os
import stat
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from io import BufferedIOBase
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from musketeers.errors import DataError

ENDINGS = (".parquet", ".csv", ".csv.gz")
_PARQUET, _PARQUET_ENCRYPTED, _GZIP = b"PAR1", b"PARE", b"\x1f\x8b"
_LONGEST_LINE = 1 << 20
ROWS = 1 << 20
"""In a batch, at most: enough that what a batch costs beside its rows is small."""
BUFFER = 1 << 22
"""Bytes of a Parquet column that are read at a time, however long its row groups are."""


def find(source: str, base: Path) -> tuple[Path, ...]:
    """The data files that `source` names, sorted; a relative one counts from `base`.

    `source` is a file, a folder (every .parquet, .csv and .csv.gz directly in it, hidden
    ones left out), or a glob.  Raises `DataError` if there is none, or both Parquet and CSV.
    """
    path = base / source
    with explained(path):
        if not _exists(path) and any(sign in source for sign in "*?["):
            return _one_format(path, _matches(source, base), "no file matches the pattern")
        if not stat.S_ISDIR(path.stat().st_mode):
            return (path,)
        files = sorted(p for p in path.iterdir() if ending(p) and not p.name.startswith("."))
    return _one_format(path, files, f"the folder holds no {', '.join(ENDINGS)} file")


def identity(path: Path) -> tuple[int, int]:
    """Equal for two names of one file; `DataError` if there is none."""
    with explained(path):
        status = path.stat()
    return status.st_dev, status.st_ino


def told_rows(path: Path) -> int:
    """How many rows a Parquet file says it has; 0 where that cannot be known before reading."""
    if ending(path) != ".parquet" or not path.is_file():
        return 0
    try:
        return arrow_parquet.read_metadata(path).num_rows
    except (OSError, pa.ArrowException):
        return 0  # reading it says what is wrong


def ending(path: PurePath) -> str | None:
    """Which of `ENDINGS` the name has."""
    return next((e for e in ENDINGS if path.name.lower().endswith(e)), None)


def batches(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """These columns of one file, some rows at a time; those of a CSV file as text, as written.

    Raises `DataError`, with the file's name and what to do, for anything but a whole and
    well-formed file that has the columns; for damage in a row when that row is reached.
    """
    with explained(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: is no regular file; copy the data into one")
        with path.open("rb") as file:
            yield from _reader(path, file)(path, file, columns)


def parquet(
    origin: object, file: BinaryIO | BufferedIOBase, columns: Sequence[str], **options: Any
) -> arrow_parquet.ParquetFile:
    """An opened file that begins and ends as Parquet does and has the columns, each once.

    `options` go to Arrow.  What else is wrong with it is found when it is read.
    """
    _check_start(origin, file, ".parquet")
    file.seek(0, os.SEEK_END)
    if file.tell() >= len(_PARQUET):
        file.seek(-len(_PARQUET), os.SEEK_END)
    if file.read() != _PARQUET:
        raise DataError(f"{origin}: Parquet file is cut off; copy or write it again")
    file.seek(0)
    content = arrow_parquet.ParquetFile(file, page_checksum_verification=True, **options)
    check_columns(origin, cast("list[str]", content.schema_arrow.names), columns)
    return content


def parquet_batches(
    content: arrow_parquet.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[pl.DataFrame]:
    """These columns of an opened file, or of some of its row groups, some rows at a time."""
    for batch in content.iter_batches(ROWS, columns=list(columns), row_groups=groups):
        batch.validate(full=True)  # damaged text would stop the process inside polars
        yield cast("pl.DataFrame", pl.from_arrow(batch)).select(columns)


def check_columns(origin: object, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `DataError` unless each wanted column is there once."""
    for name in wanted:
        if name not in names:
            raise missing_column(origin, name, names)
        if names.count(name) > 1:
            raise DataError(f"{origin}: two columns are named {name!r}; rename one of them")


@contextmanager
def explained(path: object) -> Generator[None]:
    """Any failure to read `path` as one `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: gzip file is cut off or damaged ({one_line(error)})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: header is not UTF-8 CSV text ({one_line(error)})") from None
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{path}: {_reason(str(error))}") from None
    except OSError as error:
        raise DataError(f"{path}: {_refusal(error)}") from None
    except ValueError as error:  # a path or pattern that no system accepts
        raise DataError(f"{str(path)!r}: {one_line(error)}; check data.domains") from None


def missing_column(origin: object, name: str, columns: Sequence[str]) -> DataError:
    """The error for a column that is not there, with those that are."""
    near = get_close_matches(name, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
    return DataError(f"{origin}: no column {name!r} among {shown}{hint}")


def one_line(error: object) -> str:
    """An error's text on one line, cut to a readable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _matches(pattern: str, base: Path) -> list[Path]:
    root = Path(pattern).anchor
    found = (Path(root) if root else base).glob(pattern[len(root) :])
    return sorted(path for path in found if not path.is_dir() and not path.name.startswith("."))


def _one_format(path: Path, files: Sequence[Path], otherwise: str) -> tuple[Path, ...]:
    if not files:
        raise DataError(f"{path}: {otherwise}")
    if len({ending(file) == ".parquet" for file in files}) > 1:
        raise DataError(f"{path}: holds Parquet and CSV files; keep one format per domain")
    return tuple(files)


def _reader(
    path: Path, file: BufferedIOBase
) -> Callable[[Path, BufferedIOBase, Sequence[str]], Iterator[pl.DataFrame]]:
    """How to read a file of this ending; its first bytes must agree."""
    end = ending(path)
    if end is None:
        raise DataError(f"{path}: unknown ending; data files end in {', '.join(ENDINGS)}")
    _check_start(path, file, end)
    return _read_parquet if end == ".parquet" else _read_csv


def _check_start(origin: object, file: BinaryIO | BufferedIOBase, end: str) -> None:
    start = file.read(4)
    file.seek(0)
    if not start:
        raise DataError(f"{origin}: is empty")
    actual = _format(start)
    expected = {".parquet": "Parquet", ".csv.gz": "gzip"}.get(end)
    if actual != expected and (end, actual) != (".csv", "gzip"):
        raise DataError(
            f"{origin}: the content is {actual or 'text or unknown'}, the ending says {end}; "
            "rename or rewrite the file"
        )


def _format(start: bytes) -> str | None:
    if start.startswith(_GZIP):
        return "gzip"
    return {_PARQUET: "Parquet", _PARQUET_ENCRYPTED: "encrypted Parquet"}.get(start)


def _read_parquet(
    path: Path, file: BufferedIOBase, columns: Sequence[str]
) -> Iterator[pl.DataFrame]:
    content = parquet(path, file, columns, buffer_size=BUFFER)
    yield from parquet_batches(content, columns)
    pa.default_memory_pool().release_unused()  # what batches took would stay with the process


def _read_csv(path: Path, file: BufferedIOBase, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    packed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    with gzip.open(file) if packed else nullcontext(file) as content:
        names = _header(path, content)
        check_columns(path, names, columns)
        if not content.read(1):
            return
        content.seek(0)
        table = arrow_csv.read_csv(
            content,
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=False,
            ),
        )
    yield from cast("pl.DataFrame", pl.from_arrow(table)).iter_slices(ROWS)


def _header(path: Path, content: BufferedIOBase) -> list[str]:
    """The column names of a CSV file, read up to the end of their line."""
    line = b"\n"
    while line in (b"\n", b"\r\n"):
        line = content.readline(_LONGEST_LINE)
    names = next(csv.reader([line.decode("utf-8-sig")]), [])
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: header names {', '.join(repeated)} twice; rename one of them")
    return names


def _refusal(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or folder; check data.domains"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"cannot be read ({error.strerror or one_line(error)})"


def _reason(message: str) -> str:
    if "UTF8" in message or "utf8" in message:
        return "is not UTF-8 text; convert the file"
    if "Expected" in message and "columns" in message:
        return f"rows differ in length ({one_line(message)}); quote values that hold commas"
    return f"is damaged or not of the format its ending says ({one_line(message)})"
