"""What defences cost and what they are worth: attacks on published vectors, and what others gain.

    python benchmarks/privacy.py --data FOLDER --out OUT [--sets anime4 amazon4] [--seeds 3]

Every domain publishes its users' vectors under one level of defence; then each is told of the
others', as `musketeers party` does it, and served what validation chooses.  Prints for each level
how far the attacks of `musketeers party audit` come, and what the domains gain over their own best
models, mean over domains and seeds; the last line is one JSON object.  A level that is done is in
OUT and is not done again.  `--quick` takes planted data and four levels.
"""

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from data_sets import SETS, settings
from pretrain import install_peers

from musketeers.config import DataConfig, RunConfig, changed
from musketeers.data import readers
from musketeers.data.domains import Domains, Split
from musketeers.data.splits import split
from musketeers.data.synthetic import planted
from musketeers.evaluation.evaluate import evaluate
from musketeers.exchange import UserEmbeddings
from musketeers.memory import available
from musketeers.parallel import available_threads, libraries_on_one_thread
from musketeers.parties import attacks
from musketeers.parties.defences import Defences, defended
from musketeers.parties.fold_in import donors_items
from musketeers.pipeline import Models, art, choices, one_for_all, smf
from musketeers.pretrain.given import directions
from musketeers.pretrain.mf import Pretrained
from musketeers.scorers import Trained
from musketeers.seeding import Seed
from musketeers.task import unwatched

METRIC, DELTA, DONORS = "ndcg@10", 1e-6, 0.3
PLANTED = ("a", "b", "c")
QUICK = ("no defence", "4 numbers", "vectors, epsilon 32", "folded in")
SCORES = ("A1 AUC", "A1 recall@n", "A2 AUC, 1000 known", "A4 AUC", "A4 TPR at 1 % FPR", "A5 top-1")


@dataclass(frozen=True)
class Level:
    """What every domain does to its vectors; noise is for vectors cut to their median length."""

    defences: Defences = field(default_factory=Defences)
    folded: bool = False


def noisy(epsilon: float) -> Defences:
    """Before the length is known."""
    return Defences(clip=1.0, epsilon=epsilon, delta=DELTA)


LEVELS: Mapping[str, Level] = {
    "no defence": Level(),
    "16 numbers": Level(Defences(dims=16)),
    "4 numbers": Level(Defences(dims=4)),
    "4 bits": Level(Defences(bits=4)),
    "1 bit": Level(Defences(bits=1)),
    **{f"vectors, epsilon {e:g}": Level(noisy(e)) for e in (256.0, 32.0, 8.0, 1.0)},
    **{
        f"{n} numbers, epsilon {e:g}": Level(noisy(e).model_copy(update={"dims": n}))
        for n, e in ((16, 32.0), (4, 32.0), (4, 8.0))
    },
    "folded in": Level(folded=True),
    **{f"folded in, epsilon {e:g}": Level(noisy(e), folded=True) for e in (256.0, 32.0, 8.0, 1.0)},
}


@dataclass(frozen=True)
class Given:
    """A domain's vectors before any defence, and the items beside which they were made."""

    users: np.ndarray
    items: np.ndarray
    split: Split
    """With those items."""


def given(
    name: str, domains: Domains, whole: Split, alone: Pretrained, seed: Seed, *, folded: bool
) -> Given:
    """As stage 1 made them, or folded in beside the items of some donors."""
    if not folded:
        return Given(alone.factors.users, alone.factors.items, whole)
    known = np.flatnonzero(whole.train.known_users())
    drawn = seed.child("donors", name).numpy()
    donors = np.sort(drawn.choice(known, int(DONORS * len(known)), replace=False))
    catalogue = domains.domains[name].items
    kept = donors_items(
        whole, catalogue, donors, seed.child("items", name),
        dim=alone.factors.users.shape[1], n_threads=available_threads(),
    )  # fmt: skip
    users = kept.users(whole, catalogue, n_threads=available_threads())
    there = whole.moved(
        np.arange(whole.train.n_users), kept.ids.rows(catalogue.values),
        n_users=whole.train.n_users, n_items=len(kept.ids),
    )  # fmt: skip
    return Given(users, kept.vectors, there)


