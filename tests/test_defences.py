"""What is done to vectors before they leave, and what is said of it."""

import math

import numpy as np
import polars as pl
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from parties import World
from scipy import stats

from musketeers.config import changed
from musketeers.data.pseudonyms import Secret
from musketeers.errors import ConfigError, DataError, RunError
from musketeers.parties import fold_in
from musketeers.parties.attacks import mechanism
from musketeers.parties.defences import Defences, defended, gaussian
from musketeers.parties.guarantee import delta_of, epsilon_of, mu_of, statement, together
from musketeers.parties.publication import read_publication
from musketeers.pretrain.given import directions
from musketeers.run_files import open_run
from musketeers.seeding import Seed

NOISE = {"clip": 1.0, "epsilon": 8.0, "delta": 1e-6}


# --- the guarantee


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 8.0, 32.0])
@pytest.mark.parametrize("n_releases", [1, 3])
def test_epsilon_is_that_of_an_accountant_made_by_others(epsilon, n_releases):
    delta, mu = 1e-6, mu_of(epsilon, 1e-6)
    ours = epsilon_of(together([mu] * n_releases), delta)
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(dp_event.GaussianDpEvent(1 / mu), n_releases)
    assert ours == pytest.approx(accountant.get_epsilon(delta), rel=0.01)
    assert n_releases > 1 or ours == pytest.approx(epsilon, rel=1e-6)


def test_delta_is_the_difference_of_the_two_normal_tails():
    # Balle and Wang, ICML 2018, Theorem 8, where floats do not cancel
    for mu, epsilon in ((0.5, 0.1), (1.0, 1.0), (2.0, 3.0)):
        tails = stats.norm.cdf([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu])
        assert delta_of(mu, epsilon) == pytest.approx(tails[0] - math.exp(epsilon) * tails[1])
    assert delta_of(0.01, 5.0) == 0.0
    assert epsilon_of(0.0, 1e-6) == 0.0
    assert together([]) == 0.0


def test_a_statement_says_what_holds_and_for_whom():
    mu = mu_of(8.0, 1e-6)
    assert statement("vectors", None, None).startswith("No guarantee: the vectors are as they")
    said = statement("vectors", mu, 1e-6)
    assert "(8, 1e-06)-indistinguishable (replacement of one vector)" in said
    assert "no guarantee for the user's interactions" in said
    said = statement("fold-in", together([mu, mu]), 1e-6)
    assert "(12.11, 1e-06)-differentially private for each folded-in user's whole history" in said
    assert "donors, who trained the items, and that a user is known here" in said


# --- what is done


def table(n=200, dim=6):
    return Seed(0).numpy().standard_normal((n, dim)).astype(np.float32)


def test_nothing_is_done_unless_asked():
    assert defended(table(), np.eye(6, dtype=np.float32), Defences()).tobytes() == table().tobytes()


def test_clipped_vectors_keep_their_direction_and_short_ones_their_length():
    made = defended(table(), np.eye(6, dtype=np.float32), Defences(clip=2.0))
    lengths = np.linalg.norm(table(), axis=1)
    assert (lengths > 2).any()
    assert (lengths < 2).any()
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.minimum(lengths, 2.0), rel=1e-6)
    assert np.array_equal(made[lengths < 2], table()[lengths < 2])
    cosines = (made * table()).sum(1) / (np.linalg.norm(made, axis=1) * lengths)
    assert cosines == pytest.approx(1, abs=1e-6)
    assert not defended(
        np.zeros((1, 6), np.float32), np.eye(6, dtype=np.float32), Defences(clip=1.0)
    ).any()


def test_fewer_numbers_keep_the_scores_that_differ_most():
    items = table(50) * np.array([9, 5, 3, 0.01, 0.01, 0.01], np.float32)
    turn = np.linalg.qr(table(6, 6))[0].astype(np.float32)
    items, users = items @ turn, table(30)
    axes = directions(items)
    assert axes.T @ axes == pytest.approx(np.eye(6), abs=1e-5)
    made = defended(users, axes, Defences(dims=3))
    assert made.shape == (30, 3)
    assert made @ (items @ axes[:, :3]).T == pytest.approx(users @ items.T, abs=0.2)


