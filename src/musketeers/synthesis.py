"""The whole of `musketeers synth`: a planted workload as Parquet files, settings, and its ideal."""

import json
import math
import shlex
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as arrow_parquet
import tomli_w
from jaxtyping import Bool, Float32, Int, Int64
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from musketeers import artifacts
from musketeers.data.genres import GENRES, PlantedDomain, activities
from musketeers.data.synthetic import known_where
from musketeers.data.workload import Workload, check_known, workload
from musketeers.disk import check_room
from musketeers.errors import ConfigError
from musketeers.parallel import available_threads, each
from musketeers.report import words
from musketeers.seeding import Seed

ID_KINDS = ("integer", "text")

_PAIRS_AT_ONCE = 1 << 21
"""Of a row group, and of a thread's turn; part of the files' bytes."""
_VECTORS_AT_ONCE = 1 << 17
_LARGEST_DICTIONARY = 1 << 26
"""Bytes; beyond, ids would be written out in full."""

_SETTINGS = """\
# Planted data; about.json says what they are.
#   musketeers fit settings.toml --out RUN
"""
_IDEAL = """\
# The ideal: users' and items' vectors are those that the data were drawn from, so what is measured
# here as SMF, on the same split as that of settings.toml, is the best that any model can do.
#   musketeers fit ideal.toml --only smf --out RUN
"""


@dataclass(frozen=True, slots=True)
class Written:
    """What `synth` left in its folder."""

    folder: Path
    workload: Workload
    n_bytes: int

    @property
    def settings(self) -> Path:
        """For `musketeers fit`."""
        return self.folder / "settings.toml"

    @property
    def ideal(self) -> Path:
        """For `musketeers fit --only smf`, which then measures the best possible ranking."""
        return self.folder / "ideal.toml"

    @property
    def n_pairs(self) -> int:
        """Over all domains."""
        return sum(size.pairs for size in self.workload.domains.values())


def synth(
    out: Path,
    preset: str = "paper",
    *,
    scale: float = 0.01,
    domains: int | None = None,
    users: int | None = None,
    items: int | None = None,
    pairs: int | None = None,
    known: float | None = None,
    common: float | None = None,
    seed: int = 0,
    ids: str = "integer",
    threads: int | None = None,
) -> Written:
    """Write a workload whose ideal ranking is known into the new folder `out`.

    Sizes are those of `data.workload.workload`, the model is that of `data.genres`.  The folder
    holds for each domain a Parquet file of `user_id` and `item_id`, users ascending; in `ideal/`
    the vectors whose inner product ranks best; `settings.toml` to fit, `ideal.toml` to measure the
    ideal, and `about.json`.  The same arguments give the same bytes, whatever `threads` is.  On a
    terminal a bar on stderr shows rate and time left.

    Raises `ConfigError` for arguments out of range, sizes that cannot be together and a disk
    without room, before anything is written; `ArtifactError` if `out` holds something or the disk
    refuses.  After any error nothing is left behind.
    """
    found = workload(
        preset, scale, domains=domains, users=users, items=items, pairs=pairs, known=known,
        common=common,
    )  # fmt: skip
    n_threads = available_threads() if threads is None else threads
    _check(ids, seed, n_threads)
    present = known_where(
        len(found.domains), Seed(seed).child("known").numpy(), n_users=found.users,
        known=found.known,
    )  # fmt: skip
    for (name, size), here in zip(found.domains.items(), present, strict=True):
        check_known(name, size, int(here.sum()))
    check_room(out, _estimate(found, present.sum(axis=1), ids))
    with artifacts.new_folder(out) as draft:
        _write_domains(draft, found, present, seed=seed, ids=ids, n_threads=n_threads)
        about = {
            "format": 1, "version": version("musketeers"), "preset": preset, "scale": scale,
            "seed": seed, "ids": ids, "genres": GENRES, **asdict(found),
        }  # fmt: skip
        (draft / "about.json").write_text(json.dumps(about, indent=2) + "\n")
        settings, ideal = _settings(found, seed), _ideal(found, seed)
        (draft / "settings.toml").write_text(_SETTINGS + tomli_w.dumps(settings))
        (draft / "ideal.toml").write_text(_IDEAL + tomli_w.dumps(ideal))
        n_bytes = sum(p.stat().st_size for p in draft.rglob("*") if p.is_file())
    return Written(out, found, n_bytes)


