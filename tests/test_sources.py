"""Which domain helped, where it is known: two domains share a taste, a third is noise."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from test_cli import call, text

import musketeers
from musketeers import config as configuration
from musketeers import runs, scorers, sources
from musketeers.data.synthetic import frames, planted
from musketeers.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.heads import ladder
from musketeers.seeding import Seed
from musketeers.sources import Explainer, helped, without

NAMES = ("tv", "film", "noise")
SETTINGS = {
    "seed": 117,
    "dim": 8,
    "pretrain": {"max_epochs": 30, "tries": 1, "regularization": 0.07},
    "cat": {"max_epochs": 20, "batch_size": 64},
    "art": {"max_epochs": 30, "batch_size": 64},
}
COLUMNS = {"min_user": 2, "min_item": 2}


def tables():
    """Users have few interactions; what they like in tv tells of film, and noise of neither."""
    sizes = {"n_users": 400, "n_items": 60, "known": 0.8, "pairs_per_user": 6}
    shared = planted(NAMES[:2], Seed(0), common=1.0, **sizes)
    # of two, so that it need not know everybody
    alone = planted(("noise", "more"), Seed(9), common=0.0, **sizes)
    return {**frames(shared.domains), "noise": frames(alone.domains)["noise"]}


def fit(only=None, names=NAMES, **settings):
    given = {name: frame for name, frame in tables().items() if name in names}
    return musketeers.fit(given, threads=1, only=only, data=COLUMNS, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def run():
    """In memory."""
    return fit()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The same in a folder."""
    folder = tmp_path_factory.mktemp("saved")
    for name, frame in tables().items():
        frame.write_parquet(folder / f"{name}.parquet")
    domains = {name: f"{name}.parquet" for name in NAMES}
    config = configuration.parse({**SETTINGS, "data": {**COLUMNS, "domains": domains}}, "test")
    return runs.fit_run(config, folder, folder / "run", threads=1)


@pytest.fixture(scope="module")
def cat_art():
    """CAT-ART alone, its transfer kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "is_better", lambda *_: True)
        return fit("cat_art")


def everybody(run):
    return run.recommender.users.values


def parts(model):
    """Its scorers' arrays, as bytes."""
    both = {"scorer": model.scorer, **({"cold": model.cold} if model.cold else {})}
    return {
        (which, name): array.tobytes()
        for which, scorer in both.items()
        for name, array in scorers.arrays(scorer).items()
    }


def test_the_planted_domains_are_served_what_these_tests_are_about(run):
    kinds = {name: verdict.chosen.kind for name, verdict in run.learning.verdicts.items()}
    assert kinds == {"tv": "linear+cat_art", "film": "linear", "noise": "ease+smf"}
    colds = {name: v.cold.kind if v.cold else None for name, v in run.learning.verdicts.items()}
    assert colds == {"tv": "linear+cat_art", "film": "linear+cat_art", "noise": None}


# --- a domain


@pytest.mark.parametrize(("domain", "source"), [("tv", "film"), ("film", "tv")])
def test_hiding_the_informative_source_loses_and_hiding_noise_does_not(run, domain, source):
    found = {row["source"]: row for row in helped(run, domain).to_dicts()}
    assert list(found) == [name for name in NAMES if name != domain]
    told, noise = found[source], found["noise"]
    assert told["gain"] > 0.05 * told["ndcg@10"]
    assert told["low"] > 0
    assert told["p"] < 0.01
    assert noise["p"] > 0.05
    assert noise["gain"] < 0.3 * told["gain"]


def test_attention_need_not_be_what_helps(run):
    tv = helped(run, "tv")
    assert tv["attention"].sum() == pytest.approx(1, abs=1e-5)
    assert tv["attention"].to_list() == list(run.learning.attention["tv"].values())
    # it looks about as much at the noise, which gives nothing
    assert tv["attention"].max() - tv["attention"].min() < 0.1
    assert tv["gain"].max() - tv["gain"].min() > 0.03
    assert helped(run, "film")["attention"].to_list() == [None, None]


