"""From files to a finished run folder and back; and the same in memory."""

import io
import json
import tomllib
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import musketeers
from musketeers import config as configuration
from musketeers import disk, runs, scorers
from musketeers.comparison.jobs import Job
from musketeers.comparison.study import compare_models
from musketeers.comparison.workers import Processes
from musketeers.config import ArtConfig
from musketeers.data.synthetic import frames, planted
from musketeers.errors import ArtifactError, ConfigError, RunError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.models.registry import MODELS
from musketeers.report import tables as tables_of
from musketeers.runs import Quiet, evaluate_run, fit_run
from musketeers.seeding import Seed

METRICS = ["precision@10", "recall@10", "ndcg@10", "precision@20", "recall@20", "ndcg@20"]
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


def tables(names=("tv", "film", "music")):
    data = planted(names, Seed(0), n_users=120, n_items=40, known=0.7, common=0.9)
    return frames(data.domains)


def settings(folder, names=("tv", "film", "music")):
    """Settings for files that are written to `folder`."""
    for name, frame in tables(names).items():
        frame.write_parquet(folder / f"{name}.parquet")
    domains = {name: f"{name}.parquet" for name in names}
    return configuration.parse({**SETTINGS, "data": {**COLUMNS, "domains": domains}}, "test")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run; tests may read it."""
    folder = tmp_path_factory.mktemp("finished")
    return fit_run(settings(folder), folder, folder / "run", threads=1, command=["fit", "x.toml"])


class Listening:
    """A `Watch` that notes what it hears."""

    def __init__(self):
        self.lines, self.stages = [], []

    rows = Quiet().rows

    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        numbers = []
        yield lambda epoch: numbers.append(epoch.number)
        self.stages.append((stage, domain, samples, max_epochs, numbers))

    def say(self, line):
        self.lines.append(line)


def same_metrics(one, other):
    assert one.keys() == other.keys()
    for model in one:
        assert list(one[model]) == list(other[model])
        for domain, found in one[model].items():
            np.testing.assert_array_equal(found.users, other[model][domain].users)
            for name, values in found.values.items():
                assert values.tobytes() == other[model][domain].values[name].tobytes()


def shown(found):
    screen = io.StringIO()
    Console(file=screen, width=200).print(tables_of.of_run(found))
    return screen.getvalue()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_it_should(done):
    names = {str(path.relative_to(done.path)) for path in done.path.rglob("*") if path.is_file()}
    stages = ["cat", "data", "choice", *(f"{s}/{n}" for s in ("pretrain", "art") for n in tables())]
    artifacts = {f"{s}/{f}" for s in stages for f in ("manifest.json", "tensors.safetensors")}
    model = {f"model/{f}" for f in ("manifest.json", "tensors.safetensors", "users.parquet")}
    model |= {f"model/items-{name}.parquet" for name in tables()}
    own = {"config.toml", "manifest.json", "metrics.json", "metrics.parquet", "report.html"}
    assert names == own | artifacts | model | {".lock"}


def test_the_saved_settings_are_complete_and_fit_the_same_again(done):
    text = (done.path / "config.toml").read_text()
    assert tomllib.loads(text)["split"] == {
        "method": "random", "test": 0.2, "valid": 0.16, "cold": 0.0,
    }  # fmt: skip
    assert configuration.load(done.path / "config.toml") == done.config


def test_the_manifest_says_where_the_run_comes_from(done):
    manifest = json.loads((done.path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["seed"] == 3
    assert manifest["threads"] == 1
    assert manifest["command"] == ["fit", "x.toml"]
    assert manifest["resumed"] == []
    assert manifest["versions"].keys() >= {"musketeers", "numpy", "torch"}
    assert manifest["data"].keys() == {*(f"{n}, pairs" for n in tables()), "models"}
    assert all(len(manifest["data"][f"{name}, pairs"]) == 64 for name in tables())
    stages = {f"{s}/{n}" for s in ("pretrain", "art") for n in tables()}
    choices = {f"choice/{n}" for n in tables()}
    ends = {"read", "split", "cat/all", "evaluate", "save"}
    assert manifest["seconds"].keys() == stages | choices | ends
    assert manifest["peak_bytes"].keys() == manifest["seconds"].keys()
    assert manifest["peak_memory_bytes"] >= max(manifest["peak_bytes"].values())
    assert min(manifest["peak_bytes"].values()) > 1 << 20


def test_the_means_are_those_of_the_users(done):
    found = json.loads((done.path / "metrics.json").read_text())
    assert found.keys() == {"format", "split", "models", "chosen"}
    assert (found["format"], found["split"]) == (1, "test")
    assert list(found["models"])[:3] == ["pop", "smf", "cat_art"]
    assert set(found["models"]) == {"pop", "smf", "cat_art", *found["chosen"].values()}
    frame = pl.read_parquet(done.path / "metrics.parquet")
    assert frame.schema == {
        "model": pl.String, "domain": pl.String, "user_id": pl.String,
        "metric": pl.String, "value": pl.Float64,
    }  # fmt: skip
    rows = 0
    for model, domains in found["models"].items():
        served = [name for name in tables() if found["chosen"][name] == model]
        assert list(domains) == (list(tables()) if model in runs.STAGED else served)
        for domain, means in domains.items():
            assert list(means) == ["users", *METRICS]
            assert means["users"] == done.splits[domain].test.known_users().sum()
            for metric in METRICS:
                cell = frame.filter(model=model, domain=domain, metric=metric)
                assert cell["user_id"].n_unique() == len(cell) == means["users"]
                assert means[metric] == pytest.approx(cell["value"].mean(), rel=1e-12)
                rows += len(cell)
    assert rows == len(frame)


def test_the_report_stands_by_itself(done):
    page = (done.path / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert all(name in page for name in tables())
    assert "src=" not in page


def test_in_memory_is_bitwise_the_same_as_in_a_folder(done, tmp_path):
    given = tables()
    kept = {name: frame.clone() for name, frame in given.items()}
    result = musketeers.fit(given, threads=1, data=COLUMNS, **SETTINGS)
    assert result.path is None
    assert result.manifest == {}
    same_metrics(result.metrics, done.metrics)
    assert all(given[name].equals(frame) for name, frame in kept.items())
    for name, model in result.recommender.domains.items():
        saved = done.recommender.domains[name]
        assert {part: array.tobytes() for part, array in scorers.arrays(model.scorer).items()} == {
            part: array.tobytes() for part, array in scorers.arrays(saved.scorer).items()
        }
    assert result.learning.verdicts == done.learning.verdicts
    assert result.learning.regularization == done.learning.regularization
    assert result.learning.kept == done.learning.kept
    assert result.learning.attention == done.learning.attention
    result.recommender.save(tmp_path / "model")
    again = musketeers.Recommender.load(tmp_path / "model")
    users = given["tv"]["user_id"].unique().sort()
    assert again.recommend("tv", users).equals(done.recommender.recommend("tv", users))


def test_measuring_the_saved_models_gives_the_saved_numbers(done):
    before = contents(done.path)
    same_metrics(evaluate_run(done.path, threads=1).metrics, done.metrics)
    same_metrics(evaluate_run(done.path, threads=2).metrics, done.metrics)
    assert contents(done.path) == before


def test_a_transfer_without_attention_comes_back_as_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "is_better", lambda *_: True)
    config = settings(tmp_path)
    config = config.model_copy(update={"art": ArtConfig(sources="none", max_epochs=2)})
    fit_run(config, tmp_path, tmp_path / "run", threads=1, command=["fit", "x.toml"])
    learning = musketeers.open_run(tmp_path / "run").learning
    assert learning.kept == dict.fromkeys(tables(), True)
    assert learning.attention == {name: {} for name in tables()}


def test_what_was_learned_comes_back(done):
    learning = done.learning
    assert learning.histories.keys() == {"pretrain", "cat", "art"}
    assert learning.histories["cat"].keys() == {"all"}
    for stage in ("pretrain", "art"):
        assert learning.histories[stage].keys() == set(tables())
    assert all(0.035 <= strength <= 0.07 for strength in learning.regularization.values())
    for name, part in done.recommender.domains.items():
        assert not part.transfers
        assert (part.cold is None) == (learning.verdicts[name].cold is None)
        assert done.recommender.about["model"][name] == learning.verdicts[name].chosen.kind
    for name, attention in learning.attention.items():
        assert attention.keys() == (set(tables()) - {name} if learning.kept[name] else set())
    assert len(done.differences()) == len(tables()) * len(METRICS)


def test_the_watch_hears_of_every_fit(tmp_path):
    heard = Listening()
    fit_run(settings(tmp_path), tmp_path, tmp_path / "run", threads=1, watch=heard)
    names = list(tables())
    expected = [("pretrain", n) for n in names] + [("cat", None)] + [("art", n) for n in names]
    assert [stage[:2] for stage in heard.stages] == expected + [("choice", n) for n in names]
    for stage, _, samples, max_epochs, numbers in heard.stages[: len(expected)]:
        assert samples > 0
        assert max_epochs == SETTINGS[stage]["max_epochs"]
        assert numbers[0] == 0
        assert max(numbers) <= max_epochs
    for _, _, _, max_epochs, numbers in heard.stages[len(expected) :]:
        assert max_epochs == 0
        assert numbers == list(range(1, len(numbers) + 1)) != []


def test_one_domain_is_fitted_alone_and_says_so(tmp_path):
    heard = Listening()
    alone = fit_run(settings(tmp_path, ("tv",)), tmp_path, tmp_path / "run", threads=1, watch=heard)
    assert any("tv is the only domain: it learns alone" in line for line in heard.lines)
    (verdict,) = alone.learning.verdicts.values()
    assert verdict.told is None
    assert verdict.chosen.kind in ("smf", "ease", "ease+smf")
    assert list(alone.metrics) == list(dict.fromkeys(["pop", "smf", verdict.chosen.kind]))
    assert alone.recommender.about["model"] == {"tv": verdict.chosen.kind}
    assert "the best that it can do alone" in shown(alone)
    assert not (alone.path / "cat").exists()
    in_memory = musketeers.fit(tables(("tv",)), threads=1, data=COLUMNS, **SETTINGS)
    same_metrics(in_memory.metrics, alone.metrics)


@pytest.fixture(scope="module")
def with_cold(tmp_path_factory):
    """A finished run that held the histories of some users back."""
    folder = tmp_path_factory.mktemp("cold")
    config = configuration.changed(settings(folder), {"split.cold": 0.2})
    return fit_run(config, folder, folder / "run", threads=1)


def test_cold_users_are_measured_by_themselves(with_cold):
    again = musketeers.open_run(with_cold.path)
    measured = evaluate_run(with_cold.path, threads=1)
    text = json.loads((with_cold.path / "metrics.json").read_text())["cold"]
    assert set(with_cold.cold) >= {"pop", "cat_art"}
    for found in (again, measured):
        same_metrics(found.cold, with_cold.cold)
        same_metrics(found.metrics, with_cold.metrics)
    for model, domains in with_cold.cold.items():
        for name, per_user in domains.items():
            split = with_cold.splits[name]
            assert text[model][name]["ndcg@10"] == pytest.approx(per_user.values["ndcg@10"].mean())
            # nobody is both: measured here, trained on or measured above
            cold = split.cold.history.known_users()
            assert cold[per_user.users].all()
            assert not (cold & split.train.known_users()).any()
            assert not cold[with_cold.metrics["smf"][name].users].any()
    shown_there = shown(with_cold)
    page = (with_cold.path / "report.html").read_text()
    assert "Cold users" in shown_there
    assert "<h2>Cold users</h2>" in page
    assert len(with_cold.cold_differences()) == len(tables()) * len(METRICS)


def test_cold_users_are_served_as_measured(with_cold):
    model = with_cold.recommender
    for name, kind in with_cold.serves_cold().items():
        split, per_user = with_cold.splits[name], with_cold.cold[kind][name]
        answer = model.recommend(name, model.users.ids(per_user.users), k=10)
        strategies = set(answer["strategy"])
        assert strategies == ({"popular"} if kind == "pop" else {"cross_domain"})
        if kind != "pop":
            # all that they are known to have is left out here, so compare the whole lists
            scorer = model.domains[name].cold
            found = evaluate(scorer, split.cold.test, split.cold.history, n_threads=1)
            np.testing.assert_array_equal(found.values["ndcg@10"], per_user.values["ndcg@10"])


def test_without_cold_users_nothing_is_said_of_them(done):
    assert done.cold == {}
    assert done.cold_differences() == {}
    assert "cold" not in json.loads((done.path / "metrics.json").read_text())
    assert not (done.path / "cold.parquet").exists()
    assert "Cold users" not in (done.path / "report.html").read_text()


def test_only_trains_and_measures_one_model(done, tmp_path):
    chosen = settings(tmp_path)
    for model, stages in (("pop", []), ("smf", ["pretrain"]), ("cat_art", ["art", "pretrain"])):
        found = fit_run(chosen, tmp_path, tmp_path / model, threads=1, only=model)
        assert list(found.metrics) == [model]
        same_metrics(found.metrics, {model: done.metrics[model]})
        assert [s for s in ("art", "pretrain") if (found.path / s).exists()] == stages
        assert found.recommender.about["model"] == dict.fromkeys(tables(), model)
        same_metrics(evaluate_run(found.path, threads=1).metrics, found.metrics)


def test_what_was_chosen_is_said_on_screen_and_on_the_page(tmp_path):
    names, heard = ("tv", "film"), Listening()
    found = fit_run(
        settings(tmp_path, names), tmp_path, tmp_path / "run", threads=1, only="chosen", watch=heard
    )
    assert [stage[:2] for stage in heard.stages][-2:] == [("choice", name) for name in names]
    assert set(found.learning.verdicts) == set(names)
    screen, page = shown(found), (found.path / "report.html").read_text()
    for name, verdict in found.learning.verdicts.items():
        assert f"{name}: {verdict.chosen.name}" in screen
        for side in (verdict.own, verdict.told):
            assert f"<td>{side.name}</td><td>{side.valid:.4f}</td>" in page
        best = (verdict.cold.name, verdict.cold.valid) if verdict.cold else (
            "what is popular", verdict.popular
        )  # fmt: skip
        assert f"<td>{best[0]}</td><td>{best[1]:.4f}</td><td>{verdict.popular:.4f}</td>" in page
    # what has no epochs has no curves, and no heading over nothing
    assert "<h3>Chosen head</h3>" not in page
    plain = fit_run(settings(tmp_path, names), tmp_path, tmp_path / "pop", threads=1, only="pop")
    assert plain.learning.verdicts == {}
    assert "What was chosen" not in (plain.path / "report.html").read_text()


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_fitted_saved_and_asked(model, tmp_path):
    """None is a special case: what was measured is what is saved, and what recommends."""
    names = ("tv", "film")
    found = fit_run(settings(tmp_path, names), tmp_path, tmp_path / "run", threads=1, only=model)
    assert list(found.metrics) == [model]
    same_metrics(evaluate_run(found.path, threads=1).metrics, found.metrics)
    users = found.recommender.users.values
    strategies = set()
    for name in names:
        answer = found.recommender.recommend(name, users, k=5)
        assert (answer.group_by("user_id").len()["len"] == 5).all()
        assert answer["score"].is_finite().all()
        stranger = found.recommender.recommend(name, ["nobody"], k=1)
        assert stranger["strategy"].to_list() == ["popular"]
        strategies |= set(answer["strategy"])
    sees = MODELS[model].sees
    if sees != "user embeddings":  # whose transfer may have been refused
        assert ("cross_domain" in strategies) == (sees == "all raw data")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison, and the folder of its data."""
    folder = tmp_path_factory.mktemp("compared")
    config = configuration.changed(settings(folder, ("tv", "film")), {"seed": 1})
    models = ["ease", "mpf", "cat_art", "items_control"]
    return compare_models(
        config,
        folder,
        folder / "study",
        models=models,
        n_seeds=2,
        n_tries=3,
        workers=Processes.of(1),
    ), folder


