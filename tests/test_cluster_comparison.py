"""A comparison on a Ray cluster: the same numbers as on one machine, and what a lost node costs."""

import json

import polars as pl
import pytest
from clusters import cluster

from musketeers import config as configuration
from musketeers.cluster.comparison import on_cluster
from musketeers.comparison import command
from musketeers.comparison.workers import Processes
from musketeers.data.synthetic import planted
from musketeers.seeding import Seed

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes():
    with cluster({"num_cpus": 1}) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    made = planted(("tv", "film"), Seed(0), n_users=80, n_items=40, dim=3)
    for name, part in made.splits.items():
        pairs = [
            (user, item)
            for table in (part.train, part.valid, part.test)
            for user in range(table.n_users)
            for item in table.of(user).tolist()
        ]
        frame = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
        frame.write_parquet(folder / f"{name}.parquet")
    settings = {
        "dim": 6,
        "data": {"domains": {"tv": "tv.parquet", "film": "film.parquet"}},
        "pretrain": {"max_epochs": 3, "tries": 1, "regularization": 0.05},
        "cat": {"max_epochs": 2},
        "art": {"max_epochs": 2},
    }
    return configuration.parse(settings, "test"), folder


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def test_same(nodes, small, tmp_path):
    config, folder = small
    options = {"models": ["pop", "ease", "cat_art"], "n_seeds": 2, "n_tries": 3}
    import time

    t = time.time()
    command.run(config, folder, tmp_path / "here", **options, workers=Processes.of(2))
    print("local", time.time() - t)
    t = time.time()
    with on_cluster(nodes.address, tmp_path / "there") as workers:
        print("connected", time.time() - t)
        t = time.time()
        command.run(config, folder, tmp_path / "there", **options, workers=workers)
    print("ray", time.time() - t)
    for name in ("results.parquet", "table.md", "table.tex"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    here, there = (
        without_seconds(json.loads((tmp_path / p / "results.json").read_text()))
        for p in ("here", "there")
    )
    assert here == there
    print(*sorted(p.relative_to(tmp_path) for p in (tmp_path / "there").iterdir()))
