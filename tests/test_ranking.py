"""top_k: the slow definition, ties, invariance to tiles and threads, refusals."""

from dataclasses import dataclass
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from contract import PersonalScorerContract, brute_force
from hypothesis import given, settings

from musketeers import inner_products
from musketeers import ranking as module
from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.ranking import Factors, top_k
from musketeers.seeding import Seed


class TestFactorsContract(PersonalScorerContract):
    """Liked items' shares as factors, which tell the camps apart."""

    def fit(self, train):
        likes = np.zeros((train.n_users, train.n_items), dtype=np.float32)
        likes[train.users(), train.items] = 1
        return Factors(likes, (likes.T @ likes).T.copy())


def factors(n_users, n_items, dim, *, entropy, kind="normal"):
    make = Seed(entropy).numpy()
    users, items = (make.standard_normal((n, dim), dtype=np.float32) for n in (n_users, n_items))
    if kind == "few values":  # many exact ties
        users, items = np.rint(users), np.rint(items)
    if kind == "duplicates":
        items = items[make.integers(0, max(n_items // 20, 1), n_items)]
    if kind == "near ties":
        items = (1 + items * np.float32(1e-7)).astype(np.float32)
    if kind == "zero users":
        users[::2] = 0
    if kind == "zero items":
        items[:] = 0
    return Factors(users, items)


def interactions(n_users, n_items, *, entropy, share=0.2):
    chosen = Seed(entropy, ("seen",)).numpy().random((n_users, n_items)) < share
    if n_users > 1:
        chosen[1] = True
    users, items = np.nonzero(chosen)
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def ranked(scorer, users, *, bounded, **options):
    """By bounds in integers or by all scores, however many users there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BOUNDED_FROM", 0 if bounded else len(users) + 1)
        return top_k(scorer, users, **options)


def check(scorer, users, *, k, seen, n_threads=2):
    items, scores = brute_force(scorer, users, k=k, seen=seen)
    for bounded in (True, False):
        ranking = ranked(scorer, users, bounded=bounded, k=k, seen=seen, n_threads=n_threads)
        np.testing.assert_array_equal(ranking.items, items)
        assert ranking.scores.tobytes() == scores.tobytes()


KINDS = ["normal", "few values", "duplicates", "near ties", "zero users", "zero items"]


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.integers(1, 6), st.integers(1, 60), st.integers(1, 5), st.integers(1, 70), st.integers(0, 99)
)
@settings(deadline=None, max_examples=25)
def test_matches_the_definition(kind, n_users, n_items, dim, k, entropy):
    scorer = factors(n_users, n_items, dim, entropy=entropy, kind=kind)
    users = Seed(entropy).numpy().permutation(n_users)
    check(scorer, users, k=k, seen=interactions(n_users, n_items, entropy=entropy))
    check(scorer, users, k=k, seen=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "share"), [(1, 0.002), (20, 0.03), (50, 0.5)])
def test_matches_the_definition_in_a_catalogue_of_many_blocks(kind, k, share):
    scorer = factors(6, 1500, 8, entropy=1, kind=kind)
    seen = interactions(6, 1500, entropy=1, share=share)
    check(scorer, np.arange(6), k=k, seen=seen)


@pytest.mark.parametrize("direction", [1, -1])
def test_catalogues_sorted_by_score_are_no_special_case(direction):
    items = np.linspace(1, 2, 2000, dtype=np.float32)[::direction, None].copy()
    check(Factors(np.ones((2, 1), np.float32), items), np.arange(2), k=10, seen=None)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_threads_and_company_change_no_bit(kind, monkeypatch):
    scorer = factors(23, 700, 8, entropy=2, kind=kind)
    seen = interactions(23, 700, entropy=2)
    users = np.arange(23)
    want = top_k(scorer, users, k=15, seen=seen, n_threads=1)
    for n_threads, tile_rows in ((1, 1), (2, 7), (3, 23), (30, 23)):
        monkeypatch.setattr(module, "TILE_BYTES", 4 * 700 * tile_rows)
        got = top_k(scorer, users, k=15, seen=seen, n_threads=n_threads)
        assert got.items.tobytes() == want.items.tobytes()
        assert got.scores.tobytes() == want.scores.tobytes()
    alone = top_k(scorer, users[9:10], k=15, seen=seen, n_threads=1)
    assert alone.items.tobytes() == want.items[9].tobytes()


@dataclass(frozen=True, slots=True)
class Blurred:
    """A scorer whose fast scores are as wrong as its stated error allows."""

    sharp: Factors
    blur: float

    @property
    def n_items(self):
        return self.sharp.n_items

    def score(self, users):
        noise = Seed(3).numpy().choice([-self.blur, self.blur], (len(users), self.n_items))
        return (self.sharp.score(users) + noise).astype(np.float32)

    def exact(self, users, items):
        return self.sharp.exact(users, items)

    def error(self, users):
        return self.sharp.error(users) + self.blur * (1 + 1e-6)


@pytest.mark.parametrize("blur", [0.01, 0.3, 3.0])
def test_fast_scores_as_wrong_as_allowed_do_not_change_the_ranking(blur):
    scorer = Blurred(factors(5, 900, 8, entropy=4), blur)
    seen = interactions(5, 900, entropy=4, share=0.05)
    check(scorer, np.arange(5), k=20, seen=seen)


def test_golden_ranking():
    scorer = Factors(
        np.array([[1, 0], [0, 0]], dtype=np.float32),
        np.array([[1, 5], [3, 5], [3, 9], [2, 0]], dtype=np.float32),
    )
    seen = Interactions.from_pairs(np.array([1]), np.array([0]), n_users=2, n_items=4)
    ranking = top_k(scorer, np.array([0, 1]), k=3, seen=seen, n_threads=1)
    np.testing.assert_array_equal(ranking.items, [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(ranking.scores, [[3, 3, 2], [0, 0, 0]])


def test_a_user_who_has_seen_everything_gets_empty_places():
    seen = Interactions.from_pairs(np.zeros(4, int), np.arange(4), n_users=1, n_items=4)
    ranking = top_k(factors(1, 4, 2, entropy=0), np.array([0]), k=2, seen=seen, n_threads=1)
    np.testing.assert_array_equal(ranking.items, [[-1, -1]])
    assert np.isnan(ranking.scores).all()


def test_nobody_asked_and_nothing_to_rank_give_empty_rankings():
    scorer = factors(3, 5, 2, entropy=0)
    nobody = top_k(scorer, np.empty(0, int), k=2, seen=None, n_threads=2)
    assert nobody.items.shape == (0, 2)
    empty = Factors(scorer.users, np.empty((0, 2), np.float32))
    nothing = top_k(empty, np.arange(3), k=2, seen=None, n_threads=2)
    np.testing.assert_array_equal(nothing.items, np.full((3, 2), -1))


@given(st.integers(1, 300), st.integers(-60, 60), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_error_bounds_the_distance_from_rational_arithmetic(dim, exponent, entropy):
    scorer = factors(2, 3, dim, entropy=entropy)
    scorer = Factors(scorer.users, scorer.items * np.float32(2.0**exponent))
    users = np.arange(2)
    error, scores = scorer.error(users), scorer.score(users)
    exact = scorer.exact(users, np.tile(np.arange(3), (2, 1)))
    for u in users:
        for i in range(3):
            pairs = zip(scorer.users[u].tolist(), scorer.items[i].tolist(), strict=True)
            true = sum(Fraction(x) * Fraction(y) for x, y in pairs)
            assert abs(Fraction(float(scores[u, i])) - true) <= Fraction(error[u])
            assert abs(Fraction(exact[u, i]) - true) <= Fraction(error[u]) / 10**6


def test_exact_sums_in_the_order_of_the_dimensions():
    scorer = factors(4, 9, 37, entropy=5)
    exact = scorer.exact(np.arange(4), np.tile(np.arange(9), (4, 1)))
    for u in range(4):
        for i in range(9):
            total = 0.0
            for x, y in zip(scorer.users[u].tolist(), scorer.items[i].tolist(), strict=True):
                total += x * y
            assert exact[u, i] == total


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_scores_beyond_numbers_are_refused(bad):
    scorer = factors(3, 4, 2, entropy=6)
    scorer.items[2] = bad
    with pytest.raises(DataError, match="user row 2 are not finite or exceed float32"):
        top_k(scorer, np.array([2, 0]), k=1, seen=None, n_threads=1)


def test_the_impossible_is_refused_in_one_line():
    scorer, seen = factors(3, 4, 2, entropy=7), interactions(3, 4, entropy=7)
    refused = {
        "k is 0; ask for at least 1": (np.arange(3), 0, seen),
        "user row -1 is negative": (np.array([0, -1]), 1, seen),
        "user row 3 is outside the table of 3": (np.array([3]), 1, seen),
        "catalogue of 9, the model ranks 4": (np.arange(3), 1, interactions(3, 9, entropy=7)),
    }
    for message, (users, k, table) in refused.items():
        with pytest.raises(DataError, match=message):
            top_k(scorer, users, k=k, seen=table, n_threads=1)


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=60), st.data())
def test_the_kth_largest_is_where_sorting_puts_it(values, data):
    k = data.draw(st.integers(1, len(values)))
    assert module.kth_largest(np.array(values, np.float32), k) == sorted(values)[-k]


bounds = pytest.mark.skipif(
    not inner_products.supported(1), reason="this processor has no AVX-512 with VNNI"
)


@given(
    st.integers(1, 130), st.integers(1, 400), st.sampled_from([1, 20, 500]),
    st.integers(-120, 50), st.integers(-120, 50), st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_bounds_give_the_definition_for_any_width_and_length(dim, n_items, k, of_u, of_v, entropy):
    made = factors(7, n_items, dim, entropy=entropy)
    norms = np.exp(Seed(entropy, ("norms",)).numpy().standard_normal((n_items, 1)))
    # down to where float32 has few digits left, and none
    users = made.users * np.float32(2.0**of_u)
    scorer = Factors(users, (made.items * norms * 2.0**of_v).astype(np.float32))
    check(scorer, np.arange(7), k=k, seen=interactions(7, n_items, entropy=entropy))


@given(st.integers(1, 130), st.integers(1, 300), st.integers(-140, 60), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_no_bound_is_below_the_exact_score(dim, n_items, exponent, entropy):
    made = factors(5, n_items, dim, entropy=entropy)
    items = (made.items * 2.0**exponent).astype(np.float32)
    catalogue = inner_products.Catalogue.of(items)
    padded = catalogue.rounded.shape[1] // inner_products.GROUP
    q, u, limits = np.zeros((5, padded), np.int8), np.empty((5, dim)), np.empty((5, 6))
    inner_products._round_users(made.users, np.arange(5), q, u, limits)
    by_step = catalogue.rounded.reshape(len(catalogue.rounded), -1, 64, 4)
    p = by_step.transpose(0, 2, 1, 3).reshape(-1, padded)[:n_items].astype(int) - 128
    panels = catalogue.limits[np.arange(n_items) // inner_products._PANEL].T
    mine = limits.T[:, :, None]
    bound = q.astype(int) @ p.T + mine[2] * panels[1] + mine[1] * panels[2]
    bound /= mine[0] * panels[0]
    exact = Factors(made.users, items).exact(np.arange(5), np.tile(catalogue.order, (5, 1)))
    assert (bound >= exact).all()
    assert (mine[3] * panels[3] >= np.abs(exact)).all()
    # and they are near enough to be of use
    assert (bound - exact <= 0.05 * np.sqrt(dim) * mine[3] * panels[3]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_threads_and_company_change_no_bit(kind):
    scorer = factors(500, 900, 20, entropy=8, kind=kind)
    seen = interactions(500, 900, entropy=8, share=0.05)
    users = Seed(8).numpy().permutation(500)
    options = {"k": 20, "seen": seen}
    want = ranked(scorer, users, bounded=False, n_threads=1, **options)
    for n_threads in (1, 2, 3):
        got = ranked(scorer, users, bounded=True, n_threads=n_threads, **options)
        assert got.items.tobytes() == want.items.tobytes()
        assert got.scores.tobytes() == want.scores.tobytes()


@bounds
def test_many_users_are_ranked_by_bounds_and_other_models_and_processors_are_not(monkeypatch):
    scorer, users = factors(300, 50, 4, entropy=9), np.arange(300)

    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(inner_products, "rank", refuse)
    options = {"k": 3, "seen": None, "n_threads": 1}
    with pytest.raises(AssertionError):
        top_k(scorer, users, **options)
    top_k(scorer, users[: module.BOUNDED_FROM - 1], **options)
    top_k(Blurred(scorer, 0.1), users, **options)
    monkeypatch.setattr(inner_products, "supported", lambda _: False)
    top_k(scorer, users, **options)


def test_widths_whose_sums_may_not_fit_an_integer_are_not_supported():
    assert not inner_products.supported(0)
    assert not inner_products.supported(2**15 + 1)
    assert 255 * 127 * 2**15 < 2**31
