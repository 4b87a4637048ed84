"""The comparison: equal tuning, what jobs find together, tables, files, and what fails."""

import dataclasses
import json
import math
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import optuna
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_files import write_comparison
from scipy.stats import ttest_1samp

from musketeers import config as configuration
from musketeers import ranking
from musketeers.comparison import command, files, jobs, page, tables
from musketeers.comparison import study as study_module
from musketeers.comparison import workers as workers_module
from musketeers.comparison.gains import gains, quantile_groups, shown
from musketeers.comparison.jobs import Found, Job, Plan
from musketeers.comparison.results import results
from musketeers.comparison.study import Study, checked, compare_models
from musketeers.comparison.workers import Processes
from musketeers.data.interactions import Interactions
from musketeers.data.overlap import DomainFacts, OverlapReport
from musketeers.data.synthetic import planted
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError, DivergedError, MissingExtraError, RunError
from musketeers.evaluation.compare import compare, holm
from musketeers.evaluation.evaluate import PerUser
from musketeers.models import attempts, needs, registry
from musketeers.models.attempts import Attempts
from musketeers.models.needs import Size
from musketeers.models.registry import MODELS
from musketeers.models.space import Choice, Range
from musketeers.models.tuning import Try, best_of, tries, tune
from musketeers.pipeline import smf, validations
from musketeers.runs import fit_run
from musketeers.seeding import Seed
from musketeers.task import Task, unwatched

# --- tuning

BOWL = {"x": Range(1e-3, 10.0), "n": Range(1, 9, log=False), "kind": Choice(("a", "b"))}


def height(settings):
    x, n = settings.get("x", 5.0), settings.get("n", 9)
    return -((math.log(x) - math.log(0.1)) ** 2) - (n - 3) ** 2 + (settings.get("kind") == "b")


def test_tuning_starts_with_the_defaults_and_gives_back_the_best():
    tuned = tune(lambda settings: settings, height, BOWL, n_tries=15, seed=Seed(0))
    assert len(tuned.tries) == 15
    assert tuned.tries[0].settings == {}
    assert tuned.best.valid == max(tried.valid for tried in tuned.tries) > height({})
    assert tuned.made == tuned.best.settings
    for tried in tuned.tries[1:]:
        assert 1e-3 <= tried.settings["x"] <= 10
        assert tried.settings["n"] in range(1, 10)
        assert tried.settings["kind"] in {"a", "b"}


def test_tuning_repeats_with_the_seed():
    first, again, other = (
        tune(dict, height, BOWL, n_tries=12, seed=Seed(seed)).best.settings for seed in (1, 1, 2)
    )
    assert first == again != other


def test_what_has_nothing_to_tune_is_trained_once():
    assert len(tune(dict, lambda _: 0.5, {}, n_tries=9, seed=Seed(0)).tries) == 1


def test_a_try_that_fails_counts_and_costs_no_other():
    def fit(settings):
        if settings.get("x", 5.0) > 0.1:
            raise DivergedError("too large")
        return settings

    tuned = tune(fit, height, BOWL, n_tries=20, seed=Seed(0))
    failed = [tried for tried in tuned.tries if tried.failure]
    assert failed[0] == tuned.tries[0]
    assert {tried.failure for tried in failed} == {"too large"}
    assert 0 < len(failed) < 20
    assert tuned.best.settings["x"] <= 0.1
    assert len(tuned.tries) == 20


def test_if_every_try_fails_the_first_failure_is_told():
    def fit(settings):
        raise DivergedError(f"{len(settings)} settings")

    with pytest.raises(DivergedError, match=r"^0 settings$"):
        tune(fit, height, BOWL, n_tries=3, seed=Seed(0))


@pytest.mark.parametrize("failing", [False, True])
def test_what_is_proposed_does_not_depend_on_what_is_trained_side_by_side(failing):
    def train(number, settings):
        trained.append(number)
        if failing and settings.get("x", 5.0) > 0.1:
            return Try(settings, None, 0.0, "too large")
        return Try(settings, height(settings), 0.0)

    def backwards(numbers, settings):
        batches.append(list(numbers))
        found = [train(*one) for one in reversed(list(zip(numbers, settings, strict=True)))]
        return found[::-1]

    trained, batches, heard = [], [], []
    found = tries(backwards, BOWL, n_tries=20, seed=Seed(3), on_try=lambda n, _: heard.append(n))
    assert batches == [list(range(9)), *([n] for n in range(9, 20))]
    assert trained != heard == list(range(20))
    assert found == in_turn(train, n_tries=20)


def in_turn(train, *, n_tries):
    """As Optuna's manual has it: ask, train, tell."""
    sampler = optuna.samplers.TPESampler(seed=Seed(3).integer() % 2**32, n_startup_trials=8)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    found = [train(0, {})]
    for number in range(1, n_tries):
        trial = study.ask()
        x = trial.suggest_float("x", 1e-3, 10.0, log=True)
        settings = {"x": x, "n": trial.suggest_int("n", 1, 9),
                    "kind": trial.suggest_categorical("kind", ["a", "b"])}  # fmt: skip
        found.append(train(number, settings))
        if found[-1].failure:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, found[-1].valid)
    return tuple(found)


