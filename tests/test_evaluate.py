"""evaluate: golden values on a small table, the files' forms, refusals."""

import json
import math

import numpy as np
import polars as pl
import pytest

from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.evaluation.evaluate import (
    PerUser,
    evaluate,
    metrics_frame,
    metrics_json,
    validation_ndcg,
)
from musketeers.ranking import Factors


def table(pairs, *, n_users=4, n_items=5):
    users, items = np.array(pairs, dtype=int).reshape(-1, 2).T
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


SCORER = Factors(
    np.array([[1, 0], [0, 1], [1, 1], [1, 0]], dtype=np.float32),
    np.array([[5, 1], [4, 2], [3, 3], [2, 4], [1, 5]], dtype=np.float32),
)
SEEN = table([(0, 0), (1, 4), (3, 1)])
TEST = table([(0, 1), (0, 4), (1, 2), (3, 0)])


def test_golden_values_of_users_with_test_items():
    # user 0 ranks 1 2 3 4, user 1 ranks 3 2 1 0, user 3 ranks 0 2 3 4
    result = evaluate(SCORER, TEST, SEEN, ks=(1, 2), n_threads=2)
    np.testing.assert_array_equal(result.users, [0, 1, 3])
    assert list(result.values) == [
        "precision@1", "recall@1", "ndcg@1", "precision@2", "recall@2", "ndcg@2",
    ]  # fmt: skip
    np.testing.assert_allclose(result.values["precision@1"], [1, 0, 1])
    np.testing.assert_allclose(result.values["recall@1"], [0.5, 0, 1])
    np.testing.assert_allclose(result.values["precision@2"], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(result.values["recall@2"], [0.5, 1, 1])
    third = 1 / math.log2(3)
    np.testing.assert_allclose(result.values["ndcg@2"], [1 / (1 + third), third, 1])
    means = result.means()
    assert next(iter(means)) == "users"
    assert means["users"] == 3
    assert means["recall@2"] == pytest.approx(2.5 / 3)


def test_a_catalogue_shorter_than_k_divides_by_k():
    result = evaluate(SCORER, TEST, SEEN, n_threads=1)
    assert list(result.values)[:3] == ["precision@10", "recall@10", "ndcg@10"]
    np.testing.assert_allclose(result.values["precision@10"], [0.2, 0.1, 0.1])
    np.testing.assert_allclose(result.values["recall@20"], [1, 1, 1])


def test_validation_looks_at_the_given_users_that_have_items():
    third = 1 / math.log2(3)
    both = validation_ndcg(SCORER, TEST, SEEN, users=np.array([1, 2, 3]), n_threads=1)
    np.testing.assert_allclose(both, [third, 1])
    whole = evaluate(SCORER, TEST, SEEN, n_threads=1).means()["ndcg@10"]
    everyone = validation_ndcg(SCORER, TEST, SEEN, users=np.arange(4), n_threads=1)
    assert everyone.mean() == pytest.approx(whole)


def test_validation_without_items_is_refused():
    with pytest.raises(DataError, match=r"none of 1 users has a validation item; raise split"):
        validation_ndcg(SCORER, TEST, SEEN, users=np.array([2]), n_threads=1)


def test_bad_lengths_and_tables_are_refused():
    for ks in ((), (10, 0)):
        with pytest.raises(DataError, match=r"ks is .*; name at least one list length"):
            evaluate(SCORER, TEST, SEEN, ks=ks, n_threads=1)
    with pytest.raises(DataError, match=r"differ in .* \(4, 5\) and \(9, 5\)"):
        evaluate(SCORER, TEST, table([], n_users=9), n_threads=1)


def results():
    one = evaluate(SCORER, TEST, SEEN, ks=(2,), n_threads=1)
    return {"pop": {"tv": one}, "smf": {"tv": one, "empty": nobody()}}


def nobody():
    return evaluate(SCORER, table([]), SEEN, ks=(2,), n_threads=1)


def test_metrics_json_has_the_stated_form():
    content = json.loads(json.dumps(metrics_json(results()), allow_nan=False))
    assert content["format"] == 1
    assert content["split"] == "test"
    tv = content["models"]["pop"]["tv"]
    assert tv["users"] == 3
    assert tv["precision@2"] == 0.5
    assert content["models"]["smf"]["empty"] == {
        "users": 0, "precision@2": None, "recall@2": None, "ndcg@2": None,
    }  # fmt: skip


def test_metrics_frame_has_a_row_per_number_and_the_callers_ids():
    ids = pl.Series("id", ["ann", "bob", "cyd", "dan"])
    frame = metrics_frame(results(), lambda rows: ids[rows.tolist()])
    assert frame.schema == pl.Schema(
        {"model": pl.String, "domain": pl.String, "user_id": pl.String,
         "metric": pl.String, "value": pl.Float64}
    )  # fmt: skip
    assert len(frame) == 2 * 3 * 3
    row = frame.row(by_predicate=(pl.col("model") == "smf") & (pl.col("user_id") == "dan")
                    & (pl.col("metric") == "recall@2"))  # fmt: skip
    assert row == ("smf", "tv", "dan", "recall@2", 1.0)


def test_metrics_frame_of_nothing_keeps_its_columns():
    numbers = pl.Series("id", [7, 8, 9], dtype=pl.UInt16)
    frame = metrics_frame({}, lambda rows: numbers.gather(rows))
    assert frame.is_empty()
    assert frame.columns == ["model", "domain", "user_id", "metric", "value"]
    assert frame["user_id"].dtype == pl.UInt16


def test_means_of_nobody_are_undefined():
    result = PerUser(np.empty(0, dtype=np.int64), {"ndcg@10": np.empty(0)})
    assert result.means()["users"] == 0
    assert math.isnan(result.means()["ndcg@10"])