@pytest.mark.parametrize("kind", ["run", "cat_art"])
@pytest.mark.parametrize(("bound", "number"), [("MOST_USERS", 50), ("_MOST_LISTS", 101)])
def test_of_very_many_test_users_some_are_enough(kind, bound, number, request, monkeypatch):
    whole = request.getfixturevalue(kind)
    monkeypatch.setattr(sources, bound, number)
    some = sources.measure(whole, n_threads=1)
    assert some.keys() == whole.hidden.keys()
    for source, domains in some.items():
        for domain, found in domains.items():
            expected = whole.hidden[source][domain]
            assert len(found.users) == 50 < len(expected.users)
            place = np.searchsorted(expected.users, found.users)
            for metric, values in found.values.items():
                np.testing.assert_array_equal(values, expected.values[metric][place])
    # the others' gain is not known
    fewer = replace(whole, hidden=some)
    (domain,) = {one for domains in some.values() for one in domains if one != "noise"} & {"tv"}
    assert fewer.by_source()[domain, "film"].users == 50
    gains = Explainer.of(fewer, domain).explain(everybody(whole))["gain"]
    assert 0 < len(gains) - gains.null_count() <= 2 * 50


@pytest.mark.parametrize("domain", ["tv", "film"])
def test_a_gain_is_what_the_metric_loses_when_users_are_ranked_without_the_source(run, domain):
    split, kept = run.splits[domain], {}
    for row in helped(run, domain).iter_rows(named=True):
        less = without(run, domain, row["source"]).domains[domain].scorer
        hidden = evaluate(less, split.test, split.seen(), n_threads=1)
        served = run.metrics[run.recommender.about["model"][domain]][domain]
        assert row["ndcg@10"] == served.values["ndcg@10"].mean()
        gains = served.values["ndcg@10"] - hidden.values["ndcg@10"]
        assert row["gain"] == pytest.approx(gains.mean())
        assert row["low"] < row["gain"] < row["high"]
        assert row["users"] == len(gains) == split.test.known_users().sum()
        kept[row["source"]] = row["kept"]
        # lists that stay the same have the same metric
        assert row["changed"] >= (gains != 0).mean()
        assert 1 - row["changed"] <= row["kept"] <= 1 - row["changed"] / 10
    assert all(0 < share < 1 for share in kept.values())


def test_a_domain_that_is_told_nothing_has_no_numbers(run):
    found = helped(run, "noise")
    assert found.is_empty()
    assert found.schema == helped(run, "tv").schema
    assert all("noise" not in domains for domains in run.hidden.values())


# --- nothing hidden, everything hidden


@pytest.mark.parametrize("domain", NAMES)
@pytest.mark.parametrize("kind", ["run", "saved", "cat_art"])
def test_nothing_hidden_is_what_is_served_bit_by_bit(kind, domain, request):
    run = request.getfixturevalue(kind)
    served, again = run.recommender.domains[domain], without(run, domain).domains[domain]
    assert parts(again) == parts(served)
    if kind == "cat_art" or domain == "tv":  # made anew, not handed back
        assert again.scorer is not served.scorer
    for source in {*NAMES} - {domain}:
        told = kind == "cat_art" or domain != "noise"
        assert (parts(without(run, domain, source).domains[domain]) != parts(served)) == told


@pytest.mark.parametrize("domain", NAMES)
def test_with_all_sources_hidden_cat_art_is_the_domain_alone(cat_art, domain):
    others = [name for name in NAMES if name != domain]
    less = without(cat_art, domain, *others).domains[domain].scorer
    assert less.users.tobytes() == cat_art.stages.alone[domain].factors.users.tobytes()


def test_with_all_sources_hidden_the_linear_head_has_the_history_alone(run):
    less = without(run, "film", "tv", "noise").domains["film"].scorer
    served, n_items = run.recommender.domains["film"].scorer, less.n_items
    users = np.arange(len(everybody(run)))
    history, weights = served.inputs.toarray()[:, :n_items], served.weights[:n_items]
    np.testing.assert_allclose(less.score(users), history @ weights, rtol=1e-4, atol=1e-5)


# --- users


@pytest.mark.parametrize("domain", ["tv", "film"])
def test_what_leaves_and_enters_is_the_difference_of_two_lists(run, domain):
    users = everybody(run)[::3]
    found = Explainer.of(run, domain).explain(users, k=5)
    assert set(found["strategy"]) == {"personalised", "cross_domain"}
    served = lists(run.recommender, domain, users)
    hidden = {name: lists(without(run, domain, name), domain, users) for name in NAMES
              if name != domain}  # fmt: skip
    metric = "ndcg@10"
    whole = run.metrics[run.recommender.about["model"][domain]][domain]
    moved = 0
    for row in found.iter_rows(named=True):
        user = row["user_id"]
        before, after = served[user], hidden[row["source"]][user]
        assert row["leaves"] == [item for item in before if item not in after]
        assert row["enters"] == [item for item in after if item not in before]
        assert row["kept"] == pytest.approx(1 - len(row["leaves"]) / len(before))
        place = np.flatnonzero(run.recommender.users.ids(whole.users) == user)
        if row["strategy"] == "personalised" and len(place):
            less = run.hidden[row["source"]][domain].values[metric]
            assert row["gain"] == whole.values[metric][place[0]] - less[place[0]]
        else:
            assert row["gain"] is None
        moved += row["kept"] < 1
    assert moved > 50


