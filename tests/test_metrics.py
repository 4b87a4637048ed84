"""Metrics: golden values, a slow reference, their limits."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from musketeers.data.interactions import Interactions
from musketeers.evaluation.metrics import METRICS, hits_of, ndcg, precision, recall
from musketeers.seeding import Seed


def test_golden_values():
    hits = np.array([[True, False, True, False], [False, True, False, False], [False] * 4])
    n_relevant = np.array([2, 6, 1])
    np.testing.assert_allclose(precision(hits, n_relevant), [0.5, 0.25, 0])
    np.testing.assert_allclose(recall(hits, n_relevant), [1, 1 / 6, 0])
    # 1 + 1/log2(4) over 1 + 1/log2(3); 1/log2(3) over the sum of four discounts
    np.testing.assert_allclose(
        ndcg(hits, n_relevant), [1.5 / 1.6309297535714573, 0.6309297535714575 / 2.56160633, 0]
    )


def slow_ndcg(hits, n_relevant):
    gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, 1) if hit)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(hits), n_relevant) + 1))
    return gain / ideal


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_match_the_definitions_and_stay_between_0_and_1(n_users, k, entropy):
    make = Seed(entropy).numpy()
    hits = make.random((n_users, k)) < make.random()
    n_relevant = np.maximum(hits.sum(1) + make.integers(0, 5, n_users), 1)
    np.testing.assert_allclose(
        ndcg(hits, n_relevant), [slow_ndcg(*pair) for pair in zip(hits, n_relevant, strict=True)]
    )
    np.testing.assert_allclose(precision(hits, n_relevant), hits.sum(1) / k)
    np.testing.assert_allclose(recall(hits, n_relevant), hits.sum(1) / n_relevant)
    for metric in METRICS.values():
        values = metric(hits, n_relevant)
        assert values.dtype == np.float64
        assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("n_relevant", [1, 3, 10, 20])
def test_the_best_possible_ranking_has_ndcg_exactly_1(n_relevant):
    hits = np.arange(10)[None] < n_relevant
    assert ndcg(hits, np.array([n_relevant]))[0] == 1


def test_a_hit_further_up_is_worth_more():
    values = ndcg(np.eye(10, dtype=bool), np.full(10, 4))
    assert (np.diff(values) < 0).all()


def test_users_without_relevant_items_are_undefined():
    for metric in METRICS.values():
        values = metric(np.zeros((2, 3), dtype=bool), np.array([0, 1]))
        np.testing.assert_array_equal(values, [np.nan, 0])


def test_no_users_give_no_values():
    for metric in METRICS.values():
        assert metric(np.zeros((0, 3), dtype=bool), np.zeros(0, int)).shape == (0,)


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 10), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_hits_are_membership(n_users, n_items, k, entropy):
    make = Seed(entropy).numpy()
    pairs = np.nonzero(make.random((n_users, n_items)) < 0.3)
    relevant = Interactions.from_pairs(*pairs, n_users=n_users, n_items=n_items)
    users = make.permutation(n_users)
    ranked = make.integers(-1, n_items, (n_users, k)).astype(np.int32)
    want = [
        [item in relevant.of(int(u)) for item in row] for u, row in zip(users, ranked, strict=True)
    ]
    np.testing.assert_array_equal(hits_of(ranked, users, relevant), want)
