"""docs/results.md: every model on the real data sets, tuned alike, over several seeds.

    python benchmarks/results.py --data FOLDER --out OUT [--sets ...] [--seeds 5] [--tries 5]

Runs `musketeers compare` with all models on each set into OUT/SET, where an interrupted one goes on
by the same command, and then writes the page below its marker; what stands above the marker is
written by hand.  OUT/anchors.json, from anchors.py, is shown if it is there.  All results of a page
come from one state of the package: OUT remembers it, and another is refused.  The last line is one
JSON object.
"""

import argparse
import json
import multiprocessing
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from data_sets import SETS, settings

from musketeers.comparison import command
from musketeers.errors import RunError
from musketeers.evaluation.compare import Difference, compare
from musketeers.evaluation.evaluate import PerUser
from musketeers.models.registry import MODELS
from musketeers.report.words import duration, model_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
MARKER = "<!-- everything below is written by benchmarks/results.py -->"
METRIC = "ndcg@10"
CLAIMS = (
    ("An autoencoder's global user embedding helps", "smf_ae", "smf"),
    ("The contrastive loss makes that embedding better", "smf_cat", "smf_ae"),
    ("Transfer from each domain (ART) adds to the global embedding", "cat_art", "smf_cat"),
    ("Attention is better than the mean of the sources", "cat_art", "cat_art_mean"),
    ("Attention is better than one linear map of all sources", "cat_art", "cat_art_linear"),
)
"""The paper's ablations: what is claimed, the model that should be better, and than which."""


# 1. Measuring


def measure(asked: argparse.Namespace) -> None:
    """What is missing of every set."""
    for name in asked.sets:
        found = settings(name, asked.data, asked.out / "data")
        if found is None:
            raise SystemExit(f"--data {asked.data} lacks {name}")
        config, base = found
        out = asked.out / name
        try:
            command.run(
                config, base, out, models=asked.models, n_seeds=asked.seeds, n_tries=asked.tries,
                n_processes=asked.jobs, resume=out.exists(),
            )  # fmt: skip
        except RunError as error:  # the others' results count, and the page names what failed
            print(f"{name}: {error}", flush=True)


def same_state(out: Path) -> str:
    """The commit whose package gave the results in `out`; refuses another package."""
    commit, tree = git("rev-parse", "--short", "HEAD"), git("rev-parse", "HEAD:src/musketeers")
    if git("status", "--porcelain", "src/musketeers"):
        raise SystemExit("src/musketeers has changes that no commit has; commit them first")
    file = out / "state.json"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"commit": commit, "tree": tree}) + "\n", encoding="utf-8")
    state = json.loads(file.read_text(encoding="utf-8"))
    if state["tree"] != tree:
        raise SystemExit(
            f"{out} holds results of commit {state['commit']}; check it out, or give another --out"
        )
    return state["commit"]