def lists(model, domain, users):
    frame = model.recommend(domain, users, 5)
    return dict(frame.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())


def test_the_gains_of_users_are_those_of_the_domain(run):
    users = Explainer.of(run, "tv").explain(everybody(run))
    means = users.group_by("source").agg(pl.col("gain").mean(), n=pl.col("gain").count())
    found = helped(run, "tv").join(means, on="source", suffix="_of_users")
    assert found["gain"].to_list() == pytest.approx(found["gain_of_users"].to_list())
    assert (found["users"] == found["n"]).all()


def test_attention_of_a_user_is_shared_among_the_domains_that_know_them(run):
    found = Explainer.of(run, "tv").explain(everybody(run))
    known = {
        name: dict(zip(everybody(run), run.recommender.domains[name].known, strict=True))
        for name in NAMES
    }
    told = found.filter(pl.col("source").is_not_null())
    for row in told.iter_rows(named=True):
        assert (row["attention"] > 0) == known[row["source"]][row["user_id"]]
    totals = told.filter(pl.col("attention") > 0).group_by("user_id").agg(pl.col("attention").sum())
    assert len(totals) > 300
    np.testing.assert_allclose(totals["attention"], 1, atol=1e-5)
    # over those whom tv knows, the mean that training gave
    means = (
        found.filter(pl.col("user_id").is_in(totals["user_id"].implode()), strategy="personalised")
        .group_by("source")
        .agg(pl.col("attention").mean())
    )
    assert dict(means.iter_rows()) == pytest.approx(run.learning.attention["tv"], abs=1e-5)
    # of film's own users the linear head asks nobody; of users whom it does not know, CAT-ART does
    film = Explainer.of(run, "film").explain(everybody(run))
    asked = film.filter(pl.col("attention").is_not_null())["strategy"]
    assert set(asked) == {"cross_domain"}


def test_a_cold_user_whom_one_domain_knows_gets_what_is_popular_without_it(run):
    known = {name: model.known for name, model in run.recommender.domains.items()}
    rows = np.flatnonzero(known["film"] & ~known["tv"] & ~known["noise"])
    assert len(rows)
    users = run.recommender.users.ids(rows)
    assert set(run.recommender.recommend("tv", users)["strategy"]) == {"cross_domain"}
    less = without(run, "tv", "film").recommend("tv", users)
    assert set(less["strategy"]) == {"popular"}
    found = Explainer.of(run, "tv").explain(users)
    by_film, by_noise = (found.filter(source=name) for name in ("film", "noise"))
    assert by_film["kept"].mean() < 0.9
    assert set(by_noise["kept"]) == {1.0}


def test_cold_users_of_a_domain_that_keeps_its_own_model_are_explained():
    """The domain is told nothing, its cold users are: of the domain that shares their taste."""
    run = fit(split={"cold": 0.1}, pretrain={**SETTINGS["pretrain"], "max_epochs": 3})
    owns = [name for name, verdict in run.learning.verdicts.items()
            if not verdict.transfers and verdict.cold]  # fmt: skip
    assert owns
    for domain in owns:
        found = Explainer.of(run, domain).explain(everybody(run))
        named = found.filter(pl.col("source").is_not_null())
        assert set(named["strategy"]) == {"cross_domain"}
        assert named["kept"].min() < 1
        assert helped(run, domain).is_empty()


def test_a_user_is_answered_once_in_the_order_and_whatever_the_company(run):
    explainer, users = Explainer.of(run, "tv"), everybody(run)[[7, 3, 7, 250]]
    found = explainer.explain(users)
    assert found["user_id"].unique(maintain_order=True).to_list() == users[[0, 1, 3]].to_list()
    one = explainer.explain(users[:1], n_threads=2)
    assert one.equals(found.filter(user_id=users[0]))
    assert explainer.explain([]).is_empty()


# --- a folder is as good as memory


def test_from_a_folder_it_is_the_same_as_in_memory(run, saved):
    assert (saved.path / "hidden.parquet").exists()
    again = musketeers.open_run(saved.path)
    for name in NAMES:
        assert helped(again, name).equals(helped(run, name))
        users = everybody(run)[::6]
        assert (
            Explainer.of(again, name).explain(users).equals(Explainer.of(run, name).explain(users))
        )
    for source, domains in run.hidden.items():
        for domain, found in domains.items():
            for metric, values in found.values.items():
                assert again.hidden[source][domain].values[metric].tobytes() == values.tobytes()


