"""The comparison on one page that needs nothing else: tables, pictures, settings, timings."""

import math
from html import escape
from typing import Any

from musketeers.comparison.models import MODELS
from musketeers.comparison.results import REFERENCE, Results
from musketeers.comparison.study import Study
from musketeers.comparison.tables import place_of
from musketeers.config import dump
from musketeers.evaluation.compare import Difference
from musketeers.report.style import STYLE
from musketeers.report.words import (
    HEADLINE_METRIC,
    duration,
    metric_name,
    model_name,
    percent,
    warning,
)

_MARKS = {"▲": "better", "▼": "worse", "": ""}


def render(study: Study, results: Results) -> str:
    """The page as HTML text."""
    parts = (
        _section("Results", _results(results)),
        _section("Against the domain alone", _heat(results, REFERENCE)),
        _section("Against the best model on own data", _best(results) + _heat(results, "best")),
        _section("What was tuned", _tuning(study, results)),
        _section("Settings", f"<pre>{escape(dump(study.config))}</pre>"),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Comparison - musketeers</title><style>{STYLE}</style></head><body>"
        f"<header><h1>Comparison</h1>{_lead(study, results)}{_failed(results)}</header>"
        f"<main>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _lead(study: Study, results: Results) -> str:
    tries = "the defaults" if study.n_tries == 1 else f"{study.n_tries} tries for each model"
    return (
        f'<p class="lead">{len(results.models)} models, {len(results.domains)} domains, '
        f"{study.n_seeds} seed{'s' if study.n_seeds > 1 else ''}, {tries}; validation chose, "
        "test measures.</p>"
    )


def _failed(results: Results) -> str:
    if not results.failed:
        return ""
    rows = "".join(f"<li>{escape(job)}: {escape(why)}</li>" for job, why in results.failed.items())
    return f'<ul class="warn">{rows}</ul>'


def _results(results: Results) -> str:
    tables = [_domain_table(results, domain) for domain in results.domains]
    note = (
        "In %, mean and deviation over seeds. Bold: best of the column; underlined: second. "
        "▲ ▼ significantly better or worse than SMF, the domain alone: paired t-test over users, "
        "corrected (Holm) for the whole comparison, p &lt; .05. ▼ is negative transfer."
    )
    return f'<p class="soft">{note} {warning(results.metrics)}</p>' + "".join(tables)


def _domain_table(results: Results, domain: str) -> str:
    head = "".join(f"<th>{metric_name(name)}</th>" for name in results.metrics)
    rows = "".join(
        f'<tr><th scope="row">{escape(model_name(name))}</th><td>{MODELS[name].sees}</td>'
        + "".join(_cell(results, name, (domain, metric)) for metric in results.metrics)
        + "</tr>"
        for name in results.models
        if (domain, results.metrics[0]) in results.cells[name]
    )
    return (
        f'<div class="scroll"><table><caption>{escape(domain)}</caption><thead><tr><th>model</th>'
        f"<th>sees</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(results: Results, name: str, cell: tuple[str, str]) -> str:
    found = results.cells[name][cell]
    tag = {"first": "b", "second": "u", "": "span"}[place_of(results, name, cell)]
    against = results.against[REFERENCE][name].get(cell)
    mark = f' <span class="{_MARKS[against.mark]}">{against.mark}</span>' if against else ""
    spread = "" if math.isnan(found.deviation) else f"<small>±{100 * found.deviation:.2f}</small>"
    return f"<td><{tag}>{100 * found.mean:.2f}</{tag}>{mark}{spread}</td>"


def _heat(results: Results, reference: str) -> str:
    """Relative NDCG@10 difference of each model (row) in each domain (column)."""
    of = results.against[reference]
    shown = [name for name in results.models if of[name]]
    most = max(
        (abs(_relative(of[n].get((d, HEADLINE_METRIC)))) for n in shown for d in results.domains),
        default=0.0,
    )

    def cell(name: str, domain: str) -> str:
        found = of[name].get((domain, HEADLINE_METRIC))
        if found is None:
            return "<td></td>"
        share = 35 * min(abs(_relative(found)) / (most or 1), 1) ** 0.5
        tone = "better" if found.difference > 0 else "worse"
        color = f"color-mix(in srgb, var(--{tone}) {share:.0f}%, var(--page))"
        interval = f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
        return (
            f'<td style="background:{color}">{percent(found.relative)} {found.mark}'
            f"<small>{interval}</small></td>"
        )

    head = "".join(f"<th>{escape(domain)}</th>" for domain in results.domains)
    rows = "".join(
        f'<tr><th scope="row">{escape(model_name(name))}</th>'
        + "".join(cell(name, domain) for domain in results.domains)
        + "</tr>"
        for name in shown
    )
    caption = (
        "Difference in NDCG@10, relative; in brackets the 95 % interval of the difference in "
        "points (bootstrap over users, of the cell alone)"
    )
    return (
        f'<div class="scroll"><table class="heat"><caption>{caption}</caption>'
        f"<thead><tr><th>model</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _relative(found: Difference | None) -> float:
    return 0.0 if found is None or math.isnan(found.relative) else found.relative


def _best(results: Results) -> str:
    named = "; ".join(
        f"{escape(domain)}: {escape(model_name(name))}"
        for domain, name in results.best_alone.items()
    )
    return f"<p>The best on validation of the models that see their own data alone: {named}.</p>"


def _tuning(study: Study, results: Results) -> str:
    rows: list[str] = []
    for name in results.models:
        for job, found in study.found.items():
            if job.model == name and job.seed == 0:
                chosen = ", ".join(f"{key} = {_short(value)}" for key, value in
                                   found.about["settings"].items()) or "the defaults"  # fmt: skip
                rows.append(
                    f'<tr><th scope="row">{escape(model_name(name))}</th>'
                    f"<td>{escape(job.domain or 'all')}</td><td>{len(found.about['tries'])}</td>"
                    f"<td>{duration(sum(one['seconds'] for one in found.about['tries']))}</td>"
                    f'<td style="text-align:left;white-space:normal">{escape(chosen)}</td></tr>'
                )
    return (
        '<div class="scroll"><table><caption>Settings chosen with the first seed; every other seed '
        "was tuned anew (results.json has them all)</caption><thead><tr><th>model</th><th>domain"
        "</th><th>tries</th><th>time</th><th>chosen</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
