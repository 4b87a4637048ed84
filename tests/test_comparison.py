"""The comparison: equal tuning, what jobs find together, tables, files, and what fails."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from musketeers import config as configuration
from musketeers.comparison import command, files, jobs, models, page, tables
from musketeers.comparison.jobs import Found, Job, Plan
from musketeers.comparison.models import MODELS
from musketeers.comparison.results import results
from musketeers.comparison.space import Choice, Range
from musketeers.comparison.study import Study, checked, compare_models
from musketeers.comparison.tuning import tune
from musketeers.data.synthetic import planted
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError, DivergedError, RunError
from musketeers.evaluation.compare import compare, holm
from musketeers.evaluation.evaluate import PerUser
from musketeers.seeding import Seed

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
        models, name, lambda *args, dim: given.append(args[2]) or SimpleNamespace(factors={})
    )
    config = configuration.parse({"data": {"domains": {"a": "a", "b": "b"}}}, "test")
    space = MODELS[name].space
    lowest = {
        key: bounds.values[-1] if isinstance(bounds, Choice) else bounds.low
        for key, bounds in space.items()
    }
    MODELS[name].fit(models.Task({}, {}, config, {}, 1), lowest)
    found = dataclasses.asdict(given[0])
    found |= found.pop("graph")
    assert {key: found[key] for key in space} == lowest
    MODELS[name].fit(models.Task({}, {}, config, {}, 1), {})
    assert given[1] == type(given[1])()


# --- what jobs find together


def per_user(*values, users=None):
    values = np.array(values, dtype=float)
    rows = np.arange(len(values)) if users is None else np.array(users)
    return PerUser(rows, {"ndcg@10": values, "recall@10": values / 2})


def study_of(found, *, n_seeds=2, failed=None):
    """`found`: (seed, model, domain) -> values of the users."""
    config = configuration.parse({"data": {"domains": {"tv": "a", "film": "b"}}}, "test")
    jobs_found = {
        Job(seed, model, domain): Found(
            {domain: per_user(*values)}, {domain: float(np.mean(values))},
            {"settings": {}, "tries": [{"seconds": 2.0}]},
        )
        for (seed, model, domain), values in found.items()
    }  # fmt: skip
    names = tuple(dict.fromkeys(model for _, model, _ in found))
    return Study(config, names, n_seeds, 3, jobs_found, failed or {})


RNG = np.random.default_rng(0)
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
    assert "<i>" not in page.render(study, found)


def test_the_page_shows_every_model_and_what_failed():
    study = study_of(FOUND, failed={Job(1, "cat_art", None): "no memory <now>"})
    text = page.render(study, results(study))
    assert "no memory &lt;now&gt;" in text
    for name in ("SMF", "Popularity", "CAT-ART"):
        assert f'<th scope="row">{name}</th>' in text
    assert 'class="worse">▼' in text
    assert text.count("<table") == 2 + 2 + 1
    assert "<script" not in text
    assert "http" not in text


def test_the_files_hold_every_number(tmp_path):
    study = study_of(FOUND)
    found = results(study)
    users = Vocabulary.of(pl.Series([f"u{n:02}" for n in range(60)]))
    files.write(tmp_path, study, found, users)
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
    assert "NaN" not in (tmp_path / "results.json").read_text()
    assert (tmp_path / "table.md").read_text() == tables.markdown(found)


# --- the whole


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings of two planted domains, in a folder with their files."""
    folder = tmp_path_factory.mktemp("data")
    made = planted(("tv", "film"), Seed(0), n_users=80, n_items=40, dim=3)
    for name, part in made.splits.items():
        pairs = [
            (user, item)
            for table in (part.train, part.valid, part.test)
            for user in range(table.n_users)
            for item in table.of(user).tolist()
        ]
        frame = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
        frame.write_parquet(folder / f"{name}.parquet")
    settings = {
        "dim": 6,
        "data": {"domains": {"tv": "tv.parquet", "film": "film.parquet"}},
        "pretrain": {"max_epochs": 3, "halvings": 0, "regularization": 0.05},
        "cat": {"max_epochs": 2},
        "art": {"max_epochs": 2},
    }
    return configuration.parse(settings, "test"), folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_comparison_from_files_to_files(small, tmp_path, capsys):
    config, folder = small
    out = tmp_path / "out"
    command.run(config, folder, out, models=["pop", "cat_art"], n_seeds=1, n_tries=2,
                n_processes=2)  # fmt: skip
    text = json.loads((out / "results.json").read_text())
    assert set(text["models"]) == {"smf", "pop", "cat_art"}
    assert text["failed"] == {}
    tries = text["details"]["cat_art"]["tuning"][0]["tries"]
    assert [len(tried["settings"]) > 0 for tried in tries] == [False, True]
    assert capsys.readouterr().out.startswith("| Model | Domain |")
    before = contents(out)
    with pytest.raises(RunError, match="finished run, never overwritten"):
        command.run(config, folder, out, models=["pop", "cat_art"], n_seeds=1, n_tries=2)
    command.run(config, folder, out, models=["pop", "cat_art"], n_seeds=1, n_tries=2, resume=True)
    assert contents(out) == before
    # in one process, in another folder: the same numbers
    plan = Plan(configuration.dump(config), folder, tmp_path / "again", 2, 1)
    for wave in jobs.jobs_of(("smf", "cat_art"), ["tv", "film"], 1):
        for job in wave:
            jobs.run(plan, job)
            one, other = jobs.found(out, job), jobs.found(plan.out, job)
            for domain, measured in one.metrics.items():
                for name, values in measured.values.items():
                    np.testing.assert_array_equal(values, other.metrics[domain].values[name])


def test_an_interrupted_comparison_goes_on_where_it_stopped(small, tmp_path):
    config, folder = small
    kept = {}
    for _ in range(2):
        study = compare_models(config, folder, tmp_path, models=["pop"], n_seeds=1, n_tries=1,
                               n_processes=1)  # fmt: skip
        assert not study.failed
        times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("manifest.json")}
        assert len(times) == 4
        assert not kept or kept == times
        kept = times


def test_a_model_that_fails_is_named_and_the_others_count(small, tmp_path):
    config, folder = small
    hopeless = configuration.changed(config, {"pretrain.learning_rate": 1e30})
    study = compare_models(hopeless, folder, tmp_path, models=["pop", "cat_art"], n_seeds=1,
                           n_tries=1, n_processes=1)  # fmt: skip
    assert {job.model for job in study.found} == {"pop"}
    assert {job.model for job in study.failed} == {"smf", "cat_art"}
    assert "learning_rate is probably too large" in study.failed[Job(0, "smf", "tv")]
    with pytest.raises(RunError, match="smf failed, and all else is measured against it: epoch 1"):
        results(study)


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


def test_joint_models_need_two_domains():
    config = configuration.parse({"data": {"domains": {"tv": "a"}}}, "test")
    with pytest.raises(ConfigError, match="cat_art needs at least two domains"):
        checked(["cat_art"], config, n_seeds=1, n_tries=1)


def test_models_are_chosen_by_name_or_as_the_paper_has_them():
    assert command.chosen("pop, ease", paper=False) == ("pop", "ease")
    assert command.chosen(None, paper=False) == tuple(MODELS)
    assert set(command.chosen(None, paper=True)) <= set(MODELS)
    with pytest.raises(ConfigError, match="--models and --paper"):
        command.chosen("pop", paper=True)