def test_the_file_has_a_row_for_each_user_source_and_number(saved):
    frame = pl.read_parquet(saved.path / "hidden.parquet")
    assert frame.columns == ["source", "domain", "user_id", "metric", "value"]
    assert set(frame.select("source", "domain").iter_rows()) == {
        ("film", "tv"), ("noise", "tv"), ("tv", "film"), ("noise", "film"),
    }  # fmt: skip
    assert set(frame["metric"]) == {"ndcg@10", "kept@10"}


def test_a_folder_without_what_is_needed_is_refused(run, saved, tmp_path):
    file = saved.path / "hidden.parquet"
    kept = file.rename(tmp_path / "kept")
    try:
        older = musketeers.open_run(saved.path)
        with pytest.raises(ConfigError, match="tv: the run was fitted by a version that kept too"):
            helped(older, "tv")
        file.write_bytes(b"no table")
        with pytest.raises(ArtifactError, match=r"hidden\.parquet: cannot be read"):
            musketeers.open_run(saved.path)
    finally:
        kept.replace(file)
    aligned = replace(run.stages.aligned, length=math.nan)
    older = replace(run, stages=replace(run.stages, aligned=aligned))
    with pytest.raises(ConfigError, match=r"linear\+cat_art, the run was fitted by a version that"):
        Explainer.of(older, "tv")


# --- what cannot be explained


def test_requests_that_cannot_be_answered(run):
    with pytest.raises(UnknownNameError, match=r"domain 'tvv' is not among .*; did you mean 'tv'"):
        helped(run, "tvv")
    with pytest.raises(UnknownNameError, match="domain 'radio' is not among"):
        without(run, "tv", "radio")
    with pytest.raises(ConfigError, match="tv is to be hidden from itself; hide another domain"):
        without(run, "tv", "film", "tv")
    explainer = Explainer.of(run, "tv")
    with pytest.raises(UnknownNameError, match="user 'nobody' is in no domain of this run; check"):
        explainer.explain([everybody(run)[0], "nobody"])
    with pytest.raises(DataError, match="of type str, no column of ids"):
        explainer.explain("user-001")
    with pytest.raises(ConfigError, match="k is 0; give at least 1"):
        explainer.explain(everybody(run)[:1], k=0)


@pytest.mark.parametrize(
    ("only", "line"),
    [
        ("cmf", "tv is served by cmf, from which no domain can be hidden; fit without --only, or"),
        ("cat_art_mean", "tv is served by cat_art_mean, from which no domain can be hidden"),
        ("chosen", "tv is served by linear.cat_art, whose stages are not kept; fit without --only"),
    ],
)
def test_models_from_which_nothing_can_be_hidden(only, line):
    run = fit(only)
    assert "tv" not in {domain for of in run.hidden.values() for domain in of}
    for ask in (helped, Explainer.of):
        with pytest.raises(ConfigError, match=line):
            ask(run, "tv")


@pytest.mark.parametrize("only", ["linear", "ials_head"])
def test_a_head_by_itself_is_explained(only):
    run = fit(only, seed=8)
    served = run.recommender.domains["tv"].scorer
    assert parts(without(run, "tv").domains["tv"]) == parts(run.recommender.domains["tv"])
    nothing = without(run, "tv", "film", "noise").domains["tv"].scorer
    own = served.n_items if only == "linear" else SETTINGS["dim"]
    given, left = (
        model.inputs.toarray() if only == "linear" else model.users for model in (served, nothing)
    )
    assert given[:, own:].any()
    np.testing.assert_array_equal(left[:, :own], given[:, :own])
    assert not left[:, own:].any()
    found = {row["source"]: row for row in helped(run, "tv").to_dicts()}
    # the level of all marks; p of the iALS head was below .01 on one machine, .011 on another
    assert found["film"]["p"] < 0.05
    assert found["film"]["gain"] > max(0, found["noise"]["gain"])
    cold = Explainer.of(run, "tv").explain(everybody(run)).filter(strategy="cross_domain")
    assert cold["kept"].min() < 1


