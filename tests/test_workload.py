"""Planted workloads: their sizes, their known answer, their files."""

import hashlib
import json
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.parquet as arrow_parquet
import pytest
from scipy import stats

import musketeers
from musketeers import artifacts, config, runs, synthesis
from musketeers.data.genres import GENRES, PlantedDomain, activities
from musketeers.data.interactions import Interactions
from musketeers.data.readers import read
from musketeers.data.workload import PRESETS, Size, workload
from musketeers.disk import check_room
from musketeers.errors import ArtifactError, ConfigError
from musketeers.seeding import Seed
from musketeers.splitmix import GOLDEN, below, mix
from musketeers.synthesis import synth

SMALL = {"domains": 2, "users": 300, "items": 200, "pairs": 6000, "threads": 1}


def domain(size, n_users, *, name="tv", common=0.5, entropy=0, threads=1):
    seed = Seed(entropy)
    return PlantedDomain.of(
        name, size, np.arange(n_users), activities(n_users, seed),
        common=common, seed=seed, n_threads=threads,
    )  # fmt: skip


def drawn(planted):
    """All pairs of a domain, as users and items."""
    return planted.draw(slice(0, len(planted.users)))


def alike(planted, theta, counts):
    """The domain with other users: all of one taste, with so many items each."""
    n = len(counts)
    none = np.empty(0, np.int64)
    nothing = Interactions.from_pairs(none, none, n_users=n, n_items=len(planted.items))
    return replace(
        planted, users=np.arange(n), indptr=np.append(0, np.cumsum(counts)),
        tastes=np.tile(theta, (n, 1)), _first=nothing,
    )  # fmt: skip