def test_the_best_is_the_first_of_the_largest():
    def tried(valid):
        return Try({}, valid, 0.0, None if valid is not None else "no")

    assert best_of([tried(v) for v in (None, 0.1, 0.3, 0.3, None)]) == 2
    assert best_of([tried(0.0)]) == 0
    assert best_of([tried(None), tried(None)]) is None


def test_a_disk_that_refuses_is_no_failed_try():
    def fit(settings):
        raise ArtifactError("disk is full")

    with pytest.raises(ArtifactError, match="disk is full"):
        tune(fit, height, BOWL, n_tries=3, seed=Seed(0))


def test_every_setting_that_is_tuned_exists():
    config = configuration.parse({"data": {"domains": {"a": "a", "b": "b"}}}, "test")
    for name, model in MODELS.items():
        for key, bounds in model.space.items():
            value = bounds.values[0] if isinstance(bounds, Choice) else bounds.low
            if "." in key:
                assert configuration.changed(config, {key: value}) != config, (name, key)


@pytest.mark.parametrize("name", ["herograph", "herograph_l"])
def test_graph_models_of_all_domains_are_tuned_in_both_their_parts(name, monkeypatch):
    given = []
    monkeypatch.setattr(
        registry,
        name,
        lambda *args, dim: given.append(args[2]) or SimpleNamespace(factors={}, history=None),
    )
    config = configuration.parse({"data": {"domains": {"a": "a", "b": "b"}}}, "test")
    space = MODELS[name].space
    lowest = {
        key: bounds.values[-1] if isinstance(bounds, Choice) else bounds.low
        for key, bounds in space.items()
    }
    MODELS[name].fit(Task({}, {}, config, {}, 1), lowest)
    found = dataclasses.asdict(given[0])
    found |= found.pop("graph")
    assert {key: found[key] for key in space} == lowest
    MODELS[name].fit(Task({}, {}, config, {}, 1), {})
    assert given[1] == type(given[1])()


# --- what jobs find together


def per_user(*values, users=None):
    values = np.array(values, dtype=float)
    rows = np.arange(len(values)) if users is None else np.array(users)
    return PerUser(rows, {"ndcg@10": values, "recall@10": values / 2})


def study_of(found, *, n_seeds=2, failed=None, extra=None):
    """`found`: (seed, model, domain) -> values of the users; `extra`: more of `Found`, likewise."""
    config = configuration.parse({"data": {"domains": {"tv": "a", "film": "b"}}}, "test")
    jobs_found = {
        Job(seed, model, domain): Found(
            {domain: per_user(*values)}, {domain: float(np.mean(values))},
            {"settings": {}, "parts": {}, "tries": [{"seconds": 2.0}]},
            **(extra or {}).get((seed, model, domain), {}),
        )
        for (seed, model, domain), values in found.items()
    }  # fmt: skip
    names = tuple(dict.fromkeys(model for _, model, _ in found))
    return Study(config, names, n_seeds, 3, jobs_found, failed or {})


RNG = np.random.default_rng(0)
DOMAINS = ("tv", "film")
BASE = {(seed, d): RNG.random(60) for seed in (0, 1) for d in ("tv", "film")}
FOUND = {
    **{(seed, "smf", d): values for (seed, d), values in BASE.items()},
    **{(s, "pop", d): values - 0.2 - 0.01 * RNG.random(60) for (s, d), values in BASE.items()},
    **{(s, "cat_art", d): values + RNG.normal(0.05, 0.01, 60) for (s, d), values in BASE.items()},
}


def test_means_and_deviations_are_over_seeds():
    cell = results(study_of(FOUND)).cells["pop"]["tv", "ndcg@10"]
    means = [FOUND[seed, "pop", "tv"].mean() for seed in (0, 1)]
    assert cell.by_seed == pytest.approx(means)
    assert cell.mean == pytest.approx(np.mean(means))
    assert cell.deviation == pytest.approx(np.std(means, ddof=1))


def test_all_models_and_cells_of_a_reference_are_corrected_together():
    found = results(study_of(FOUND))
    raw = {
        (model, cell): one.p
        for model, cells in found.against["smf"].items()
        for cell, one in cells.items()
    }
    assert len(raw) == 2 * 2 * 2
    expected = holm(np.array(list(raw.values())))
    got = [found.against["smf"][model][cell].p_corrected for model, cell in raw]
    np.testing.assert_allclose(got, expected)
    assert found.against["smf"]["smf"] == {}
    assert {one.mark for one in found.against["smf"]["pop"].values()} == {"▼"}
    assert {one.mark for one in found.against["smf"]["cat_art"].values()} == {"▲"}


