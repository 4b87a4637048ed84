"""How models, metrics and numbers read, the same in terminal and page."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from musketeers.evaluation.compare import Cell, Difference
from musketeers.evaluation.sampled import PREFIX
from musketeers.heads.choice import Verdict
from musketeers.models.tuning import Try

HEADLINE_METRIC = "ndcg@10"
LEGEND = (
    "▲ significantly better than SMF (the domain alone), ▼ significantly worse; "
    "paired t-test over users, corrected for all cells (Holm), p < .05."
)
COLD_LEGEND = (
    "Users new to the domain whom others know, their history there held back (split.cold); "
    "difference of what they are served to popularity, marked likewise. The last row is told the "
    "history: a ceiling."
)
UPDATE_LEGEND = (
    "What each domain is served after the update against before, on the test items and users of "
    "both; of other domains than the updated one all of them. Marked likewise."
)
_MODELS = {
    "pop": "Popularity",
    "item_knn": "ItemKNN",
    "ease": "EASE",
    "ials": "iALS",
    "light_gcn": "LightGCN",
    "smf": "SMF",
    "cmf": "CMF",
    "mpf": "MPF",
    "ga_mtcdr": "GA-MTCDR",
    "ga_mtcdr_p": "GA-MTCDR-P",
    "herograph": "HeroGRAPH",
    "herograph_l": "HeroGRAPH-L",
    "cat_art": "CAT-ART",
    "smf_wide": "SMF, n x dim",
    "smf_ae": "+Autoencoder",
    "smf_cat": "+Contrastive",
    "cat_art_mean": "-Attention (mean)",
    "cat_art_linear": "-Attention (linear)",
    "cat_art_no_global": "-Global embedding",
    "linear": "Linear head",
    "smf_ials": "SMF, items by iALS",
    "ials_head": "iALS head",
    "chosen": "Chosen head",
    "items_control": "Items control",
    "cat_art_shuffled": "CAT-ART, shuffled users",
    "cat_art_noise": "CAT-ART, + noise domain",
    "pooled_smf": "Pooled SMF",
    "pooled_ease": "Pooled EASE",
    "with_history": "With history",
    "before": "Before",
    "after": "After",
}
_METRICS = {
    "precision": "Prec",
    "recall": "Rec",
    "ndcg": "NDCG",
    "sampled_hr": "sampled HR",
    "sampled_ndcg": "sampled NDCG",
}
_UNITS = ("B", "kB", "MB", "GB", "TB")
_SAMPLED = (
    "Sampled: each test item among 99 random ones; not comparable with the full ranking, and no "
    "ground to choose a model (Krichene and Rendle, KDD 2020)."
)


def model_name(model: str) -> str:
    """The name that the literature uses, of a blend both; an unknown model keeps its own.

    >>> model_name("linear+cat_art"), model_name("linear")
    ('Linear + CAT-ART', 'Linear head')
    """
    parts = [_MODELS.get(part, part) for part in model.split("+")]
    return parts[0] if len(parts) == 1 else " + ".join(p.removesuffix(" head") for p in parts)


def metric_name(metric: str) -> str:
    """A column's heading.

    >>> metric_name("precision@10")
    'Prec@10'
    """
    name, _, k = metric.partition("@")
    return f"{_METRICS.get(name, name)}@{k}"


def warning(metrics: Iterable[str]) -> str:
    """What to keep in mind with these metrics; empty if nothing."""
    return _SAMPLED if any(name.startswith(PREFIX) for name in metrics) else ""


def number(value: float) -> str:
    """Four decimals, which is where test sets of thousands of users become noise."""
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def percent(share: float) -> str:
    """A relative difference, always with its sign.

    >>> percent(0.0312), percent(-1e-9), percent(1.3), percent(math.nan)
    ('+3.1%', '+0.0%', '+130%', 'n/a')
    """
    if math.isnan(share):
        return "n/a"
    return f"{share:+z.1%}" if abs(share) < 1 else f"{share:+.0%}"


def duration(seconds: float) -> str:
    """Wall time in at most two units.

    >>> duration(0.04), duration(75), duration(7500)
    ('0.0 s', '1 min 15 s', '2 h 05 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def size(n_bytes: float) -> str:
    """Memory in the unit that leaves one to three digits before the point.

    >>> size(1_234_567_890)
    '1.2 GB'
    """
    power = min(int(math.log10(max(n_bytes, 1)) // 3), len(_UNITS) - 1)
    return f"{n_bytes / 1000**power:.{1 if power else 0}f} {_UNITS[power]}"


def told(settings: Mapping[str, Any]) -> str:
    """Chosen settings in one line.

    >>> told({"regularization": 12.34567, "neighbors": 50}), told({})
    ('regularization = 12.3, neighbors = 50', 'the defaults')
    """
    values = ((key, f"{v:.3g}" if isinstance(v, float) else v) for key, v in settings.items())
    return ", ".join(f"{key} = {value}" for key, value in values) or "the defaults"


def trial(tried: Try) -> str:
    """How one try of several ended.

    >>> trial(Try({"regularization": 30.0}, 0.25, 2.0))
    'NDCG@10 0.2500  2.0 s  regularization = 30'
    """
    found = tried.failure or f"NDCG@10 {tried.valid:.4f}"
    return f"{found}  {duration(tried.seconds)}  {told(tried.settings)}"


def printable(text: object) -> str:
    r"""Text that cannot steer a terminal: control characters as escapes.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def verdict(found: Verdict) -> str:
    """What a domain was given, and why, in one sentence.

    >>> from musketeers.heads.candidates import Candidate
    >>> from musketeers.heads.choice import GroupVerdict
    >>> smf, told = Candidate("smf", "smf", 0.2), Candidate("linear", "linear(100, 2)", 0.22)
    >>> verdict(Verdict(smf, told, 0.01))
    'linear(100, 2), on validation +10.0% over smf, its own best (p = .01)'
    >>> verdict(Verdict(smf, told, 0.4))
    'smf, its own best; told of others linear(100, 2) is not surely better (+10.0%, p = .40)'
    >>> few = GroupVerdict("1..9 pairs", 80, 0.2, 0.01, takes=True)
    >>> many = GroupVerdict("10 or more pairs", 80, 0.0, 0.6, takes=False)
    >>> verdict(Verdict(smf, told, 0.01, groups=(few, many)))
    "linear(100, 2) for users with 1..9 pairs, else smf, the domain's own best; over all on \
validation +10.0% (p = .01)"
    >>> verdict(Verdict(smf, None, 1.0))
    'smf, the best that it can do alone'
    """
    own, told = found.own, found.told
    if told is None:
        return f"{own.name}, the best that it can do alone"
    p = f"p {chance(found.p)}"
    if found.groups and found.transfers:
        told_of = [one.name for one in found.groups if one.takes]
        return (
            f"{told.name} for users with {', '.join(told_of)}, else {own.name}, the domain's own "
            f"best; over all on validation {percent(found.gain)} ({p})"
        )
    if found.transfers:
        return (
            f"{told.name}, on validation {percent(found.gain)} over {own.name}, its own best ({p})"
        )
    return (
        f"{own.name}, its own best; told of others {told.name} is not surely better "
        f"({percent(found.gain)}, {p})"
    )


def chance(p: float) -> str:
    """A p-value to two digits, as it stands behind its letter.

    >>> chance(0.0004), chance(0.25), chance(1.0)
    ('< .01', '= .25', '= 1.00')
    """
    return "< .01" if p < 0.005 else f"= {p:.2f}".replace("0.", ".", 1)


def headline(differences: Mapping[Cell, Difference]) -> str:
    """The result in one sentence: where what recommends is better or worse than SMF."""
    found = {d: x for (d, metric), x in differences.items() if metric == HEADLINE_METRIC}
    if not found:
        return "One model was fitted in this run, so nothing is compared."
    better = _named(name for name, x in found.items() if x.mark == "▲")
    worse = _named(name for name, x in found.items() if x.mark == "▼")
    known = [x.relative for x in found.values() if not math.isnan(x.relative)]
    mean = percent(sum(known) / len(known)) if known else "n/a"
    return (
        f"By NDCG@10, what was chosen against each domain alone (SMF): significantly better in "
        f"{better}, significantly worse in {worse}, of {len(found)}; mean relative "
        f"difference {mean}."
    )


def _named(domains: Iterable[str]) -> str:
    names = list(domains)
    return f"{len(names)} ({', '.join(names)})" if names else "none"
