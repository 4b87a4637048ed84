"""A time budget: what it allows, what successive halving finds with it, and that it can go on."""

import json
import math
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import pytest

import musketeers
from musketeers import config as configuration
from musketeers.budget import halving
from musketeers.budget.clock import Clock, in_seconds
from musketeers.budget.estimate import Costs
from musketeers.budget.halving import Round, halve
from musketeers.budget.recipes import Recipe, methods, recipes
from musketeers.budget.search import Search, in_words
from musketeers.data.synthetic import frames, planted
from musketeers.errors import ConfigError
from musketeers.memory import available
from musketeers.models.registry import MODELS
from musketeers.pipeline import smf, validations
from musketeers.run_files import open_run
from musketeers.runs import Quiet, fit_run
from musketeers.seeding import Seed
from musketeers.task import Task, unwatched

NAMES = ("tv", "film")
SETTINGS = {
    "seed": 3,
    "dim": 4,
    "pretrain": {"max_epochs": 20, "tries": 3},
    "cat": {"max_epochs": 4, "batch_size": 64},
    "art": {"max_epochs": 4, "batch_size": 64},
}
FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def world():
    return planted(NAMES, Seed(0), n_users=150, n_items=60, known=0.8)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    for name, frame in frames(world.domains).items():
        frame.write_parquet(place / f"{name}.parquet")
    return place


def config(**changes):
    domains = {name: f"{name}.parquet" for name in NAMES}
    data = {"domains": domains, "min_user": 2, "min_item": 2}
    return configuration.parse({**SETTINGS, "data": data, **changes}, "test")


def means(run):
    return {
        model: {name: one.means() for name, one in by_domain.items()}
        for model, by_domain in run.metrics.items()
    }


# --- the clock


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1.5h", 5400),
        ("300", 300),
        (300, 300),
        (0.5, 0.5),
        (" 2 m ", 120),
    ],
)
def test_a_time_is_read_in_its_unit(text, seconds):
    assert in_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "-5m", "five", "5 minutes", "1d", "nan", "inf", -1, "m"]
)
def test_what_is_no_time_is_refused_with_examples(text):
    with pytest.raises(
        ConfigError, match=r"budget is .*; give a time above 0 such as 90s, 5m or 1h"
    ):
        in_seconds(text)


def test_the_clock_allows_what_can_still_be_done_and_keeps_what_it_said():
    kept = []
    clock = Clock(100.0)
    clock.keep = lambda: kept.append(dict(clock.decisions))
    assert 99 < clock.left <= 100
    assert clock.allows("a", 50)
    assert not clock.allows("b", 200)
    clock.start -= 90
    assert clock.left < 11
    assert clock.allows("a", 50)
    assert not clock.allows("c", 50)
    assert kept == [{"a": True}, {"a": True, "b": False}, {"a": True, "b": False, "c": False}]
    again = Clock(0.001, dict(clock.decisions))
    assert again.allows("a", 50)


# --- the recipes


def fits(_dim):
    return True


def test_recipes_begin_with_the_settings_own_and_grow_wider():
    names = [recipe.name for recipe in recipes(config(), fits)]
    assert names == ["bpr-4", "ials-4", "ials-8", "bpr-8", "ials-16", "bpr-16"]
    by_ials = config(pretrain={"method": "ials"})
    assert [recipe.name for recipe in recipes(by_ials, fits)][:2] == ["ials-4", "bpr-4"]


def test_without_a_budget_both_methods_are_tried_at_the_settings_width():
    assert [recipe.name for recipe in methods(config())] == ["bpr-4", "ials-4"]


def test_recipes_stay_within_memory():
    found = recipes(config(), lambda dim: dim <= 8)
    assert [recipe.name for recipe in found] == ["bpr-4", "ials-4", "ials-8", "bpr-8"]


def test_a_recipe_changes_method_and_width_and_leaves_given_vectors_alone():
    found = Recipe("ials", 8).of(config())
    assert (found.dim, found.pretrain.method) == (8, "ials")
    mixed = config(
        pretrain={"method": {"tv": "given", "film": "bpr"}, "given": {"tv": {"users": "u"}}}
    )
    assert Recipe("ials", 8).of(mixed).pretrain.method == {"tv": "given", "film": "ials"}
    own = recipes(mixed, fits)[0]
    assert own.name == "settings-4"
    assert own.of(mixed) == mixed
    both = {"tv": {"users": "u"}, "film": {"users": "f"}}
    assert len(recipes(config(pretrain={"method": "given", "given": both}), fits)) == 1


