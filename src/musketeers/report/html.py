"""One run on one page that needs nothing else: no script, no font, no other file."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from musketeers.budget.recipes import own
from musketeers.config import dump
from musketeers.evaluation.compare import Cell, Difference
from musketeers.evaluation.evaluate import PerUser
from musketeers.heads.candidates import LEVEL, Candidate
from musketeers.heads.choice import Verdict
from musketeers.models.tuning import Try
from musketeers.report.parts import (
    attention,
    curve,
    differences,
    document,
    heat,
    overlap,
    row,
    section,
    settings,
    table,
)
from musketeers.report.words import (
    COLD_LEGEND,
    LEGEND,
    UPDATE_LEGEND,
    chance,
    duration,
    headline,
    metric_name,
    model_name,
    number,
    percent,
    size,
    told,
)
from musketeers.results import Learning, Metrics, RunResult
from musketeers.training import History

_STAGES = {
    "pretrain": "1. Each domain alone",
    "cat": "2. What the domains share",
    "art": "3. What each domain takes from the others",
}
_HIDING = (
    "Attention, CAT-ART's, says where a target looks, not what it takes from there. Beside it, "
    "what serves the domain is measured with one source hidden while users are ranked; nothing is "
    "trained anew. Sources that tell the same stand in for each other, so that each could go does "
    "not say that all could. ▲ ▼ corrected (Holm) for all pairs."
)


def render(result: RunResult) -> str:
    """The page as HTML text.  Names are escaped; what a run lacks is left out."""
    folder, differences = result.path, result.differences()
    name = folder.resolve().name if folder else "in memory"
    parts = (
        section("Comparison", _comparison(result.metrics, differences)),
        section("What was chosen", _choice(result.learning.verdicts)),
        section("How the domains learn alone", _rounds(result)),
        section("Cold users", _cold(result)),
        section("What changed", _changes(result)),
        section("Learning curves", _curves(result.learning)),
        section("Data and overlap", overlap(result.overlap)),
        section("Which domain helped", _sources(result)),
        section("What was tuned", _tuning(result.learning.tries)),
        section("Cost", _cost(result.manifest)),
        section("Settings", _settings(result)),
    )
    header = _lead(result, differences) + _warnings(result.overlap.warnings)
    return document(f"Run {name}", header, parts)


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
    means = table(caption, ["model", *map(metric_name, names)], rows)
    return means + (interval if differences else "")


def _cold(result: RunResult) -> str:
    caption = "Means over users who are new to the domain, ranking the whole catalogue"
    return _beside(caption, result.cold, result.cold_differences(), COLD_LEGEND)


def _changes(result: RunResult) -> str:
    caption = "Means before and after the update, ranking the whole catalogue"
    return _beside(caption, result.update, result.changes(), UPDATE_LEGEND)


def _beside(
    caption: str, metrics: Metrics, differences: Mapping[Cell, Difference], legend: str
) -> str:
    if not metrics:
        return ""
    first, *_ = (of for domains in metrics.values() for of in domains.values())
    names = list(first.values)
    domains = dict.fromkeys(domain for found in metrics.values() for domain in found)
    rows = [row for d in domains for row in _domain_rows(d, names, metrics, differences)]
    return (
        table(caption, ["model", *map(metric_name, names)], rows)
        + f'<p class="soft">{legend} In brackets: 95 % interval of the difference.</p>'
    )


def _domain_rows(
    domain: str, names: Sequence[str], metrics: Metrics, differences: Mapping[Cell, Difference]
) -> list[str]:
    found = {model: of[domain] for model, of in metrics.items() if domain in of}
    n_users = max(len(per_user.users) for per_user in found.values())
    label = f"{escape(domain)}, {n_users:,} users"
    head = f'<tr class="domain"><th colspan="{len(names) + 1}" scope="rowgroup">{label}</th></tr>'
    rows = [row(model_name(model), _means(of, names)) for model, of in found.items()]
    if cells := [differences[domain, name] for name in names if (domain, name) in differences]:
        rows.append(row("difference", map(_difference, cells)))
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
    for stage, found in learning.histories.items():
        figures = "".join(
            _curve(stage, domain, fits, kept=stage != "art" or learning.kept[domain])
            for domain, fits in found.items()
        )
        title = _STAGES.get(stage, model_name(stage))
        parts.append(f'<h3>{title}</h3><div class="grid">{figures}</div>')
    return "".join(parts)


def _curve(stage: str, domain: str, fits: Sequence[History], *, kept: bool) -> str:
    # cat's validation value is minus a loss
    sign, what = (-1, "loss") if stage == "cat" else (1, "NDCG@10")
    name = "all domains" if domain == "all" else domain
    end = "" if kept else "; within noise of epoch 0, the domain alone, which was kept"
    curves = [[(epoch.number, epoch.valid) for epoch in fit.epochs] for fit in fits]
    return curve(curves, sign=sign, name=name, what=what, stage=stage, end=end)


def _choice(verdicts: Mapping[str, Verdict]) -> str:
    if not verdicts:
        return ""
    rows = [row(name, _sides(found)) for name, found in verdicts.items()]
    caption = (
        "NDCG@10 on validation of the best model that is told nothing and of the best that is told "
        "of other domains; the latter is chosen where so large a gain of the best of all tried is "
        f"unlikely by chance (p < {LEVEL:g})"
    )
    note = (
        '<p class="soft">In brackets: regularisation, and weight of the embeddings of others; '
        "before a name: the share of a second model. Gains are measured on the users who chose, "
        "and will be smaller for others.</p>"
    )
    columns = ["domain", "chosen", "its own best", "", "told of others", "", "gain", "p"]
    return (
        table(caption, columns, rows)
        + _choice_by_group(verdicts)
        + _choice_of_cold(verdicts)
        + note
    )


def _choice_by_group(verdicts: Mapping[str, Verdict]) -> str:
    rows = [
        row(f"{name}, {group.name}",
            [f"{group.users:,}", "yes" if group.takes else "no", percent(group.gain),
             escape(chance(group.p))])
        for name, found in verdicts.items()
        for group in found.groups
    ]  # fmt: skip
    caption = (
        "Which users of a domain are told of others, each group by a test of its own: gain on "
        f"validation, and its p, below {LEVEL:g} divided by the number of groups where they are"
    )
    columns = ["group", "users", "told of others", "gain", "p"]
    return table(caption, columns, rows) if rows else ""


def _sides(found: Verdict) -> list[str]:
    own, told = found.own, found.told
    sides = [escape(model_name(found.chosen.kind)), escape(own.name), number(own.valid)]
    if told is None:
        return [*sides, "", "", "", ""]
    return [
        *sides, escape(told.name), number(told.valid), percent(found.gain), escape(chance(found.p)),
    ]  # fmt: skip


def _rounds(result: RunResult) -> str:
    """A recipe a row, as far as it went on; the one that the fit took is marked."""
    rounds, taken = result.learning.rounds, own(result.config).name
    if not rounds:
        return ""
    rows = [
        row(
            recipe,
            [number(one.valid[recipe]) if recipe in one.valid else "" for one in rounds],
            note="taken" if recipe == taken else "",
        )
        for recipe in rounds[0].valid
    ]
    note = (
        '<p class="soft">Recipes for all domains to learn alone, by method and width of vectors. '
        "Each is valued by NDCG@10 on validation, mean over the domains, of the best that its "
        "vectors, the linear head told with them, and blends of the two reach, while no training "
        "has more looks at validation than the column says; the better half goes on.</p>"
    )
    columns = ["recipe", *(f"{one.looks} looks" for one in rounds)]
    return table("Validation NDCG@10 by round", columns, rows) + note


def _choice_of_cold(verdicts: Mapping[str, Verdict]) -> str:
    rows = [
        row(name, [escape(best.name), number(best.valid), number(popular),
                   percent(best.valid / popular - 1 if popular else math.nan)])
        for name, found in verdicts.items()
        if (popular := found.popular) is not None
        for best in [found.cold or Candidate("pop", "what is popular", popular)]
    ]  # fmt: skip
    caption = (
        "What cold users get, whom only other domains know: NDCG@10 on validation with histories "
        "hidden, beside popularity"
    )
    columns = ["domain", "chosen", "", "popularity", "gain"]
    return table(caption, columns, rows) if rows else ""


def _sources(result: RunResult) -> str:
    content = _pair(attention(result.learning.attention), _hidden(result))
    alone = [
        f"{name} ({model_name(one.chosen.kind)})"
        for name, one in result.learning.verdicts.items()
        if one.told and not one.transfers
    ]
    if alone:
        content += (
            "<p>Served by their own models, which are told of no other domain, so that there is "
            f"nothing to hide: {escape(', '.join(alone))}.</p>"
        )
    return content + f'<p class="soft">{_HIDING}</p>' if content else ""


def _pair(*parts: str) -> str:
    return f'<div class="pair">{"".join(parts)}</div>' if any(parts) else ""


def _hidden(result: RunResult) -> str:
    """What hiding each source does to the metric and to the lists."""
    if not (found := result.by_source()):
        return ""
    here = dict.fromkeys(result.recommender.about["model"])
    domains = list(here | dict.fromkeys(source for _, source in found))
    targets = [name for name in domains if any(name == target for target, _ in found)]
    changed = {
        (target, source): float((result.hidden[source][target].values["kept@10"] < 1).mean())
        for target, source in found
    }
    what = "What NDCG@10 on test loses without a source (column) in what a target (row) is served"
    caption = f"{what}, relative; in brackets the 95 % interval in points"
    lists = "Share of test users whose first ten items are not the same without it"
    return (
        differences(caption, "domain", {name: name for name in targets}, domains, found)
        + heat(lists, targets, domains, changed, "{:.0%}".format)
    )  # fmt: skip


def _tuning(tries: Mapping[str, Sequence[Try]]) -> str:
    rows = [
        row(where, [f"{number}", *_tried(one)])
        for where, found in tries.items()
        for number, one in enumerate(found, 1)
        if len(found) > 1
    ]
    caption = "All tries; the one that is best on validation was kept"
    return table(caption, ["domain", "try", "NDCG@10", "time", "settings"], rows) if rows else ""


def _tried(one: Try) -> list[str]:
    reached = "failed" if one.valid is None else number(one.valid)
    return [reached, duration(one.seconds), escape(one.failure or told(one.settings))]


def _cost(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return ""
    # the first runs did not keep the peaks of stages
    peaks = manifest.get("peak_bytes", {})
    rows = [
        row(stage, [duration(s), size(peaks[stage]) if stage in peaks else "-"])
        for stage, s in manifest["seconds"].items()
    ]
    versions = [row(name, [escape(str(v))]) for name, v in manifest["versions"].items()]
    peak = f"<p>Peak memory of the process: {size(manifest['peak_memory_bytes'])}.</p>"
    return (
        table("Wall time and memory", ["stage", "time", "peak"], rows) + peak
        + table("Versions", ["package", "version"], versions)
    )  # fmt: skip


def _settings(result: RunResult) -> str:
    return settings("All settings of this run, as TOML", dump(result.config))
