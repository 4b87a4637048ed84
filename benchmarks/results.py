"""docs/results.md: every model on the real data sets, tuned alike, over several seeds.

    python benchmarks/results.py --data FOLDER --out OUT --sets journey6 --seeds 5 --tries 5
    python benchmarks/results.py --data FOLDER --out OUT --sets journey6 --models ease linear \
        --part linear
    python benchmarks/results.py

Runs `musketeers compare` with all models on each set of `--sets` into OUT/SET, where an interrupted
one goes on by the same command, and keeps in docs/results what the page needs of each: SET.json,
and all means and deviations in SET.md.  With `--part`, what is measured of some models is kept
beside it as SET-PART, a comparison of its own: its marks and pairs are between its own models.
Then it writes the page from all that is kept, below its marker; what stands above the marker is
written by hand.  docs/results/anchors.json is from anchors.py.  All results of a comparison come
from one commit of the package, which is kept with them.  The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from data_sets import SETS, settings

from musketeers.comparison import command
from musketeers.comparison.workers import Processes
from musketeers.errors import RunError
from musketeers.evaluation.compare import compare, holm
from musketeers.evaluation.evaluate import PerUser
from musketeers.models.registry import MODELS
from musketeers.report.words import duration, model_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
KEPT = ROOT / "docs" / "results"
MARKER = "<!-- everything below is written by benchmarks/results.py -->"
METRIC, SERVED = "ndcg@10", ("ndcg@10", "recall@20")
CLAIMS = (
    ("An autoencoder's global user embedding helps", "smf_ae", "smf"),
    ("The contrastive loss makes that embedding better", "smf_cat", "smf_ae"),
    ("Transfer from each domain (ART) adds to the global embedding", "cat_art", "smf_cat"),
    ("Attention is better than the mean of the sources", "cat_art", "cat_art_mean"),
    ("Attention is better than one linear map of all sources", "cat_art", "cat_art_linear"),
)
"""The paper's ablations: what is claimed, the model that should be better, and than which."""

QUESTIONS = (
    ("Is the whole method better than a domain alone?", "cat_art", "smf"),
    ("Is it more than longer training of the items?", "cat_art", "items_control"),
    ("Is it more than a larger model?", "cat_art", "smf_wide"),
    ("Does it need to know who is who?", "cat_art", "cat_art_shuffled"),
    ("What is gained with users mixed up, where nothing should be?", "cat_art_shuffled", "smf"),
    ("What does a domain of pure noise cost?", "cat_art_noise", "cat_art"),
    ("Does it need the global embedding?", "cat_art", "cat_art_no_global"),
    ("Is it better than the best linear model of one domain?", "cat_art", "ease"),
    ("What would all raw data give that model?", "pooled_ease", "ease"),
    ("What do the others' user embeddings give it?", "linear", "ease"),
    ("Is what validation chose better than it?", "chosen", "ease"),
    ("And better than with all raw data?", "chosen", "pooled_ease"),
)
"""What a reader would ask next: the model in question, and what it is held against."""


# 1. Measuring


def measure(name: str, asked: argparse.Namespace) -> None:
    """Compare on one set, and keep what the page needs."""
    found = settings(name, asked.data, asked.out / "data")
    if found is None:
        raise SystemExit(f"--data {asked.data} lacks {name}")
    kept_as = f"{name}-{asked.part}" if asked.part else name
    commit = same_state(asked.out / f"{kept_as}.state.json")
    config, base = found
    out: Path = asked.out / kept_as
    try:
        command.run(
            config, base, out, models=asked.models, n_seeds=asked.seeds, n_tries=asked.tries,
            workers=Processes.of(asked.jobs), resume=out.exists(),
        )  # fmt: skip
    except RunError as error:  # the others' results count, and the page names what failed
        print(f"{kept_as}: {error}", flush=True)
    KEPT.mkdir(exist_ok=True)
    shutil.copy(out / "table.md", KEPT / f"{kept_as}.md")
    about = {
        "commit": commit, "date": str(date.today()), "seeds": asked.seeds, "tries": asked.tries,
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} processors",
    }  # fmt: skip
    text = json.dumps({**about, **summary(out)}, indent=1)
    (KEPT / f"{kept_as}.json").write_text(text + "\n", encoding="utf-8")