@pytest.mark.parametrize("model", ["smf", "ease", "mpf", "cat_art", "items_control"])
def test_what_a_comparison_found_can_be_fitted_again(model, compared, tmp_path):
    study, folder = compared
    heard = Listening()
    found = fit_run(
        study.config, folder, tmp_path / "run", threads=1, only=model, n_tries=3, watch=heard
    )
    for name, per_user in found.metrics[model].items():
        job = Job(1, model, None if MODELS[model].joint else name)
        for metric, values in study.found[job].metrics[name].values.items():
            np.testing.assert_array_equal(per_user.values[metric], values)
        where = job.domain or "all"
        assert found.recommender.about["settings"][where] == study.found[job].about["settings"]
        tried = [(one["settings"], one["valid"]) for one in study.found[job].about["tries"]]
        assert [(one.settings, one.valid) for one in found.learning.tries[where]] == tried
    said = [line for line in heard.lines if line.startswith(f"{model} ")]
    assert len(said) == 3 * len(found.learning.tries)
    assert "What was tuned" in (found.path / "report.html").read_text()
    same_metrics(evaluate_run(found.path, threads=1).metrics, found.metrics)


def test_a_model_larger_than_the_memory_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "available", lambda: 10**6)
    with pytest.raises(
        ConfigError, match=r"ease needs about [\d,]+ bytes beside [\d,]+ of its proc"
    ):
        fit_run(settings(tmp_path), tmp_path, tmp_path / "run", threads=1, only="ease")