def published(one: Given, how: Defences, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """What leaves, of all users, and the items that an attacker has beside it."""
    known, axes = one.split.train.known_users(), directions(one.items)
    if how.clip is not None:
        middle = np.median(np.linalg.norm(one.users[known] @ axes[:, : how.dims], axis=1))
        how = how.model_copy(update={"clip": float(middle)})
    table = np.zeros((len(known), how.dims or dim), np.float32)
    table[known] = defended(one.users[known], axes, how)
    return table, one.items @ axes[:, : how.dims] if how.dims else one.items


def attacked(
    vectors: Mapping[str, np.ndarray],
    items: Mapping[str, np.ndarray],
    of: Mapping[str, Given],
    seed: Seed,
) -> dict[str, float]:
    """Mean over domains of how far each attack comes, and of its floor."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SCORES}
    names = list(vectors)
    for n, name in enumerate(names):
        rng = seed.child("attack", name).numpy()
        train = of[name].split.train
        scores = attacks.reconstruction(vectors[name], items[name], train, rng)
        scores.append(attacks.reconstruction_from_known(vectors[name], train, 1000, rng))
        held = of[name].split.valid.union(of[name].split.test)
        scores += attacks.membership(vectors[name], items[name], train, held, rng)
        other = names[(n + 1) % len(names)]
        both = np.flatnonzero(train.known_users() & of[other].split.train.known_users())
        scores.append(attacks.linkage(vectors[name][both], vectors[other][both], 100, other, rng))
        for what, score in zip(SCORES, scores, strict=True):
            found[what].append((score.value, score.floor))
    means = {what: np.mean(values, axis=0) for what, values in found.items()}
    return {
        **{what: float(mean[0]) for what, mean in means.items()},
        **{f"{what}, floor": float(mean[1]) for what, mean in means.items()},
    }


def own_best(
    splits: Mapping[str, Split], alone: Mapping[str, Pretrained], config: RunConfig
) -> dict[str, dict[str, float]]:
    """What each domain can do told nothing."""
    options = {"n_threads": available_threads(), "max_bytes": available() * 9 // 10}
    made = choices(splits, Models(alone), config, unwatched, **options)
    return {
        name: {"own": ndcg(made[name].scorer, whole), "smf": ndcg(alone[name].factors, whole)}
        for name, whole in splits.items()
    }


def ndcg(scorer: Trained, whole: Split) -> float:
    """On test."""
    n_threads = available_threads()
    return float(evaluate(scorer, whole.test, whole.seen(), n_threads=n_threads).means()[METRIC])


def told(
    tables: Mapping[str, np.ndarray],
    splits: Mapping[str, Split],
    alone: Mapping[str, Pretrained],
    config: RunConfig,
) -> dict[str, dict[str, float]]:
    """What each domain is served, told of what the others published."""
    known = {name: one.train.known_users() for name, one in splits.items()}
    wide = {name: np.pad(t, ((0, 0), (0, config.dim - t.shape[1]))) for name, t in tables.items()}
    n_threads = available_threads()
    aligned = one_for_all(
        UserEmbeddings.collect(wide, known), config, unwatched, n_threads=n_threads
    )
    found: dict[str, dict[str, float]] = {}
    for name, whole in splits.items():
        itself = {**wide, name: alone[name].factors.users}
        shared = UserEmbeddings.collect(itself, known)
        only = {name: whole}
        made = Models({name: alone[name]}, aligned, shared=shared)
        transferred = art(
            only, made.alone, shared, aligned.users, config, unwatched, n_threads=n_threads
        )
        options = {"n_threads": n_threads, "max_bytes": available() * 9 // 10}
        chosen = choices(only, replace(made, transferred=transferred), config, unwatched, **options)
        scorers = {"served": chosen[name].scorer, "cat_art": transferred[name].factors}
        found[name] = {kind: ndcg(scorer, whole) for kind, scorer in scorers.items()}
        found[name]["told"] = float(chosen[name].verdict.transfers)
    return found


def measured(name: str, seed: int, asked: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All levels on one split."""
    config, domains = data_of(name, seed, asked, scratch)
    root = Seed(config.seed).child("privacy")
    place: Path = asked.out / f"{name}-{seed}.json"
    found: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    with libraries_on_one_thread():
        splits = split(domains, config.split, Seed(config.seed))
        alone = smf(splits, config, unwatched, n_threads=available_threads())
        missing = [level for level in asked.levels if level not in found]
        best = own_best(splits, alone, config) if missing else {}
        for level in missing:
            how = LEVELS[level]
            made = {
                n: given(n, domains, whole, alone[n], root, folded=how.folded)
                for n, whole in splits.items()
            }
            both = {n: published(one, how.defences, config.dim) for n, one in made.items()}
            vectors = {n: table for n, (table, _) in both.items()}
            items = {n: table for n, (_, table) in both.items()}
            served = told(vectors, splits, alone, config)
            found[level] = {
                "attacks": attacked(vectors, items, made, root.child(level)),
                "domains": {n: {**best[n], **one} for n, one in served.items()},
            }
            place.write_text(json.dumps(found, indent=1))
            print(f"{name} seed {seed}: {level}: {summary([found[level]])}", flush=True)
    return found


def data_of(
    name: str, seed: int, asked: argparse.Namespace, scratch: Path
) -> tuple[RunConfig, Domains]:
    """Settings, and all domains of a set."""
    if name == "planted":
        config = RunConfig(seed=seed, dim=16, data=DataConfig(domains=dict.fromkeys(PLANTED, "-")))
        config = changed(config, {"pretrain.max_epochs": 30, "pretrain.tries": 2})
        sizes = {"n_users": 1200, "n_items": 120, "known": 0.9, "pairs_per_user": 10}
        return config, planted(PLANTED, Seed(seed), **sizes).domains
    found = settings(name, asked.data, scratch)
    if found is None:
        raise SystemExit(f"{asked.data} lacks the data set {name}")
    config, base = found
    config = changed(config, {"seed": seed, "pretrain.method": "bpr"})
    return config, readers.read(config.data, base=base).domains


def summary(runs: list[Mapping[str, Any]]) -> dict[str, float]:
    """Means over runs: attacks, and relative gains of what is served and of CAT-ART."""
    scores = {k: float(np.mean([r["attacks"][k] for r in runs])) for k in runs[0]["attacks"]}
    cells = [cell for run in runs for cell in run["domains"].values()]
    gains = {
        "served over own": np.mean([c["served"] / c["own"] - 1 for c in cells]),
        "CAT-ART over SMF": np.mean([c["cat_art"] / c["smf"] - 1 for c in cells]),
        "told": np.mean([c["told"] for c in cells]),
    }
    return {k: round(float(v), 4) for k, v in {**scores, **gains}.items()}


def plot(found: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A panel for each set: what the domains gain, by how far A2 comes, a point for each level."""
    install_peers()
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "privacy", "svg.fonttype": "none"})
    figure, panels = plt.subplots(1, len(found), figsize=(6 * len(found), 5.2), squeeze=False)
    for panel, (name, levels) in zip(panels.flat, found.items(), strict=True):
        for level, one in levels.items():
            x, y = one["A2 AUC, 1000 known"], 100 * one["served over own"]
            color = "tab:orange" if level.startswith("folded") else "tab:blue"
            panel.plot(x, y, "o", color=color, markersize=5)
            turn = 30 if abs(y) < 0.3 else 0  # those that gain nothing lie side by side
            panel.annotate(
                level, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, rotation=turn
            )
        panel.axvline(levels["no defence"]["A2 AUC, 1000 known, floor"], color="k", linestyle=":")
        panel.axhline(0, color="k", linewidth=0.6)
        panel.set(title=name, xlabel="A2: AUC of histories guessed, 1,000 users known",
                  ylabel="gain of what is served over the own best model, %")  # fmt: skip
        panel.margins(x=0.22, y=0.12)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--out", type=Path, help="new or kept folder for what is done")
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=["anime4", "amazon4"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--quick", action="store_true", help="planted data, one seed, few levels")
    parser.add_argument("--plot", type=Path, help="an SVG to draw; installs the peers' packages")
    asked = parser.parse_args()
    sets, seeds = (["planted"], 1) if asked.quick else (asked.sets, asked.seeds)
    asked.levels = QUICK if asked.quick else asked.levels
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        asked.out = asked.out or Path(scratch) / "out"
        asked.out.mkdir(parents=True, exist_ok=True)
        for name in sets:
            runs = [measured(name, seed, asked, Path(scratch)) for seed in range(seeds)]
            found[name] = {level: summary([run[level] for run in runs]) for level in asked.levels}
            rows = [{"level": level, **of} for level, of in found[name].items()]
            print(f"\n{name}, {seeds} seeds")
            with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=250, float_precision=3):
                print(pl.DataFrame(rows).select(pl.exclude("^.*floor$")))
    if asked.plot:
        plot(found, asked.plot)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = f"{platform.machine()}, {available_threads()} threads"
    print(json.dumps({"name": "privacy", "commit": commit, "machine": machine, "runs": seeds,
                      "sets": found}))  # fmt: skip


if __name__ == "__main__":
    main()
