"""Parties that train apart: the same result as together, and nothing else leaves."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from parties import NAMES, World

from musketeers import run_files, scorers
from musketeers.config import changed
from musketeers.data.pseudonyms import Secret
from musketeers.errors import ArtifactError, ConfigError, DataError, RunError
from musketeers.parties.alignment import read_alignment, write_alignment
from musketeers.parties.defences import Defences
from musketeers.parties.publication import read_publication
from musketeers.runs import fit_run
from musketeers.sources import Explainer, helped
from musketeers.training import History
from musketeers.updates import refresh


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """All three steps done, by each party for itself."""
    world = World.make(tmp_path_factory.mktemp("world"))
    for name in NAMES:
        world.pretrain(name)
    world.align()
    for name in NAMES:
        world.transfer(name)
    return world


@pytest.fixture(scope="module")
def whole(world):
    """The same data, pooled."""
    return fit_run(world.config, world.path, world.path / "fit", threads=1)


@pytest.fixture
def fresh(world, tmp_path):
    """A copy of it all that a test may spoil."""
    shutil.copytree(world.path, tmp_path / "copy")
    return replace(world, path=tmp_path / "copy")


def model(world, name):
    return run_files.open_run(world.path / "model" / name)


def arrays(run, name):
    """All numbers that a run has of a domain."""
    part, stages = run.recommender.domains[name], run.stages
    found = dict(scorers.arrays(part.scorer))
    if part.cold:
        found |= {f"cold {key}": array for key, array in scorers.arrays(part.cold).items()}
    found |= {"users": stages.alone[name].factors.users, "items": stages.alone[name].factors.items}
    art = stages.transferred[name]
    found |= {"art users": art.factors.users, "art items": art.factors.items, **art.weights}
    found |= {"aligned": stages.aligned.users, **stages.aligned.weights}
    shared = stages.told(run.splits)
    found |= {"values": shared.values, "known": shared.known, "lengths": shared.lengths}
    for kind in ("metrics", "hidden"):
        for of, by_domain in getattr(run, kind).items():
            if name in by_domain:
                found |= {(kind, of, k): v for k, v in by_domain[name].values.items()}
    return found


# --- the same as together


@pytest.mark.parametrize("name", NAMES)
def test_each_party_ends_bitwise_where_a_fit_on_all_data_does(world, whole, name):
    alone = model(world, name)
    assert alone.recommender.users.values.equals(whole.recommender.users.values)
    here, there = arrays(alone, name), arrays(whole, name)
    # what a fit measures with is there for a model that any domain is served by
    assert here.keys() <= there.keys()
    assert {"values", "art users", "aligned", "users"} <= here.keys()
    assert any(key[0] == "metrics" for key in here if isinstance(key, tuple))
    for key, array in here.items():
        assert array.dtype == there[key].dtype, key
        assert array.tobytes() == there[key].tobytes(), key
    assert alone.learning.verdicts[name] == whole.learning.verdicts[name]
    users = whole.recommender.users.values
    lists = [run.recommender.recommend(name, users, 5) for run in (alone, whole)]
    assert lists[0].equals(lists[1])
    assert {"personalised"} < set(lists[0]["strategy"])


def test_some_users_are_known_to_some_parties_alone(whole):
    known = whole.stages.told(whole.splits).known
    assert not known.all()
    assert (known.sum(axis=1) == 1).any()


def test_a_partys_run_is_explained_from_its_folder(world, whole):
    alone = model(world, "tv")
    assert helped(alone, "tv")["source"].to_list() == helped(whole, "tv")["source"].to_list()
    users = whole.recommender.users.values[:5]
    found = [Explainer.of(run, "tv").explain(users, 5) for run in (alone, whole)]
    assert found[0].equals(found[1])


def test_a_partys_run_is_not_updated_by_itself(world, tmp_path):
    with pytest.raises(RunError, match="is one party's"):
        refresh(world.path / "model" / "tv", "tv", world.data("tv"), tmp_path / "new")


def test_a_partys_model_knows_whom_only_others_know(world):
    found = model(world, "tv").recommender
    part = found.domains["tv"]
    assert (part.elsewhere & ~part.known).any()
    again = type(found).load(world.path / "model" / "tv" / "model")
    assert np.array_equal(again.domains["tv"].elsewhere, part.elsewhere)


def test_a_party_is_not_told_that_it_is_the_only_domain(fresh):
    said = []
    fresh.pretrain("tv", watch=Hears(said))
    assert not any("only domain" in line for line in said)


# --- what leaves


def test_what_is_published_holds_users_and_nothing_else(world):
    one = read_publication(world.published("tv"), world.config.parties.domains, dim=8)
    run = run_files.open_run(world.home("tv").run(1))
    known = run.splits["tv"].train.known_users()
    assert one.keys.equals(run.recommender.users.ids(np.flatnonzero(known)).rename("id"))
    assert np.array_equal(one.users, run.stages.alone["tv"].factors.users[known])
    text = (world.path / "publish" / "tv").read_bytes()
    for item in run.recommender.domains["tv"].items.values:
        assert item.encode() not in text
    assert b"user-" not in text
    assert one.about.statement.startswith("No guarantee")


def test_nothing_published_beside_the_vectors_depends_on_what_was_learned(fresh):
    public = fresh.config.parties.domains
    first = read_publication(fresh.published("tv"), public, dim=8)
    fresh.pretrain("tv")
    again = read_publication(fresh.published("tv"), public, dim=8)
    assert np.array_equal(first.users, again.users)
    assert first.about.space != again.about.space
    assert first.about.model_copy(update={"space": again.about.space}) == again.about


def test_no_raw_id_is_kept_by_a_run_under_a_secret(world):
    users = pl.read_parquet(world.data("tv"))["user_id"].unique()
    for folder in (world.home("tv").run(1), world.path / "model" / "tv"):
        for file in folder.rglob("*"):
            data = file.read_bytes() if file.is_file() else b""
            assert not any(user.encode() in data for user in users), file


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_program_opens_what_is_not_its_own(world, tmp_path):
    """Three programs, each with the others' folders beside its own."""
    data = {str(world.data(name)) for name in NAMES}
    homes = {name: str(world.home(name).path) for name in (*NAMES, "coordinator")}
    command = [sys.executable, "-m", "musketeers", "party"]
    agreed = ["--settings", str(world.path / "parties.toml"), "--threads", "1"]
    key = ["--secret", str(world.secret)]

    def opened(*words):
        log = tmp_path / "log"
        traced = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", str(log)]
        done = subprocess.run([*traced, *command, *words], capture_output=True, text=True,
                              cwd=world.path, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return log.read_text()

    own = ["--domain", "music", "--data", str(world.data("music")), *key]
    shutil.copytree(world.path / "publish", tmp_path / "publish")
    for name in ("music", "coordinator"):
        shutil.copytree(world.home(name).path, tmp_path / name)
    private = ["--private", str(tmp_path / "music")]
    seen = opened("pretrain", *own, *private, "--out", str(tmp_path / "publish" / "music"), *agreed)
    assert str(world.data("music")) in seen
    assert not any(path in seen for path in data - {str(world.data("music"))})
    assert not any(path in seen for path in homes.values())

    coordinator = ["--private", str(tmp_path / "coordinator")]
    shared = ["--out", str(tmp_path / "shared")]
    seen = opened("align", str(tmp_path / "publish" / "*"), *shared, *coordinator, *agreed)
    assert str(tmp_path / "publish" / "tv") in seen
    assert not any(path in seen for path in data | {str(world.secret), str(tmp_path / "music/")})
    assert not any(path in seen for path in homes.values())

    told = ["--shared", str(tmp_path / "shared"), "--published", str(tmp_path / "publish" / "*")]
    out = ["--out", str(tmp_path / "model")]
    seen = opened("transfer", *own, *private, *told, *out, *agreed)
    assert str(world.data("music")) in seen
    assert not any(path in seen for path in data - {str(world.data("music"))})
    assert not any(path in seen for path in homes.values())


def test_only_users_whom_others_know_leave_if_asked(fresh):
    whole = read_publication(fresh.published("tv"), fresh.config.parties.domains, dim=8)
    others = [fresh.published("movie"), fresh.published("music"), fresh.published("tv")]
    found = fresh.pretrain("tv", among=others)
    elsewhere = [
        read_publication(place, fresh.config.parties.domains, dim=8).keys for place in others[:2]
    ]
    assert set(found.keys) == set(whole.keys) & set(pl.concat(elsewhere))
    assert len(found.keys) < len(whole.keys)
    fresh.align()
    told = fresh.transfer("tv", out=fresh.path / "fewer")
    # the party itself knows them all
    assert told.stages.told(told.splits).known[:, 0].sum() == len(whole.keys)
    (fresh.path / "publish" / "movie").unlink()
    with pytest.raises(DataError, match="tv: no user of it is known to another party"):
        fresh.pretrain("tv", among=[fresh.published("tv")])


# --- a domain joins, is refreshed, leaves


def test_a_domain_joins_and_nobody_elses_stage_1_is_trained_again(tmp_path):
    world = World.make(tmp_path)
    for name in ("tv", "movie"):
        world.pretrain(name)
    world.align()
    before = (world.path / "publish" / "tv").read_bytes()
    first = world.transfer("tv")
    world.pretrain("music")
    world.align()
    assert (world.path / "publish" / "tv").read_bytes() == before
    second = world.transfer("tv", out=tmp_path / "second")
    assert second.stages.told(second.splits).domains == NAMES
    assert first.stages.told(first.splits).domains == ("tv", "movie")
    items = [one.stages.alone["tv"].factors.items for one in (first, second)]
    assert np.array_equal(*items)


def test_a_party_that_leaves_is_not_aligned_and_told_of_nobody(fresh):
    fresh.align(published=[fresh.published("tv"), fresh.published("movie")])
    said = []
    found = fresh.transfer("tv", out=fresh.path / "without", watch=Hears(said))
    assert found.stages.told(found.splits).domains == ("tv", "movie")
    assert "note: music has published, but was not aligned; it is left out" in said


class Hears:
    """A `Watch` that keeps what is said."""

    def __init__(self, said):
        from musketeers.runs import Quiet

        self._quiet, self.said = Quiet(), said
        self.stage, self.rows = self._quiet.stage, self._quiet.rows

    def say(self, line):
        self.said.append(line)


def test_the_encoder_is_kept_while_items_stay_as_they_are(fresh):
    fresh.align(out=str(fresh.path / "again"), keep=fresh.shared)
    old, again = (
        read_alignment(f"{folder}/alignment.safetensors", fresh.config.parties.coordinator, dim=8)
        for folder in (fresh.shared, fresh.path / "again")
    )
    assert again.sequence == old.sequence + 1
    assert all(np.array_equal(again.weights[name], old.weights[name]) for name in old.weights)
    assert np.array_equal(again.users, old.users)


def test_the_encoder_is_kept_when_a_party_leaves(fresh):
    two = [fresh.published("tv"), fresh.published("music")]
    fresh.align(published=two, out=str(fresh.path / "again"), keep=fresh.shared)
    found = fresh.transfer("tv", shared=str(fresh.path / "again"), out=fresh.path / "two")
    shared = found.stages.told(found.splits)
    assert shared.domains == NAMES
    assert shared.known.any(axis=0).tolist() == [True, False, True]


def test_the_encoder_is_not_kept_when_items_were_trained_again(fresh):
    config = changed(fresh.config, {"seed": 1})
    replace(fresh, config=config).pretrain("movie")
    with pytest.raises(ConfigError, match=r"movie has trained its items again.*without --keep"):
        fresh.align(keep=fresh.shared)
    with pytest.raises(ArtifactError, match=r"again.alignment.safetensors: cannot be read"):
        fresh.align(keep=str(fresh.path / "again"))


def test_each_party_can_be_given_its_own_users_alone(fresh):
    written = fresh.align(per_party=True, out=str(fresh.path / "apart"))
    assert len(written) == 3
    one = read_alignment(written[0], fresh.config.parties.coordinator, dim=8)
    published = read_publication(fresh.published("tv"), fresh.config.parties.domains, dim=8)
    assert one.about.audience == "tv"
    assert one.keys.equals(published.keys)
    # who is not handed over is computed from what is published
    apart = fresh.transfer("tv", shared=str(fresh.path / "apart"), out=fresh.path / "apart-tv")
    together = model(fresh, "tv")
    assert np.array_equal(apart.stages.aligned.users, together.stages.aligned.users)
    shutil.copy(written[1], written[0])
    with pytest.raises(ArtifactError, match="is for movie, not for tv"):
        fresh.transfer("tv", shared=str(fresh.path / "apart"), out=fresh.path / "other")


def test_of_a_long_training_some_epochs_are_told_the_best_among_them(world):
    aligned = model(world, "tv").stages.aligned
    long = tuple(
        replace(aligned.history.last, number=n, valid=float(n == 333)) for n in range(1000)
    )
    place = str(world.path / "long" / "alignment.safetensors")
    users = model(world, "tv").recommender.users
    write_alignment(
        place, users.values, replace(aligned, history=History(long)),
        read_alignment(f"{world.shared}/alignment.safetensors",
                       world.config.parties.coordinator, dim=8).about.sources,
        world.home("coordinator").signer(), audience=None, sequence=1,
    )  # fmt: skip
    found = read_alignment(place, world.config.parties.coordinator, dim=8).encoder().history
    assert found.best.number == 333
    assert 90 < len(found.epochs) <= 100
    assert (found.epochs[0].number, found.last.number) == (0, 999)


# --- refused


def test_other_data_than_were_pretrained_on_are_refused(fresh):
    frame = pl.read_parquet(fresh.data("tv"))
    frame.head(-1).write_parquet(fresh.data("tv"))
    with pytest.raises(DataError, match="is not what tv was pretrained on for its publication 1"):
        fresh.transfer("tv", out=fresh.path / "other")
    assert not (fresh.path / "other").exists()


def test_too_little_memory_is_told_before_anything_is_trained(fresh, monkeypatch):
    from musketeers.parties import transfer as module

    monkeypatch.setattr(module, "available", lambda: 1000)
    with pytest.raises(ConfigError, match=r"the fit needs about .* GB of memory beside the data"):
        fresh.transfer("tv", out=fresh.path / "other")
    assert not (fresh.path / "other").exists()


def test_another_secret_is_refused_at_alignment_and_at_transfer(fresh):
    (fresh.path / "users.key").unlink()
    Secret.make(fresh.secret)
    with pytest.raises(DataError, match="is not what tv was pretrained on"):
        fresh.transfer("tv", out=fresh.path / "other")
    fresh.pretrain("tv")
    with pytest.raises(DataError, match="tv and movie made pseudonyms with different secrets"):
        fresh.align()


def test_a_publication_that_was_not_aligned_is_refused(fresh):
    fresh.pretrain("movie")
    with pytest.raises(
        ArtifactError, match=r"is publication 2 of movie, but .* publication 1; align"
    ):
        fresh.transfer("tv", out=fresh.path / "other")
    with pytest.raises(ArtifactError, match="was made of publication 1 of movie, which is not amo"):
        fresh.transfer("tv", out=fresh.path / "other", published=[fresh.published("tv")])


def test_an_old_publication_does_not_come_back(fresh):
    old = (fresh.path / "publish" / "movie").read_bytes()
    fresh.pretrain("movie")
    fresh.align()
    fresh.transfer("tv", out=fresh.path / "newer")
    (fresh.path / "publish" / "movie").write_bytes(old)
    with pytest.raises(
        ArtifactError, match="is number 1 of publications of movie, but number 2 was"
    ):
        fresh.align()
    with pytest.raises(ArtifactError, match="publication"):
        fresh.transfer("tv", out=fresh.path / "other")


def test_an_old_alignment_does_not_come_back(fresh):
    shutil.copytree(fresh.shared, fresh.path / "old")
    fresh.align()
    fresh.transfer("tv", out=fresh.path / "newer")
    with pytest.raises(ArtifactError, match="is number 1 of alignments, but number 2 was taken"):
        fresh.transfer("tv", out=fresh.path / "other", shared=str(fresh.path / "old"))


def test_a_number_is_not_used_twice(fresh):
    (fresh.home("tv").path / "releases.json").unlink()
    shutil.rmtree(fresh.home("tv").run(1))
    fresh.pretrain("tv")
    with pytest.raises(
        ArtifactError, match="is number 1 of publications of tv, but not the number"
    ):
        fresh.align()


def test_what_cannot_be_aligned_is_refused(fresh):
    with pytest.raises(ConfigError, match="tv alone has published"):
        fresh.align(published=[fresh.published("tv")])
    shutil.copy(fresh.published("tv"), fresh.path / "publish" / "tv-again")
    with pytest.raises(ArtifactError, match=r"tv and .*tv-again are both by tv; give the latest"):
        fresh.align()
    with pytest.raises(ArtifactError, match=r"nowhere.*: matches no file"):
        fresh.align(published=[str(fresh.path / "nowhere" / "*")])
    shutil.copy(fresh.home("tv").path / "key.pem", fresh.home("coordinator").path / "key.pem")
    with pytest.raises(ConfigError, match=r"the settings name .* for the coordinator; use"):
        fresh.align()


def test_settings_that_need_pooled_data_are_refused(world):
    for settings, message in (
        ({"split.cold": 0.1}, "split.cold is 0.1; who is known elsewhere"),
        ({"split.method": "time", "data.timestamp": "timestamp"}, "split.method is 'time'"),
    ):
        other = replace(world, config=changed(world.config, settings))
        with pytest.raises(ConfigError, match=message):
            other.pretrain("tv")
    with pytest.raises(ConfigError, match=r"domain 'radio' is no party of these settings \(tv, "):
        world.pretrain("radio")
    strangers = changed(world.config, {"parties": {}})
    with pytest.raises(ConfigError, match="the settings name no parties"):
        replace(world, config=strangers).align()


def test_a_key_that_the_settings_do_not_name_is_told_before_anything_is_trained(fresh):
    other = fresh.home("movie").path / "key.pem"
    shutil.copy(other, fresh.home("tv").path / "key.pem")
    with pytest.raises(ConfigError, match=r"private.tv: holds the key .* the settings name .* tv"):
        fresh.pretrain("tv")
    assert not fresh.home("tv").run(2).exists()


def test_a_party_without_its_key_is_told_before_it_trains(fresh):
    (fresh.home("tv").path / "key.pem").unlink()
    with pytest.raises(ConfigError, match=r"key\.pem: cannot be read: .*musketeers party key"):
        fresh.pretrain("tv")
    assert not fresh.home("tv").run(2).exists()


# --- interrupted


def test_what_is_interrupted_before_it_is_published_is_published_as_it_was(fresh, monkeypatch):
    how = Defences(clip=1.0, epsilon=8.0, delta=1e-6)
    from musketeers.parties import release

    write = release.places.write

    def fails(place, parts):
        if place == fresh.published("tv"):
            raise OSError("cut off")
        write(place, parts)

    monkeypatch.setattr(release.places, "write", fails)
    with pytest.raises(OSError, match="cut off"):
        fresh.pretrain("tv", defences=how)
    monkeypatch.undo()
    kept = fresh.home("tv").file(2).read_bytes()
    with pytest.raises(RunError, match="was made with other defences"):
        fresh.pretrain("tv", resume=True)
    found = fresh.pretrain("tv", defences=how, resume=True)
    assert (fresh.path / "publish" / "tv").read_bytes() == kept
    assert found.sequence == 2
    assert len(fresh.home("tv").releases()) == 2


def test_a_training_that_is_interrupted_goes_on(fresh, monkeypatch):
    from musketeers.parties import pretrain as module

    def stops(*_, **__):
        raise KeyboardInterrupt

    whole = module.fit_run
    monkeypatch.setattr(module, "fit_run", lambda *a, **k: (whole(*a, **k), stops()))
    with pytest.raises(KeyboardInterrupt):
        fresh.pretrain("tv")
    monkeypatch.undo()
    with pytest.raises(
        RunError, match=r"2: an attempt was interrupted; go on with it \(--resume\)"
    ):
        fresh.pretrain("tv")
    assert fresh.pretrain("tv", resume=True).sequence == 2


def test_a_damaged_list_of_releases_is_not_begun_anew(fresh):
    (fresh.home("tv").path / "releases.json").write_text("[{]")
    with pytest.raises(ArtifactError, match=r"releases\.json: is damaged .*noise could be spent"):
        fresh.pretrain("tv")


def test_the_ledger_names_every_file_that_left(world):
    (one,) = json.loads((world.home("tv").path / "releases.json").read_text())
    published = read_publication(world.published("tv"), world.config.parties.domains, dim=8)
    assert (one["sequence"], one["digest"]) == (1, published.digest)
