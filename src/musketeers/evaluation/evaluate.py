"""How well a model ranks held-out items, user by user, over a whole catalogue."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float64, Int, Int64

from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.evaluation.metrics import METRICS, hits_of, ndcg
from musketeers.protocols import Scorer
from musketeers.ranking import top_k

Means = Mapping[str, Mapping[str, Mapping[str, int | float]]]
"""Model -> domain -> ``"users"`` and each metric's mean (`PerUser.means`)."""

KS = (10, 20)
"""Lengths of the list that a report shows."""


@dataclass(frozen=True, slots=True, eq=False)
class PerUser:
    """One model's metrics in one domain, one number per user and metric."""

    users: Int64[np.ndarray, " user"]
    """Rows of the users with at least one test item, ascending."""
    values: Mapping[str, Float64[np.ndarray, " user"]]
    """``"precision@10"`` -> a value per user, in the order of the report's columns."""

    def means(self) -> dict[str, int | float]:
        """``"users"``, how many they are, then the mean of each metric; NaN without users."""
        means = {name: _mean(values) for name, values in self.values.items()}
        return {"users": len(self.users), **means}

    def joined(self, other: "PerUser") -> "PerUser":
        """These metrics and those of `other`.  Raises `DataError` unless the users are the same."""
        if not np.array_equal(self.users, other.users):
            raise DataError(
                f"metrics are of {len(self.users)} and {len(other.users)} users, not all the "
                "same; measure both on one split"
            )
        return PerUser(self.users, {**self.values, **other.values})


def means_of(metrics: Mapping[str, Mapping[str, PerUser]]) -> Means:
    """Every model's means in every domain."""
    return {
        model: {name: found.means() for name, found in by_domain.items()}
        for model, by_domain in metrics.items()
    }


def json_means(means: Means) -> dict[str, dict[str, dict[str, int | float | None]]]:
    """The means as JSON takes them, which knows no NaN: None in its place."""
    return {
        model: {
            name: {metric: None if math.isnan(mean) else mean for metric, mean in one.items()}
            for name, one in by_domain.items()
        }
        for model, by_domain in means.items()
    }


def evaluate(
    scorer: Scorer,
    test: Interactions,
    seen: Interactions,
    *,
    ks: Sequence[int] = KS,
    n_threads: int,
) -> PerUser:
    """Rank the whole catalogue for every user with a test item, and measure each list.

    `seen` (train and valid) is never recommended.  Raises `DataError` for a `ks` that is empty or
    holds a number below 1, and for tables of other shapes.
    """
    if not ks or min(ks) < 1:
        raise DataError(f"ks is {list(ks)}; name at least one list length, each 1 or more")
    check_tables(test, seen)
    users = np.flatnonzero(test.known_users())
    n_relevant = test.counts()[users]
    ranking = top_k(scorer, users, k=max(ks), seen=seen, n_threads=n_threads)
    hits = hits_of(ranking.items, users, test)
    values = {
        f"{name}@{k}": metric(hits[:, :k], n_relevant)
        for k in ks
        for name, metric in METRICS.items()
    }
    return PerUser(users, values)


def validation_ndcg(
    scorer: Scorer,
    valid: Interactions,
    seen: Interactions,
    *,
    users: Int[np.ndarray, " user"],
    n_threads: int,
) -> Float64[np.ndarray, " counted"]:
    """NDCG@10 of each of the given users, what choices look at; `seen` is train alone.

    Users without a validation item do not count.  Raises `DataError` if nobody is left.
    """
    check_tables(valid, seen)
    counted = users[valid.known_users()[users]]
    if not len(counted):
        raise DataError(
            f"none of {len(users)} users has a validation item; raise split.valid above 0"
        )
    ranking = top_k(scorer, counted, k=10, seen=seen, n_threads=n_threads)
    hits = hits_of(ranking.items, counted, valid)
    return ndcg(hits, valid.counts()[counted])


def metrics_json(
    results: Mapping[str, Mapping[str, PerUser]],
    *,
    split: str = "test",
    chosen: Mapping[str, str] | None = None,
    cold: Mapping[str, Mapping[str, PerUser]] | None = None,
    update: Mapping[str, Mapping[str, PerUser]] | None = None,
) -> dict[str, object]:
    """The content of `metrics.json` for results by model and domain; an undefined mean is None.

    `chosen` says which model each domain is served by, where there was a choice; `cold` has the
    results of cold users, `update` those before and after one.
    """
    content: dict[str, object] = {
        "format": 1,
        "split": split,
        "models": json_means(means_of(results)),
    }
    if chosen:
        content["chosen"] = dict(chosen)
    if cold:
        content["cold"] = json_means(means_of(cold))
    if update:
        content["update"] = json_means(means_of(update))
    return content


def metrics_frame(
    results: Mapping[str, Mapping[str, PerUser]],
    user_ids: Callable[[Int64[np.ndarray, " user"]], pl.Series],
) -> pl.DataFrame:
    """The content of `metrics.parquet`: model, domain, user_id, metric, value; a row per number.

    `user_ids` turns rows into the caller's own ids, whose type the column keeps.
    """
    parts = [
        _frame(model, domain, name, user_ids(result.users), values)
        for model, domains in results.items()
        for domain, result in domains.items()
        for name, values in result.values.items()
    ]
    if parts:
        return pl.concat(parts)
    nobody = user_ids(np.empty(0, dtype=np.int64))
    return _frame("", "", "", nobody, np.empty(0))


def _frame(
    model: str, domain: str, metric: str, user_ids: pl.Series, values: Float64[np.ndarray, " user"]
) -> pl.DataFrame:
    return pl.DataFrame({"user_id": user_ids, "value": values}).select(
        model=pl.lit(model), domain=pl.lit(domain), user_id="user_id",
        metric=pl.lit(metric), value="value",
    )  # fmt: skip


def check_tables(held_out: Interactions, seen: Interactions) -> None:
    """Raise `DataError` unless both are of the same users and items."""
    shapes = [(table.n_users, table.n_items) for table in (held_out, seen)]
    if shapes[0] != shapes[1]:
        raise DataError(
            "held-out and seen tables differ in (users, items): "
            f"{shapes[0]} and {shapes[1]}; take both from one split"
        )


def _mean(values: Float64[np.ndarray, " user"]) -> float:
    return float(values.mean()) if len(values) else math.nan
