"""Small odd domains, and shards of them made by one machine, for what makes them by other ways."""

from pathlib import Path

import numpy as np
import polars as pl

from musketeers.config import RunConfig
from musketeers.data.readers import read
from musketeers.data.shards import write_shards
from musketeers.data.splits import split
from musketeers.seeding import Seed

KINDS = {
    "integers": [pl.Int64, pl.Int64],
    "narrow": [pl.Int16, pl.UInt32],
    "unsigned": [pl.UInt64, pl.Int8],
    "text": [pl.String, pl.String],
    "mixed": [pl.Int32, pl.String],
    "categories": [pl.Categorical, pl.String],
    "bytes": [pl.Binary, pl.String],
    "dates": [pl.Date, pl.Date],
}


def config(domains, *, method="random", min_user=4, min_item=3, **more):
    return RunConfig.model_validate(
        {
            "seed": 3,
            "data": {
                "domains": domains,
                "timestamp": "t",
                "min_user": min_user,
                "min_item": min_item,
                **more,
            },
            "split": {"method": method},
        }
    )


def column(numbers, kind):
    ids = pl.Series(numbers).cast(pl.Int32)
    return (ids.cast(pl.String) if kind in (pl.Binary, pl.Categorical) else ids).cast(kind)


def frame(seed, kind, *, n_users=40, n_items=25, n=600):
    """Repeated pairs, few of most users and items, users and items that the k-core drops."""
    make = np.random.default_rng(seed)
    users = np.minimum(make.geometric(0.05, n), n_users) + make.integers(0, 3)
    return pl.DataFrame(
        {
            "user_id": column(users, kind),
            "item_id": column(np.minimum(make.geometric(0.1, n), n_items), kind),
            "t": make.integers(0, 50, n),
        }
    )


def put(folder, kinds, *, seed=1, n_files=3):
    """Domains a, b, ... as folders of several files, of several row groups; what to configure."""
    domains = {}
    for n, kind in enumerate(kinds):
        name = "abc"[n]
        (folder / name).mkdir(parents=True)
        whole = frame(seed + n, kind)
        for file, part in enumerate(whole.iter_slices(-(-len(whole) // n_files))):
            part.write_parquet(folder / name / f"{file}.parquet", row_group_size=90)
        domains[name] = name
    return domains


def one_machine(run, base, folder, n_shards, *, inputs=""):
    reading = read(run.data, base=base)
    splits = split(reading.domains, run.split, Seed(run.seed))
    write_shards(reading.domains, splits, reading.sources, folder, n_shards, inputs=inputs)


def contents(folder: Path):
    """Name -> bytes of every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