def test_a_users_values_are_pooled_over_seeds_before_the_test():
    found = results(study_of(FOUND)).against["smf"]["cat_art"]["tv", "ndcg@10"]
    one, other = (
        per_user(*(FOUND[0, model, "tv"] + FOUND[1, model, "tv"]) / 2)
        for model in ("cat_art", "smf")
    )
    expected = compare({"tv": one}, {"tv": other})["tv", "ndcg@10"]
    assert found.users == 60
    assert found.p == pytest.approx(expected.p)
    # bootstrap and t interval of 60 users agree roughly, and are not the same numbers
    assert found.low == pytest.approx(expected.low, abs=0.001)
    assert found.low != expected.low


def test_validation_names_the_best_model_on_own_data():
    found = results(study_of(FOUND))
    assert found.best_alone == {"tv": "smf", "film": "smf"}
    better = {**FOUND, **{(s, "pop", "film"): FOUND[s, "smf", "film"] + 0.3 for s in (0, 1)}}
    found = results(study_of(better))
    assert found.best_alone == {"tv": "smf", "film": "pop"}
    assert ("film", "ndcg@10") not in found.against["best"]["pop"]
    assert found.against["best"]["smf"]["film", "ndcg@10"].mark == "▼"


def test_a_seed_that_failed_leaves_the_others():
    less = {key: values for key, values in FOUND.items() if key != (1, "cat_art", "tv")}
    found = results(study_of(less, failed={Job(1, "cat_art", None): "no memory"}))
    assert len(found.cells["cat_art"]["tv", "ndcg@10"].by_seed) == 1
    assert found.against["smf"]["cat_art"]["tv", "ndcg@10"].mean_b == pytest.approx(
        FOUND[0, "smf", "tv"].mean()
    )
    assert found.failed == {"seed 1, cat_art, all domains": "no memory"}


def test_a_domain_where_the_references_failed_leaves_the_others():
    gone = {("smf", "film"), ("pop", "film")}
    less = {key: values for key, values in FOUND.items() if key[1:] not in gone}
    study = study_of(less, failed={Job(0, "smf", "film"): "no memory"})
    found = results(study)
    assert found.best_alone == {"tv": "smf"}
    for reference in ("smf", "best"):
        assert {domain for domain, _ in found.against[reference]["cat_art"]} == {"tv"}
    assert len(found.cells["cat_art"]["film", "ndcg@10"].by_seed) == 2
    shown_page = page.render(study, found, gains(study, found, random_trains()), report_of(DOMAINS))
    for text in (tables.markdown(found), tables.latex(found), shown_page):
        assert "film" in text


# --- tables and files


def test_tables_mark_the_best_the_second_and_negative_transfer():
    found = results(study_of(FOUND))
    best, second = (
        f"{100 * found.cells[name]['tv', 'ndcg@10'].mean:.2f}" for name in ("cat_art", "smf")
    )
    text = tables.markdown(found)
    (row,) = (line for line in text.splitlines() if line.startswith("| Popularity | tv"))
    assert row.count("↓") == 2
    assert f"**{best}**±" in text
    assert f"<u>{second}</u>±" in text
    assert "↓" not in next(line for line in text.splitlines() if line.startswith("| CAT-ART"))
    tex = tables.latex(found)
    assert rf"\textbf{{{best}}}$\pm$" in tex
    assert tex.count(r"$\downarrow$") == 4
    assert tex.count(r"\midrule") == 3
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {3}


def test_names_cannot_break_tables():
    study = study_of({(0, "smf", "a|b_<i>"): [0.1, 0.2]}, n_seeds=1)
    config = configuration.changed(study.config, {})
    odd = {"a|b_<i>": "x"}
    data = config.data.model_copy(update={"domains": odd})
    study = dataclasses.replace(study, config=config.model_copy(update={"data": data}))
    found = results(study)
    assert "a&#124;b_<i>" in tables.markdown(found)
    assert r"a|b\_<i>" in tables.latex(found)
    trains = {"a|b_<i>": random_trains(2)["tv"]}
    parts = gains(study, found, trains)
    assert "<i>" not in page.render(study, found, parts, report_of(["a|b_<i>"]))


def random_trains(n_users=60):
    """Two domains that know some users, with few and with many items."""
    rng = np.random.default_rng(1)
    tables = {}
    for name in ("tv", "film"):
        pairs = [(u, i) for u in range(n_users) for i in range(rng.choice([0, 2, 3, 3, 9, 40]))]
        users, items = np.array(pairs or [(0, 0)]).T
        tables[name] = Interactions.from_pairs(users, items, n_users=n_users, n_items=40)
    return tables


def report_of(names):
    facts = DomainFacts(60, 40, 300, 0.1, 5.0, 300, 0, 0)
    common = tuple(tuple(10 + i + j for j in range(len(names))) for i in range(len(names)))
    return OverlapReport(dict.fromkeys(names, facts), (50, 10), common, ())


EXTRA = {
    (s, "cat_art", d): {
        "curves": {d: [[(0, 0.1), (3, 0.3), (6, 0.2)], [(0, 0.1), (3, 0.2)]]},
        "attention": {d: {other: 0.25 + s / 2}},
        "hidden": {d: {other: FOUND[s, "cat_art", d] - 0.1 * RNG.random(60)}},
    }
    for s in (0, 1)
    for d, other in (("tv", "film"), ("film", "tv"))
}