def same_state(file: Path) -> str:
    """The commit whose package gave the results beside `file`; refuses another package."""
    commit, tree = git("rev-parse", "--short", "HEAD"), git("rev-parse", "HEAD:src/musketeers")
    if git("status", "--porcelain", "src/musketeers"):
        raise SystemExit("src/musketeers has changes that no commit has; commit them first")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"commit": commit, "tree": tree}) + "\n", encoding="utf-8")
    state = json.loads(file.read_text(encoding="utf-8"))
    if state["tree"] != tree:
        raise SystemExit(
            f"{file} is of commit {state['commit']}; check it out, or give another --out"
        )
    return state["commit"]


def git(*words: str) -> str:
    """What git answers about this repository."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def summary(out: Path) -> dict[str, Any]:
    """What the page shows of one comparison."""
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    models = {
        name: {
            "seconds": found["details"][name]["seconds"],
            "means": {domain: means[domain][METRIC] for domain in means if means[domain]},
            "against": {
                reference: {
                    one["domain"]: sign(one["difference"])
                    for one in found["details"][name]["against"][reference]
                    if one["metric"] == METRIC and one["significant"]
                }
                for reference in ("smf", "best")
            },
        }
        for name, means in found["models"].items()
    }
    values = by_user(out / "results.parquet", METRIC)
    pairs = {
        f"{better} {worse}": differences(values[better], values[worse])
        for _, better, worse in (*CLAIMS, *QUESTIONS)
        if better in values and set(values[better]) == set(values.get(worse, {}))
    }
    return {
        "best_alone": found["best_alone"], "failed": found["failed"], "models": models,
        "pairs": pairs, "served": served(out / "results.parquet", found["best_alone"]),
    }  # fmt: skip


def served(file: Path, best_alone: Mapping[str, str]) -> dict[str, Any]:
    """What the choice gives: domain -> metric -> against the best model on own data, pooled EASE.

    Empty where the choice was not measured.
    """
    found: dict[str, Any] = {}
    for metric in SERVED:
        values = by_user(file, metric)
        for domain, chosen in values.get("chosen", {}).items():
            others = {"best": best_alone[domain], "pooled_ease": "pooled_ease"}
            found.setdefault(domain, {})[metric] = {
                name: differences({domain: chosen}, {domain: values[model][domain]})[domain]
                for name, model in others.items()
                if model in values
            }
    return found


def sign(difference: float) -> int:
    """1 for better, -1 for worse."""
    return 1 if difference > 0 else -1


def by_user(file: Path, metric: str) -> dict[str, dict[str, PerUser]]:
    """Model -> domain -> each user's mean over the seeds."""
    frame = (
        pl.scan_parquet(file)
        .filter(pl.col("metric") == metric)
        .collect()
        # in one order for all: models that rank alike must not differ by rounding
        .sort("model", "domain", "user_id", "seed")
        .group_by("model", "domain", "user_id", maintain_order=True)
        .agg(pl.col("value").mean())
    )
    found: dict[str, dict[str, PerUser]] = {}
    for (model, domain), part in frame.group_by("model", "domain", maintain_order=True):
        values = {metric: part["value"].to_numpy()}
        found.setdefault(str(model), {})[str(domain)] = PerUser(np.arange(len(part)), values)
    return found


def differences(
    one: Mapping[str, PerUser], other: Mapping[str, PerUser]
) -> dict[str, dict[str, float]]:
    """By domain, relative and with the p-value of that domain alone."""
    return {
        domain: {"relative": found.relative, "difference": found.difference, "p": found.p}
        for (domain, _), found in compare(one, other).items()
    }


# 2. The page


def kept() -> dict[str, Any]:
    """What was measured, by set and part: ``anime4``, ``anime4-PART``."""
    files = [
        file
        for name in SETS
        for file in (KEPT / f"{name}.json", *sorted(KEPT.glob(f"{name}-*.json")))
    ]
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()
    }


