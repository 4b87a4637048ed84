"""Whether one model is better than another by more than chance.

The unit is the user: two models ranked for the same users, so each user gives one difference.
Tested is the paired t-test.  Most differences are 0 and the rest are skewed, yet it asks the
right question (is the mean difference 0?), its interval and its p-value agree, and with the
hundreds of users a test split has, it keeps its error rate; Wilcoxon's test and the sign test
drop ties and ask about medians (Urbano, Lima and Hanjalic, SIGIR 2019; Smucker, Allan and
Carterette, CIKM 2007).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float64
from scipy.special import stdtr, stdtrit

from musketeers.errors import DataError
from musketeers.evaluation.evaluate import PerUser
from musketeers.evaluation.sampled import PREFIX

Cell = tuple[str, str]
"""Domain and metric, such as ``("books", "ndcg@10")``."""
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Difference:
    """A model against a reference over the same users, in one domain by one metric."""

    users: int
    """Users with a value from both."""
    mean_a: float
    mean_b: float
    difference: float
    """a - b; above 0 the model is better than the reference."""
    relative: float
    """Difference over the reference's mean; NaN where that is 0."""
    low: float
    """Lower end of the 95 % interval of the difference, of this cell alone."""
    high: float
    p: float
    """Two-sided, of this cell alone; NaN with fewer than two users."""
    p_corrected: float
    """After Holm's correction for all cells of the comparison."""
    significant: bool
    """Whether `p_corrected` is below .05."""

    @property
    def mark(self) -> str:
        """▲ significantly better, ▼ significantly worse (negative transfer), else empty."""
        if not self.significant:
            return ""
        return "▲" if self.difference > 0 else "▼"


@dataclass(frozen=True, slots=True)
class Sums:
    """Of some users, all that the comparison of two models asks for in one cell."""

    users: int
    a: float
    """The first model's sum."""
    b: float
    mean: float
    """Of the differences a - b; 0 without users."""
    squares: float
    """Of the differences' deviations from their mean."""

    def with_others(self, other: "Sums") -> "Sums":
        """Of these users and others (Chan, Golub and LeVeque, COMPSTAT 1982)."""
        users = max(self.users + other.users, 1)
        apart = other.mean - self.mean
        return Sums(
            self.users + other.users,
            self.a + other.a,
            self.b + other.b,
            (self.users * self.mean + other.users * other.mean) / users,
            self.squares + other.squares + apart**2 * self.users * other.users / users,
        )


def compare(a: Mapping[str, PerUser], b: Mapping[str, PerUser]) -> dict[Cell, Difference]:
    """Model `a` against the reference `b`, both by domain, in every domain and metric.

    A user with a NaN from either model is left out of that cell; `Difference.users` tells.
    Raises `DataError` unless both have the same domains, metrics and users.
    """
    return compared(summed(a, b))


def summed(a: Mapping[str, PerUser], b: Mapping[str, PerUser]) -> dict[Cell, Sums]:
    """What `compare` asks of the models' users; those of others can be added."""
    if set(a) != set(b):
        raise DataError(
            f"one model has the domains {sorted(a)}, the other {sorted(b)}; compare over the same"
        )
    return {
        cell: _sums(*pair) for domain in a for cell, pair in _cells(domain, a[domain], b[domain])
    }


def compared(cells: Mapping[Cell, Sums]) -> dict[Cell, Difference]:
    """The differences in these cells, corrected together."""
    tests = {cell: _paired_test(sums) for cell, sums in cells.items()}
    p_values = np.array([p for _, _, p in tests.values()], dtype=np.float64)
    corrected = corrected_together(list(cells), p_values)
    return {
        cell: _difference(cells[cell], tests[cell], float(p_corrected))
        for cell, p_corrected in zip(cells, corrected, strict=True)
    }


def compare_pairs(pairs: Mapping[Key, tuple[PerUser, PerUser]]) -> dict[Key, Difference]:
    """The first of each pair against the second, both with one metric, corrected together."""
    ones, others = (
        {str(n): pair[which] for n, pair in enumerate(pairs.values())} for which in (0, 1)
    )
    return dict(zip(pairs, compare(ones, others).values(), strict=True))


def negative_transfer(cells: Mapping[Cell, Difference]) -> list[Cell]:
    """The cells where a model loses significantly against its reference."""
    return [cell for cell, found in cells.items() if found.mark == "▼"]