def test_rounded_numbers_take_as_many_values_as_the_bits_say():
    made = defended(table(), np.eye(6, dtype=np.float32), Defences(bits=3))
    assert len(np.unique(made.round(4))) <= 8
    assert np.abs(made - table()).max() <= np.abs(table()).max() / 7 * 1.01


def test_noise_is_normal_of_the_size_that_the_guarantee_takes():
    sigma = 2 / mu_of(8.0, 1e-6)
    still = np.zeros((50_000, 2), np.float32)
    made = defended(still, np.eye(2, dtype=np.float32), Defences(**NOISE))
    assert made.std() == pytest.approx(sigma, rel=0.02)
    assert stats.kstest(made.ravel()[:20_000] / sigma, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(made.T)[0, 1]) < 0.02


def test_noise_cannot_be_drawn_again():
    first, again = (gaussian((1000, 1)) for _ in range(2))
    assert not np.intersect1d(first, again).size


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_what_the_noise_proves_does_not_exceed_what_is_stated(epsilon):
    found = mechanism(Defences(clip=2.0, epsilon=epsilon, delta=1e-6))
    assert 0.1 * epsilon < found.value <= epsilon == found.floor
    assert mechanism(Defences(clip=2.0)) is None


def test_noise_that_is_too_small_is_noticed(monkeypatch):
    from musketeers.parties import attacks

    def quarter(users, axes, how):
        return users + np.float32(0.25) * defended(0 * users, axes, how)

    monkeypatch.setattr(attacks, "defended", quarter)
    found = mechanism(Defences(clip=2.0, epsilon=1.0, delta=1e-6))
    # near 2: half the noise would prove about what is stated, and chance decide
    assert found.value > 1.3 * found.floor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 8.0}, "epsilon is 8.0 and delta None; noise takes both"),
        ({"epsilon": 8.0, "delta": 1e-6}, "epsilon is 8.0 but vectors are not clipped"),
        ({"clip": 0.0}, "clip is 0.0: Input should be greater than 0"),
        ({"bits": 40}, "bits is 40: Input should be less than or equal to 16"),
        ({"delta": 1.5}, "delta is 1.5"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Defences.of(**options)


# --- releases


@pytest.fixture
def world(tmp_path):
    return World.make(tmp_path, names=("tv", "movie"))


def published(world, name="tv"):
    return read_publication(world.published(name), world.config.parties.domains, dim=8)


def test_releases_add_up_and_one_without_noise_ends_it(world):
    how = Defences(**NOISE)
    world.pretrain("tv", defences=how)
    one = published(world).about
    assert "(8, 1e-06)-indistinguishable" in one.statement
    world.pretrain("tv", defences=how)
    two = published(world).about
    assert two.mu == pytest.approx(math.sqrt(2) * one.mu)
    assert "(12.11, 1e-06)-indistinguishable" in two.statement
    world.pretrain("tv")
    assert published(world).about.statement.startswith("No guarantee")
    world.pretrain("tv", defences=how)
    assert published(world).about.statement.startswith("No guarantee")


def test_parties_with_noise_are_aligned_and_learn(world):
    world.pretrain("tv", defences=Defences(**NOISE))
    world.pretrain("movie", defences=Defences(dims=4, bits=4))
    assert published(world, "movie").about.dim == 4
    world.align()
    found = world.transfer("tv")
    exact = open_run(world.home("tv").run(1)).stages.alone["tv"].factors
    known = found.splits["tv"].train.known_users()
    # at home the party goes on with what it has, not with what it gave away
    assert np.isin(found.stages.alone["tv"].factors.users[known], exact.users).all()
    assert set(found.metrics) >= {"smf", "cat_art"}


# --- folded in


def donors(world, n=80):
    """The first users by their pseudonyms."""
    file = world.path / "donors.csv"
    users = pl.read_parquet(world.data("tv"))["user_id"].unique()
    users = users.gather(Secret.read(world.secret).of(users).arg_sort())
    users.head(n).to_frame().write_csv(file)
    return file


FOLDS = Defences(mode="fold-in", clip=1.0)


def test_a_folded_in_vector_is_the_users_own_data_and_the_donors_alone(world, monkeypatch):
    monkeypatch.setattr(fold_in.secrets, "randbits", lambda _: 7)
    world.pretrain("tv", defences=FOLDS, donors=donors(world))
    before = published(world)
    frame = pl.read_parquet(world.data("tv"))
    users = frame["user_id"].unique().sort()
    # the last of all, so that the draws for the others' held-out pairs stay where they were
    last = Secret.read(world.secret).of(users).arg_max()
    other = frame.filter(pl.col("user_id") != users[last])
    stranger = pl.DataFrame(
        {"user_id": [users[last]] * 3, "item_id": ["tv-00", "tv-01", "tv-02"], "timestamp": [1] * 3}
    )
    pl.concat([other, stranger]).write_parquet(world.data("tv"))
    world.pretrain("tv", defences=FOLDS, donors=donors(world))
    after = published(world)
    assert after.keys.equals(before.keys)
    assert after.about.space == before.about.space
    same = (after.users == before.users).all(axis=1)
    assert same.tolist() == [True] * (len(same) - 1) + [False]


def test_the_same_items_serve_for_the_next_publication_and_the_encoder_is_kept(world):
    world.pretrain("tv", defences=FOLDS, donors=donors(world))
    world.pretrain("movie")
    world.align()
    space = published(world).about.space
    frame = pl.read_parquet(world.data("tv"))
    new = frame.filter(pl.col("user_id") == frame["user_id"][0]).with_columns(user_id=pl.lit("new"))
    pl.concat([frame, new]).write_parquet(world.data("tv"))
    world.pretrain("tv", defences=FOLDS)
    found = published(world)
    assert found.about.space == space
    assert Secret.read(world.secret).of(pl.Series(["new"]))[0] in found.keys
    world.align(keep=world.shared, out=str(world.path / "again"))
    world.transfer("tv", shared=str(world.path / "again"))


def test_what_is_held_out_is_drawn_by_a_seed_of_the_partys_own(world):
    world.pretrain("tv", defences=FOLDS, donors=donors(world))
    seeds = {open_run(world.home("tv").run(1)).config.seed}
    world.pretrain("tv", defences=FOLDS)
    seeds |= {open_run(world.home("tv").run(2)).config.seed, world.config.seed}
    assert len(seeds) == 3


def test_what_cannot_be_folded_in_is_refused(world):
    with pytest.raises(RunError, match=r"no donors' items of the last publication.*--donors"):
        world.pretrain("tv", defences=FOLDS)
    with pytest.raises(DataError, match="3 of 3 donors are users of tv; items take 50 or more"):
        world.pretrain("tv", defences=FOLDS, donors=donors(world, 3), resume=True)
    with pytest.raises(ConfigError, match="donors are for vectors that are folded in"):
        world.pretrain("movie", donors=donors(world))
    config = changed(world.config, {"data.min_item": 2})
    with pytest.raises(ConfigError, match=r"data\.min_item is 2: which items are left depends on"):
        type(world)(world.path, config).pretrain("movie", defences=FOLDS, donors=donors(world))


# --- vectors made elsewhere


def test_vectors_made_elsewhere_are_published_whatever_their_width(world):
    from musketeers.parties.release import publish_given

    users = pl.read_parquet(world.data("movie"))["user_id"].unique().sort()
    for width in (3, 30):
        made = Seed(0).numpy().standard_normal((len(users), width))
        file = world.path / f"made-{width}.parquet"
        pl.DataFrame({"id": users, "vector": made.tolist()}).write_parquet(file)
        publish_given(
            world.config, "movie", file, world.secret, world.published("movie"), world.home("movie")
        )
        found = published(world, "movie")
        assert found.about.dim == min(width, 8)
        order = Secret.read(world.secret).of(users).arg_sort().to_numpy()
        gram = made[order].astype(np.float32) @ made[order].T
        if width == 3:
            assert found.users @ found.users.T == pytest.approx(gram, abs=1e-3)
    with pytest.raises(ConfigError, match="have 30 numbers, and with noise they are not made narr"):
        publish_given(
            world.config, "movie", file, world.secret, world.published("movie"),
            world.home("movie"), defences=Defences(**NOISE),
        )  # fmt: skip
    world.pretrain("tv")
    world.align()
    found = world.transfer("tv")
    assert found.stages.told(found.splits).known[:, 1].sum() == len(users)
    with pytest.raises(ConfigError, match="publication 2 of movie was made of vectors from elsewh"):
        world.transfer("movie", out=world.path / "other")