@pytest.mark.parametrize("only", [None, "cat_art", "smf"])
def test_a_fit_larger_than_memory_or_disk_is_refused_before_it_starts(only, tmp_path, monkeypatch):
    def fit():
        fit_run(settings(tmp_path), tmp_path, tmp_path / "run", threads=1, only=only)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "available", lambda: 10**6)
        with pytest.raises(ConfigError, match=r"needs about 0\.\d GB of memory .* close other"):
            fit()
    monkeypatch.setattr(disk, "free", lambda _: 10**3)
    with pytest.raises(
        ConfigError, match=r"run: about 0\.\d GB are to be written and its disk has"
    ):
        fit()
    assert not (tmp_path / "run").exists()


def test_what_takes_little_and_what_is_done_is_not_refused(done, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "available", lambda: 3 * 10**7)
    assert fit_run(settings(tmp_path), tmp_path, tmp_path / "run", threads=1, only="pop")
    monkeypatch.setattr(disk, "free", lambda _: 0)
    again = fit_run(
        done.config, done.path.parent, done.path, threads=done.manifest["threads"], resume=True
    )
    assert again.manifest["finished"] == done.manifest["finished"]


def test_a_model_that_cannot_be_had_is_refused(tmp_path):
    chosen = settings(tmp_path, ("tv",))
    with pytest.raises(ConfigError, match=r"no model 'eese'; did you mean ease\? known are pop, "):
        fit_run(chosen, tmp_path, tmp_path / "run", only="eese")
    with pytest.raises(ConfigError, match=r"cat_art needs at least two domains; leave it out"):
        fit_run(chosen, tmp_path, tmp_path / "run", only="cat_art")
    with pytest.raises(ConfigError, match=r"tries is 0; train at least once"):
        fit_run(chosen, tmp_path, tmp_path / "run", only="ease", n_tries=0)
    with pytest.raises(ConfigError, match=r"tries is 2, but no model to tune is named; name one"):
        fit_run(chosen, tmp_path, tmp_path / "run", n_tries=2)
    with pytest.raises(ConfigError, match=r"threads is 0; use 1 or more"):
        fit_run(chosen, tmp_path, tmp_path / "run", threads=0)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_never_written_again(done):
    before = contents(done.path)
    base = done.path.parent
    with pytest.raises(RunError, match=r"holds a finished run, never overwritten; choose another"):
        fit_run(done.config, base, done.path, threads=1)
    again = fit_run(done.config, base, done.path, threads=1, resume=True)
    same_metrics(again.metrics, done.metrics)
    assert contents(done.path) == before


@pytest.mark.parametrize("place", ["pretrain/tv", "cat", "art/film", "data", "model"])
def test_an_altered_artefact_is_refused_by_name(done, place):
    file = done.path / place / "tensors.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=rf"{place}/tensors\.safetensors"):
            musketeers.open_run(done.path)
    finally:
        file.write_bytes(whole)
    musketeers.open_run(done.path)


def test_metrics_that_cannot_be_read_are_refused_by_name(done):
    file = done.path / "metrics.parquet"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ArtifactError, match=r"metrics\.parquet: cannot be read"):
            musketeers.open_run(done.path)
    finally:
        file.write_bytes(whole)


def test_a_domain_may_be_called_as_another_input_of_the_run(tmp_path):
    """Its own pairs are still what a resumed run must find unchanged."""
    names = ("models", "budget")
    for name, frame in frames(planted(names, Seed(0), n_users=60, n_items=30).domains).items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    files = {name: f"{name}.parquet" for name in names}
    config = configuration.parse({**SETTINGS, "data": {**COLUMNS, "domains": files}}, "test")
    run = fit_run(config, tmp_path, tmp_path / "run", threads=1, only="pop")
    assert run.manifest["data"].keys() == {"models, pairs", "budget, pairs", "models"}
