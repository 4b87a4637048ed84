"""compare: agreement with scipy, golden values, error rates, pooling over seeds."""

import math
from dataclasses import asdict
from functools import reduce

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given

from musketeers.errors import DataError
from musketeers.evaluation.compare import (
    compare,
    compared,
    holm,
    negative_transfer,
    pool,
    summed,
)
from musketeers.evaluation.evaluate import PerUser
from musketeers.seeding import Seed


def per_user(*values, users=None, name="ndcg@10"):
    array = np.array(values, dtype=float)
    return PerUser(np.arange(len(array)) if users is None else np.array(users), {name: array})


def only(a, b):
    (found,) = compare({"tv": a}, {"tv": b}).values()
    return found


def test_agrees_with_the_paired_t_test_of_scipy():
    make = Seed(0).numpy()
    one, other = make.random((2, 200)) * (make.random((2, 200)) < 0.3)
    found = only(per_user(*one), per_user(*other))
    want = scipy.stats.ttest_rel(one, other)
    interval = want.confidence_interval(0.95)
    assert found.p == pytest.approx(want.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.users == 200
    assert found.difference == pytest.approx(one.mean() - other.mean())
    assert found.relative == pytest.approx(one.mean() / other.mean() - 1)


def test_golden_difference():
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 3.4641 with 2 degrees of freedom
    found = only(per_user(2, 3, 4), per_user(1, 1, 1))
    assert found.difference == 2
    assert found.p == pytest.approx(0.0741799)
    assert (found.low, found.high) == pytest.approx((-0.4841377, 4.4841377))
    assert found.relative == 2
    assert found.mark == ""


def test_marks_follow_the_sign():
    better, worse = np.linspace(0.4, 0.6, 50), np.linspace(0.1, 0.2, 50)
    assert only(per_user(*better), per_user(*worse)).mark == "▲"
    cells = compare({"tv": per_user(*worse)}, {"tv": per_user(*better)})
    assert cells["tv", "ndcg@10"].mark == "▼"
    assert negative_transfer(cells) == [("tv", "ndcg@10")]


def test_the_mirror_image_is_the_same_test():
    make = Seed(1).numpy()
    one, other = per_user(*make.random(30)), per_user(*make.random(30))
    there, back = only(one, other), only(other, one)
    assert there.p == back.p
    assert (there.low, there.high) == (-back.high, -back.low)


def test_equal_models_do_not_differ():
    found = only(per_user(0, 0.5, 1), per_user(0, 0.5, 1))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.mark == ""


def test_a_constant_gain_proves_as_much_as_its_number_of_users():
    assert only(per_user(0.3, 0.7), per_user(0.2, 0.6)).p == 0.5
    gain = only(per_user(*[0.5] * 20), per_user(*[0.4] * 20))
    assert gain.p == 2.0**-19
    assert gain.mark == "▲"


def test_one_user_proves_nothing():
    found = only(per_user(1), per_user(0))
    assert found.difference == 1
    assert all(math.isnan(x) for x in (found.p, found.p_corrected, found.low, found.relative))
    assert found.mark == ""


def test_users_without_both_values_are_left_out():
    found = only(per_user(1, np.nan, 3, 0.5), per_user(0, 7, np.nan, 0))
    assert found.users == 2
    assert found.difference == 0.75


def test_correction_counts_all_cells():
    make = Seed(2).numpy()
    better = {str(d): per_user(*(make.random(40) + 0.1 * d)) for d in range(4)}
    alone = {str(d): per_user(*make.random(40)) for d in range(4)}
    cells = compare(better, alone)
    want = holm(np.array([found.p for found in cells.values()]))
    assert [found.p_corrected for found in cells.values()] == want.tolist()
    assert [found.significant for found in cells.values()] == (want < 0.05).tolist()


def test_false_alarms_stay_near_the_stated_rate_on_sparse_metrics():
    """Users with mostly 0, two equally good models: the test rejects about 5 % of the time."""
    make = Seed(3).numpy()
    values = make.random((2, 400, 300)) * (make.random((2, 400, 300)) < 0.05)
    alarms = [only(per_user(*a), per_user(*b)).p < 0.05 for a, b in zip(*values, strict=True)]
    assert 0.02 < np.mean(alarms) < 0.08


def test_holm_golden():
    # sorted .01 .02 .03 .04: times 4, 3, 2, 1, never falling
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.03, np.nan, 0.9])), [0.06, np.nan, 0.9])
    assert holm(np.empty(0)).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_none_and_bonferroni_and_keeps_the_order(p_values):
    p = np.array(p_values)
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(p * len(p), 1)).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_pool_averages_each_user_over_the_seeds_that_saw_them():
    pooled = pool([per_user(1, 0, users=[2, 5]), per_user(0.5, 0.5, np.nan, users=[5, 7, 9])])
    np.testing.assert_array_equal(pooled.users, [2, 5, 7, 9])
    np.testing.assert_array_equal(pooled.values["ndcg@10"], [1, 0.25, 0.5, np.nan])


def test_repeating_one_seed_adds_no_evidence():
    make = Seed(4).numpy()
    one, other = per_user(*make.random(30)), per_user(*make.random(30))
    assert only(pool([one] * 4), pool([other] * 4)).p == pytest.approx(only(one, other).p)


def test_runs_and_models_that_do_not_match_are_refused():
    value = per_user(1, 2)
    with pytest.raises(DataError, match=r"domains \['tv'\], the other \['movie'\]"):
        compare({"tv": value}, {"movie": value})
    with pytest.raises(DataError, match="tv: the models were tested on 2 and 2 users"):
        compare({"tv": value}, {"tv": per_user(1, 2, users=[0, 5])})
    with pytest.raises(DataError, match=r"tv: one model has \['ndcg@10'\]"):
        compare({"tv": value}, {"tv": per_user(1, 2, name="recall@10")})
    with pytest.raises(DataError, match="0 runs with 0 sets of metrics"):
        pool([])
    with pytest.raises(DataError, match="2 runs with 2 sets of metrics"):
        pool([value, per_user(1, 2, name="recall@10")])


# --- users in parts


def test_sums_of_parts_are_those_of_all_users():
    rng = np.random.default_rng(5)
    one, other = (
        {"tv": PerUser(np.arange(60), {"ndcg@10": rng.random(60) + shift})} for shift in (0.1, 0)
    )
    one["tv"].values["ndcg@10"][7] = np.nan

    def part(model, rows):
        return {"tv": PerUser(rows, {"ndcg@10": model["tv"].values["ndcg@10"][rows]})}

    # one of the parts has no user
    parts = np.split(np.arange(60), [17, 18, 18])
    cells = [summed(part(one, rows), part(other, rows)) for rows in parts]
    added = reduce(lambda a, b: {cell: a[cell].with_others(b[cell]) for cell in a}, cells)
    found, whole = compared(added), compare(one, other)
    for cell, difference in whole.items():
        assert asdict(found[cell]) == pytest.approx(asdict(difference), rel=1e-12)
        assert found[cell].users == 59