def digest(folder):
    """Of every file's name and bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in files}


# --- random numbers


def test_splitmix_gives_the_published_numbers():
    state = np.uint64(1234567)
    found = []
    for _ in range(3):
        with np.errstate(over="ignore"):
            state += GOLDEN
        found.append(int(mix(state)))
    # the reference implementation's, by Vigna, for this seed
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(("bits", "number"), [(0, 0), (2**63, 5), (2**64 - 1, 9)])
def test_bits_are_scaled_by_their_size(bits, number):
    assert below(np.uint64(bits), 10) == number


# --- sizes


def test_the_paper_at_full_scale():
    found = workload("paper")
    assert found.users == 1_166_552
    assert found.domains == {
        "app_ins": Size(100_000, 101_981_793),
        "app_use": Size(100_000, 18_156_535),
        "articles": Size(50_000, 102_832_656),
        "video_s": Size(50_000, 74_911_020),
        "video_l": Size(50_000, 11_412_988),
    }
    assert found.known == 1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01, 0.001])
def test_a_smaller_scale_keeps_the_pairs_of_a_user(preset, scale):
    whole, part = workload(preset), workload(preset, scale)
    assert part.users == round(scale * whole.users)
    for name, size in part.domains.items():
        before = whole.domains[name]
        assert size.pairs / part.users == pytest.approx(before.pairs / whole.users, rel=1e-3)
        assert size.items <= before.items
        assert size.items == min(round(before.items * scale**0.5), size.pairs // 5)


@pytest.mark.parametrize(
    ("options", "names", "size"),
    [
        ({"domains": 2}, ["app_ins", "app_use"], Size(3162, 101982)),
        ({"domains": 7, "items": 150, "pairs": 900}, None, Size(150, 900)),
        ({"preset": "sparse", "domains": 1, "items": 100}, ["books"], Size(100, 4000)),
    ],
)
def test_what_is_given_takes_the_place_of_the_presets(options, names, size):
    found = workload(options.pop("preset", "paper"), 0.001, **options)
    assert next(iter(found.domains.values())) == size
    assert names is None or list(found.domains) == names
    if options["domains"] == 7:
        assert list(found.domains)[4:] == ["video_l", "app_ins-2", "app_use-2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "papers"}, r"preset is 'papers'; choose one of paper, sparse"),
        ({"scale": 0.0}, r"scale is 0.0; it is above 0 and at most 1"),
        ({"scale": 1.5}, r"scale is 1.5; it is above 0 and at most 1"),
        ({"scale": float("nan")}, r"scale is nan"),
        ({"domains": 0}, r"domains is 0; give 1 to 1000"),
        ({"known": 1.1}, r"known is 1.1; it is a share, between 0 and 1"),
        ({"common": -0.1}, r"common is -0.1; it is a share"),
        ({"users": 0}, r"users is 0; give 10 or more, or a larger scale"),
        ({"items": 5}, r"app_ins: items is 5; give 100 or more, or a larger scale"),
        ({"items": 400, "pairs": 500}, r"500 pairs for 400 items; give two for each item or more"),
        ({"pairs": 2**32}, r"app_ins: 4,294,967,296 pairs are too many; give fewer than 2\^32"),
        (
            {"users": 50, "items": 100, "pairs": 1300},
            r"app_ins: 1,300 pairs for 50 users and 100 items; a user has from 1 to 25, a quarter "
            r"of the items, so give 50 to 1,250 pairs, or other users or items",
        ),
        ({"users": 5000, "items": 100, "pairs": 1300}, r"so give 5,000 to 125,000 pairs"),
        ({"ids": "uuid"}, r"ids is 'uuid'; choose one of integer, text"),
        ({"seed": -1}, r"seed is -1; it is from 0 to 2\^63 - 1"),
        ({"threads": 0}, r"threads is 0; use 1 or more"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        synth(tmp_path / "out", **{"scale": 0.001, **options})
    assert list(tmp_path.iterdir()) == []


# --- what is planted


@pytest.mark.parametrize(
    ("size", "n_users"),
    [
        (Size(1581, 11413), 1167),
        (Size(400, 60_000), 900),  # users at the top of what they may have
        (Size(100, 25 * 40), 40),  # all of them
        (Size(120, 240), 240),  # a pair each, half of them to put an item somewhere
        (Size(500, 3001), 1000),
    ],
)
def test_pairs_are_exact_and_distinct_and_nobody_is_left_out(size, n_users):
    planted = domain(size, n_users)
    users, items = drawn(planted)
    assert len(users) == len(items) == size.pairs
    assert len(np.unique(users * size.items + items)) == size.pairs
    assert np.all(np.diff(users) >= 0)
    of_users = np.bincount(users, minlength=n_users)
    least = min(5, (size.pairs // n_users + 1) // 2)
    assert least <= of_users.min() <= of_users.max() <= size.most() + 1
    assert np.bincount(items, minlength=size.items).min() >= 1


def test_tastes_and_genres_are_distributions():
    planted = domain(Size(400, 3000), 200)
    assert planted.tastes.shape == (200, GENRES)
    np.testing.assert_allclose(planted.tastes.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(planted.items.sum(axis=0), 1, rtol=1e-5)
    # an item is in two genres, in the second by a quarter of its fame; genres weigh about the same
    two = np.sort(planted.items, axis=1)[:, -3:]
    assert np.all(two[:, 0] == 0)
    assert np.median(two[:, 1] / two[:, 2]) == pytest.approx(0.25, abs=0.03)


def test_alias_tables_hold_the_genres():
    planted = domain(Size(400, 3000), 200)
    tables, found = planted._tables, np.zeros((GENRES, 400))
    for genre in range(GENRES):
        slots = np.arange(tables.starts[genre], tables.starts[genre + 1])
        stays = (tables.limits[slots].astype(np.float64) + 1) / 2**32
        np.add.at(found[genre], tables.items[slots], stays / len(slots))
        np.add.at(found[genre], tables.others[slots], (1 - stays) / len(slots))
    np.testing.assert_allclose(found, planted.items.T, atol=1e-7)


def test_first_items_follow_the_formula():
    n = 60_000
    planted = domain(Size(400, 3000), 200)
    theta = planted.tastes[17]
    _, items = drawn(alike(planted, theta, np.ones(n, np.int64)))
    p = planted.items.astype(np.float64) @ theta
    observed = np.bincount(items, minlength=400)
    assert stats.chisquare(observed, n * p / p.sum()).pvalue > 1e-3
    # and it is that user's formula, not another's
    other = planted.items.astype(np.float64) @ planted.tastes[18]
    assert stats.chisquare(observed, n * other / other.sum()).pvalue < 1e-9


def test_items_after_the_first_are_drawn_from_those_left():
    n = 60_000
    planted = domain(Size(100, 1000), 200)
    theta = planted.tastes[3]
    _, items = drawn(alike(planted, theta, np.full(n, 2)))
    p = planted.items.astype(np.float64) @ theta
    p /= p.sum()
    # P(i is first) + sum over j of P(j is first, then i)
    expected = p + p * ((p / (1 - p)).sum() - p / (1 - p))
    found = np.bincount(items, minlength=100) / n
    error = np.sqrt(expected * (1 - expected) / n)
    assert np.abs((found - expected) / error).max() < 4.5
    # among the users who have item i, ranking the others by p is ideal: more have j the larger p_j
    second = items.reshape(n, 2)[items.reshape(n, 2)[:, 0] == p.argmax(), 1]
    counts = np.bincount(second, minlength=100)
    assert stats.spearmanr(np.delete(counts, p.argmax()), np.delete(p, p.argmax()))[0] > 0.9


def test_an_item_that_nobody_draws_is_given_to_one_whom_it_suits():
    size, n_users = Size(2000, 4000), 2000
    planted = domain(size, n_users)
    given = planted._first
    owners, first = given.users(), given.items
    assert len(np.unique(first)) == len(first)
    assert 400 < len(first) < 1500
    assert np.all(given.counts() <= np.diff(planted.indptr))
    theirs = (planted.tastes[owners] * planted.items[first]).sum(axis=1)
    anyones = planted.items[first].mean(axis=1)
    assert (theirs / anyones).mean() > 2
    # these take the place of what their users would have drawn last; nothing else changes
    none = np.empty(0, np.int64)
    without = Interactions.from_pairs(none, none, n_users=n_users, n_items=2000)
    free = drawn(replace(planted, _first=without))[1]
    _, items = drawn(planted)
    untouched = np.repeat(given.counts() == 0, np.diff(planted.indptr))
    np.testing.assert_array_equal(items[untouched], free[untouched])
    assert len(np.unique(free)) < 2000 == len(np.unique(items))


def test_where_everything_is_drawn_nothing_is_given():
    assert len(domain(Size(200, 50_000), 1500)._first) == 0


def test_tails_are_long():
    planted = domain(Size(5000, 200_000), 3000)
    users, items = drawn(planted)
    for counts, share in ((np.bincount(items), 0.1), (np.bincount(users), 0.05)):
        ordered = np.sort(counts)[::-1]
        top = ordered[: len(ordered) // 100].sum() / counts.sum()
        assert share < top < 0.4
        ranks = np.arange(1, len(ordered) + 1)
        gini = 1 - 2 * ((ranks * ordered).sum() / ordered.sum() - 0.5) / len(ordered)
        assert 0.4 < gini < 0.8


def test_who_is_active_here_is_active_there_too():
    one, other = (domain(Size(500, 60_000), 4000, name=name) for name in ("tv", "film"))
    logs = [np.log(np.diff(planted.indptr)) for planted in (one, other)]
    assert 0.35 < np.corrcoef(*logs)[0, 1] < 0.65


@pytest.mark.parametrize(
    ("common", "low", "high"), [(0.0, -0.05, 0.05), (0.7, 0.5, 0.8), (1.0, 1, 1)]
)
def test_tastes_are_alike_as_far_as_they_are_common(common, low, high):
    one, other = (
        domain(Size(200, 2000), 500, name=name, common=common).tastes for name in ("tv", "film")
    )
    assert low <= np.corrcoef(np.log(one).ravel(), np.log(other).ravel())[0, 1].round(6) <= high
    assert not np.array_equal(one[0], one[1])


def test_a_users_taste_does_not_depend_on_other_users():
    seed, size, places = Seed(0), Size(200, 2000), [3, 17, 250]
    all_of_them = domain(size, 500)
    some = PlantedDomain.of(
        "tv", size, np.array(places * 30), np.zeros(90), common=0.5, seed=seed, n_threads=1
    )
    np.testing.assert_array_equal(some.tastes[:3], all_of_them.tastes[places])


def test_blocks_cover_all_users_once():
    planted = domain(Size(400, 20_000), 700)
    blocks = list(planted.blocks(1000))
    places = np.concatenate([np.arange(b.start, b.stop) for b in blocks])
    assert places.tolist() == list(range(700))
    assert len(blocks) > 10
    parts = [planted.draw(block)[1] for block in blocks]
    np.testing.assert_array_equal(np.concatenate(parts), drawn(planted)[1])


# --- files


def test_the_smallest_paper_has_the_stated_sizes(tmp_path):
    written = synth(tmp_path / "out", "paper", scale=0.001, threads=1)
    expected = workload("paper", 0.001)
    for name, size in expected.domains.items():
        frame = pl.read_parquet(written.folder / f"{name}.parquet")
        assert len(frame) == frame.n_unique() == size.pairs
        assert frame["item_id"].n_unique() == size.items
        assert frame["user_id"].n_unique() == 1167
        assert frame["user_id"].is_sorted()
        assert frame.group_by("user_id").len()["len"].min() >= 5
    about = json.loads((written.folder / "about.json").read_text())
    assert about["domains"]["video_l"] == {"items": 1581, "pairs": 11413}
    assert (about["preset"], about["scale"], about["seed"]) == ("paper", 0.001, 0)
    assert written.n_pairs == sum(size.pairs for size in expected.domains.values())
    assert written.n_bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("ids", ["integer", "text"])
def test_readers_take_the_files_whole(tmp_path, ids):
    written = synth(tmp_path / "out", ids=ids, known=0.4, **{**SMALL, "pairs": 2000})
    settings = config.load(written.settings)
    found = read(settings.data, base=written.folder)
    assert {len(d.pairs) for d in found.domains.domains.values()} == {2000}
    assert {len(d.items) for d in found.domains.domains.values()} == {200}
    known = [d.pairs.known_users() for d in found.domains.domains.values()]
    assert np.any(known, axis=0).sum() == 300
    assert 0 < np.all(known, axis=0).sum() < 150
    names = found.domains.users.values
    assert names[7] == (7 if ids == "integer" else "user-007")
    shared = set.intersection(*(set(d.items.values) for d in found.domains.domains.values()))
    assert not shared


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis, "_PAIRS_AT_ONCE", 700)
    monkeypatch.setattr("musketeers.data.genres._USERS_AT_ONCE", 64)
    options = {**SMALL, "ids": "text"}
    for name, other in {"a": {"threads": 1}, "b": {"threads": 2}, "c": {"seed": 1}}.items():
        synth(tmp_path / name, **{**options, **other})
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    changed = digest(tmp_path / "c")
    assert all(changed[file] != one for file, one in digest(tmp_path / "a").items())
    pairs = arrow_parquet.ParquetFile(tmp_path / "a" / "app_ins.parquet")
    assert pairs.num_row_groups > 5


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("ids", ["integer", "text"])
def test_the_estimate_of_the_files_is_not_too_small_nor_twice_too_large(
    tmp_path, monkeypatch, preset, ids
):
    asked = []
    monkeypatch.setattr(synthesis, "check_room", lambda path, needed: asked.append(needed))
    written = synth(tmp_path / "out", preset, scale=0.002, ids=ids, threads=1)
    assert written.n_bytes < asked[0] < 2 * written.n_bytes


def test_without_room_nothing_is_begun(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 10**9))
    check_room(tmp_path, 10**9)
    message = r"out: about 1\.\d GB are to be written and its disk has 1\.0 GB left; free some, "
    with pytest.raises(ConfigError, match=message + "name a folder on another disk"):
        synth(tmp_path / "new" / "out", scale=1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, failure):
    write = arrow_parquet.ParquetWriter.write_table

    def failing(self, table, *arguments, **options):
        if "item_id" in table.column_names and "user_id" in table.column_names:
            raise failure
        write(self, table, *arguments, **options)

    monkeypatch.setattr(arrow_parquet.ParquetWriter, "write_table", failing)
    with pytest.raises(failure):
        synth(tmp_path / "out", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_kept(tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    (place / "precious").write_text("mine")
    with pytest.raises(ArtifactError, match=r"out: already exists; choose another place"):
        synth(place, **SMALL)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "precious"]
    (place / "precious").unlink()
    assert synth(place, **SMALL).folder == place
    assert not list(tmp_path.glob(f"{artifacts.DRAFT_PREFIX}*"))


# --- the known answer


def test_nothing_ranks_better_than_the_ideal(tmp_path):
    options = {"domains": 2, "users": 1000, "items": 300, "pairs": 60_000, "threads": 1}
    written = synth(tmp_path / "data", seed=3, **options)
    asked = {"pop": written.settings, "smf": written.settings, "ideal": written.ideal}
    found = {}
    for name, settings in asked.items():
        result = runs.fit_run(
            config.load(settings), written.folder, tmp_path / name, threads=1,
            only="pop" if name == "pop" else "smf",
        )  # fmt: skip
        (metrics,) = result.metrics.values()
        found[name] = {domain: one.means()["ndcg@10"] for domain, one in metrics.items()}
    for domain in ("app_ins", "app_use"):
        assert found["ideal"][domain] > 1.05 * found["smf"][domain], found
        assert found["smf"][domain] > 1.3 * found["pop"][domain], found


def test_it_is_public():
    assert musketeers.synth is synth
