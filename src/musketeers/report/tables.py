"""Results for the terminal, readable from 80 columns on."""

import io
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from musketeers.data.overlap import OverlapReport
from musketeers.evaluation.compare import Cell, Difference
from musketeers.evaluation.evaluate import Means, means_of
from musketeers.evaluation.sampled import PREFIX
from musketeers.report.words import (
    COLD_LEGEND,
    LEGEND,
    UPDATE_LEGEND,
    headline,
    metric_name,
    model_name,
    number,
    percent,
    printable,
    verdict,
    warning,
)
from musketeers.results import Metrics, RunResult

_COLORS = {"▲": "green", "▼": "red", "": ""}
_LABEL = 12
"""Room for a model's name in front of six metrics within 80 columns."""
_WIDEST_MATRIX = 6
"""Domains side by side; more are continued below."""


def show(*parts: RenderableType) -> None:
    """Print to stdout; a character that its encoding lacks becomes a question mark.

    Plain strings are lines to copy: printed as they are, never broken.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def comparison(means: Means, differences: Mapping[Cell, Difference]) -> RenderableType:
    """Every model in every domain; below them how what recommends differs from SMF, relative.

    Users are those with a test item.  Sampled metrics have a table of their own.  Without
    differences (one model alone) no headline.
    """
    names = _metric_names(means)
    sampled = [name for name in names if name.startswith(PREFIX)]
    full = [name for name in names if name not in sampled]
    parts: list[RenderableType] = [_metrics(means, differences, full)]
    if sampled:
        parts += [_metrics(means, differences, sampled), Text(warning(sampled), style="dim")]
    if differences:
        parts += [Text(headline(differences)), Text(LEGEND, style="dim")]
    return Group(*parts)


def _metrics(
    means: Means,
    differences: Mapping[Cell, Difference],
    names: Sequence[str],
) -> Table:
    table = _table("", "users", *map(metric_name, names), gap=0)
    table.columns[0].min_width = _LABEL
    for domain in _domains(means):
        results = {model: found[domain] for model, found in means.items() if domain in found}
        n_users = max(result["users"] for result in results.values())
        table.add_row(_bold(domain), f"{n_users:,}")
        for model, result in results.items():
            cells = [number(result[name]) for name in names]
            table.add_row(Text(f"  {model_name(model)}"), "", *cells)
        if found := [differences[domain, m] for m in names if (domain, m) in differences]:
            table.add_row("  difference", "", *map(_difference, found), end_section=True)
        table.add_section()
    return table


def of_run(result: RunResult) -> RenderableType:
    """The comparison that a run makes, and why each domain was given its model."""
    verdicts = result.learning.verdicts.items()
    lines = [Text(f"{name}: {verdict(found)}", style="dim") for name, found in verdicts]
    more = (
        ("Cold users", result.cold, result.cold_differences(), COLD_LEGEND),
        ("What changed", result.update, result.changes(), UPDATE_LEGEND),
    )
    return Group(
        comparison(means_of(result.metrics), result.differences()), *lines,
        *(part for found in more if found[1] for part in _beside(*found)),
    )  # fmt: skip


def _beside(
    title: str, metrics: Metrics, differences: Mapping[Cell, Difference], legend: str
) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", style="bold")
    means = means_of(metrics)
    yield _metrics(means, differences, _metric_names(means))
    yield Text(legend, style="dim")


def next_step(result: RunResult, run: Path) -> str:
    """Where the run and its report are, and a command to try, as lines to copy."""
    domain = next(iter(result.recommender.domains))
    rows = result.recommender.domains[domain].known.nonzero()[0][:1]
    user = result.recommender.users.ids(rows)[0]
    command = ["musketeers", "recommend", str(run), "--domain", domain, "--user", str(user)]
    return f"Run:    {run}\nReport: {run / 'report.html'}\nNext:   {printable(shlex.join(command))}"


def overlap(report: OverlapReport) -> RenderableType:
    """What was read, which users the domains share, and what looks wrong."""
    return Group(_sizes(report), _rows(report), _known_in(report), *_common(report),
                 *map(_warning, report.warnings))  # fmt: skip


def answer(frame: pl.DataFrame) -> Table:
    """The rows as they are; a user's stand together, the id on the first."""
    columns = frame.columns
    table = _table(*(name.replace("_", " ") for name in columns), gap=0 if len(columns) > 6 else 1)
    lists = any(isinstance(dtype, pl.List) for dtype in frame.dtypes)
    for column, dtype in zip(table.columns, frame.dtypes, strict=True):
        column.justify = "right" if dtype.is_numeric() else "left"
        # lists can be folded, names had better not be
        column.min_width = _LABEL if lists and dtype == pl.Enum else None
    before: object = None
    for n, row in enumerate(frame.iter_rows(named=True)):
        user = row.get("user_id")
        # who was asked for twice is answered twice
        starts = not n or user != before or row.get("rank") == 1
        if starts and n:
            table.add_section()
        shown = {name: _cell(value) for name, value in row.items()}
        table.add_row(*(shown[c] if starts or c != "user_id" else Text() for c in columns))
        before = user
    return table