# --- halving


def halved(world, clock, costs=FREE, rounds=()):
    heard, found, tried = [], list(rounds), []

    def trial(name, max_epochs):
        if max_epochs:
            tried.append((name, max_epochs))
        else:
            assert name == "round"
        return nullcontext(unwatched)

    looked_at = validations(world.splits, Seed(3), n_threads=1)
    task = Task(world.splits, looked_at, config(), {}, n_threads=1, max_bytes=10**9)
    recipe = halve(
        recipes(config(), fits), task, clock, costs, found,
        trial=trial, on_round=heard.append,
    )  # fmt: skip
    assert heard == found[len(rounds) :]
    return recipe, found, tried


def test_the_better_half_goes_on_for_twice_as_many_looks(world):
    recipe, rounds, tried = halved(world, Clock(1e9))
    assert [one.looks for one in rounds] == [2, 4, 8]
    assert [len(one.valid) for one in rounds] == [6, 3, 2]
    for before, after in pairwise(rounds):
        assert set(after.valid) == set(list(before.valid)[: len(after.valid)])
    for one in rounds:
        values = list(one.valid.values())
        assert values == sorted(values, reverse=True)
        assert all(0 < value < 1 for value in values)
    assert len(set(rounds[0].valid.values())) > 1
    assert recipe.name == next(iter(rounds[-1].valid))
    # iALS looks after each epoch, BPR after three
    assert {epochs for name, epochs in tried[:6] if name.startswith("ials")} == {2}
    assert {epochs for name, epochs in tried[:6] if name.startswith("bpr")} == {6}
    assert halved(world, Clock(1e9))[:2] == (recipe, rounds)


def test_finished_rounds_are_not_trained_again(world):
    recipe, rounds, tried = halved(world, Clock(1e9))
    again, same, fewer = halved(world, Clock(1e9), rounds=rounds[:2])
    assert (again, same) == (recipe, rounds)
    assert fewer == tried[9:]


def test_without_time_the_settings_own_recipe_is_taken(world):
    recipe, rounds, tried = halved(world, Clock(10.0), Costs(100.0, 0.0, 0.0, 0.0, 0.0))
    assert (recipe.name, rounds, tried) == ("bpr-4", [], [])


def test_a_recipe_whose_fit_would_come_too_late_is_not_tried(world):
    # a fit with vectors of 4 costs 30 seconds of a 100, one of 8 costs 60, one of 16 120
    _, rounds, _ = halved(world, Clock(100.0), Costs(0.0, 0.0, 30.0, 0.0, 0.0))
    assert set(rounds[0].valid) == {"bpr-4", "ials-4", "ials-8", "bpr-8"}


def test_rounds_that_time_did_not_allow_leave_the_best_of_the_last(world):
    late = {
        f"{name}, 4 looks": False
        for name in ("bpr-4", "ials-4", "ials-8", "bpr-8", "ials-16", "bpr-16")
    }
    recipe, rounds, _ = halved(world, Clock(1e9, late))
    assert [one.looks for one in rounds] == [2]
    assert recipe.name == next(iter(rounds[0].valid))


def test_the_best_recipe_whose_fit_can_end_in_time_is_taken(world):
    _, rounds, _ = halved(world, Clock(1e9))
    best, second = rounds[-1].valid
    late = {f"a fit by {best}": False}
    # the better half of two is one: the settings' own way is left
    assert halved(world, Clock(1e9, late))[0].name == "bpr-4"
    third = {f"{name}, 8 looks": False for name in (best, second)}
    assert halved(world, Clock(1e9, {**late, **third}))[0].name == second


# --- a fit


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return fit_run(
        config(), folder, tmp_path_factory.mktemp("runs") / "run", threads=1, budget="5h"
    )


