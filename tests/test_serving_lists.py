"""Lists with everything that can be asked, against a full sort in float64."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import NAMES, made, version

from musketeers.serving.lists import Asked, lists, similar

DOMAIN, OTHER = NAMES[:2]
USERS = [*(f"user-{n:03}" for n in range(30)), "nobody", "7"]
ITEMS = [*(f"{DOMAIN}-{n:02}" for n in range(25)), "none", "7"]


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Models of random vectors, half of them with many equal scores."""
    folder, found = tmp_path_factory.mktemp("versions"), []
    for seed in range(6):
        made(seed, ties=seed % 2 == 0).save(folder / str(seed))
        found.append(version(folder / str(seed)))
    return found


def wish(stream, *, told=False):
    """A random one; a list of ids may name one twice, and such as there are not."""

    def some(most):
        return stream.choice(ITEMS, stream.integers(most)).tolist()

    allow = [None, some(12), ITEMS][stream.integers(3)]
    recent = {}
    if told:
        mine = {DOMAIN: some(5), OTHER: [f"{OTHER}-{n:02}" for n in stream.integers(30, size=2)]}
        mine["no domain"] = some(5)
        recent = {name: items for name, items in mine.items() if stream.random() < 0.4}
    return Asked(
        str(stream.choice(USERS)), int(stream.integers(1, 40)), bool(stream.integers(2)),
        some(12), allow, recent,
    )  # fmt: skip


def expected(found, one):
    """Ids, scores and strategy: every item scored in float64, and sorted."""
    model = found.recommender.domains[DOMAIN]
    (row,) = found.recommender.users.rows(pl.Series([one.user])).tolist()
    ids = model.items.values.to_list()
    if row >= 0 and model.known[row]:
        strategy, scorer = "personalised", model.scorer
    elif row >= 0 and any(other.known[row] for other in found.recommender.domains.values()):
        strategy, scorer = "cross_domain", model.scorer
    else:
        strategy, scorer, row = "popular", model.popularity, 0
    scores = scorer.items.astype(np.float64) @ scorer.users[row].astype(np.float64)
    hidden = set(one.exclude)
    if one.exclude_seen and strategy == "personalised":
        hidden |= {ids[item] for item in model.seen.of(row)}
    order = [n for n in np.lexsort((np.arange(len(ids)), -scores)) if ids[n] not in hidden]
    if one.allow is not None:
        order = [n for n in order if ids[n] in set(one.allow)]
    return [(ids[n], scores[n]) for n in order[: one.k]], strategy


@pytest.mark.slow
@settings(max_examples=500, derandomize=True)
@given(number=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_ten_thousand_lists_are_what_a_full_sort_gives(versions, number, seed):
    stream = np.random.default_rng(seed)
    asked = [wish(stream) for _ in range(20)]
    found = lists(versions[number], DOMAIN, asked)
    for one, answer in zip(asked, found, strict=True):
        pairs, strategy = expected(versions[number], one)
        assert (answer.user, answer.strategy, answer.degraded) == (one.user, strategy, False)
        assert [item for item, _ in answer.items] == [item for item, _ in pairs]
        scores = [score for _, score in answer.items]
        np.testing.assert_allclose(scores, [s for _, s in pairs], rtol=1e-12, atol=1e-12)


@settings(max_examples=60, derandomize=True)
@given(number=st.integers(0, 5), seed=st.integers(0, 2**32), n=st.integers(1, 16))
def test_who_asks_along_changes_nothing(versions, number, seed, n):
    stream = np.random.default_rng(seed)
    asked = [wish(stream, told=True) for _ in range(n)]
    together = lists(versions[number], DOMAIN, asked)
    there = {f"{OTHER}-{n:02}" for n in range(25)}
    degraded = [not there.isdisjoint(one.recent.get(OTHER, ())) for one in asked]
    assert [one.degraded for one in together] == degraded
    assert together == [lists(versions[number], DOMAIN, [one])[0] for one in asked]


@settings(max_examples=100, derandomize=True)
@given(number=st.integers(0, 5), item=st.sampled_from(ITEMS), k=st.integers(1, 40))
def test_similar_items_are_those_of_the_largest_cosine(versions, number, item, k):
    found = similar(versions[number], DOMAIN, item, k)
    model = versions[number].recommender.domains[DOMAIN]
    ids = model.items.values.to_list()
    if item not in ids:
        assert found is None
        return
    vectors = model.scorer.items.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(lengths > 0, lengths, 1)[:, None]
    cosines = unit @ unit[ids.index(item)]
    assert (found.item, found.by) == (item, "cosine")
    names = [name for name, _ in found.items]
    assert len(set(names)) == len(names) == min(k, len(ids) - 1)
    assert item not in names
    given = [cosines[ids.index(name)] for name in names]
    np.testing.assert_allclose([s for _, s in found.items], given, atol=1e-6)
    best = np.sort(np.delete(cosines, ids.index(item)))[::-1][: len(names)]
    np.testing.assert_allclose(given, best, atol=1e-6)
