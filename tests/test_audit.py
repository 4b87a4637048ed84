"""Attacks that must succeed where there is something to find, and must not where there is not."""

import hashlib

import numpy as np
import polars as pl
import pytest
from parties import World

from musketeers.data.interactions import Interactions
from musketeers.data.pseudonyms import Secret
from musketeers.errors import ConfigError, DataError
from musketeers.parties import attacks
from musketeers.parties import audit as module
from musketeers.parties.audit import PUBLISHED, audit
from musketeers.parties.defences import Defences
from musketeers.seeding import Seed

USERS, ITEMS, DIM = 600, 80, 64


def rng(n=0):
    return Seed(n).numpy()


def normal(*shape, seed=1):
    return rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def domain():
    """Vectors that are sums of the training items' own, and items that are held out."""
    items, make = normal(ITEMS, DIM), rng(2)
    rows = [make.permutation(ITEMS)[:12] for _ in range(USERS)]
    users = np.array([items[row[:8]].sum(axis=0) for row in rows])

    def table(part):
        return Interactions.from_pairs(
            np.repeat(np.arange(USERS), len(rows[0][part])),
            np.concatenate([row[part] for row in rows]), n_users=USERS, n_items=ITEMS,
        )  # fmt: skip

    return users, items, table(slice(8)), table(slice(8, 12))


def mixed(users):
    return users[rng(5).permutation(len(users))]


def test_a_reconstruction_finds_what_the_vectors_hold_and_nothing_in_mixed_ones(domain):
    users, items, train, _ = domain
    found, recall = attacks.reconstruction(users, items, train, rng())
    assert found.value > 0.95
    assert found.low < found.value < found.high
    assert recall.value > 0.7
    nothing, guessed = attacks.reconstruction(mixed(users), items, train, rng())
    assert nothing.value == pytest.approx(0.5, abs=0.03)
    # a popular item is not more likely here
    assert guessed.value == pytest.approx(8 / ITEMS, abs=0.03)
    assert found.floor == pytest.approx(0.5, abs=0.05)


def test_the_floor_of_a_reconstruction_is_popularity():
    make = rng(3)
    popular = Interactions.from_pairs(
        np.repeat(np.arange(USERS), 3), np.minimum(make.geometric(0.1, 3 * USERS), ITEMS) - 1,
        n_users=USERS, n_items=ITEMS,
    )  # fmt: skip
    found, _ = attacks.reconstruction(normal(USERS, DIM), normal(ITEMS, DIM), popular, rng())
    assert found.floor > 0.8
    assert found.value == pytest.approx(0.5, abs=0.05)


def test_known_users_tell_of_others(domain):
    users, _, train, _ = domain
    found = attacks.reconstruction_from_known(users, train, 200, rng())
    assert found.value > 0.85
    nothing = attacks.reconstruction_from_known(mixed(users), train, 200, rng())
    assert nothing.value == pytest.approx(0.5, abs=0.03)


def test_an_attribute_is_guessed_where_it_is_in_the_vectors():
    users = normal(2000, DIM)
    labels = (users[:, 3] > 0).astype(np.int64) + 2 * (users[:, 4] > 0.5)
    found = attacks.attribute(users, labels, "group", rng())
    assert found.value > 0.8
    assert found.floor == 0.25
    nothing = attacks.attribute(users, labels[rng(7).permutation(2000)], "group", rng())
    assert nothing.low < 0.25 + 0.03
    assert nothing.value == pytest.approx(0.25, abs=0.06)


def test_an_attribute_that_no_line_tells_is_guessed_too():
    users = normal(3000, 4)
    labels = (users[:, 0] * users[:, 1] > 0).astype(np.int64)
    assert attacks.attribute(users, labels, "group", rng()).value > 0.8


def test_membership_is_found_in_vectors_that_remember(domain):
    users, items, train, held_out = domain
    auc, rate = attacks.membership(users, items, train, held_out, rng())
    assert auc.value > 0.95
    assert rate.value > 0.5
    auc, rate = attacks.membership(mixed(users), items, train, held_out, rng())
    assert auc.value == pytest.approx(0.5, abs=0.03)
    assert rate.value == pytest.approx(0.01, abs=0.02)


def test_people_are_linked_across_turned_tables_and_not_across_unlike_ones():
    users = normal(500, DIM)
    turned = users @ np.linalg.qr(normal(DIM, DIM, seed=9))[0] + 0.2 * normal(500, DIM, seed=4)
    found = attacks.linkage(users, turned.astype(np.float32), 100, "other", rng())
    assert found.value > 0.9
    assert found.floor == pytest.approx(1 / 400)
    nothing = attacks.linkage(users, normal(500, DIM, seed=8), 100, "other", rng())
    assert nothing.value < 0.02
    narrow = attacks.linkage(users, turned[:, :8].astype(np.float32), 100, "other", rng())
    assert 0.002 < narrow.value < found.value