def test_a_fit_takes_the_recipe_that_was_found_and_says_so(run):
    rounds = run.learning.rounds
    method, dim = next(iter(rounds[-1].valid)).split("-")
    assert (run.config.pretrain.method, run.config.dim) == (method, int(dim))
    assert run.stages.alone["tv"].factors.users.shape[1] == int(dim)
    assert open_run(run.path).learning.rounds == rounds
    assert run.manifest["settings"]["dim"] == 4
    assert run.manifest["data"]["budget"] == "18000s"
    page = (run.path / "report.html").read_text()
    assert "How the domains learn alone" in page
    assert f"{method}-{dim}<small>taken</small>" in page
    assert not (run.path / "checkpoints").exists()


def test_a_fit_by_the_settings_found_is_bitwise_the_same(run, folder, tmp_path):
    assert run.config == configuration.load(run.path / "config.toml")
    plain = fit_run(run.config, folder, tmp_path / "plain", threads=1)
    assert means(plain) == means(run)
    assert plain.recommender.about == run.recommender.about
    for name in NAMES:
        one, other = (found.stages.alone[name].factors for found in (plain, run))
        assert one.users.tobytes() == other.users.tobytes()
        assert one.items.tobytes() == other.items.tobytes()


def test_a_finished_run_is_given_back_without_an_estimate(run, folder):
    class Busy(Quiet):
        def stage(self, *_, **__):
            raise AssertionError("something is trained")

    again = fit_run(config(), folder, run.path, threads=1, budget="5h", resume=True, watch=Busy())
    assert again.learning.rounds == run.learning.rounds
    assert means(again) == means(run)


def test_in_memory_it_is_the_same(run, world):
    settings = {**SETTINGS, "data": {"min_user": 2, "min_item": 2}}
    found = musketeers.fit(frames(world.domains), threads=1, budget=18000, **settings)
    assert found.learning.rounds == run.learning.rounds
    assert means(found) == means(run)


class Killed(Exception):
    """What ends a run at once."""


class Killing(Quiet):
    """Ends it in the middle of a trial, or of a stage, when it comes the n-th time."""

    def __init__(self, name, times):
        self._name, self._times = name, times

    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        if stage == self._name:
            self._times -= 1
        if self._times:
            yield lambda _: None
        else:
            yield self._end

    def _end(self, epoch):
        raise Killed


@pytest.mark.parametrize(
    ("name", "times"), [("ials-8", 1), ("second", 2), ("pretrain", 1), ("art", 2)]
)
def test_an_interrupted_search_goes_on_to_the_same_result(run, folder, tmp_path, name, times):
    # the second round is that of whoever came first in the first
    name = next(iter(run.learning.rounds[0].valid)) if name == "second" else name
    place = tmp_path / "run"
    with pytest.raises(Killed):
        fit_run(config(), folder, place, threads=1, budget="5h", watch=Killing(name, times))
    remembered = json.loads((place / "checkpoints" / "search.json").read_text())
    assert remembered["decisions"]
    assert math.isclose(remembered["seconds"], 18000)
    found = fit_run(config(), folder, place, threads=1, budget="5h", resume=True)
    assert found.learning.rounds == run.learning.rounds
    assert means(found) == means(run)


# --- a fit without a budget


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    return fit_run(config(), folder, tmp_path_factory.mktemp("runs") / "plain", threads=1)


def test_a_fit_finds_out_whether_bpr_or_ials(plain):
    (only,) = plain.learning.rounds
    assert set(only.valid) == {"bpr-4", "ials-4"}
    assert f"{plain.config.pretrain.method}-{plain.config.dim}" == next(iter(only.valid))
    assert plain.manifest["settings"]["pretrain"]["method"] == "auto"
    assert "budget" not in plain.manifest["data"]
    assert "How the domains learn alone" in (plain.path / "report.html").read_text()


def test_the_method_found_gives_the_same_bits_without_a_search(plain, folder, tmp_path):
    told = fit_run(plain.config, folder, tmp_path / "told", threads=1)
    assert told.learning.rounds == ()
    assert "How the domains learn alone" not in (told.path / "report.html").read_text()
    assert means(told) == means(plain)
    one, other = (found.stages.alone["tv"].factors for found in (plain, told))
    assert one.users.tobytes() == other.users.tobytes()


