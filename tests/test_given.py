"""Stage 1 by iALS or by vectors made elsewhere: read, cut to size, refused; and what follows."""

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

import musketeers
from musketeers import config as configuration
from musketeers import runs
from musketeers.comparison.study import compare_models
from musketeers.comparison.workers import Processes
from musketeers.config import GivenConfig, PretrainConfig
from musketeers.data.domains import Domain
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import frames, planted
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError, DataError, RunError
from musketeers.evaluation.validation import Validation
from musketeers.pretrain.given import Given, factors, read
from musketeers.pretrain.ials import IalsSettings, ials
from musketeers.pretrain.settled import settled
from musketeers.ranking import Factors
from musketeers.runs import evaluate_run, fit_run
from musketeers.seeding import Seed
from musketeers.training import Unwatched

N_USERS, N_ITEMS = 6, 4
NAMES = ("tv", "film")


def domain(ids=None):
    """Six users who each like one of four items, with numbers as ids."""
    users = Vocabulary.of(pl.Series(ids if ids is not None else range(10, 10 + N_USERS)))
    items = Vocabulary.of(pl.Series([f"i{n}" for n in range(N_ITEMS)]))
    rows = np.arange(N_USERS)
    pairs = Interactions.from_pairs(rows, rows % N_ITEMS, n_users=N_USERS, n_items=N_ITEMS)
    return users, Domain(items, pairs, None)


def vectors(n, width=3, entropy=0):
    return Seed(entropy).numpy().standard_normal((n, width)).astype(np.float32)


def table(ids, rows, name="user_id"):
    return pl.DataFrame({name: ids, "vector": rows.tolist()})


def given(folder, users=None, items=None):
    """What is read from tables of users and items written to the folder."""
    vocabulary, here = domain()
    users = table(vocabulary.values, vectors(N_USERS)) if users is None else users
    users.write_parquet(folder / "users.parquet")
    if items is not None:
        items.write_parquet(folder / "items.parquet")
    config = GivenConfig(users="users.parquet", items=None if items is None else "items.parquet")
    return read(config, here, vocabulary, base=folder)


# --- reading


def test_vectors_stand_at_the_rows_of_their_ids_in_any_form(tmp_path):
    vocabulary, here = domain()
    rows = vectors(N_USERS + 1)
    ids = np.array([13, 99, 10, 15, 11, 14, 12])  # 99 is nobody here
    wanted = rows[[2, 4, 6, 0, 5, 3]]
    table(ids, rows).write_parquet(tmp_path / "lists.parquet")
    columns = {"who": ids, **{f"x{n}": rows[:, n] for n in range(3)}}
    pl.DataFrame(columns).write_parquet(tmp_path / "columns.parquet")
    save_file({"ids": ids, "vectors": rows}, tmp_path / "both.safetensors")
    for name in ("lists.parquet", "columns.parquet", "both.safetensors"):
        found = read(GivenConfig(users=name), here, vocabulary, base=tmp_path)
        np.testing.assert_array_equal(found.users, wanted)
        assert found.items is None
        assert found.missing == {"users": 0}