def test_the_page_shows_every_model_and_what_failed():
    study = study_of(FOUND, failed={Job(1, "cat_art", None): "no memory <now>"}, extra=EXTRA)
    found = results(study)
    text = page.render(study, found, gains(study, found, random_trains()), report_of(DOMAINS))
    assert "no memory &lt;now&gt;" in text
    for name in ("SMF", "Popularity", "CAT-ART"):
        assert f'<th scope="row">{name}<small>sees ' in text
    assert 'class="worse">▼' in text
    for title in ("Results", "Against the domain alone", "Against the best model on own data",
                  "Who gains", "From which domain", "Learning curves", "Data and overlap", "Time",
                  "What was tuned", "Settings"):  # fmt: skip
        assert f"<h2>{title}</h2>" in text
    # results, two references; attention, sources; overlap; time, tuning
    assert text.count("<table") == 2 + 2 + 2 + 3 + 2
    # two pictures by activity, two by domains; two curves; a mark for each model of two
    assert text.count("<svg") == 2 + 2 + 2 + 2
    assert "<script" not in text
    assert "http" not in text
    assert "src=" not in text
    assert "url(" not in text


def test_the_page_leaves_out_what_a_comparison_lacks():
    study = study_of({key: of for key, of in FOUND.items() if key[1] == "smf"})
    found = results(study)
    text = page.render(study, found, gains(study, found, random_trains()), report_of(DOMAINS))
    for title in ("Who gains", "From which domain", "Learning curves"):
        assert f"<h2>{title}</h2>" not in text


def test_the_page_says_where_an_epoch_was_better_and_the_start_was_kept():
    study = study_of(FOUND, extra=EXTRA)
    found = results(study)
    parts = gains(study, found, random_trains())
    best = max(one.valid[d] for one in study.found.values() for d in one.valid)
    for top, kept in ((best + 1, 2), (0.0, 0)):
        extra = {key: {"curves": {key[2]: [[(0, 0.0), (1, top)]]}} for key in EXTRA}
        text = page.render(study_of(FOUND, extra=extra), found, parts, report_of(DOMAINS))
        assert text.count("within noise of epoch 0, which was kept") == kept


