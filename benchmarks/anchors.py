"""The baselines against other libraries' versions of them: are ours worth losing to?

    python benchmarks/anchors.py --data FOLDER [--sets anime4 journey6] [--tries 10] [--out FILE]

EASE against LensKit, ItemKNN and iALS against implicit, LightGCN against PyTorch Geometric: on the
same split, each side tuned by the same search with the same number of tries on the same validation
users, ranked and measured by our evaluation.  The packages are in peers.txt and anchors.txt.
Prints a table and, as the last line, one JSON object.  `--out` keeps the rows in a file, which
results.py shows; rows that are there stay, but for those measured anew.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from data_sets import SETS, settings
from scipy.sparse import csr_array, csr_matrix
from threadpoolctl import threadpool_limits

from musketeers.baselines.linear import Linear, history
from musketeers.data import readers
from musketeers.data.domains import Split
from musketeers.data.splits import split
from musketeers.evaluation.compare import compare
from musketeers.evaluation.evaluate import PerUser, evaluate
from musketeers.evaluation.validation import Validation
from musketeers.models.registry import MODELS
from musketeers.models.space import Choice, Range, Space
from musketeers.models.tuning import tune
from musketeers.protocols import Scorer
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.task import Task

DIM = 64
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another library's version of one of our models."""

    package: str
    fit: Callable[[Split, Validation, Settings], Scorer]
    space: Space


# 1. The peers


def lenskit_ease(part: Split, _: Validation, chosen: Settings) -> Scorer:
    """LensKit's EASE, scored by its own weights."""
    from lenskit.data import from_interactions_df
    from lenskit.knn import EASEScorer

    train = part.train
    data = from_interactions_df(pd.DataFrame({"user_id": train.users(), "item_id": train.items}))
    model = EASEScorer(regularization=chosen.get("regularization", 100.0))
    model.train(data)
    weights = np.zeros((train.n_items, train.n_items), np.float32)
    known = np.asarray(model.items.ids())
    weights[np.ix_(known, known)] = model.weights
    return Linear.of(history(train), weights)


def implicit_cosine(part: Split, _: Validation, chosen: Settings) -> Scorer:
    """implicit's item-item cosine, scored by its own similarities."""
    from implicit.nearest_neighbours import CosineRecommender

    model = CosineRecommender(K=chosen.get("neighbors", 100), num_threads=1)
    model.fit(table(part), show_progress=False)
    similarity = csr_array(model.similarity.astype(np.float32))
    similarity.sort_indices()
    return Linear.of(history(part.train), similarity)


def implicit_als(part: Split, _: Validation, chosen: Settings) -> Scorer:
    """implicit's ALS."""
    from implicit.cpu.als import AlternatingLeastSquares

    defaults = {"regularization": 0.01, "alpha": 1.0, "iterations": 15}
    model = AlternatingLeastSquares(
        factors=DIM, random_state=0, num_threads=1, **{**defaults, **chosen}
    )
    model.fit(table(part), show_progress=False)
    return Factors(np.array(model.user_factors), np.array(model.item_factors))