def git(*words: str) -> str:
    """What git answers about this repository."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# 2. The page


def page(asked: argparse.Namespace, commit: str) -> Iterator[str]:
    """The generated part, in lines."""
    sets = " ".join(asked.sets)
    yield f"## {date.today()}: seeds: {asked.seeds}, tries for each model: {asked.tries}\n"
    yield (
        f"    python benchmarks/results.py --data FOLDER --out OUT --seeds {asked.seeds} "
        f"--tries {asked.tries} --sets {sets}\n"
    )
    yield (
        f"Commit {commit}; {platform.machine()}, {multiprocessing.cpu_count()} processors, one "
        "thread a job. NDCG@10 in %, mean over the seeds; best of a domain in bold. ▲ ▼ "
        "significantly better or worse than SMF, the domain alone; ● ○ likewise, than the model on "
        "own data that validation prefers (paired t-tests over users, corrected by Holm for the "
        "whole table of a set).\n"
    )
    for name in asked.sets:
        found = json.loads((asked.out / name / "results.json").read_text(encoding="utf-8"))
        yield f"### {name}\n"
        yield from overview(found)
        if found["failed"]:
            yield "\nFailed: " + "; ".join(f"{job}: {why}" for job, why in found["failed"].items())
        yield "\n<details><summary>All metrics, with deviations over seeds</summary>\n"
        yield (asked.out / name / "table.md").read_text(encoding="utf-8")
        yield "</details>\n"
    yield "### The paper's ablation claims\n"
    yield from claims(asked)
    if (anchors := asked.out / "anchors.json").exists():
        yield "\n### Our baselines against other libraries'\n"
        yield from anchored(json.loads(anchors.read_text(encoding="utf-8")))


def overview(found: Mapping[str, Any]) -> Iterator[str]:
    """A row for each model, a column for each domain."""
    models: Mapping[str, Any] = found["models"]
    domains = list(models["smf"])
    best = {
        domain: max(means[domain][METRIC] for means in models.values() if means.get(domain))
        for domain in domains
    }
    yield "| model | sees | " + " | ".join(domains) + " | time of a seed |"
    yield "|---|---|" + "--:|" * (len(domains) + 1)
    for name, means in models.items():
        details = found["details"][name]
        cells = [
            cell(means[domain][METRIC], best[domain], details["against"], domain)
            if means.get(domain) else ""
            for domain in domains
        ]  # fmt: skip
        kind = "control" if MODELS[name].control else MODELS[name].sees
        row = [model_name(name), kind, *cells, duration(details["seconds"])]
        yield "| " + " | ".join(row) + " |"


def cell(mean: float, best: float, against: Mapping[str, Any], domain: str) -> str:
    """The mean, and where it stands."""
    text = f"**{100 * mean:.2f}**" if mean == best else f"{100 * mean:.2f}"
    for reference, up, down in (("smf", "▲", "▼"), ("best", "●", "○")):
        for one in against[reference]:
            if (one["domain"], one["metric"]) == (domain, METRIC) and one["significant"]:
                text += " " + (up if one["difference"] > 0 else down)
    return text


def claims(asked: argparse.Namespace) -> Iterator[str]:
    """Each claim tested in every domain of every set, corrected (Holm) within a claim."""
    values = {name: by_user(asked.out / name / "results.parquet") for name in asked.sets}
    yield "| claim | better | worse | neither | relative difference by domain |"
    yield "|---|--:|--:|--:|---|"
    for text, better, worse in CLAIMS:
        one, other = (
            {
                f"{name} {domain}": users
                for name in asked.sets
                for domain, users in values[name].get(model, {}).items()
            }
            for model in (better, worse)
        )
        if not one or set(one) != set(other):
            continue
        found = compare(one, other)
        marks = [cell.mark for cell in found.values()]
        shown = ", ".join(f"{domain} {difference(cell)}" for (domain, _), cell in found.items())
        yield (
            f"| {text} ({model_name(better)} against {model_name(worse)}) | {marks.count('▲')} | "
            f"{marks.count('▼')} | {marks.count('')} | {shown} |"
        )


def difference(found: Difference) -> str:
    """Relative, marked where significant."""
    return f"{100 * found.relative:+.1f} %{found.mark}"


def by_user(file: Path) -> dict[str, dict[str, PerUser]]:
    """Model -> domain -> each user's mean over the seeds."""
    frame = (
        pl.scan_parquet(file)
        .filter(pl.col("metric") == METRIC)
        .group_by("model", "domain", "user_id")
        .agg(pl.col("value").mean())
        .sort("domain", "user_id")
        .collect()
    )
    found: dict[str, dict[str, PerUser]] = {}
    for (model, domain), part in frame.group_by("model", "domain", maintain_order=True):
        values = {METRIC: part["value"].to_numpy()}
        found.setdefault(str(model), {})[str(domain)] = PerUser(np.arange(len(part)), values)
    return found


def anchored(found: Mapping[str, Any]) -> Iterator[str]:
    """The rows of anchors.json."""
    yield (
        f"The same split (seed 0), {found['tries']} tries each on the same validation users, test "
        "NDCG@10 in %, and the 95 % interval of the difference (benchmarks/anchors.py; "
        + ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        + ").\n"
    )
    yield "| model | library | set | domain | ours | theirs | difference |"
    yield "|---|---|---|---|--:|--:|--:|"
    for row in sorted(found["rows"], key=lambda row: row["model"]):
        yield (
            f"| {model_name(row['model'])} | {row['package']} | {row['set']} | {row['domain']} | "
            f"{100 * row['ours']:.2f} | {100 * row['theirs']:.2f} | "
            f"{100 * (row['ours'] - row['theirs']):+.2f} "
            f"({100 * row['low']:+.2f}..{100 * row['high']:+.2f}) |"
        )


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the real data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write into")
    asked = parser.parse_args()
    commit = same_state(asked.out)
    measure(asked)
    above = asked.page.read_text(encoding="utf-8") if asked.page.exists() else "# Results\n\n"
    generated = "\n".join(page(asked, commit))
    text = f"{above.partition(MARKER)[0]}{MARKER}\n\n{generated}\n"
    asked.page.write_text(text, encoding="utf-8")
    print(json.dumps({"name": "results", "commit": commit, "sets": asked.sets}))


if __name__ == "__main__":
    main()
