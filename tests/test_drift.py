"""How far data have moved: numbers by hand, definitions, thresholds."""

import numpy as np
import polars as pl
import pytest

from musketeers.data.drift import MOST_MOVED, Drift, Reference, drift
from musketeers.data.vocabulary import Vocabulary


def vocabulary(*ids):
    return Vocabulary.of(pl.Series(ids, dtype=pl.String))


def then():
    """Items a, b, c with 2, 1, 1 users; of users p to t, all but t have trained the domain."""
    return Reference(
        vocabulary("a", "b", "c"), np.array([2, 1, 1]),
        vocabulary("p", "q", "r", "s", "t"), np.array([True, True, True, True, False]),
    )  # fmt: skip


def test_numbers_by_hand():
    # half of all that was bought went from a and c to the new d
    found = drift(
        then(), vocabulary("a", "b", "d"), np.array([1, 2, 5]), pl.Series(["p", "t", "u", "v"])
    )
    assert found.items == pytest.approx(1 / 3)
    assert found.users == pytest.approx(2 / 4)
    assert found.without_history == pytest.approx(3 / 4)
    shares = ((1 / 2, 1 / 8), (1 / 4, 2 / 8), (1 / 4, 0), (0, 5 / 8))
    assert found.moved == pytest.approx(sum(abs(x - y) for x, y in shares) / 2)
    together = np.array([3, 3, 1, 5]) / 12
    assert found.chance == pytest.approx(np.sqrt(together * (1 / 4 + 1 / 8) / (2 * np.pi)).sum())


def test_the_same_data_have_not_moved():
    found = drift(then(), then().items, then().popularity, pl.Series(["p", "q", "r", "s"]))
    assert (found.items, found.users, found.without_history, found.moved) == (0, 0, 0, 0)
    assert found.alarms() == []
    assert "0% of its items are new (full fit above 20%)" in found.summary()


def test_chance_is_about_what_independent_samples_show():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(200, 0.5))
    items = vocabulary(*(f"{n:03}" for n in range(200)))
    nobody = Vocabulary.of(pl.Series(["p"]))
    found = [
        drift(
            Reference(items, rng.multinomial(4000, shares), nobody, np.ones(1, bool)),
            items, rng.multinomial(6000, shares), pl.Series(["p"]),
        )
        for _ in range(30)
    ]  # fmt: skip
    moved, chance = (np.mean([getattr(f, name) for f in found]) for name in ("moved", "chance"))
    assert moved == pytest.approx(chance, rel=0.1)
    assert not any(one.alarms() for one in found)
    # a tenth of the interactions more than that to other items is told from it
    other = np.roll(shares, 1) * 0.4 + shares * 0.6
    later = drift(
        Reference(items, rng.multinomial(4000, shares), nobody, np.ones(1, bool)),
        items, rng.multinomial(6000, other), pl.Series(["p"]),
    )  # fmt: skip
    assert later.moved > later.chance + MOST_MOVED
    (alarm,) = later.alarms()
    assert "of its interactions moved to other items" in alarm


@pytest.mark.parametrize(
    ("place", "limit", "words"),
    [(0, 0.2, "of its items are new"), (1, 0.2, "of its users are new"),
     (2, 0.3, "of its users had no history there"), (3, 0.15, "moved to other items")],
)  # fmt: skip
def test_each_threshold_by_itself(place, limit, words):
    calm = [0.0, 0.0, 0.0, 0.0, 0.05]
    at, above = calm.copy(), calm.copy()
    at[place], above[place] = limit - 1e-9, limit + 0.01
    assert Drift(*at).alarms() == []
    (alarm,) = Drift(*above).alarms()
    assert words in alarm
    assert f"(full fit above {limit:.0%}" in alarm