def test_what_large_catalogues_are_served_is_explained(monkeypatch):
    """The iALS head in the linear one's place, of others and alone."""
    monkeypatch.setattr(ladder, "linear_bytes", lambda *_, **__: 2**60)
    run = fit(seed=8)
    kinds = {name: verdict.chosen.kind for name, verdict in run.learning.verdicts.items()}
    told = [name for name, kind in kinds.items() if "ials_head" in kind]
    alone = [name for name, kind in kinds.items() if "smf_ials" in kind]
    assert told
    assert alone
    for name in told:
        assert parts(without(run, name).domains[name]) == parts(run.recommender.domains[name])
        others = [other for other in NAMES if other != name]
        less, dim = without(run, name, *others).domains[name].scorer, SETTINGS["dim"]
        served = run.recommender.domains[name].scorer
        assert (less.users[:, :dim] == served.users[:, :dim]).all()
        assert not less.users[:, dim : 3 * dim].any()
        assert set(helped(run, name)["source"]) == set(others)
    assert all(helped(run, name).is_empty() for name in alone)


@pytest.mark.parametrize("only", ["pop", "ease", "cat_art"])
def test_models_that_are_told_nothing_say_so(only):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "is_better", lambda *_: False)  # CAT-ART's transfer is not kept
        run = fit(only)
    assert helped(run, "tv").is_empty()
    found = Explainer.of(run, "tv").explain(everybody(run)[:20])
    assert len(found) == 20
    assert found["source"].null_count() == found["gain"].null_count() == 20


def test_one_domain_has_no_other():
    run = fit(names=("tv",))
    assert run.hidden == {}
    with pytest.raises(ConfigError, match="tv is the only domain of the run, so no other can"):
        helped(run, "tv")


# --- what a person sees


def test_the_command_tells_of_a_domain(saved):
    asked = ("explain", saved.path, "--domain", "tv")
    assert pl.DataFrame(json.loads(text(*asked, "--format", "json"))).equals(
        helped(saved, "tv").cast({"users": pl.Int64})
    )
    shown = text(*asked)
    assert max(map(len, shown.splitlines())) <= 80
    for row in helped(saved, "tv").iter_rows(named=True):
        line = next(one for one in shown.splitlines() if one.split()[:1] == [row["source"]])
        assert f"{row['gain']:.4f}" in line
        assert f"{row['attention']:.4f}" in line
    code, out, err = call("explain", saved.path, "--domain", "noise", "--format", "csv")
    assert (code, len(out.splitlines())) == (0, 1)
    line = "what serves the users of noise is told of no other domain; there is nothing to hide"
    assert err == f"note: {line}\n"


def test_the_command_tells_of_users_in_every_format(saved, tmp_path):
    users = everybody(saved)[:3].to_list()
    asked = ["explain", saved.path, "--domain", "tv", "--k", 4]
    for user in users:
        asked += ["--user", user]
    wanted = Explainer.of(saved, "tv").explain(users, k=4).to_dicts()
    assert json.loads(text(*asked, "--format", "json")) == wanted
    table = pl.read_csv(io.StringIO(text(*asked, "--format", "csv")))
    assert [json.loads(cell) for cell in table["leaves"]] == [row["leaves"] for row in wanted]
    file = tmp_path / "rows.parquet"
    assert text(*asked, "--format", "parquet", "--out", file) == ""
    assert pl.read_parquet(file).to_dicts() == wanted
    shown = text(*asked)
    assert max(map(len, shown.splitlines())) <= 80
    assert all(item in shown for row in wanted for item in row["leaves"] + row["enters"])


def test_the_command_says_in_one_line_what_it_cannot_tell(saved):
    for arguments, line in (
        (("--domain", "tvv"), "domain 'tvv' is not among"),
        (("--domain", "tv", "--user", "nobody"), "user 'nobody' is in no domain of this run"),
    ):
        code, out, err = call("explain", saved.path, *arguments)
        assert (code, out, err.count("\n")) == (1, b"", 1)
        assert err.startswith(f"musketeers: {line}")
    user = everybody(saved)[0]
    _, _, err = call("explain", saved.path, "--domain", "noise", "--user", user)
    assert f"what serves {user} in noise is told of no other domain" in err


def test_the_report_has_gains_lists_and_attention_side_by_side(saved):
    page = (saved.path / "report.html").read_text()
    assert "<h2>Which domain helped</h2>" in page
    section = page.partition("<h2>Which domain helped</h2>")[2].partition("<section>")[0]
    for domain in ("tv", "film"):
        for row in helped(saved, domain).iter_rows(named=True):
            relative = row["gain"] / (row["ndcg@10"] - row["gain"])
            assert f"{relative:+z.1%}" in section
            assert f"{row['changed']:.0%}</td>" in section
    assert "▲" in section
    for weight in saved.learning.attention["tv"].values():
        assert f"{weight:.2f}</td>" in section
    assert "there is nothing to hide: noise (EASE + SMF)." in section