def summary(written: Written) -> str:
    """What was written, and what to do with it, as lines to copy."""
    found = written.workload
    settings, ideal = (shlex.quote(str(path)) for path in (written.settings, written.ideal))
    return (
        f"{written.folder}: {len(found.domains)} domains, {found.users:,} users, "
        f"{written.n_pairs:,} pairs, {words.size(written.n_bytes)}\n"
        f"Next:  musketeers fit {settings} --out RUN\n"
        f"Ideal: musketeers fit {ideal} --only smf --out IDEAL"
    )


def _check(ids: str, seed: int, n_threads: int) -> None:
    if ids not in ID_KINDS:
        raise ConfigError(f"ids is {ids!r}; choose one of {', '.join(ID_KINDS)}")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; it is from 0 to 2^63 - 1")
    if n_threads < 1:
        raise ConfigError(f"threads is {n_threads}; use 1 or more")


def _estimate(found: Workload, n_known: Int64[np.ndarray, " domain"], ids: str) -> int:
    """Bytes that the files will have, a little more than less."""
    name = 4 if ids == "integer" else 24
    total = 0.0
    for size, n_users in zip(found.domains.values(), n_known.tolist(), strict=True):
        total += size.pairs * (math.log2(size.items) + 1) / 8
        # a user's run, and the names of all items for each row group
        total += n_users * (name + 8) + (size.pairs / _PAIRS_AT_ONCE + 1) * size.items * name
        total += (n_users + size.items) * (4 * GENRES + name + 8)
    return int(1.05 * total)


def _settings(found: Workload, seed: int) -> dict[str, Any]:
    data = {"min_user": 1, "min_item": 1, "domains": {n: f"{n}.parquet" for n in found.domains}}
    return {"seed": seed, "data": data}


def _ideal(found: Workload, seed: int) -> dict[str, Any]:
    given = {
        name: {"users": f"ideal/{name}-users.parquet", "items": f"ideal/{name}-items.parquet"}
        for name in found.domains
    }
    return {
        "dim": GENRES,
        **_settings(found, seed),
        "pretrain": {"method": "given", "given": given},
    }


def _write_domains(
    folder: Path,
    found: Workload,
    present: Bool[np.ndarray, "domain user"],
    *,
    seed: int,
    ids: str,
    n_threads: int,
) -> None:
    """All domains, one after the other, so that one at a time is in memory."""
    root = Seed(seed)
    activity = activities(found.users, root)
    user_ids = _Ids.of("user", found.users, ids)
    first_item = 0
    (folder / "ideal").mkdir()
    with _progress(sum(size.pairs for size in found.domains.values())) as on_pairs:
        for (name, size), here in zip(found.domains.items(), present, strict=True):
            users = np.flatnonzero(here)
            planted = PlantedDomain.of(
                name, size, users, activity[users],
                common=found.common, seed=root, n_threads=n_threads,
            )  # fmt: skip
            item_ids = _Ids.of(name, size.items, ids, first=first_item)
            first_item += size.items  # no item id occurs in two domains
            _write_vectors(
                folder / "ideal" / f"{name}-users.parquet", "user_id", user_ids, users,
                planted.tastes,
            )  # fmt: skip
            _write_vectors(
                folder / "ideal" / f"{name}-items.parquet", "item_id", item_ids,
                np.arange(size.items), planted.items,
            )  # fmt: skip
            path = folder / f"{name}.parquet"
            _write_pairs(path, planted, user_ids, item_ids, n_threads=n_threads, on_pairs=on_pairs)