def _sizes(report: OverlapReport) -> Table:
    table = _table("domain", "users", "items", "interactions", "per user", "density")
    for name, found in report.domains.items():
        table.add_row(
            Text(name),
            *(f"{n:,}" for n in (found.users, found.items, found.interactions)),
            f"{found.mean_per_user:.1f}",
            f"{found.density:.3%}",
        )
    return table


def _rows(report: OverlapReport) -> Table:
    table = _table("domain", "rows read", "repeated", "dropped by the k-core")
    for name, found in report.domains.items():
        counts = (found.rows_read, found.repeats, found.dropped)
        table.add_row(Text(name), *(f"{n:,}" for n in counts))
    return table


def _known_in(report: OverlapReport) -> Table:
    table = _table("users known in", "", "share")
    total = max(sum(report.known_in), 1)
    for n, users in enumerate(report.known_in, 1):
        what = "1 domain" if n == 1 else f"{n} domains"
        table.add_row(what, f"{users:,}", f"{users / total:.1%}")
    return table


def _common(report: OverlapReport) -> Iterator[RenderableType]:
    """The matrix of shared users; domains have numbers, so that long names fit."""
    names = list(report.domains)
    for start in range(0, len(names) if len(names) > 1 else 0, _WIDEST_MATRIX):
        shown = range(start, min(start + _WIDEST_MATRIX, len(names)))
        table = _table("shared users", *(str(n + 1) for n in shown), gap=0)
        for n, name in enumerate(names):
            cells = [Text("·") if n == m else f"{report.common[n][m]:,}" for m in shown]
            table.add_row(Text(f"{n + 1} {name}"), *cells)
        yield table


def _warning(line: str) -> RenderableType:
    return Padding(Text.assemble(("warning: ", "yellow"), printable(line)), (0, 0, 0, 1))


def _table(first: str, *others: str, gap: int = 1) -> Table:
    """Numbers to the right of a name, ruled as lightly as possible."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _bold(text: str) -> Text:
    return Text(text, style="bold")


def _difference(found: Difference) -> Text:
    shown = f"{percent(found.relative)} {found.mark}".rstrip()
    return Text(shown, style=_COLORS[found.mark])


def _cell(value: object) -> Text:
    if value is None:
        return Text()
    if isinstance(value, list):
        return Text(", ".join(map(printable, value)))
    return Text(f"{value:.4f}" if isinstance(value, float) else printable(value))


def _metric_names(means: Means) -> Sequence[str]:
    first = next((one for found in means.values() for one in found.values()), {})
    return [name for name in first if name != "users"]


def _domains(means: Means) -> list[str]:
    """In the order of their first appearance."""
    return list(dict.fromkeys(name for found in means.values() for name in found))