def test_whoever_has_no_vector_gets_the_mean_of_the_others(tmp_path):
    users, _ = domain()
    rows = vectors(4)
    items = table(["i0", "i2", "i3"], vectors(3, entropy=1), "item_id")
    found = given(tmp_path, table(users.values[:4], rows), items)
    np.testing.assert_array_equal(found.users[:4], rows)
    np.testing.assert_allclose(found.users[4:], np.tile(rows.mean(0), (2, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.items[1], found.items[[0, 2, 3]].mean(0), rtol=1e-6)
    assert found.missing == {"users": 2, "items": 1}


def with_value(rows, value):
    rows = rows.copy()
    rows[2, 1] = value
    return rows


IDS = np.arange(10, 10 + N_USERS)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (table([*IDS[:5], 10], vectors(6)), "2 rows repeat an id, such as 10"),
        (table([str(n) for n in IDS], vectors(6)), "ids are text, those of the data integers"),
        (table([None, *IDS[1:]], vectors(6)), "column 'user_id': 1 of 6 ids are missing"),
        (table(IDS + 4, vectors(6)), "vectors of 2 of 6 users of the domain, fewer than half"),
        (table(IDS, with_value(vectors(6), np.nan)), "the vector of 12 holds NaN or infinity"),
        (table(IDS, with_value(vectors(6), np.inf)), "the vector of 12 holds NaN or infinity"),
        (table(IDS, with_value(vectors(6), 1e6)), "the vector of 12 has length 1e.06, the median"),
        (table(IDS, 0 * vectors(6)), "half of the vectors or more are zero"),
        (table(IDS, vectors(6, 0)), "6 vectors of 0 numbers"),
        (pl.DataFrame({"u": IDS, "v": [[1.0]] * 5 + [[1.0, 2.0]]}), "have from 1 to 2 numbers"),
        (pl.DataFrame({"u": IDS, "v": [[1.0]] * 5 + [[None]]}), "the vector of 15 holds NaN"),
        (pl.DataFrame({"u": IDS, "v": [[1.0]] * 5 + [None]}), "have from 0 to 1 numbers"),
        (pl.DataFrame({"u": IDS, "v": ["a"] * 6}), "the columns are 'u' .Int64., 'v' .String."),
        (pl.DataFrame({"u": IDS}), "the columns are 'u' .Int64.; give the ids first"),
        (pl.DataFrame({"u": IDS, "v": [["a"]] * 6}), "is damaged or not what its ending says"),
    ],
)  # fmt: skip
def test_bad_vectors_are_refused(tmp_path, users, message):
    with pytest.raises(DataError, match=message) as caught:
        given(tmp_path, users)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "users.parquet") in str(caught.value)