# --- gains in parts


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 6))
def test_groups_are_ascending_and_equal_values_stay_together(values, n):
    values = np.array(values)
    groups = quantile_groups(values, n)
    assert set(groups.tolist()) == set(range(groups.max() + 1))
    assert groups.max() < n
    order = np.argsort(values, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()
    for value in values:
        assert len(set(groups[values == value])) == 1


def test_groups_of_different_values_are_quantiles():
    assert quantile_groups(np.arange(12)[::-1], 4).tolist() == [3] * 3 + [2] * 3 + [1] * 3 + [0] * 3
    assert quantile_groups(np.array([5, 1, 1, 1, 1, 1, 9]), 4).tolist() == [1, 0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("by", ["by_activity", "by_known"])
def test_gains_by_group_are_means_over_their_users(by):
    study, trains = study_of(FOUND), random_trains()
    found = results(study)
    parts = getattr(gains(study, found, trains), by)
    assert list(parts) == ["tv", "film"]
    for domain, by_model in parts.items():
        assert list(by_model) == ["pop", "cat_art"]
        values = [
            len(trains[domain].of(user)) if by == "by_activity"
            else sum(len(train.of(user)) > 0 for train in trains.values())
            for user in range(60)
        ]  # fmt: skip
        for name, groups in by_model.items():
            assert sum(group.difference.users for group in groups) == 60
            assert [one.low > other.high for one, other in pairwise(groups[::-1])] == [True] * (
                len(groups) - 1
            )
            for group in groups:
                rows = [u for u in range(60) if group.low <= values[u] <= group.high]
                gain = [
                    np.mean(
                        [FOUND[s, name, domain][u] - FOUND[s, "smf", domain][u] for s in (0, 1)]
                    )
                    for u in rows
                ]
                assert group.difference.users == len(rows)
                assert group.difference.difference == pytest.approx(np.mean(gain))
                if len(rows) > 1:
                    interval = ttest_1samp(gain, 0).confidence_interval(0.95)
                    assert group.difference.low == pytest.approx(interval.low)
                    assert group.difference.high == pytest.approx(interval.high)


def test_what_a_source_is_worth_is_the_mean_loss_without_it():
    study = study_of(FOUND, extra=EXTRA)
    parts = gains(study, results(study), random_trains())
    assert set(parts.by_source) == {"cat_art"}
    for (target, source), one in parts.by_source["cat_art"].items():
        losses = [
            FOUND[s, "cat_art", target] - EXTRA[s, "cat_art", target]["hidden"][target][source]
            for s in (0, 1)
        ]
        assert one.difference == pytest.approx(np.mean(losses))
    assert parts.attention["cat_art"] == {"tv": {"film": 0.5}, "film": {"tv": 0.5}}


def test_shown_are_cat_art_and_the_best_of_each_kind_but_no_control():
    names = ("smf", "pop", "ease", "cat_art", "smf_cat", "items_control", "cmf", "pooled_ease")
    height = dict(zip(names, (0.5, 0.1, 0.3, 0.2, 0.4, 0.9, 0.6, 0.7), strict=True))
    found = {
        (0, name, d): np.full(3, height[name]) + 0.01 * np.arange(3)
        for name in names for d in DOMAINS
    }  # fmt: skip
    summed = results(study_of(found, n_seeds=1))
    assert shown(summed) == ("ease", "cat_art", "smf_cat", "pooled_ease")
    assert summed.best_alone == {"tv": "smf", "film": "smf"}


def test_the_files_hold_every_number(tmp_path):
    study = study_of(FOUND, extra=EXTRA)
    found = results(study)
    users = Vocabulary.of(pl.Series([f"u{n:02}" for n in range(60)]))
    files.write(tmp_path, study, found, gains(study, found, random_trains()), users)
    rows = pl.read_parquet(tmp_path / "results.parquet")
    assert rows.columns == ["model", "seed", "domain", "user_id", "metric", "value"]
    assert len(rows) == 3 * 2 * 2 * 2 * 60
    one = rows.filter(
        model="cat_art", seed=1, domain="film", user_id="u07", metric="ndcg@10"
    )["value"].item()  # fmt: skip
    assert one == FOUND[1, "cat_art", "film"][7]
    text = json.loads((tmp_path / "results.json").read_text())
    assert text["models"]["pop"]["tv"]["ndcg@10"] == found.cells["pop"]["tv", "ndcg@10"].mean
    (cell,) = (
        c for c in text["details"]["pop"]["against"]["smf"]
        if (c["domain"], c["metric"]) == ("tv", "ndcg@10")
    )  # fmt: skip
    assert cell["significant"] is True
    assert len(text["details"]["smf"]["tuning"]) == 4
    assert set(text["gains"]) == {"by_activity", "by_known_domains", "by_source", "attention"}
    assert len(text["gains"]["by_source"]["cat_art"]) == 2
    first = text["gains"]["by_known_domains"]["tv"]["pop"][0]
    assert first["difference"]["difference"] < 0
    assert "NaN" not in (tmp_path / "results.json").read_text()
    assert (tmp_path / "table.md").read_text() == tables.markdown(found)


# --- the whole


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings of two planted domains, in a folder with their files."""
    return write_comparison(tmp_path_factory.mktemp("data"))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_comparison_from_files_to_files(small, tmp_path, capsys):
    config, folder = small
    out = tmp_path / "out"
    command.run(config, folder, out, models=["pop", "cat_art"], n_seeds=1, n_tries=2,
                workers=Processes.of(2))  # fmt: skip
    text = json.loads((out / "results.json").read_text())
    assert set(text["models"]) == {"smf", "pop", "cat_art"}
    assert len(text["gains"]["by_source"]["cat_art"]) == 2
    transfer = jobs.found(out, Job(0, "cat_art", None))
    assert [len(one) for one in transfer.curves["tv"]] == [3]
    assert set(transfer.hidden["tv"]) == {"film"}
    alone = jobs.found(out, Job(0, "smf", "tv"))
    assert max(valid for _, valid in alone.curves["tv"][0]) == alone.valid["tv"]
    assert text["failed"] == {}
    tries = text["details"]["cat_art"]["tuning"][0]["tries"]
    assert [len(tried["settings"]) > 0 for tried in tries] == [False, True]
    assert capsys.readouterr().out.startswith("| Model | Domain |")
    before = contents(out)
    again = {"models": ["pop", "cat_art"], "n_seeds": 1, "n_tries": 2, "workers": Processes.of(2)}
    with pytest.raises(RunError, match="finished run, never overwritten"):
        command.run(config, folder, out, **again)
    command.run(config, folder, out, **again, resume=True)
    assert contents(out) == before
    # in one process, in another folder: the same numbers
    plan = Plan(configuration.dump(config), folder, tmp_path / "again", 2, 1, 2**32)
    for wave in jobs.jobs_of(("smf", "cat_art"), ["tv", "film"], 1):
        for job in wave:
            jobs.run(plan, job, jobs.splits_of(plan, job.seed))
            one, other = jobs.found(out, job), jobs.found(plan.out, job)
            for domain, measured in one.metrics.items():
                for name, values in measured.values.items():
                    np.testing.assert_array_equal(values, other.metrics[domain].values[name])


def test_what_was_chosen_in_each_domain_is_told(small, tmp_path, capsys):
    config, folder = small
    command.run(config, folder, tmp_path, models=["chosen", "linear"], n_seeds=1, n_tries=2,
                workers=Processes.of(2))  # fmt: skip
    assert "Chosen" in capsys.readouterr().out
    tuning = json.loads((tmp_path / "results.json").read_text())["details"]
    (chosen,) = tuning["chosen"]["tuning"]
    assert set(chosen["parts"]) == {"tv", "film"}
    page = (tmp_path / "report.html").read_text()
    for domain, parts in chosen["parts"].items():
        assert parts.startswith(("smf", "ease(", "cat_art", "linear("))
        assert f"{domain}: {parts}" in page
    # the linear head is tuned for each domain, though it is told of the others
    assert [one["domain"] for one in tuning["linear"]["tuning"]] == ["tv", "film"]
    assert all(one["parts"] == {} for one in tuning["linear"]["tuning"])
    assert set(jobs.found(tmp_path, Job(0, "linear", "tv")).metrics) == {"tv"}


def test_an_interrupted_comparison_goes_on_where_it_stopped(small, tmp_path):
    config, folder = small
    kept = {}
    for _ in range(2):
        study = compare_models(config, folder, tmp_path, models=["pop"], n_seeds=1, n_tries=1,
                               workers=Processes.of(1))  # fmt: skip
        assert not study.failed
        times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("manifest.json")}
        assert len(times) == 4
        assert not kept or kept == times
        kept = times


@pytest.mark.parametrize("model", ["smf", "light_gcn"])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_job_that_is_cut_off_goes_on_from_its_last_epoch(
    small, tmp_path, monkeypatch, model, cut
):
    config, folder = small
    whole, parts = (
        Plan(configuration.dump(config), folder, tmp_path / name, 3, 1, 2**32)
        for name in ("whole", "parts")
    )
    job, epochs = Job(0, model, "tv"), []

    def train(plan, *, stop=math.inf):
        def on_epoch(epoch):
            epochs[-1].append(epoch.number)
            if len(epochs[-1]) == stop:
                raise KeyboardInterrupt

        epochs.append([])
        monkeypatch.setattr(attempts, "ignore", on_epoch)
        jobs.run(plan, job, jobs.splits_of(plan, 0))

    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(parts, stop=cut)
    assert not jobs.is_done(parts, job)
    train(parts)
    once, before, after = epochs
    assert before + after == once
    one, other = (jobs.found(plan.out, job) for plan in (whole, parts))
    assert_same(one, other)
    assert not list((tmp_path / "parts" / "checkpoints").rglob("try-*"))
    epochs.clear()
    train(parts)
    assert epochs == [[]]


def assert_same(one, other):
    for domain, measured in one.metrics.items():
        for name, values in measured.values.items():
            np.testing.assert_array_equal(values, other.metrics[domain].values[name])
    of_one, of_other = (
        [{**tried, "seconds": 0} for tried in found.about["tries"]] for found in (one, other)
    )
    assert of_one == of_other
    assert one.curves == other.curves
    assert one.valid == other.valid


def test_tries_elsewhere_find_what_those_of_one_process_do(small, tmp_path):
    config, folder = small
    here, there = (
        Plan(configuration.dump(config), folder, tmp_path / name, 3, 1, 2**32)
        for name in ("here", "there")
    )
    splits = jobs.splits_of(here, 0)
    for model in ("smf", "item_knn"):
        job = Job(0, model, "tv")
        jobs.run(here, job, splits)
        found = jobs.tuned(there, job, partial(map, partial(jobs.attempt, there, job, splits)))
        kept = [p.name for p in job.progress(there.out).glob("try-*") if p.is_dir()]
        assert len(kept) == (model == "smf")
        jobs.finish(there, job, splits, found)
        assert_same(jobs.found(here.out, job), jobs.found(there.out, job))


def test_a_try_that_failed_is_trained_again_and_no_other(tmp_path):
    tried = [Try({"x": 1.0}, None, 1.0, "no memory"), Try({"x": 1.0}, 0.5, 1.0)]
    given = []

    def train(number, settings):
        given.append((number, settings))
        return tried[len(given) - 1]

    once = Attempts(tmp_path).once(train)
    assert [once(3, {"x": 1.0}) for _ in range(4)] == [tried[0], tried[1], tried[1], tried[1]]
    assert len(given) == 2
    # what another version would try as the third is something else
    given.clear()
    once(3, {"x": 2.0})
    once(4, {"x": 1.0})
    assert len(given) == 2


def test_sampled_metrics_are_one_more_thing_to_read(small, tmp_path, capsys):
    config, folder = small
    out = {sampled: tmp_path / str(sampled) for sampled in (False, True)}
    for sampled, place in out.items():
        command.run(config, folder, place, models=["pop"], n_seeds=2, n_tries=1,
                    workers=Processes.of(1), sampled=sampled)  # fmt: skip
    assert "| sampled HR@10 | sampled NDCG@10 |" in capsys.readouterr().out
    rows = {sampled: pl.read_parquet(place / "results.parquet") for sampled, place in out.items()}
    more = rows[True].filter(pl.col("metric").str.starts_with("sampled_"))
    assert set(more["metric"]) == {"sampled_hr@10", "sampled_ndcg@10"}
    assert rows[True].join(more, on=more.columns, how="anti").equals(rows[False])
    texts = {sampled: json.loads((place / "results.json").read_text()) for sampled, place in
             out.items()}  # fmt: skip
    assert texts[True]["best_alone"] == texts[False]["best_alone"]
    for place in (out[True] / "table.md", out[True] / "table.tex", out[True] / "report.html"):
        assert "Krichene and Rendle, KDD 2020" in place.read_text()
    with pytest.raises(RunError, match="sampled: among 99 -> None"):
        command.run(config, folder, out[True], models=["pop"], n_seeds=2, n_tries=1, resume=True,
                    workers=Processes.of(1))  # fmt: skip


def test_a_model_that_fails_is_named_and_the_others_count(small, tmp_path):
    config, folder = small
    hopeless = configuration.changed(config, {"pretrain.learning_rate": 1e30})
    study = compare_models(hopeless, folder, tmp_path, models=["pop", "cat_art"], n_seeds=1,
                           n_tries=1, workers=Processes.of(1))  # fmt: skip
    assert {job.model for job in study.found} == {"pop"}
    assert {job.model for job in study.failed} == {"smf", "cat_art"}
    assert "learning_rate is probably too large" in study.failed[Job(0, "smf", "tv")]
    with pytest.raises(RunError, match="smf failed, and all else is measured against it: epoch 1"):
        results(study)


def test_one_seed_that_fails_is_in_the_report_and_the_others_are_used(small, tmp_path, capsys):
    config, folder = small
    options = {"models": ["pop", "ease"], "n_tries": 1, "workers": Processes.of(1)}
    # a result that cannot be written, in the second seed alone
    out = tmp_path / "out"
    blocked = out / "jobs" / "1" / "ease"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "compare_models", in_a_folder_with(blocked))
        message = (
            r"^2 of 12 jobs failed, the first: seed 1, ease, .* --resume tries the failed ones"
        )
        with pytest.raises(RunError, match=message):
            command.run(config, folder, out, n_seeds=2, **options)
    text = json.loads((out / "results.json").read_text())
    assert set(text["failed"]) == {"seed 1, ease, tv", "seed 1, ease, film"}
    assert "seed 1, ease, tv" in (out / "report.html").read_text()
    capsys.readouterr()
    blocked.unlink()
    command.run(config, folder, out, n_seeds=2, resume=True, **options)
    again = json.loads((out / "results.json").read_text())
    assert again["failed"] == {}
    assert again["models"]["pop"] == text["models"]["pop"]
    one, both = (
        next(c for c in found["details"]["ease"]["cells"] if c["metric"] == "ndcg@10")
        for found in (text, again)
    )
    assert one["by_seed"] == both["by_seed"][:1]
    assert len(both["by_seed"]) == 2


def in_a_folder_with(blocked):
    """`compare_models` in a folder where a file takes the place of one model's results."""

    def run(*arguments, **options):
        blocked.parent.mkdir(parents=True, exist_ok=True)
        blocked.touch()
        return compare_models(*arguments, **options)

    return run


# --- memory


def size_of(made, splits, *, dim):
    pairs = [len(part) for s in splits.values() for part in (s.train, s.valid, s.test)]
    return Size(made.splits["tv"].train.n_users, tuple(s.train.n_items for s in splits.values()),
                sum(pairs), dim, len(made.splits))  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["pop", "item_knn", "ease", "ials", "light_gcn", "smf", "smf_wide", "cmf", "mpf", "pooled_smf",
     "herograph", "herograph_l", "linear", "chosen", "pooled_ease"],
)  # fmt: skip
def test_a_model_takes_no_more_memory_than_it_says(name, monkeypatch):
    monkeypatch.setattr(ranking, "TILE_BYTES", 2**18)
    monkeypatch.setattr(needs, "TILE_BYTES", 2**18)
    model = MODELS[name]
    settings = (
        {"max_epochs": 2} if name in ("ials", "light_gcn", "herograph", "herograph_l") else {}
    )
    config = configuration.parse(
        {"dim": 64, "data": {"domains": {"tv": "a", "film": "b"}},
         "pretrain": {"max_epochs": 2, "tries": 2}}, "test",
    )  # fmt: skip
    made = {n: planted(("tv", "film"), Seed(0), n_users=n, n_items=300) for n in (600, 2000)}
    target = None if model.joint else "tv"
    # what is compiled or imported the first time does not count, so as many as are ranked alike
    for n_users in (600, 2000):
        every = made[n_users].splits
        splits = {name: every[name] for name in model.sight(every, target)}
        looked_at = validations(splits, Seed(0), n_threads=1)
        alone = smf(splits, config, unwatched, n_threads=1) if model.starts_from_smf else {}
        if n_users == 2000:
            tracemalloc.start()
        model.fit(Task(splits, looked_at, config, alone, 1, target=target), settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = model.needs(size_of(made[2000], splits, dim=64))
    assert 0 < peak <= needed


def test_a_model_that_does_not_fit_says_what_it_needs_and_the_others_go_on(
    small, tmp_path, monkeypatch
):
    config, folder = small
    large = dataclasses.replace(MODELS["ease"], needs=lambda _: 10**15)
    monkeypatch.setattr(study_module, "MODELS", {**MODELS, "ease": large})
    study = compare_models(config, folder, tmp_path, models=["ease", "pop"], n_seeds=1, n_tries=1,
                           workers=Processes.of(1))  # fmt: skip
    assert {job.model for job in study.found} == {"smf", "pop"}
    assert set(study.failed) == {Job(0, "ease", "tv"), Job(0, "ease", "film")}
    assert study.failed[Job(0, "ease", "tv")].startswith(
        "ease needs about 1,000,000,000,000,000 bytes beside "
    )
    assert not (tmp_path / "jobs" / "0" / "ease").exists()


def test_jobs_run_beside_each_other_only_as_memory_allows(monkeypatch):
    lock, running, seen = threading.Lock(), [], []
    needs = {0: 900, 1: 600, 2: 400, 3: 300, 4: 300, 5: 300}

    def run(_, job):
        with lock:
            running.append(job.seed)
            seen.append(list(running))
        time.sleep(0.02)
        with lock:
            running.remove(job.seed)

    monkeypatch.setattr(workers_module, "_run", run)
    monkeypatch.setattr(
        workers_module, "ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n)
    )
    there = {Job(seed, "pop", "tv"): needs[seed] for seed in (5, 4, 3, 2, 1, 0)}
    assert dict(Processes(3, 1000).each(None, there)) == dict.fromkeys(there)
    assert max(sum(needs[n] for n in together) for together in seen) <= 1000
    assert [together[-1] for together in seen[:2]] == [0, 1]
    assert max(map(len, seen)) == 3


@pytest.mark.parametrize("n", [0, -1])
def test_less_than_one_process_is_refused(n):
    with pytest.raises(ConfigError, match=f"jobs is {n}; use 1 or more"):
        Processes.of(n)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("8G", 2**33),
        ("512M", 2**29),
        ("2.5 GiB", 5 * 2**29),
        ("7", 7),
        ("1tb", 2**40),
        (None, None),
    ],
)
def test_a_size_of_memory_can_be_typed(text, n_bytes):
    assert command.in_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "0", "-1G", "8X", "lots", "0.1"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="give a size such as 8G or 512M"):
        command.in_bytes(text)


