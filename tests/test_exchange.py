"""What leaves a domain: scaled to a common length, and nothing of whom it does not know."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from musketeers.errors import DataError
from musketeers.exchange import UserEmbeddings


def collected(*, n_users=6, names=("tv", "film", "music"), dim=3, seed=0):
    rng = np.random.default_rng(seed)
    tables = {name: rng.normal(size=(n_users, dim)).astype(np.float32) for name in names}
    known = {name: rng.random(n_users) < 0.7 for name in names}
    return tables, known, UserEmbeddings.collect(tables, known)


def test_lengths_by_hand():
    tables = {
        "tv": np.array([[3, 4], [0, 1], [100, 0]], np.float32),
        "film": np.array([[0, 2], [0, 0], [0, 0]], np.float32),
    }
    known = {"tv": np.array([True, True, False]), "film": np.array([True, False, False])}
    shared = UserEmbeddings.collect(tables, known)
    assert shared.domains == ("tv", "film")
    np.testing.assert_array_equal(shared.lengths, np.array([3, 2], np.float32))
    np.testing.assert_array_equal(shared.known, [[True, True], [True, False], [False, False]])
    expected = np.array([[[1, 4 / 3], [0, 1]], [[0, 1 / 3], [0, 0]], [[0, 0], [0, 0]]], np.float32)
    np.testing.assert_allclose(shared.values, expected, rtol=1e-6)
    assert shared.values.dtype == shared.lengths.dtype == np.float32


@given(st.integers(0, 2**32), st.integers(1, 8), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=40)
def test_known_users_have_mean_length_one_whatever_the_scale(seed, n_users, scale):
    tables, known, shared = collected(n_users=n_users, seed=seed)
    lengths = np.linalg.norm(shared.values, axis=2)
    for slot, name in enumerate(shared.domains):
        if known[name].any():
            assert lengths[known[name], slot].mean() == pytest.approx(1, rel=1e-5)
        np.testing.assert_array_equal(lengths[~known[name], slot], 0)
    louder = UserEmbeddings.collect(tables | {"tv": tables["tv"] * np.float32(scale)}, known)
    np.testing.assert_allclose(louder.values, shared.values, rtol=1e-4, atol=1e-6)


def test_the_vectors_of_unknown_users_stay_at_home():
    tables, known, shared = collected()
    other = {
        name: np.where(known[name][:, None], table, np.float32(1e6))
        for name, table in tables.items()
    }
    assert (UserEmbeddings.collect(other, known).values == shared.values).all()


def test_a_domain_that_knows_nobody_or_has_learned_nothing_has_length_one():
    tables, known, _ = collected()
    known["tv"] = np.zeros(6, bool)
    tables["film"] = np.zeros((6, 3), np.float32)
    shared = UserEmbeddings.collect(tables, known)
    np.testing.assert_array_equal(shared.lengths[:2], 1)
    np.testing.assert_array_equal(shared.values[:, :2], 0)


def test_without_leaves_the_sources_of_a_target():
    _, _, shared = collected()
    sources = shared.without("film")
    assert sources.domains == ("tv", "music")
    np.testing.assert_array_equal(sources.values, shared.values[:, [0, 2]])
    np.testing.assert_array_equal(sources.known, shared.known[:, [0, 2]])
    np.testing.assert_array_equal(sources.lengths, shared.lengths[[0, 2]])
    assert sources.without("tv").without("music").values.shape == (6, 0, 3)


def test_hidden_knows_nobody():
    _, _, shared = collected()
    hidden = shared.hidden()
    assert hidden.domains == shared.domains
    assert not hidden.known.any()
    assert not hidden.values.any()
    np.testing.assert_array_equal(hidden.lengths, shared.lengths)


def test_a_hidden_domain_knows_nobody_and_the_others_stay():
    _, _, shared = collected()
    hidden = shared.hidden("film")
    assert hidden.domains == shared.domains
    assert not hidden.known[:, 1].any()
    assert not hidden.values[:, 1].any()
    np.testing.assert_array_equal(hidden.values[:, [0, 2]], shared.values[:, [0, 2]])
    np.testing.assert_array_equal(hidden.known[:, [0, 2]], shared.known[:, [0, 2]])
    np.testing.assert_array_equal(hidden.lengths, shared.lengths)
    with pytest.raises(DataError, match="'radio' is not one of"):
        shared.hidden("radio")


def test_index_is_the_place_of_a_domain():
    _, _, shared = collected()
    assert [shared.index(name) for name in shared.domains] == [0, 1, 2]
    for ask in (shared.index, shared.without):
        with pytest.raises(DataError, match=r"'radio' is not one of tv, film, music"):
            ask("radio")


def test_tables_of_different_shapes_are_refused():
    tables, known, _ = collected()
    tables["film"] = tables["film"][:, :2]
    with pytest.raises(DataError, match=r"disagree on the shape .*'tv': \(6, 3\).*'film': \(6, 2"):
        UserEmbeddings.collect(tables, known)


def test_nothing_is_shared_with_what_came_in():
    tables, known, shared = collected()
    before = {name: table.copy() for name, table in tables.items()}
    for other in (shared, shared.without("tv"), shared.hidden()):
        for array in (other.values, other.known):
            for given_array in (*tables.values(), *known.values()):
                assert not np.shares_memory(array, given_array)
            array[:] = 1
    for name, table in tables.items():
        np.testing.assert_array_equal(table, before[name])
    alone = UserEmbeddings.collect({"tv": tables["tv"]}, {"tv": np.ones(6, bool)})
    assert not np.shares_memory(alone.values, tables["tv"])
    np.testing.assert_array_equal(tables["tv"], before["tv"])