def test_bad_files_are_refused(tmp_path):
    vocabulary, here = domain()
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "torn.safetensors").write_bytes(b"{}")
    (tmp_path / "vectors.csv").write_text("a,b\n")
    save_file({"vectors": vectors(6)}, tmp_path / "no-ids.safetensors")
    save_file({"ids": vectors(6), "vectors": vectors(6)}, tmp_path / "floats.safetensors")
    save_file({"ids": IDS[:5], "vectors": vectors(6)}, tmp_path / "fewer.safetensors")
    for name, message in {
        "absent.parquet": "cannot be read: No such file",
        "torn.parquet": "is damaged or not what its ending says",
        "torn.safetensors": "is damaged or not what its ending says",
        "vectors.csv": "unknown ending; vectors are in .parquet or .safetensors files",
        "no-ids.safetensors": r"holds \['vectors'\]; it must hold 'ids' and 'vectors'",
        "floats.safetensors": "'ids' is float32 of shape",
        "fewer.safetensors": "holds 5 ids and 6 vectors",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            read(GivenConfig(users=name), here, vocabulary, base=tmp_path)
        assert "\n" not in str(caught.value)


def test_users_and_items_of_two_models_are_refused(tmp_path):
    items = table([f"i{n}" for n in range(N_ITEMS)], vectors(N_ITEMS, 2), "item_id")
    with pytest.raises(DataError, match=r"vectors have 2 numbers, those of .* 3; give both from"):
        given(tmp_path, items=items)


# --- the run's width


def everybody():
    return domain()[1].pairs


def test_narrower_vectors_score_the_same_and_wider_ones_as_near_as_can_be():
    users, items = vectors(N_USERS), vectors(N_ITEMS, entropy=1)
    told = Given(users, items, {})
    for dim in (3, 5):
        made = factors(told, everybody(), dim=dim, n_threads=1)
        assert made.users.shape == (N_USERS, dim)
        np.testing.assert_allclose(made.users @ made.items.T, users @ items.T, rtol=1e-6)
    assert factors(told, everybody(), dim=3, n_threads=1).users.tobytes() == users.tobytes()
    made = factors(told, everybody(), dim=2, n_threads=1)
    left, values, right = np.linalg.svd((users @ items.T).astype(np.float64))
    nearest = (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(made.users @ made.items.T, nearest, atol=1e-5)


def test_items_that_are_not_given_are_the_least_squares_ones():
    split = planted(("tv",), Seed(0), n_users=200, n_items=30).splits["tv"]
    made = ials(split, Validation.of(split, Seed(0), n_threads=1), IalsSettings(max_epochs=4),
                Seed(0), Unwatched(), dim=6).factors  # fmt: skip
    validation = Validation.of(split, Seed(0), n_threads=1)
    found = factors(Given(7 * made.users, None, {}), split.train, dim=6, n_threads=1)
    lengths = np.linalg.norm(found.users[split.train.known_users()], axis=1)
    assert lengths.mean() == pytest.approx(1, rel=1e-5)
    assert validation.ndcg(found) == pytest.approx(validation.ndcg(made), rel=0.05)
    # of eight dimensions that lie in six, nothing is lost
    turn = np.linalg.qr(vectors(8, 8))[0][:6]
    wide = factors(Given(made.users @ turn, None, {}), split.train, dim=6, n_threads=1)
    assert validation.ndcg(wide) == pytest.approx(validation.ndcg(found), rel=1e-3)


# --- in the units of stage 3


def test_vectors_of_zero_stay_zero():
    split = planted(NAMES, Seed(0), n_users=60, n_items=40, known=0.8).splits["tv"]
    zero = Factors(np.zeros((60, 6), np.float32), np.zeros((40, 6), np.float32))
    found = settled(zero, split, PretrainConfig(), Seed(1), ())
    assert not found.factors.users.any()
    assert not found.factors.items.any()
    assert np.isfinite(found.item_squares).all()


def test_settled_vectors_rank_the_same_in_units_of_a_logit():
    split = planted(NAMES, Seed(0), n_users=300, n_items=40, known=0.8).splits["tv"]
    validation = Validation.of(split, Seed(0), n_threads=1)
    made = ials(split, validation, IalsSettings(max_epochs=4), Seed(0), Unwatched(), dim=6)
    odd = Factors(np.float32(1e-3) * made.factors.users, np.float32(50) * made.factors.items)
    found = [
        settled(one, split, PretrainConfig(), Seed(1), (made.history,))
        for one in (made.factors, odd)
    ]
    for one in found:
        assert validation.ndcg(one.factors) == pytest.approx(validation.ndcg(made.factors), 1e-6)
    # whatever the units were
    np.testing.assert_allclose(found[0].factors.users, found[1].factors.users, rtol=1e-3)
    np.testing.assert_allclose(found[0].factors.items, found[1].factors.items, rtol=1e-3)
    known = split.train.known_users()
    users, items = found[0].factors.users, found[0].factors.items
    assert (~known).any()
    mean = np.tile(users[known].mean(0), ((~known).sum(), 1))
    np.testing.assert_allclose(users[~known], mean, atol=1e-6)
    lengths = [np.linalg.norm(t, axis=1).mean() for t in (users[known], items)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)
    # the slope along all scores is 0: no other scale has a smaller loss
    rows, liked = split.valid.users(), split.valid.items
    drawn = Seed(1).child("scale").numpy().integers(len(items), size=len(liked))
    gaps = np.einsum("pd,pd->p", users[rows], items[liked] - items[drawn]).astype(np.float64)
    losses = [np.logaddexp(0, -scale * gaps).mean() for scale in (0.98, 1.0, 1.02)]
    assert losses[1] == min(losses)
    assert found[0].item_squares[split.train.item_counts() > 0].min() > 30 * 1e-3


# --- whole runs
SETTINGS = {
    "seed": 3,
    "dim": 6,
    "cat": {"max_epochs": 4, "batch_size": 64},
    "art": {"max_epochs": 4, "batch_size": 64},
}


@pytest.fixture(scope="module")
def tables():
    return frames(planted(NAMES, Seed(0), n_users=150, n_items=40, known=0.8).domains)


@pytest.fixture(scope="module")
def by_ials(tables):
    return musketeers.fit(tables, threads=1, pretrain={"method": "ials"}, **SETTINGS)


def parsed(pretrain):
    data = {"domains": {name: f"{name}.parquet" for name in NAMES}}
    return configuration.parse({**SETTINGS, "data": data, "pretrain": pretrain}, "test")


def test_the_other_stages_go_on_from_ials(by_ials):
    assert {"smf", "cat_art"} <= set(by_ials.metrics)
    smf = {name: found.means()["ndcg@10"] for name, found in by_ials.metrics["smf"].items()}
    popular = {name: found.means()["ndcg@10"] for name, found in by_ials.metrics["pop"].items()}
    assert all(smf[name] > popular[name] for name in NAMES)
    # it searched, as BPR does
    assert all(1 < len(by_ials.learning.histories["pretrain"][name]) <= 10 for name in NAMES)


def test_a_domain_that_brings_its_own_vectors_is_as_good_as_if_it_had_learned_them(
    tables, by_ials, tmp_path
):
    for name, frame in tables.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    run = fit_run(parsed({"method": "ials"}), tmp_path, tmp_path / "run", threads=1)
    same = {n: m.means() for n, m in run.metrics["smf"].items()}
    assert same == {n: m.means() for n, m in by_ials.metrics["smf"].items()}
    model = run.recommender
    saved = musketeers.artifacts.load(run.path / "pretrain" / "tv", "pretrain").tensors
    table(model.users.values, saved["users"]).write_parquet(tmp_path / "u.parquet")
    items = table(model.domains["tv"].items.values, saved["items"], "item_id")
    items.write_parquet(tmp_path / "i.parquet")
    pretrain = {
        "method": {"tv": "given", "film": "ials"},
        "given": {"tv": {"users": "u.parquet", "items": "i.parquet"}},
    }
    out = tmp_path / "given"
    found = fit_run(parsed(pretrain), tmp_path, out, threads=1)
    for name in NAMES:
        assert found.metrics["smf"][name].means()["ndcg@10"] == pytest.approx(
            same[name]["ndcg@10"], rel=1e-6
        )
    again = evaluate_run(out)
    assert again.metrics["smf"]["tv"].means() == found.metrics["smf"]["tv"].means()
    # other vectors are another run
    table(model.users.values, 2 * saved["users"]).write_parquet(tmp_path / "u.parquet")
    with pytest.raises(RunError, match=r"was started with other inputs .*tv, vectors"):
        fit_run(parsed(pretrain), tmp_path, out, threads=1, resume=True)


def test_vectors_are_looked_at_with_the_data(tables, tmp_path):
    for name, frame in tables.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    pretrain = {
        "method": {"tv": "given", "film": "bpr"}, "given": {"tv": {"users": "u.parquet"}},
    }  # fmt: skip
    with pytest.raises(DataError, match=r"u\.parquet: cannot be read: No such file"):
        runs.read_data(parsed(pretrain), tmp_path)
    table(tables["tv"]["user_id"].unique(), vectors(150)[: tables["tv"]["user_id"].n_unique()]
          ).write_parquet(tmp_path / "u.parquet")  # fmt: skip
    reading, _ = runs.read_data(parsed(pretrain), tmp_path)
    assert list(reading.domains.domains) == list(NAMES)


def test_settings_that_do_not_fit_together_are_refused():
    for pretrain, message in (
        ({"method": {"tv": "ials"}}, "must name one method for each domain; check film"),
        ({"method": "given"}, "must name files for the domains whose method is given.*film, tv"),
        ({"given": {"tv": {"users": "u.parquet"}}}, "and for no others; check tv"),
        ({"method": "als"}, "pretrain.method"),
    ):
        with pytest.raises(ConfigError, match=message):
            parsed(pretrain)


def test_a_comparison_trains_every_model_itself(tmp_path):
    pretrain = {
        "method": {"tv": "given", "film": "bpr"}, "given": {"tv": {"users": "u.parquet"}},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"pretrain.given has vectors of tv, but a comparison"):
        compare_models(
            parsed(pretrain), tmp_path, tmp_path / "out", models=["ease"], n_seeds=1, n_tries=1,
            workers=Processes.of(1),
        )  # fmt: skip
