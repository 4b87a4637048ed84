"""The comparison on one page that needs nothing else: tables, pictures, settings, timings."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from musketeers.comparison.gains import Gains, Group, Groups, shown
from musketeers.comparison.jobs import Found
from musketeers.comparison.results import REFERENCE, Results
from musketeers.comparison.study import Study
from musketeers.comparison.tables import place_of
from musketeers.config import dump
from musketeers.data.overlap import OverlapReport
from musketeers.models.registry import MODELS
from musketeers.report.parts import (
    attention,
    bars,
    curve,
    differences,
    document,
    figure,
    overlap,
    row,
    section,
    settings,
    table,
)
from musketeers.report.svg import intervals, key
from musketeers.report.words import (
    HEADLINE_METRIC,
    duration,
    metric_name,
    model_name,
    told,
    warning,
)

Curves = Sequence[Sequence[tuple[int, float]]]

_MARKS = {"▲": "better", "▼": "worse", "": ""}


def render(study: Study, results: Results, gains: Gains, report: OverlapReport) -> str:
    """The page as HTML text; what the comparison lacks is left out."""
    parts = (
        section("Results", _results(results)),
        section("Against the domain alone", _against(results, REFERENCE)),
        section("Against the best model on own data", _best(results) + _against(results, "best")),
        section("Who gains", _who(results, gains)),
        section("From which domain", _sources(results, gains)),
        section("Learning curves", _curves(study, results)),
        section("Data and overlap", overlap(report)),
        section("Time", _time(results)),
        section("What was tuned", _tuning(study, results)),
        section("Settings", settings("All settings before tuning, as TOML", dump(study.config))),
    )
    return document("Comparison", _lead(study, results) + _failed(results), parts)


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
    # one open, so that the reader sees what they are and need not scroll past all of them
    tables = [
        f"<details{'' if n else ' open'}><summary>{escape(domain)}</summary>"
        f"{_domain_table(results, domain)}</details>"
        for n, domain in enumerate(results.domains)
    ]
    note = (
        "In %, mean and deviation over seeds. Bold: best of the column; underlined: second. "
        "▲ ▼ significantly better or worse than SMF, the domain alone: paired t-test over users, "
        "corrected (Holm) for the whole comparison, p &lt; .05. ▼ is negative transfer."
    )
    return f'<p class="soft">{note} {warning(results.metrics)}</p>' + "".join(tables)


def _domain_table(results: Results, domain: str) -> str:
    rows = [
        row(
            model_name(name),
            [_cell(results, name, (domain, one)) for one in results.metrics],
            note=_sees(name),
        )
        for name in results.models
        if (domain, results.metrics[0]) in results.cells[name]
    ]
    return table(domain, ["model", *map(metric_name, results.metrics)], rows, kind="named")


def _sees(name: str) -> str:
    model = MODELS[name]
    return f"sees {model.sees}{', a control' if model.control else ''}"


def _cell(results: Results, name: str, cell: tuple[str, str]) -> str:
    found = results.cells[name][cell]
    tag = {"first": "b", "second": "u", "": "span"}[place_of(results, name, cell)]
    against = results.against[REFERENCE][name].get(cell)
    mark = f' <span class="{_MARKS[against.mark]}">{against.mark}</span>' if against else ""
    spread = "" if math.isnan(found.deviation) else f"<small>±{100 * found.deviation:.2f}</small>"
    return f"<{tag}>{100 * found.mean:.2f}</{tag}>{mark}{spread}"


def _against(results: Results, reference: str) -> str:
    """Relative NDCG@10 difference of each model (row) in each domain (column)."""
    found = {
        (name, domain): one
        for name, cells in results.against[reference].items()
        for (domain, metric), one in cells.items()
        if metric == HEADLINE_METRIC
    }
    caption = (
        "Difference in NDCG@10, relative; in brackets the 95 % interval of the difference in "
        "points (bootstrap over users, of the cell alone)"
    )
    rows = [name for name in results.models if any(model == name for model, _ in found)]
    return differences(caption, "model", {n: model_name(n) for n in rows}, results.domains, found)


def _best(results: Results) -> str:
    named = "; ".join(
        f"{escape(domain)}: {escape(model_name(name))}"
        for domain, name in results.best_alone.items()
    )
    return f"<p>The best on validation of the models that see their own data alone: {named}.</p>"


def _who(results: Results, gains: Gains) -> str:
    names = shown(results)
    if not names:
        return ""
    note = (
        "Difference in NDCG@10 to SMF, the domain alone, in points, with 95 % intervals (paired "
        "t, of the group alone). Shown are CAT-ART and, of the models that see "
        "own data, user embeddings or all raw data, the best of each on validation beside SMF."
    )
    return (
        f'<p class="soft">{note}</p>{key(map(model_name, names))}'
        + _grouped(
            "By activity", "users in up to four groups of equal size by their training "
            "interactions in the domain", gains.by_activity,
        )
        + _grouped(
            "By known domains", "users by the number of domains whose training data know them",
            gains.by_known,
        )
    )  # fmt: skip


def _grouped(title: str, groups: str, found: Groups) -> str:
    figures = "".join(_group_figure(domain, of, groups) for domain, of in found.items() if of)
    head = f'<h3>{title}</h3><p class="soft">{groups.capitalize()}; in brackets how many.</p>'
    return f'{head}<div class="grid">{figures}</div>'


def _group_figure(domain: str, found: Mapping[str, Sequence[Group]], groups: str) -> str:
    first = next(iter(found.values()))
    series = {model_name(name): [_point(one) for one in of] for name, of in found.items()}
    picture = intervals(
        [(_span(one), f"({one.difference.users:,})") for one in first],
        series,
        what=f"{domain}: difference in NDCG@10 to SMF in points, {groups}",
    )
    return figure(picture, domain)


def _point(group: Group) -> tuple[float, float, float]:
    found = group.difference
    return 100 * found.difference, 100 * found.low, 100 * found.high


def _span(group: Group) -> str:
    return f"{group.low}" if group.low == group.high else f"{group.low} to {group.high}"


def _sources(results: Results, gains: Gains) -> str:
    caption = (
        "What NDCG@10 on test loses without a source (column) in a target (row), relative; in "
        "brackets the 95 % interval in points"
    )
    parts: list[str] = []
    for name, found in gains.by_source.items():
        sources = dict.fromkeys(source for _, source in found)
        columns = sorted(sources, key=[*results.domains, *sources].index)
        targets = {domain: domain for domain in results.domains}
        parts.append(
            f'<h3>{escape(model_name(name))}</h3><div class="pair">'
            f"{attention(gains.attention.get(name, {}))}"
            f"{differences(caption, 'domain', targets, columns, found)}</div>"
        )
    if not parts:
        return ""
    note = (
        "Attention says where a target looks, not what it takes from there. Beside it, the "
        "trained model is measured with one source hidden from attention and from the shared "
        "embedding while users are ranked; nothing is trained anew. Where transfer was not kept, "
        "there is no attention and nothing to lose. ▲ ▼ corrected (Holm) for the pairs of a model."
    )
    return f'<p class="soft">{note}</p>' + "".join(parts)


def _curves(study: Study, results: Results) -> str:
    parts: list[str] = []
    for name in results.models:
        figures = [
            curve(
                curves, name=", ".join(domains), what="NDCG@10", stage=model_name(name),
                end=_end(found, curves, domains),
            )
            for job, found in study.found.items()
            if job.model == name and job.seed == 0
            for curves, domains in _alike(found.curves)
        ]  # fmt: skip
        if figures:
            title = escape(model_name(name))
            parts.append(f'<h3>{title}</h3><div class="grid">{"".join(figures)}</div>')
    if not parts:
        return ""
    return (
        "<details><summary>NDCG@10 on validation by epoch: the chosen try of each model with the "
        f"first seed</summary>{''.join(parts)}</details>"
    )


def _end(found: Found, curves: Curves, domains: Sequence[str]) -> str:
    """Whether a domain, though some epoch was better, kept its start."""
    kept = len(domains) == 1 and found.valid[domains[0]] < max(
        valid for of in curves for _, valid in of
    )
    return "; within noise of epoch 0, which was kept" if kept else ""


def _alike(curves: Mapping[str, Curves]) -> list[tuple[Curves, list[str]]]:
    """Each domain's curves; domains that learned together share theirs."""
    found: list[tuple[Curves, list[str]]] = []
    for domain, of in curves.items():
        same = next((domains for one, domains in found if one == of), None)
        if same:
            same.append(domain)
        elif of:
            found.append((of, [domain]))
    return found


def _time(results: Results) -> str:
    rows = {
        model_name(name): (seconds, [duration(seconds)])
        for name, seconds in sorted(results.seconds.items(), key=lambda item: -item[1])
    }
    caption = "Training of all tries and domains, mean over seeds, on one thread"
    return bars(caption, ["model", "time"], rows)


def _tuning(study: Study, results: Results) -> str:
    rows: list[str] = []
    for name in results.models:
        for job, found in study.found.items():
            if job.model == name and job.seed == 0:
                tries, chosen = found.about["tries"], found.about["settings"]
                cells = [
                    escape(job.domain or "all"), f"{len(tries)}",
                    duration(sum(one["seconds"] for one in tries)),
                    escape(_in_words(found.about["parts"]) or told(chosen)),
                ]  # fmt: skip
                rows.append(row(model_name(name), cells))
    caption = (
        "Settings chosen with the first seed; every other seed was tuned anew (results.json has "
        "them all)"
    )
    return table(caption, ["model", "domain", "tries", "time", "chosen"], rows, kind="told")


def _in_words(parts: Mapping[str, str]) -> str:
    return "; ".join(f"{domain}: {model}" for domain, model in parts.items())