def geometric_light_gcn(part: Split, looked_at: Validation, chosen: Settings) -> Scorer:
    """PyTorch Geometric's LightGCN with its BPR loss, at the epoch that validation prefers."""
    from torch_geometric.nn.models import LightGCN

    asked = {"layers": 3, "learning_rate": 0.02, "regularization": 1e-4, **chosen}
    torch.manual_seed(0)
    train = part.train
    users = torch.from_numpy(train.users().astype(np.int64))
    items = torch.from_numpy(train.items.astype(np.int64)) + train.n_users
    n_nodes = train.n_users + train.n_items
    both = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
    model = LightGCN(n_nodes, DIM, asked["layers"])
    optimizer = torch.optim.Adam(model.parameters(), lr=asked["learning_rate"])

    def factors() -> Factors:
        with torch.no_grad():
            found = model.get_embedding(both).numpy().copy()
        return Factors(found[: train.n_users], found[train.n_users :])

    best, best_valid, waited = factors(), -1.0, 0
    while waited < 10:
        for batch in torch.randperm(len(users)).chunk(8):  # steps an epoch, as ours
            negative = torch.randint(train.n_users, n_nodes, (len(batch),))
            found = model.get_embedding(both)
            first = (found[users[batch]] * found[items[batch]]).sum(1)
            second = (found[users[batch]] * found[negative]).sum(1)
            nodes = torch.cat([users[batch], items[batch], negative]).unique()
            loss = model.recommendation_loss(
                first, second, node_id=nodes, lambda_reg=asked["regularization"]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = factors()
        valid = looked_at.ndcg(now)
        if valid > best_valid:
            best, best_valid, waited = now, valid, 0
        else:
            waited += 1
    return best


PEERS: Mapping[str, Peer] = {
    "ease": Peer("lenskit", lenskit_ease, {"regularization": Range(3.0, 3000.0)}),
    "item_knn": Peer("implicit", implicit_cosine, {"neighbors": Range(10, 500)}),
    "ials": Peer(
        "implicit", implicit_als,
        # what our range of weights and strengths comes to in implicit's units: there observed pairs
        # weigh 1 + alpha, others 1, and the strength is that of a whole row
        {"regularization": Range(0.1, 300.0), "alpha": Range(1.0, 50.0),
         "iterations": Choice((5, 10, 20, 40))},
    ),
    "light_gcn": Peer(
        "torch_geometric", geometric_light_gcn,
        {"layers": Range(1, 4, log=False), "learning_rate": Range(5e-3, 5e-2),
         "regularization": Range(1e-6, 1e-2)},
    ),
}  # fmt: skip
"""By the name of ours."""


def table(part: Split) -> csr_matrix:
    """The training pairs, in arrays that may be written to: implicit refuses others."""
    train = part.train
    ones = np.ones(len(train), np.float32)
    own = (train.items.astype(np.int32), train.indptr.astype(np.int32))
    return csr_matrix((ones, *own), shape=(train.n_users, train.n_items))


# 2. Both sides


def measured(name: str, task: Task, n_tries: int) -> dict[str, Any]:
    """One model in one domain: ours and the peer's."""
    ((domain, part),) = task.splits.items()
    looked_at = task.validations[domain]
    peer, ours = PEERS[name], MODELS[name]
    fits = {
        "musketeers": (lambda chosen: ours.fit(task, chosen)[domain].scorer, ours.space),
        peer.package: (lambda chosen: peer.fit(part, looked_at, chosen), peer.space),
    }
    tested: dict[str, PerUser] = {}
    for library, (fit, space) in fits.items():
        found = tune(fit, looked_at.ndcg, space, n_tries=n_tries, seed=task.seed.child("tuning"))
        tested[library] = evaluate(found.made, part.test, part.seen(), n_threads=1)
    cells = compare({domain: tested["musketeers"]}, {domain: tested[peer.package]})
    cell = cells[domain, "ndcg@10"]
    return {
        "model": name, "package": f"{peer.package} {version(peer.package)}", "tries": n_tries,
        "ours": cell.mean_a, "theirs": cell.mean_b,
        "low": cell.low, "high": cell.high, "p": cell.p,
    }  # fmt: skip


def kept(file: Path | None) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows of a file, by model, set and domain; none where there is no file yet."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else []
    return {(row["model"], row["set"], row["domain"]): row for row in rows}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the real data sets")
    parser.add_argument("--sets", nargs="+", default=["anime4", "journey6"], choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Method expects CSR input")  # implicit's, about its own
    rows: dict[tuple[str, str, str], dict[str, Any]] = kept(asked.out)
    print(f"{'set':10} {'domain':12} {'model':10} {'ours':>7} {'theirs':>7}  difference, 95 %")
    for name in asked.sets:
        with tempfile.TemporaryDirectory() as scratch:
            if (found := settings(name, asked.data, Path(scratch))) is None:
                raise SystemExit(f"--data {asked.data} lacks {name}")
            config, base = found
            splits = split(readers.read(config.data, base=base).domains, config.split, Seed(0))
        for domain, part in splits.items():
            looked_at = Validation.of(part, Seed(0).child("validation", domain), n_threads=1)
            task = Task({domain: part}, {domain: looked_at}, config, {}, 1)
            for model in asked.models:
                with threadpool_limits(1, user_api="blas"):
                    row = {"set": name, "domain": domain, **measured(model, task, asked.tries)}
                rows[model, name, domain] = row
                print(
                    f"{name:10} {domain:12} {model:10} {100 * row['ours']:7.2f} "
                    f"{100 * row['theirs']:7.2f}  {100 * (row['ours'] - row['theirs']):+.2f} "
                    f"({100 * row['low']:+.2f}..{100 * row['high']:+.2f}) {row['package']}",
                    flush=True,
                )
                if asked.out:
                    text = json.dumps(list(rows.values()), indent=1)
                    asked.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({"name": "anchors", "rows": list(rows.values())}))


if __name__ == "__main__":
    main()
