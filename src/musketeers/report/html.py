"""One run on one page that needs nothing else: no script, no font, no other file."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from musketeers.config import dump
from musketeers.data.overlap import DomainFacts, OverlapReport
from musketeers.evaluation.compare import Cell, Difference
from musketeers.evaluation.evaluate import PerUser
from musketeers.report.style import STYLE
from musketeers.report.svg import learning_curves
from musketeers.report.words import (
    LEGEND,
    duration,
    headline,
    metric_name,
    model_name,
    number,
    percent,
    size,
)
from musketeers.results import Learning, Metrics, RunResult
from musketeers.training import History

_STAGES = {
    "pretrain": "1. Each domain alone",
    "cat": "2. What the domains share",
    "art": "3. What each domain takes from the others",
}


def render(result: RunResult) -> str:
    """The page as HTML text.  Names are escaped; what a run lacks is left out."""
    folder, differences = result.path, result.differences()
    name = escape(folder.resolve().name if folder else "in memory")
    parts = (
        _section("Comparison", _comparison(result.metrics, differences)),
        _section("Learning curves", _curves(result.learning)),
        _section("Data and overlap", _overlap(result.overlap)),
        _section("Attention", _attention(result.learning.attention)),
        _section("Cost", _cost(result.manifest)),
        _section("Settings", _settings(result)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} - musketeers</title><style>{STYLE}</style></head><body>"
        f"<header><h1>Run {name}</h1>{_lead(result, differences)}"
        f"{_warnings(result.overlap.warnings)}</header>"
        f"<main>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _lead(result: RunResult, differences: Mapping[Cell, Difference]) -> str:
    facts = [f"seed {result.config.seed}"]
    if result.manifest:
        facts += [f"started {result.manifest['started']}", f"threads {result.manifest['threads']}"]
    return (
        f'<p class="lead">{escape(headline(differences))}</p>'
        f'<p class="soft">{escape(", ".join(facts))}</p>'
    )


def _warnings(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2>Warnings about the data</h2><ul class="warn">{items}</ul>'


def _comparison(metrics: Metrics, differences: Mapping[Cell, Difference]) -> str:
    first = next((r for found in metrics.values() for r in found.values()), None)
    names = list(first.values) if first else []
    domains = dict.fromkeys(domain for found in metrics.values() for domain in found)
    rows = [row for d in domains for row in _domain_rows(d, names, metrics, differences)]
    caption = "Means over users with a test item, ranking the whole catalogue"
    interval = f'<p class="soft">{LEGEND} In brackets: 95 % interval of the difference.</p>'
    table = _table(caption, ["model", *map(metric_name, names)], rows)
    return table + (interval if differences else "")


def _domain_rows(
    domain: str, names: Sequence[str], metrics: Metrics, differences: Mapping[Cell, Difference]
) -> list[str]:
    found = {model: of[domain] for model, of in metrics.items() if domain in of}
    n_users = max(len(per_user.users) for per_user in found.values())
    label = f"{escape(domain)}, {n_users:,} users"
    head = f'<tr class="domain"><th colspan="{len(names) + 1}" scope="rowgroup">{label}</th></tr>'
    rows = [_row(model_name(model), _means(of, names)) for model, of in found.items()]
    if cells := [differences[domain, name] for name in names if (domain, name) in differences]:
        rows.append(_row("difference", map(_difference, cells)))
    return [head, *rows]


def _means(per_user: PerUser, names: Sequence[str]) -> list[str]:
    means = per_user.means()
    return [number(means[name]) for name in names]


def _difference(found: Difference) -> str:
    kind = {"▲": "better", "▼": "worse", "": ""}[found.mark]
    return (
        f'<span class="{kind}">{percent(found.relative)} {found.mark}</span>'
        f"<small>{_signed(found.difference)}</small>"
        f"<small>[{_signed(found.low)}, {_signed(found.high)}]</small>"
    )


def _signed(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:+z.4f}"


def _curves(learning: Learning) -> str:
    parts: list[str] = []
    for stage, title in _STAGES.items():
        if found := learning.histories.get(stage):
            figures = "".join(
                _curve(stage, domain, fits, kept=stage != "art" or learning.kept[domain])
                for domain, fits in found.items()
            )
            parts.append(f'<h3>{title}</h3><div class="grid">{figures}</div>')
    return "".join(parts)


def _curve(stage: str, domain: str, fits: Sequence[History], *, kept: bool) -> str:
    chosen = max(range(len(fits)), key=lambda n: fits[n].best.valid)
    epoch = fits[chosen].best.number
    # cat's validation value is minus a loss
    sign, name, what = (-1, "all domains", "loss") if stage == "cat" else (1, domain, "NDCG@10")
    curves = [[sign * epoch.valid for epoch in fit.epochs] for fit in fits]
    picture = learning_curves(
        curves, best=(chosen, epoch), what=f"validation {what}", where=f"{stage}, {name}"
    )
    tried = f", best of {len(fits)} strengths of regularization" if len(fits) > 1 else ""
    end = "" if kept else "; within noise of epoch 0, the domain alone, which was kept"
    label = f"{name}: {what} {curves[chosen][epoch]:.4f} at epoch {epoch}{tried}{end}"
    return f"<figure>{picture}<figcaption>{escape(label)}</figcaption></figure>"


def _overlap(report: OverlapReport) -> str:
    names = list(report.domains)
    head = ("domain", "users", "items", "interactions", "per user", "density", "rows read",
            "repeated", "dropped")  # fmt: skip
    sizes = [_row(name, _size_cells(facts)) for name, facts in report.domains.items()]
    tables = [
        _table("Domains after the k-core; dropped: distinct pairs lost to it", head, sizes),
        _known_in(report.known_in),
    ]
    if len(names) > 1:
        shared = {
            (a, b): float(report.common[i][j])
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j
        }
        tables.append(_heat("Users that two domains share", names, names, shared, "{:,.0f}".format))
    return "".join(tables)


def _size_cells(facts: DomainFacts) -> list[str]:
    kept = [f"{n:,}" for n in (facts.users, facts.items, facts.interactions)]
    read = [f"{n:,}" for n in (facts.rows_read, facts.repeats, facts.dropped)]
    return [*kept, f"{facts.mean_per_user:.1f}", f"{facts.density:.3%}", *read]


def _known_in(known_in: Sequence[int]) -> str:
    total, most = max(sum(known_in), 1), max([*known_in, 1])
    rows = [
        f'<tr><th scope="row">{n}</th><td>{users:,}</td><td>{users / total:.1%}</td>'
        f'<td class="bar"><span style="width:{100 * users / most:.1f}%"></span></td></tr>'
        for n, users in enumerate(known_in, 1)
    ]
    caption = "Users by the number of domains that know them"
    return _table(caption, ["domains", "users", "share", ""], rows)


def _attention(attention: Mapping[str, Mapping[str, float]]) -> str:
    targets = [name for name, found in attention.items() if found]
    if not targets:
        return ""
    sources = list(dict.fromkeys(name for found in attention.values() for name in found))
    columns = [name for name in attention if name in sources]
    weights = {(a, b): weight for a, found in attention.items() for b, weight in found.items()}
    caption = "Mean attention of each target (row) on each source (column)"
    return _heat(caption, targets, columns, weights, "{:.2f}".format)


def _heat(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    shown: Callable[[float], str],
) -> str:
    """A matrix whose cells are the darker the larger their value; a missing one is empty."""
    most = max(values.values(), default=0.0) or 1.0

    def cell(key: tuple[str, str]) -> str:
        if key not in values:
            return "<td></td>"
        share = 100 * values[key] / most
        color = f"color-mix(in srgb, var(--heat) {share:.0f}%, var(--page))"
        return f'<td style="background:{color}">{shown(values[key])}</td>'

    body = [
        f'<tr><th scope="row">{escape(row)}</th>{"".join(cell((row, c)) for c in columns)}</tr>'
        for row in rows
    ]
    return _table(caption, ["domain", *columns], body, kind="heat")


def _cost(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return ""
    seconds = manifest["seconds"]
    rows = [_row(stage, [duration(s)]) for stage, s in seconds.items()]
    versions = [_row(name, [escape(str(v))]) for name, v in manifest["versions"].items()]
    peak = f"<p>Peak memory of the process: {size(manifest['peak_memory_bytes'])}.</p>"
    return (
        _table("Wall time", ["stage", "time"], rows) + peak
        + _table("Versions", ["package", "version"], versions)
    )  # fmt: skip


def _settings(result: RunResult) -> str:
    return (
        "<details><summary>All settings of this run, as TOML</summary>"
        f'<pre class="scroll" tabindex="0">{escape(dump(result.config))}</pre></details>'
    )


def _row(name: str, cells: Iterable[str]) -> str:
    """`name` is escaped here, the cells by their maker."""
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'


def _table(caption: str, head: Sequence[str], rows: Sequence[str], *, kind: str = "") -> str:
    """In a box of its own that scrolls, also by keyboard."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