@pytest.mark.parametrize(("name", "times"), [("ials-4", 1), ("pretrain", 1)])
def test_an_interrupted_fit_goes_on_with_the_method_it_found(plain, folder, tmp_path, name, times):
    place = tmp_path / "run"
    with pytest.raises(Killed):
        fit_run(config(), folder, place, threads=1, watch=Killing(name, times))
    found = fit_run(config(), folder, place, threads=1, resume=True)
    assert found.learning.rounds == plain.learning.rounds
    assert means(found) == means(plain)


def test_one_model_alone_learns_by_bpr(folder, tmp_path):
    found = fit_run(config(), folder, tmp_path / "auto", threads=1, only="smf")
    assert found.learning.rounds == ()
    by_bpr = config(pretrain={**SETTINGS["pretrain"], "method": "bpr"})
    assert means(found) == means(fit_run(by_bpr, folder, tmp_path / "bpr", threads=1, only="smf"))


@pytest.mark.parametrize("better", ["bpr-4", "ials-4", None])
def test_what_a_comparison_calls_chosen_is_what_a_fit_serves(world, monkeypatch, better):
    """Whichever method is the better one, and where both search."""
    if better:
        monkeypatch.setattr(Search, "run", lambda _, to_try, *__, **___: _named(to_try, better))
    settings = {**SETTINGS, "data": {"min_user": 2, "min_item": 2}}
    fit = musketeers.fit(frames(world.domains), threads=1, **settings)
    whole = config()
    looked_at = validations(fit.splits, Seed(3), n_threads=1)
    by_bpr = smf(fit.splits, whole, unwatched, n_threads=1)
    task = Task(fit.splits, looked_at, whole, by_bpr, n_threads=1, max_bytes=available())
    made = MODELS["chosen"].fit(task, {})
    assert {name: one.verdict for name, one in made.items()} == fit.learning.verdicts
    assert better is None or fit.config.pretrain.method == better.removesuffix("-4")


@pytest.mark.parametrize(("name", "times"), [("ials-4", 2), ("ials-4, whole", 1), ("art", 1)])
def test_the_choice_alone_goes_on_with_the_method_it_found(
    folder, tmp_path, monkeypatch, name, times
):
    # on these data iALS has to be helped, for its training to the end to be interrupted
    monkeypatch.setattr(halving, "_values", ials_first)
    whole = fit_run(config(), folder, tmp_path / "whole", threads=1, only="chosen")
    place = tmp_path / "run"
    with pytest.raises(Killed):
        fit_run(config(), folder, place, threads=1, only="chosen", watch=Killing(name, times))
    found = fit_run(config(), folder, place, threads=1, only="chosen", resume=True)
    assert means(found) == means(whole)


def ials_first(learned, _task):
    """For trainings of as many epochs as a trial has; of longer ones BPR."""
    brief = all(
        len(one.epochs) <= 3
        for recipe, alone in learned.items() if recipe.method == "ials"
        for made in alone.values() for one in made.history
    )  # fmt: skip
    return {recipe: float((recipe.method == "ials") == brief) for recipe in learned}


def _named(recipes, name):
    return next(recipe for recipe in recipes if recipe.name == name)


def test_a_budget_too_short_says_what_is_needed_and_writes_nothing(folder, tmp_path):
    with pytest.raises(
        ConfigError, match=r"budget is 0\.01s, but a fit .* takes about .*; give at least"
    ):
        fit_run(config(), folder, tmp_path / "run", threads=1, budget="0.01s")
    assert not (tmp_path / "run").exists()


def test_a_budget_is_for_a_whole_fit(folder, tmp_path):
    with pytest.raises(ConfigError, match="smf alone is asked for"):
        fit_run(config(), folder, tmp_path / "run", threads=1, budget="5m", only="smf")


def test_one_domain_alone_has_recipes_too(world):
    only = {"tv": frames(world.domains)["tv"]}
    settings = {**SETTINGS, "data": {"min_user": 2, "min_item": 2}}
    found = musketeers.fit(only, threads=1, budget="5h", **settings)
    assert [len(one.valid) for one in found.learning.rounds] == [6, 3, 2]
    assert found.recommender.about["model"]["tv"] in ("smf", "ease", "ease+smf")


def test_a_round_reads_well():
    words = in_words(Round(4, {"ials-8": 0.25, "bpr-4": 0.2}))
    assert words == "round    4 looks     NDCG@10 ials-8 0.2500, bpr-4 0.2000"