@dataclass(frozen=True, slots=True, eq=False)
class _Ids:
    """What rows are called outside."""

    first: int
    """The id of row 0, where ids are numbers."""
    names: pa.Array | None
    """The ids, where they are texts."""

    @classmethod
    def of(cls, prefix: str, n: int, kind: str, *, first: int = 0) -> Self:
        """Numbers, or texts such as `user-0000123` that sort as the rows do."""
        if kind == "integer":
            return cls(first, None)
        numbers = pl.Series(np.arange(n)).cast(pl.String).str.zfill(len(str(n - 1)))
        return cls(first, (f"{prefix}-" + numbers).to_arrow().cast(pa.string()))

    @property
    def kind(self) -> pa.DataType:
        """Of a column of them."""
        return pa.int32() if self.names is None else pa.string()

    def take(self, rows: Int[np.ndarray, " row"]) -> pa.Array:
        """The ids of these rows."""
        if self.names is None:
            return pa.array(rows + self.first, pa.int32())
        return self.names.take(pa.array(rows))


def _write_pairs(
    path: Path,
    planted: PlantedDomain,
    user_ids: _Ids,
    item_ids: _Ids,
    *,
    n_threads: int,
    on_pairs: Callable[[int], None],
) -> None:
    """Draw a block for each thread, write them in order, and so on; users ascend."""
    schema = pa.schema([("user_id", user_ids.kind), ("item_id", item_ids.kind)])
    blocks = list(planted.blocks(_PAIRS_AT_ONCE))
    with arrow_parquet.ParquetWriter(
        path, schema, compression="zstd", compression_level=1, store_schema=False,
        dictionary_pagesize_limit=_LARGEST_DICTIONARY,
    ) as writer:  # fmt: skip
        for start in range(0, len(blocks), n_threads):
            turn = blocks[start : start + n_threads]
            tables = [schema.empty_table()] * len(turn)

            def draw(
                number: int, turn: list[slice] = turn, tables: list[pa.Table] = tables
            ) -> None:
                users, items = planted.draw(turn[number])
                columns = [user_ids.take(users), item_ids.take(items)]
                tables[number] = pa.Table.from_arrays(columns, schema=schema)

            each(draw, len(turn), n_threads=n_threads)
            for table in tables:
                writer.write_table(table, row_group_size=len(table))
                on_pairs(len(table))


def _write_vectors(
    path: Path,
    column: str,
    ids: _Ids,
    rows: Int[np.ndarray, " row"],
    vectors: Float32[np.ndarray, "row genre"],
) -> None:
    """A table of ids and lists of numbers, as `pretrain.given` reads it."""
    schema = pa.schema([(column, ids.kind), ("vector", pa.list_(pa.float32()))])
    with arrow_parquet.ParquetWriter(
        path, schema, compression="none", use_dictionary=False, store_schema=False
    ) as writer:
        for start in range(0, len(rows), _VECTORS_AT_ONCE):
            part = vectors[start : start + _VECTORS_AT_ONCE]
            ends = np.arange(0, part.size + 1, part.shape[1], dtype=np.int32)
            lists = pa.ListArray.from_arrays(ends, pa.array(part.ravel()))
            chosen = ids.take(rows[start : start + _VECTORS_AT_ONCE])
            writer.write_table(pa.Table.from_arrays([chosen, lists], schema=schema))


@contextmanager
def _progress(n_pairs: int) -> Generator[Callable[[int], None]]:
    """A bar with rate and time left where stderr is a terminal; to be told of pairs written."""
    columns = (
        TextColumn("writing"), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as live:
        task = live.add_task("", total=n_pairs, rate="")

        def on_pairs(n: int) -> None:
            live.advance(task, n)
            speed = live.tasks[task].speed or 0
            live.update(task, rate=f"{speed / 1e6:.1f} M pairs/s")

        yield on_pairs