def test_a_dictionary_finds_plain_hashes_and_no_pseudonyms():
    ids = pl.Series([f"user-{n}" for n in range(200)])
    secret = Secret(b"0123456789abcdef0123456789abcdef")
    assert attacks.dictionary(ids, secret.of(ids)).value == 0.0
    for plain in (
        [hashlib.sha256(one.encode()).hexdigest()[:32] for one in ids],
        [hashlib.md5(one.encode()).hexdigest() for one in ids],
        Secret(b"\0" * 16).of(ids).to_list(),
    ):
        assert attacks.dictionary(ids, pl.Series(plain)).value == 1.0


# --- the whole


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World.make(tmp_path_factory.mktemp("world"), names=("tv", "movie"), n_users=500,
                       known=0.9)  # fmt: skip
    world.pretrain("tv", defences=Defences(clip=0.5, epsilon=64.0, delta=1e-6))
    world.pretrain("movie")
    return world


def audited(world, name="tv", **options):
    given = {"published": world.all_published, **options}
    return audit(world.config, world.path, name, world.data(name), world.secret,
                 given.pop("published"), world.home(name), **given)  # fmt: skip


@pytest.fixture(scope="module")
def found(world):
    return audited(world)


def test_every_attack_at_every_level_beside_floor_and_control(found):
    assert found["level"].unique(maintain_order=True)[0] == PUBLISHED
    levels = found.group_by("level", maintain_order=True).agg(pl.col("attack").str.slice(0, 2))
    attacks_of = dict(levels.iter_rows())
    # everybody has as many items: there is no activity to guess
    assert set(attacks_of[PUBLISHED]) == {"ow", "A1", "A2", "A4", "A5", "A6", "A7"}
    assert set(attacks_of["no defence"]) == {"ow", "A1", "A2", "A4", "A5"}
    assert set(attacks_of["epsilon 8"]) == {"ow", "A1", "A2", "A4", "A5", "A6"}
    aucs = found.filter(measure="AUC", level="no defence")
    assert (aucs["low"] > aucs["floor"]).all()
    # vectors that were mixed among users tell no more than chance does
    assert (found.filter(measure="AUC")["control"] - 0.5).abs().max() < 0.06
    proven = found.filter(measure="epsilon")
    assert (proven["value"] <= proven["floor"]).all()
    worth = found.filter(measure="NDCG@10")
    assert (worth["low"] < worth["value"]).all()
    assert worth["value"].max() > 1.3 * worth["floor"][0]
    useful = dict(worth.select("level", "value").iter_rows())
    assert useful["no defence"] > useful[PUBLISHED] > useful["epsilon 1"]


def test_noise_leaves_less_to_find(found):
    a1 = found.filter(pl.col("attack").str.starts_with("A1"), measure="AUC")
    by_level = dict(a1.select("level", "value").iter_rows())
    assert by_level["no defence"] > by_level[PUBLISHED] > by_level["epsilon 8"]
    assert by_level["epsilon 1"] == pytest.approx(0.5, abs=0.06)


def test_attributes_come_from_a_table(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "levels", lambda *_: {})
    users = pl.read_parquet(world.data("movie"))["user_id"].unique().sort()
    table = pl.DataFrame({"user_id": users}).with_columns(
        half=pl.Series(rng().integers(2, size=len(users))), same=pl.lit("x")
    )
    table.write_csv(tmp_path / "about.csv")
    found = audited(world, "movie", attributes=tmp_path / "about.csv")
    half = found.filter(attack="A3 half", level=PUBLISHED)
    assert half["floor"][0] == 0.5
    assert half["low"][0] < 0.55
    assert found.filter(attack="A3 same").is_empty()
    with pytest.raises(DataError, match=r"none\.csv: cannot be read .*; give a Parquet or"):
        audited(world, "movie", attributes=tmp_path / "none.csv")
    table.drop("user_id").write_csv(tmp_path / "other.csv")
    with pytest.raises(DataError, match="no column 'user_id' among 'half', 'same'"):
        audited(world, "movie", attributes=tmp_path / "other.csv")


def test_folded_in_vectors_are_attacked_with_the_donors_items(world, monkeypatch):
    monkeypatch.setattr(module, "levels", lambda *_: {"no defence": Defences()})
    users = pl.read_parquet(world.data("movie"))["user_id"].unique().sort()
    donors = world.path / "donors.parquet"
    users.head(200).to_frame().write_parquet(donors)
    world.pretrain("movie", defences=Defences(mode="fold-in"), donors=donors)
    found = audited(world, "movie").filter(pl.col("attack").str.starts_with("A1"))
    published = found.filter(level=PUBLISHED, measure="AUC")["value"][0]
    assert published > 0.8
    again = found.filter(level="no defence", measure="AUC")["value"][0]
    assert again == pytest.approx(published, abs=0.01)


def test_an_audit_needs_the_domains_own_publication(world):
    with pytest.raises(ConfigError, match=r"none of .*movie is by tv; name its publication"):
        audited(world, published=[world.published("movie")])
    with pytest.raises(ConfigError, match=r"domain 'radio' is no party of these settings"):
        audit(world.config, world.path, "radio", world.data("tv"), world.secret, ["x"],
              world.home("tv"))  # fmt: skip
