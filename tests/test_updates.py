"""A run with one domain more or with new data: what stays, what is trained, what is said."""

import hashlib
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest

import musketeers
from musketeers import config as configuration
from musketeers import runs
from musketeers.data.synthetic import frames, planted
from musketeers.errors import ConfigError, DataError, RunError, UnknownNameError
from musketeers.run_files import open_run
from musketeers.runs import Quiet, evaluate_run, fit_run
from musketeers.seeding import Seed
from musketeers.updates import add_domain, refresh

SETTINGS = {
    "seed": 3,
    "dim": 6,
    "pretrain": {
        "method": "bpr",
        "max_epochs": 6,
        "patience": 3,
        "tries": 2,
        "regularization": 0.07,
    },
    "cat": {"max_epochs": 4, "batch_size": 64},
    "art": {"max_epochs": 4, "batch_size": 64},
}
COLUMNS = {"min_user": 2, "min_item": 2}
NAMES = ("tv", "film", "music")
METRICS = 6


def tables():
    """The data of three domains; users whom only the third knows sort before all others."""
    data = planted(NAMES, Seed(0), n_users=120, n_items=40, known=0.7, common=0.9)
    found = frames(data.domains)
    strangers = found["music"].with_columns(user_id="about-" + pl.col("user_id").str.slice(5))
    found["music"] = pl.concat([found["music"], strangers[:150]])
    return found


