"""What a sharded run found of all its users, added up from its shards."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from musketeers.errors import ArtifactError
from musketeers.evaluation.compare import Cell, Difference, Sums, compared
from musketeers.evaluation.evaluate import Means, json_means

FILE = "metrics.json"


@dataclass(frozen=True, slots=True)
class Whole:
    """The metrics of all users, as those of a run on one machine."""

    n_shards: int
    means: Means
    chosen: Mapping[str, str]
    """Domain -> the model that recommends there; empty where nothing was to choose."""
    differences: Mapping[Cell, Difference]
    """What recommends against each domain alone; empty if there is one model alone."""

    @classmethod
    def of(cls, folders: Sequence[Path], sums: Sequence[Mapping[Cell, Sums]]) -> "Whole":
        """Of the runs of all shards, and the sums of their users (`RunResult.sums`)."""
        each = [json.loads((folder / FILE).read_text(encoding="utf-8")) for folder in folders]
        first = each[0]
        means = {
            model: {name: _mean([one["models"][model][name] for one in each]) for name in by_domain}
            for model, by_domain in first["models"].items()
        }
        cells = {cell: reduce(Sums.with_others, (one[cell] for one in sums)) for cell in sums[0]}
        return cls(len(folders), means, first.get("chosen", {}), compared(cells))

    @classmethod
    def read(cls, run: Path) -> "Whole":
        """What `to_json` wrote in that run's `FILE`; `ArtifactError` if it cannot be had."""
        try:
            found = json.loads((run / FILE).read_text(encoding="utf-8"))
            differences = {
                (name, metric): Difference(**_numbers(one))
                for name, by_metric in found["differences"].items()
                for metric, one in by_metric.items()
            }
            means = {
                model: {name: _numbers(one) for name, one in by_domain.items()}
                for model, by_domain in found["models"].items()
            }
            return cls(found["shards"], means, found.get("chosen", {}), differences)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{run / FILE}: cannot be read: {error}") from None

    def to_json(self) -> str:
        """The content of ``metrics.json``: that of a run, `shards` and `differences`."""
        differences: dict[str, dict[str, Any]] = {}
        for (name, metric), one in self.differences.items():
            differences.setdefault(name, {})[metric] = _plain(asdict(one))
        content: dict[str, Any] = {"format": 1, "split": "test", "shards": self.n_shards}
        content["models"] = json_means(self.means)
        if self.chosen:
            content["chosen"] = dict(self.chosen)
        return json.dumps(content | {"differences": differences}, indent=2) + "\n"


def _mean(parts: Sequence[Mapping[str, Any]]) -> dict[str, int | float]:
    counted = [part for part in parts if part["users"]]
    n_users = sum(part["users"] for part in counted)
    means = {
        name: sum(part["users"] * part[name] for part in counted) / (n_users or math.nan)
        for name in parts[0]
        if name != "users"
    }
    return {"users": n_users, **means}


def _plain(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON takes them, which knows no NaN."""
    return {name: None if value != value else value for name, value in numbers.items()}


def _numbers(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in plain.items()}