def pool(seeds: Sequence[PerUser]) -> PerUser:
    """One model's runs with different seeds as one: each user's mean over the seeds that saw them.

    A user whom five seeds tested is one user, not five: pool first, compare then.  The interval
    is for other users, with these seeds.  NaN values do not count towards a user's mean.
    Raises `DataError` for no run at all or runs with different metrics.
    """
    names = {tuple(run.values) for run in seeds}
    if len(names) != 1:
        raise DataError(
            f"{len(seeds)} runs with {len(names)} sets of metrics; pool at least one run, all "
            "with the same metrics"
        )
    rows = np.concatenate([run.users for run in seeds])
    users, place = np.unique(rows, return_inverse=True)
    values = {
        name: _mean_by_user(
            place, np.concatenate([run.values[name] for run in seeds]), n_users=len(users)
        )
        for name in seeds[0].values
    }
    return PerUser(users, values)


def corrected_together(
    cells: Sequence[Cell], p_values: Float64[np.ndarray, " cell"]
) -> Float64[np.ndarray, " cell"]:
    """Holm's correction of the cells' p-values, those of sampled metrics by themselves.

    So to ask for sampled metrics changes no other mark.
    """
    sampled = np.array([metric.startswith(PREFIX) for _, metric in cells], dtype=bool)
    corrected = np.empty(len(cells))
    for kind in (sampled, ~sampled):
        corrected[kind] = holm(p_values[kind])
    return corrected


def holm(p_values: Float64[np.ndarray, " cell"]) -> Float64[np.ndarray, " cell"]:
    """P-values corrected for their number, so that one false alarm among all has the stated risk.

    The smallest times m, the next times m - 1, ..., never falling, at most 1 (Holm, 1979).
    NaN stays NaN and is not counted.
    """
    corrected = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected


Pair = tuple[Float64[np.ndarray, " user"], Float64[np.ndarray, " user"]]


def _cells(domain: str, a: PerUser, b: PerUser) -> list[tuple[Cell, Pair]]:
    """Both models' values of each metric, of the users that have both."""
    if set(a.values) != set(b.values):
        raise DataError(
            f"{domain}: one model has {sorted(a.values)}, the other {sorted(b.values)}; "
            "measure both with the same metrics"
        )
    if not np.array_equal(a.users, b.users):
        raise DataError(
            f"{domain}: the models were tested on {len(a.users)} and {len(b.users)} users, not "
            "all the same; evaluate both on one split"
        )
    pairs: list[tuple[Cell, Pair]] = []
    for name, one in a.values.items():
        other = b.values[name]
        both = ~(np.isnan(one) | np.isnan(other))
        pairs.append(((domain, name), (one[both], other[both])))
    return pairs


def _sums(one: Float64[np.ndarray, " user"], other: Float64[np.ndarray, " user"]) -> Sums:
    differences = one - other
    mean = float(differences.mean()) if len(one) else 0.0
    squares = float(np.square(differences - mean).sum())
    return Sums(len(one), float(one.sum()), float(other.sum()), mean, squares)


def _paired_test(sums: Sums) -> tuple[float, float, float]:
    """Low and high end of the 95 % interval of the mean, and the p-value for a mean of 0.

    Where all differ by the same amount, t is undefined and p is that of the sign-flip test,
    2**(1 - users): two users can prove nothing.
    """
    n, mean = sums.users, sums.mean
    if n < 2:
        return math.nan, math.nan, math.nan
    error = math.sqrt(sums.squares / (n - 1)) / math.sqrt(n)
    if error <= 1e-12 * abs(mean):
        return mean, mean, 2.0 ** (1 - n) if mean else 1.0
    reach = float(stdtrit(n - 1, 0.975)) * error
    return mean - reach, mean + reach, 2 * float(stdtr(n - 1, -abs(mean) / error))


def _difference(sums: Sums, test: tuple[float, float, float], p_corrected: float) -> Difference:
    low, high, p = test
    n = sums.users or math.nan
    mean_a, mean_b, difference = sums.a / n, sums.b / n, sums.mean if sums.users else math.nan
    return Difference(
        users=sums.users,
        mean_a=mean_a,
        mean_b=mean_b,
        difference=difference,
        relative=difference / mean_b if mean_b else math.nan,
        low=low,
        high=high,
        p=p,
        p_corrected=p_corrected,
        significant=p_corrected < 0.05,
    )


def _mean_by_user(
    place: np.ndarray, values: Float64[np.ndarray, " row"], *, n_users: int
) -> Float64[np.ndarray, " user"]:
    known = ~np.isnan(values)
    totals = np.bincount(place[known], values[known], minlength=n_users)
    counts = np.bincount(place[known], minlength=n_users)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