@pytest.mark.parametrize(
    ("names", "seeds", "tries", "message"),
    [
        (["eese"], 1, 1, r"no model 'eese'; did you mean ease\? known are pop, item_knn, ease"),
        (["cat_arts"], 1, 1, r"did you mean cat_art\?"),
        (["pop"], 0, 1, r"seeds is 0; a comparison needs at least 1"),
        (["pop"], 1, 0, r"tries is 0; a comparison needs at least 1"),
    ],
)
def test_bad_wishes_are_refused(small, names, seeds, tries, message):
    with pytest.raises(ConfigError, match=message):
        checked(names, small[0], n_seeds=seeds, n_tries=tries)


def test_without_optuna_tuning_is_refused_before_anything_is_written(small, tmp_path, monkeypatch):
    config, folder = small
    monkeypatch.setitem(sys.modules, "optuna", None)
    line = r"tuning needs optuna; install it with pip install 'musketeers\[compare\]'"
    with pytest.raises(MissingExtraError, match=line):
        checked(["pop"], config, n_seeds=1, n_tries=2)
    with pytest.raises(MissingExtraError, match=line):
        fit_run(config, folder, tmp_path / "run", only="smf", n_tries=2)
    assert not list(tmp_path.iterdir())
    # one try has the defaults, and pop has nothing to tune
    assert checked(["pop"], config, n_seeds=1, n_tries=1) == ("smf", "pop")
    assert fit_run(config, folder, tmp_path / "run", only="pop", n_tries=2).metrics["pop"]


@pytest.mark.parametrize("name", ["cat_art", "linear", "pooled_ease"])
def test_what_learns_from_others_needs_two_domains(name):
    config = configuration.parse({"data": {"domains": {"tv": "a"}}}, "test")
    with pytest.raises(ConfigError, match=f"{name} needs at least two domains"):
        checked([name], config, n_seeds=1, n_tries=1)


def test_a_domain_by_itself_is_trained_on_its_own_data_or_told_of_the_others():
    names = ["tv", "film", "book"]
    assert MODELS["ease"].sight(names, "film") == ["film"]
    for told in ("linear", "pooled_ease"):
        assert MODELS[told].sight(names, "film") == names
    for joint in ("cat_art", "items_control"):
        assert MODELS[joint].sight(names, None) == names


def test_models_are_chosen_by_name_or_as_the_paper_has_them():
    assert command.chosen("pop, ease", paper=False) == ("pop", "ease")
    assert command.chosen(None, paper=False) == tuple(MODELS)
    assert set(command.chosen(None, paper=True)) <= set(MODELS)
    with pytest.raises(ConfigError, match="--models and --paper"):
        command.chosen("pop", paper=True)
