"""Planted domains as files, with the settings of a run or a comparison beside them."""

import polars as pl

from musketeers import config as configuration
from musketeers.data.synthetic import frames, planted
from musketeers.seeding import Seed

NAMES = ("tv", "film")


def write_run(folder, settings, *, n_users):
    """Two domains that share taste, and `settings` as ``run.toml``; the folder."""
    data = planted(NAMES, Seed(0), n_users=n_users, n_items=40, known=0.8, common=0.9)
    for name, frame in frames(data.domains).items():
        frame.write_parquet(folder / f"{name}.parquet")
    (folder / "run.toml").write_text(settings)
    return folder


def write_comparison(folder):
    """Two small domains; settings that are quick to compare models by, and the folder."""
    made = planted(NAMES, Seed(0), n_users=80, n_items=40, dim=3)
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
        "data": {"domains": {name: f"{name}.parquet" for name in NAMES}},
        "pretrain": {"max_epochs": 3, "tries": 1, "regularization": 0.05},
        "cat": {"max_epochs": 2},
        "art": {"max_epochs": 2},
    }
    return configuration.parse(settings, "test"), folder