def page(sets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The generated part, in lines."""
    yield "## NDCG@10 by model and domain\n"
    yield (
        "In %, mean over the seeds; best of a domain in bold. ▲ ▼ significantly better or worse "
        "than SMF, the domain alone; ● ○ likewise, than the model on own data that validation "
        "prefers (paired t-tests over users, corrected by Holm for the whole table of a set). "
        "*Time* is that of all tries of one seed, in processes of one thread each.\n"
    )
    for name, found in sets.items():
        yield f"### {name}\n"
        set_name, _, part = name.partition("-")
        only = f" --part {part}" if part else ""
        if len(found["models"]) < len(MODELS):
            only += f" --models {' '.join(found['models'])}"
        yield (
            f"    python benchmarks/results.py --data FOLDER --out OUT --sets {set_name} "
            f"--seeds {found['seeds']} --tries {found['tries']}{only}\n"
        )
        yield (
            f"{found['date']}, commit {found['commit']}, {found['machine']}. Other metrics and "
            f"deviations over seeds: [results/{name}.md](results/{name}.md).\n"
        )
        yield from overview(found)
        if found["failed"]:
            yield "\nFailed: " + "; ".join(f"{job}: {why}" for job, why in found["failed"].items())
        yield ""
    if missing := sorted(set(SETS) - {name.partition("-")[0] for name in sets}):
        yield f"Not measured yet: {', '.join(missing)}.\n"
    note = (
        "Relative difference of NDCG@10 by domain, ▲ ▼ where it is significant: paired t-tests "
        "over users, corrected by Holm for all domains of a row.\n"
    )
    for title, rows in (("The paper's ablation claims", CLAIMS), ("What else one asks", QUESTIONS)):
        yield f"## {title}\n"
        yield note
        yield from asked_and_answered(sets, rows)
        yield ""
    if lines := list(what_is_served(sets)):
        yield "## What a fit serves\n"
        yield (
            "The choice (`chosen`) against the model on own data that validation prefers, and "
            "against pooled EASE, which sees all raw data: relative difference, ▲ ▼ where it is "
            "significant (paired t-tests over users, Holm over both metrics and all domains of a "
            "comparison, for each of the two by itself).\n"
        )
        yield from lines
        yield ""
    if (anchors := KEPT / "anchors.json").exists():
        yield "## Our baselines against other libraries'\n"
        yield from anchored(json.loads(anchors.read_text(encoding="utf-8")))


def overview(found: Mapping[str, Any]) -> Iterator[str]:
    """A row for each model, a column for each domain."""
    models: Mapping[str, Any] = found["models"]
    domains = list(models["smf"]["means"])
    best = {
        domain: max(one["means"].get(domain, 0.0) for one in models.values()) for domain in domains
    }
    yield "| model | sees | " + " | ".join(domains) + " | time |"
    yield "|---|---|" + "--:|" * (len(domains) + 1)
    for name, one in models.items():
        cells = [cell(one, domain, best[domain]) for domain in domains]
        kind = "control" if MODELS[name].control else MODELS[name].sees
        yield "| " + " | ".join([model_name(name), kind, *cells, duration(one["seconds"])]) + " |"


def cell(one: Mapping[str, Any], domain: str, best: float) -> str:
    """The mean, and where it stands."""
    if domain not in one["means"]:
        return ""
    mean = one["means"][domain]
    text = f"**{100 * mean:.2f}**" if mean == best else f"{100 * mean:.2f}"
    for reference, up, down in (("smf", "▲", "▼"), ("best", "●", "○")):
        if stands := one["against"][reference].get(domain):
            text += " " + (up if stands > 0 else down)
    return text


def asked_and_answered(
    sets: Mapping[str, Mapping[str, Any]], rows: Sequence[tuple[str, str, str]]
) -> Iterator[str]:
    """A row for each claim or question, over the domains of all sets."""
    yield "| | better | worse | neither | by domain |"
    yield "|---|--:|--:|--:|---|"
    for text, better, worse in rows:
        cells: dict[tuple[str, str], Mapping[str, float]] = {}
        for name, found in sets.items():
            for domain, cell in found["pairs"].get(f"{better} {worse}", {}).items():
                # a pair that two comparisons of the same data have counts once, from the first
                cells.setdefault((data_of(name), domain), cell)
        if not cells:
            continue
        significant = holm(np.array([cell["p"] for cell in cells.values()])) < 0.05
        marks = [
            ("▲" if cell["difference"] > 0 else "▼") if so else ""
            for cell, so in zip(cells.values(), significant, strict=True)
        ]
        shown = ", ".join(
            f"{domain} {100 * cell['relative']:+.1f} %{mark}"
            for ((_, domain), cell), mark in zip(cells.items(), marks, strict=True)
        )
        yield (
            f"| {text} ({model_name(better)} against {model_name(worse)}) | {marks.count('▲')} | "
            f"{marks.count('▼')} | {marks.count('')} | {shown} |"
        )


def data_of(comparison: str) -> str:
    """The data of a comparison: two sets can have domains of one folder in common."""
    name = comparison.partition("-")[0]
    return SETS[name][0] or name if name in SETS else name


def what_is_served(sets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A row for each domain where the choice was measured; nothing if it was nowhere."""
    by_set = {name: found["served"] for name, found in sets.items() if found.get("served")}
    if by_set:
        yield (
            "| set | domain | best on own data | NDCG@10 | Recall@20 "
            "| against pooled EASE: NDCG@10 | Recall@20 |"
        )
        yield "|---|---|---|--:|--:|--:|--:|"
    for name, domains in by_set.items():
        shown = {other: marked(domains, other) for other in ("best", "pooled_ease")}
        for domain in domains:
            best = model_name(sets[name]["best_alone"][domain])
            cells = [shown[o].get((domain, m), "") for o in shown for m in SERVED]
            yield f"| {name} | {domain} | {best} | {' | '.join(cells)} |"


def marked(domains: Mapping[str, Any], other: str) -> dict[tuple[str, str], str]:
    """Domain and metric -> the difference to that model in words, corrected for all of these."""
    found = {
        (domain, metric): by_metric[metric][other]
        for domain, by_metric in domains.items()
        for metric in SERVED
        if other in by_metric[metric]
    }
    if not found:
        return {}
    significant = holm(np.array([cell["p"] for cell in found.values()])) < 0.05
    return {
        key: f"{100 * cell['relative']:+.1f} %"
        + ((" ▲" if cell["difference"] > 0 else " ▼") if so else "")
        for (key, cell), so in zip(found.items(), significant, strict=True)
    }


def anchored(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows of anchors.json."""
    yield (
        "The same split (seed 0), the same number of tries on the same validation users, test "
        "NDCG@10 in %, and the 95 % interval of the difference (benchmarks/anchors.py).\n"
    )
    yield "| model | library | set | domain | tries | ours | theirs | difference |"
    yield "|---|---|---|---|--:|--:|--:|--:|"
    for row in sorted(rows, key=lambda row: (row["model"], row["set"])):
        yield (
            f"| {model_name(row['model'])} | {row['package']} | {row['set']} | {row['domain']} | "
            f"{row['tries']} | {100 * row['ours']:.2f} | {100 * row['theirs']:.2f} | "
            f"{100 * (row['ours'] - row['theirs']):+.2f} "
            f"({100 * row['low']:+.2f}..{100 * row['high']:+.2f}) |"
        )


def main() -> None:
    """Measure what is asked for, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the real data sets")
    parser.add_argument("--out", type=Path, help="folder to measure in")
    parser.add_argument("--sets", nargs="+", default=[], choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--part", help="keep it as a comparison of its own beside the set's")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    asked = parser.parse_args()
    if asked.sets and asked.out is None:
        parser.error("--sets needs --out")
    for name in asked.sets:
        measure(name, asked)
    above = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Results\n\n"
    generated = "\n".join(page(found := kept()))
    PAGE.write_text(f"{above.partition(MARKER)[0]}{MARKER}\n\n{generated}\n", encoding="utf-8")
    print(json.dumps({"name": "results", "sets": list(found)}))


if __name__ == "__main__":
    main()