def settings(names, **changes):
    domains = {name: f"{name}.parquet" for name in names}
    config = configuration.parse({**SETTINGS, "data": {**COLUMNS, "domains": domains}}, "test")
    return configuration.changed(config, {key.replace("_", "."): v for key, v in changes.items()})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of the data files."""
    folder = tmp_path_factory.mktemp("updates")
    for name, frame in tables().items():
        frame.write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def fitted(place):
    """A run of tv and film; cold users among them."""
    return fit_run(settings(("tv", "film"), split_cold=0.1), place, place / "two", threads=1)


@pytest.fixture(scope="module")
def added(place, fitted):
    """The same with music, and what the watch heard."""
    heard = Listening()
    out = place / "three"
    found = add_domain(fitted.path, "music", place / "music.parquet", out, threads=1, watch=heard)
    return found, heard


@pytest.fixture(scope="module")
def newer(place):
    """A file of film as it is later: fewer old pairs, more new ones, new users, new items."""
    now = tables()["film"]
    later = planted(("film",), Seed(8), n_users=180, n_items=44, pairs_per_user=3)
    now = pl.concat([now[40:], frames(later.domains)["film"]]).unique(("user_id", "item_id"))
    now.write_parquet(place / "newer.parquet")
    return place / "newer.parquet"


@pytest.fixture(scope="module")
def refreshed(place, added, newer):
    heard = Listening()
    out = place / "refreshed"
    found = refresh(added[0].path, "film", newer, out, threads=1, watch=heard)
    return found, heard


class Listening:
    """A `Watch` that notes what it hears, and may press Ctrl-C after an epoch."""

    def __init__(self, until=None):
        self.lines, self.stages, self.until = [], [], until

    rows = Quiet().rows

    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        self.stages.append((stage, domain))

        def on_epoch(epoch):
            if (stage, domain, epoch.number) == self.until:
                raise KeyboardInterrupt

        yield on_epoch

    def say(self, line):
        self.lines.append(line)


def digests(out):
    """Every file that settings and data decide."""
    files = [*out.rglob("*.safetensors"), *out.rglob("*.parquet"), out / "metrics.json"]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def by_id(found, name, table):
    """A table of pairs as pairs of ids."""
    model = found.recommender
    users, items = model.users.ids(table.users()), model.domains[name].items.ids(table.items)
    return set(zip(users, items, strict=True))


def parts(found, name):
    split = found.splits[name]
    cold = (split.cold.history, split.cold.test) if split.cold else ()
    return [by_id(found, name, table) for table in (split.train, split.valid, split.test, *cold)]


def untimed(history):
    return [(epoch.number, epoch.train_loss, epoch.valid) for epoch in history.epochs]


def same_stage_1(before, after, name):
    """Bitwise, user by user; users whom the domain does not know all have its mean vector."""
    was, now = (open_run(found.path).stages.alone[name] for found in (before, after))
    assert now.factors.items.tobytes() == was.factors.items.tobytes()
    assert now.item_squares.tobytes() == was.item_squares.tobytes()
    assert (now.regularization, now.learning_rate) == (was.regularization, was.learning_rate)
    assert [untimed(fit) for fit in now.history] == [untimed(fit) for fit in was.history]
    known = before.splits[name].train.known_users()
    ids = before.recommender.users.ids(np.flatnonzero(known))
    rows = after.recommender.users.rows(ids)
    assert now.factors.users[rows].tobytes() == was.factors.users[known].tobytes()
    others = np.vstack([np.delete(now.factors.users, rows, axis=0), was.factors.users[~known]])
    assert len(others)
    mean = was.factors.users[known].mean(axis=0)
    assert others.tobytes() == np.tile(mean, (len(others), 1)).tobytes()


# --- one domain more


def test_the_other_domains_stay_as_they_are(fitted, added):
    found, heard = added
    users = found.recommender.users.values
    assert users[0].startswith("about-")  # so everybody's row has moved
    for name in ("tv", "film"):
        assert parts(found, name) == parts(fitted, name)
        same_stage_1(fitted, found, name)
        assert by_id(found, name, found.recommender.domains[name].seen) == by_id(
            fitted, name, fitted.recommender.domains[name].seen
        )
    trained = [stage for stage in heard.stages if stage[0] != "choice"]
    assert trained == [("pretrain", "music"), ("cat", None), *(("art", name) for name in NAMES)]
    assert [name for stage, name in heard.stages if stage == "choice"] == list(NAMES)


def test_the_new_domain_is_as_a_fit_of_all_would_have_it(place, fitted, added):
    found, _ = added
    config = settings(NAMES)
    whole = runs.Data.of(runs.read_data(config, place)[0], config, place, runs.Quiet())
    assert found.overlap.domains["music"] == whole.overlap.domains["music"]
    assert found.overlap.known_in == whole.overlap.known_in
    assert found.recommender.users.values.equals(whole.domains.users.values)
    # but for users who are new to it, all is split by the same rule and the same draws
    music = found.splits["music"]
    assert music.cold
    there = ~music.cold.test.known_users()
    for part in ("train", "valid", "test"):
        expected = getattr(whole.splits["music"], part)
        kept = expected.only(there[expected.users()])
        np.testing.assert_array_equal(getattr(music, part).keys(), kept.keys())
    # nobody is new to two domains, or unknown to all
    cold = sum(split.cold.test.known_users().astype(int) for split in found.splits.values())
    trained = sum(split.train.known_users() for split in found.splits.values())
    assert cold.max() == 1
    assert trained[cold == 1].min() >= 1
    assert list(found.config.data.domains) == list(NAMES)


def test_beside_a_domain_that_brings_its_vectors_a_new_one_learns_by_bpr(place, fitted, tmp_path):
    model, vectors = fitted.recommender, fitted.stages.alone["tv"].factors.users
    known = model.domains["tv"].known
    table = {"user_id": model.users.values.filter(known), "vector": vectors[known].tolist()}
    pl.DataFrame(table).write_parquet(place / "vectors.parquet")
    pretrain = {
        **SETTINGS["pretrain"], "method": {"tv": "given", "film": "bpr"},
        "given": {"tv": {"users": "vectors.parquet"}},
    }  # fmt: skip
    config = configuration.changed(settings(("tv", "film")), {"pretrain": pretrain})
    base = fit_run(config, place, tmp_path / "two", threads=1)
    found = add_domain(base.path, "music", place / "music.parquet", tmp_path / "three", threads=1)
    assert found.config.pretrain.method == {"tv": "given", "film": "bpr", "music": "bpr"}
    assert len(found.learning.histories["pretrain"]["tv"]) == 1
    with pytest.raises(ConfigError, match=r"'tv' brings its own vectors .*; fit anew with vectors"):
        refresh(found.path, "tv", place / "tv.parquet", tmp_path / "four", threads=1)


def test_the_result_is_a_run_like_any_other(fitted, added):
    found, _ = added
    again, opened = evaluate_run(found.path, threads=1), musketeers.open_run(found.path)
    for one in (again, opened):
        for model, domains in found.metrics.items():
            for name, per_user in domains.items():
                values = one.metrics[model][name].values["ndcg@10"]
                np.testing.assert_array_equal(values, per_user.values["ndcg@10"])
    first = found.recommender.users.values[0]
    answer = found.recommender.recommend("music", [first, "nobody"], k=3)
    assert answer["strategy"].to_list()[::3] == ["personalised", "popular"]
    page = (found.path / "report.html").read_text()
    assert "<h2>What changed</h2>" in page
    assert not (fitted.path / "update.parquet").exists()
    assert "What changed" not in (fitted.path / "report.html").read_text()


def test_what_changed_is_told_of_every_domain_that_was_there(fitted, added):
    found, _ = added
    assert list(found.update["before"]) == list(found.update["after"]) == ["tv", "film"]
    assert len(found.changes()) == 2 * METRICS
    for name in ("tv", "film"):
        served = {
            "before": (fitted, found.update["before"][name]),
            "after": (found, found.update["after"][name]),
        }
        for run, shown in served.values():
            expected = run.metrics[run.recommender.about["model"][name]][name]
            users = run.recommender.users.ids(expected.users)
            assert found.recommender.users.ids(shown.users).equals(users)
            for metric, values in expected.values.items():
                np.testing.assert_array_equal(shown.values[metric], values)
        change = found.changes()[name, "ndcg@10"]
        assert change.mean_b == pytest.approx(served["before"][1].values["ndcg@10"].mean())
        assert change.users == len(served["after"][1].users)


# --- new data


@pytest.mark.parametrize("name", ["film", "music"])
def test_the_same_data_give_the_same_run(name, place, fitted, added, tmp_path):
    """Bitwise, if the domain learned when the run had the users that it has."""
    found = added[0] if name == "music" else fitted
    heard, data = Listening(), place / f"{name}.parquet"
    again = refresh(found.path, name, data, tmp_path / "again", threads=1, watch=heard)
    before, after = digests(found.path), digests(again.path)
    changed = {file for file in before | after if before.get(file) != after.get(file)}
    # before and after, and from what drift is measured, belong to the update
    files = ("tensors.safetensors", "items.parquet", "users.parquet")
    own = {f"references/{name}/{file}" for file in files}
    assert changed == {"metrics.json", "update.parquet", *own}
    assert list(again.update["before"]) == list(found.splits)
    assert all(one.difference == 0 for one in again.changes().values())
    assert [domain for stage, domain in heard.stages if stage == "pretrain"] == [name]
    assert not any(line.startswith("warning") for line in heard.lines)
    assert f"{name} since the last full fit: 0% of its items are new" in heard.lines[0]


def test_pairs_that_are_still_there_keep_their_purpose(added, refreshed, newer):
    (before, _), (after, _) = added, refreshed
    now = set(pl.read_parquet(newer).select("user_id", "item_id").iter_rows())
    # no user or item of the file is too rare to be kept, so the file is what the run holds
    assert by_id(after, "film", after.recommender.domains["film"].seen) == now
    for was, purpose in zip(parts(before, "film"), parts(after, "film"), strict=True):
        assert was & now <= purpose
    for name in ("tv", "music"):
        assert parts(after, name) == parts(before, name)
        same_stage_1(before, after, name)


def test_of_new_pairs_as_many_are_held_out_as_are_missing(added, refreshed):
    (before, _), (after, _) = added, refreshed
    split, seen = after.splits["film"], after.recommender.domains["film"].seen
    rows = before.recommender.users.rows(after.recommender.users.values)
    pairs = np.where(rows >= 0, before.recommender.domains["film"].seen.counts()[rows], 0)
    new = (pairs == 0) & ~(split.cold.test.known_users())
    counts = seen.counts()
    wanted = np.ceil(0.2 * counts - 1e-9), np.ceil(0.16 * counts - 1e-9)
    enough = wanted[0] + wanted[1] < counts
    for part, number in ((split.test, wanted[0]), (split.valid, wanted[1])):
        found = part.counts()
        assert new.sum() > 20
        np.testing.assert_array_equal(found[new], (number * enough)[new])
        grown = (pairs > 0) & (counts > pairs) & split.train.known_users() & enough
        assert grown.sum() > 20
        assert (found[grown] >= number[grown]).all()


def test_before_and_after_are_compared_on_what_both_hold_out(added, refreshed):
    (before, _), (after, _) = added, refreshed
    both = parts(before, "film")[2] & parts(after, "film")[2]
    shown = after.update["after"]["film"]
    users = after.recommender.users.ids(shown.users)
    assert set(users) == {user for user, _ in both}
    assert len(both) < len(after.splits["film"].test)
    # the slow definition: each list without what is known besides, hits among the common pairs
    for run, of in ((before, after.update["before"]["film"]), (after, shown)):
        model = run.recommender.domains["film"]
        known = set().union(*(by_id(r, "film", r.recommender.domains["film"].seen)
                              for r in (before, after)))  # fmt: skip
        for user, recall in zip(users, of.values["recall@10"], strict=True):
            (row,) = run.recommender.users.rows([user])
            scores = model.scorer.score(np.array([row]))[0]
            ids = model.items.values.gather(np.argsort(-scores, kind="stable"))
            relevant = {item for who, item in both if who == user}
            shown_items = [i for i in ids if (user, i) not in known or i in relevant][:10]
            assert recall == pytest.approx(len(relevant & set(shown_items)) / len(relevant))


def test_users_who_left_are_forgotten_and_new_ones_are_served(place, added, tmp_path):
    found, _ = added
    first = found.recommender.users.values[0]
    left = tables()["music"].filter(pl.col("user_id") != first)
    left.write_parquet(tmp_path / "left.parquet")
    out = tmp_path / "out"
    after = refresh(found.path, "music", tmp_path / "left.parquet", out, threads=1)
    assert (after.recommender.users.rows([first]) < 0).all()
    assert len(after.recommender.users) == len(found.recommender.users) - 1
    for name in ("tv", "film"):
        assert parts(after, name) == parts(found, name)
        same_stage_1(found, after, name)
    rows = found.recommender.users.rows([first])
    assert rows[0] in found.metrics["smf"]["music"].users
    assert len(after.update["after"]["music"].users) == len(found.metrics["smf"]["music"].users) - 1


def test_far_moved_data_advise_a_full_fit_also_after_many_small_steps(
    place, fitted, refreshed, tmp_path
):
    found, heard = refreshed
    (advice,) = [line for line in heard.lines if line.startswith("warning: film since")]
    assert "of its users are new (full fit above 20%)" in advice
    assert advice.endswith("; fit anew with the current data of all domains")
    assert advice.removeprefix("warning: ") in found.overlap.warnings
    assert "since the last full fit" in (found.path / "report.html").read_text()
    # measured from the last full fit, not from the last refresh
    listening = Listening()
    data = place / "newer.parquet"
    refresh(found.path, "film", data, tmp_path / "again", threads=1, watch=listening)
    assert advice in listening.lines


def test_an_only_domain_can_be_refreshed_and_get_company(place, tmp_path):
    alone = fit_run(settings(("tv",)), place, tmp_path / "alone", threads=1)
    again = refresh(alone.path, "tv", place / "tv.parquet", tmp_path / "again", threads=1)
    for model, domains in alone.metrics.items():
        values = again.metrics[model]["tv"].values["ndcg@10"]
        np.testing.assert_array_equal(values, domains["tv"].values["ndcg@10"])
    both = add_domain(again.path, "film", place / "film.parquet", tmp_path / "both", threads=1)
    same_stage_1(alone, both, "tv")
    assert list(both.metrics)[:3] == ["pop", "smf", "cat_art"]


# --- interruption


@pytest.mark.parametrize(
    "until", [("pretrain", "music", 3), ("cat", None, 2), ("art", "tv", 1), ("art", "music", 2)]
)
def test_ctrl_c_in_any_stage(place, fitted, added, tmp_path, until):
    found, _ = added
    out, data = tmp_path / "run", place / "music.parquet"
    with pytest.raises(KeyboardInterrupt):
        add_domain(fitted.path, "music", data, out, threads=1, watch=Listening(until))
    with pytest.raises(RunError, match=r"holds an unfinished run; add --resume"):
        add_domain(fitted.path, "music", data, out, threads=1)
    finished = add_domain(fitted.path, "music", data, out, resume=True)
    assert digests(out) == digests(found.path)
    assert len(finished.manifest["resumed"]) == 1


def test_another_run_is_not_gone_on_from(place, fitted, added, tmp_path):
    out, data = tmp_path / "run", place / "music.parquet"
    watch = Listening(("cat", None, 1))
    with pytest.raises(KeyboardInterrupt):
        add_domain(fitted.path, "music", data, out, threads=1, watch=watch)
    twin = fit_run(settings(("tv", "film"), split_cold=0.1), place, tmp_path / "twin", threads=1)
    with pytest.raises(RunError, match=r"other inputs \(data\.updates: \w{64} -> \w{64}\)"):
        add_domain(twin.path, "music", data, out, resume=True)


# --- what cannot be


def refused(error, match, call, *arguments, **options):
    with pytest.raises(error, match=match) as raised:
        call(*arguments, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_a_domain_must_be_new_or_known(place, fitted, tmp_path):
    run, data, out = fitted.path, place / "tv.parquet", tmp_path / "out"
    refused(
        ConfigError, r"domain 'tv' is in .* already; refresh it", add_domain, run, "tv", data, out
    )
    refused(ConfigError, r"'tv' and 'TV' are one file", add_domain, run, "TV", data, out)
    refused(
        UnknownNameError, r"domain 'tw' is not among 'tv', 'film' in .*add-domain",
        refresh, run, "tw", data, out,
    )  # fmt: skip
    assert not out.exists()


def test_a_run_must_be_whole(place, tmp_path):
    data, out = place / "tv.parquet", tmp_path / "out"
    refused(RunError, r"holds no run", refresh, tmp_path, "tv", data, out)
    config = settings(("tv", "film"))
    with pytest.raises(KeyboardInterrupt):
        fit_run(config, place, tmp_path / "half", threads=1, watch=Listening(("cat", None, 1)))
    refused(RunError, r"the run is unfinished", refresh, tmp_path / "half", "tv", data, out)
    for model in ("smf", "chosen"):
        one = fit_run(config, place, tmp_path / model, threads=1, only=model)
        refused(
            RunError, rf"was fitted with --only {model}, without all stages",
            refresh, one.path, "tv", data, out,
        )  # fmt: skip
    config = settings(("tv", "film"), split_method="time", data_timestamp="timestamp")
    timed = fit_run(config, place, tmp_path / "timed", threads=1)
    refused(
        DataError, r"cuts all domains at the same moments", refresh, timed.path, "tv", data, out
    )
    assert not out.exists()


def test_a_place_that_is_taken_is_refused(place, fitted, tmp_path):
    data = place / "tv.parquet"
    refused(
        RunError, r"finished run, never overwritten", refresh, fitted.path, "tv", data, fitted.path
    )
    (tmp_path / "notes.txt").write_text("mine")
    refused(RunError, r"holds other files", refresh, fitted.path, "tv", data, tmp_path)


def test_ids_must_be_of_the_same_kind_and_shared(place, fitted, tmp_path):
    run, file, out = fitted.path, tmp_path / "data.parquet", tmp_path / "out"
    film = tables()["film"]
    numbers = pl.col("item_id").str.slice(5).cast(pl.Int64)
    film.with_columns(item_id=numbers).write_parquet(file)
    refused(DataError, r"item ids are integers, those of film in the run text; convert",
            refresh, run, "film", file, out)  # fmt: skip
    film.with_columns(user_id="x" + pl.col("user_id")).write_parquet(file)
    refused(DataError, r"none of its [\d,]+ users is known in another domain",
            add_domain, run, "books", file, out)  # fmt: skip
    users = pl.col("user_id").str.slice(5).cast(pl.Int64)
    for name in ("tv", "film"):
        tables()[name].with_columns(user_id=users).write_parquet(tmp_path / f"{name}.parquet")
    counted = fit_run(settings(("tv", "film")), tmp_path, tmp_path / "counted", threads=1)
    refused(DataError, r"user ids are text, those of the run integers; convert them",
            add_domain, counted.path, "books", place / "music.parquet", out)  # fmt: skip
    assert not out.exists()


def test_columns_are_those_of_the_run_unless_named(place, tmp_path):
    film = tables()["film"].rename({"user_id": "who", "item_id": "what"})
    film.write_csv(tmp_path / "film.csv")
    tables()["tv"].write_parquet(tmp_path / "tv.parquet")
    alone = fit_run(settings(("tv",)), tmp_path, tmp_path / "alone", threads=1)
    data = tmp_path / "film.csv"
    refused(DataError, r"no column 'user_id'", add_domain, alone.path, "film", data, tmp_path / "x")
    columns = {"user": "who", "item": "what"}
    both = add_domain(alone.path, "film", data, tmp_path / "both", threads=1, columns=columns)
    assert both.config.data.user == {"tv": "user_id", "film": "who"}
    assert both.config.data.timestamp is None
    # and a table of columns is kept to
    again = refresh(both.path, "film", data, tmp_path / "again", threads=1)
    assert again.metrics["smf"]["film"].means() == both.metrics["smf"]["film"].means()
    refused(
        ConfigError, r"data\.user names a column for each domain, none for 'music'; name it, too",
        add_domain, both.path, "music", place / "music.parquet", tmp_path / "y",
    )  # fmt: skip
