"""One machine, and the same with users spread over two and four members of a cluster here.

Run it as ``python benchmarks/shards.py [--quick] [--data FOLDER] [--seeds N]``; README.md beside it
says what is measured and how to read it.  The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev

from ray.cluster_utils import Cluster

from musketeers import config as configuration
from musketeers.cluster.sharded import fit_sharded
from musketeers.config import RunConfig
from musketeers.runs import fit_run
from musketeers.synthesis import synth

MEMBERS = (2, 4)
MODELS = ("pop", "smf", "cat_art")
TRAINING = {
    "pretrain.method": "bpr",
    "pretrain.tries": 1,
    "pretrain.regularization": 0.035,
    "cat.batch_size": 1024,
    "cat.max_epochs": 12,
    "art.batch_size": 2048,
    "art.max_epochs": 20,
    "pretrain.max_epochs": 60,
}
"""Where the search of stage 1 ends on these data, so that no number of members searches longer."""


def ndcg(out: Path) -> dict[str, dict[str, float]]:
    """Model -> domain -> NDCG@10; what was chosen in each domain is a model, too."""
    metrics = json.loads((out / "metrics.json").read_text())
    models = {name: found for name, found in metrics["models"].items() if name in MODELS}
    if chosen := metrics.get("chosen"):
        models["chosen"] = {name: metrics["models"][kind][name] for name, kind in chosen.items()}
    return {
        model: {name: means["ndcg@10"] for name, means in by_domain.items()}
        for model, by_domain in models.items()
    }


def fitted(
    config: RunConfig, base: Path, out: Path, members: int, *, only: str | None, address: str
) -> tuple[float, dict[str, dict[str, float]]]:
    """Wall seconds, and NDCG@10."""
    start = time.perf_counter()
    if members == 1:
        fit_run(config, base, out, only=only, threads=1)
    else:
        fit_sharded(config, base, out, n_shards=members, only=only, threads=1, address=address)
    return time.perf_counter() - start, ndcg(out)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="A folder with settings.toml; planted by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="One model by itself, such as cat_art; all by default")
    parser.add_argument("--quick", action="store_true", help="Small data, to see that it runs.")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = words.data or Path(folder) / "data"
        if words.data is None:
            plant(data, quick=words.quick)
        settings = configuration.load(data / "settings.toml")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        found: dict[int, list[tuple[float, dict[str, dict[str, float]]]]] = {}
        try:
            for seed in range(words.seeds):
                config = configuration.changed(settings, {**TRAINING, "seed": seed})
                for members in (1, *MEMBERS):
                    out = Path(folder) / f"{members}-{seed}"
                    found.setdefault(members, []).append(
                        fitted(config, data, out, members, only=words.only, address=cluster.address)
                    )
                    print(members, seed, *found[members][-1], flush=True)
        finally:
            cluster.shutdown()
    print(json.dumps({members: compared(found[members], found[1]) for members in found}))


def plant(folder: Path, *, quick: bool) -> None:
    """Three domains of 400,000 pairs; each knows three of five of 20,000 users."""
    shrink = 20 if quick else 1
    synth(
        folder, preset="paper", domains=3, users=20_000 // shrink, items=3_000 // shrink,
        pairs=400_000 // shrink, known=0.6,
    )  # fmt: skip


def compared(
    runs: list[tuple[float, dict[str, dict[str, float]]]],
    alone: list[tuple[float, dict[str, dict[str, float]]]],
) -> dict[str, object]:
    """By model and domain the mean NDCG@10, and how far it is from one machine, in per cent.

    With the standard error over the seeds of that difference, which are paired.
    """
    cells: dict[str, object] = {"seconds": [round(seconds, 1) for seconds, _ in runs]}
    for model, by_domain in runs[0][1].items():
        for name in by_domain:
            pairs = [
                (run[1][model][name], one[1][model][name])
                for run, one in zip(runs, alone, strict=True)
            ]
            gains = [100 * (here / there - 1) for here, there in pairs]
            error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
            cells[f"{model} {name}"] = (fmean(here for here, _ in pairs), fmean(gains), error)
    return cells


if __name__ == "__main__":
    main()
