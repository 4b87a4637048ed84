"""A comparison on a Ray cluster: the same numbers as on one machine, and what a lost node costs."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from clusters import Orders, add_node, bury, cluster
from planted_files import write_comparison

from musketeers import config as configuration
from musketeers.cli import app
from musketeers.cluster import tasks
from musketeers.cluster.comparison import on_cluster
from musketeers.cluster.connection import Needs, connected
from musketeers.cluster.executor import RayExecutor
from musketeers.cluster.tasks import Task
from musketeers.comparison import command, jobs
from musketeers.comparison import study as study_module
from musketeers.comparison.study import compare_models
from musketeers.comparison.workers import Processes
from musketeers.errors import ClusterError, ConfigError, DivergedError
from musketeers.models import tuning
from musketeers.models.registry import MODELS
from musketeers.runs import fit_run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    return Orders(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def nodes(orders):
    """A head and one more node, which obeys."""
    with cluster(head={"memory": 16 * 10**9}) as found:
        with orders.followed():
            add_node(found, memory=16 * 10**9)
        yield found


@pytest.fixture(scope="module", autouse=True)
def joined(nodes, tmp_path_factory):
    """This process stays connected, so that workers need not start anew for each test."""
    with connected(nodes.address, tmp_path_factory.mktemp("shared")) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings of two planted domains, in a folder with their files."""
    config, folder = write_comparison(tmp_path_factory.mktemp("data"))
    (folder / "settings.toml").write_text(configuration.dump(config))
    return config, folder


LONGER = {"models": ["smf"], "n_seeds": 1, "n_tries": 3}


@pytest.fixture(scope="module")
def longer(small, tmp_path_factory):
    """Settings with more epochs, the folder of their data, and what `LONGER` finds here."""
    config, folder = small
    epochs = {"max_epochs": 12, "patience": 12, "validate_every": 1}
    config = configuration.changed(config, {f"pretrain.{key}": n for key, n in epochs.items()})
    (folder / "longer.toml").write_text(configuration.dump(config))
    here = tmp_path_factory.mktemp("longer")
    command.run(config, folder, here, **LONGER, workers=Processes.of(1))
    return config, folder, here


def check_same(here, there):
    """The files of two comparisons, but for how long it took."""
    for name in ("results.parquet", "table.md", "table.tex"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    one, other = (json.loads((place / "results.json").read_text()) for place in (here, there))
    assert without_seconds(one) == without_seconds(other)
    assert [p.name for p in sorted(here.iterdir())] == [p.name for p in sorted(there.iterdir())]


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(of) for key, of in value.items() if key != "seconds"}
    return [without_seconds(of) for of in value] if isinstance(value, list) else value


def test_a_comparison_is_the_same_on_a_cluster(nodes, small, tmp_path, monkeypatch, capsys):
    config, folder = small
    read = Counter()
    splits_of = jobs.splits_of
    monkeypatch.setattr(
        jobs, "splits_of", lambda plan, seed: read.update([seed]) or splits_of(plan, seed)
    )
    options = {"models": ["pop", "ease", "cat_art"], "n_seeds": 2, "n_tries": 3}
    command.run(config, folder, tmp_path / "here", **options, workers=Processes.of(1))
    assert not read
    told_here = capsys.readouterr()
    words = ["compare", folder / "settings.toml", "--models", "pop,ease,cat_art", "--seeds", 2,
             "--tune", 3, "--out", tmp_path / "there", "--on", "ray",
             "--address", nodes.address]  # fmt: skip
    app([str(word) for word in words], standalone_mode=False)
    told = capsys.readouterr()
    check_same(tmp_path / "here", tmp_path / "there")
    assert read == {0: 1, 1: 1}
    assert told.out == told_here.out
    assert sorted(line.partition(":")[2] for line in told.err.splitlines()) == sorted(
        line.partition(":")[2] for line in told_here.err.splitlines()
    )


def test_what_no_node_has_is_told_and_the_others_go_on(nodes, small, tmp_path, monkeypatch):
    config, folder = small
    large = dataclasses.replace(MODELS["ease"], needs=lambda _: 10**12)
    monkeypatch.setattr(study_module, "MODELS", {**MODELS, "ease": large})
    with on_cluster(nodes.address, tmp_path) as workers:
        study = compare_models(config, folder, tmp_path, models=["ease", "pop"], n_seeds=1,
                               n_tries=1, workers=workers)  # fmt: skip
    assert {job.model for job in study.found} == {"smf", "pop"}
    assert {job.name for job in study.failed} == {"seed 0, ease, tv", "seed 0, ease, film"}
    for job, why in study.failed.items():
        assert why.startswith(f"{job.name} needs 1e+03 GB of memory, but the largest node of ")


def test_a_model_that_fails_there_is_named_as_here(nodes, small, tmp_path):
    config, folder = small
    hopeless = configuration.changed(config, {"pretrain.learning_rate": 1e30})
    with on_cluster(nodes.address, tmp_path) as workers:
        study = compare_models(hopeless, folder, tmp_path, models=["pop"], n_seeds=1, n_tries=1,
                               workers=workers)  # fmt: skip
    assert {job.model for job in study.failed} == {"smf"}
    assert all("learning_rate is probably too large" in why for why in study.failed.values())


def test_a_killed_nodes_jobs_are_done_again(nodes, orders, longer, tmp_path):
    config, folder, here = longer
    orders.give("pretrain", "die 5")
    try:
        with on_cluster(nodes.address, tmp_path / "there") as workers:
            command.run(config, folder, tmp_path / "there", **LONGER, workers=workers)
    finally:
        bury(nodes)
        with orders.followed():
            add_node(nodes, memory=16 * 10**9)
    orders.end("pretrain")
    check_same(here, tmp_path / "there")


def test_a_comparison_whose_driver_was_killed_goes_on_here(nodes, orders, longer, tmp_path):
    config, folder, here = longer
    there = tmp_path / "there"
    words = ["compare", folder / "longer.toml", "--models", "smf", "--seeds", 1, "--tune", 3,
             "--out", there, "--on", "ray", "--address", nodes.address]  # fmt: skip
    orders.give("pretrain", "wait 5")
    driver = subprocess.Popen([sys.executable, "-m", "musketeers", *map(str, words)])
    while not orders.is_obeyed("pretrain"):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    # the other domain's may have ended, on the other node
    assert len(list(there.glob("jobs/*/*/*"))) < 2
    command.run(config, folder, there, **LONGER, workers=Processes.of(1), resume=True)
    orders.end("pretrain")
    check_same(here, there)


@pytest.mark.parametrize("model", ["smf", "item_knn", "cat_art"])
def test_tries_of_a_fit_are_the_same_on_a_cluster(nodes, small, tmp_path, monkeypatch, model):
    config, folder = small
    options = {"threads": 1, "only": model, "n_tries": 3}
    here = fit_run(config, folder, tmp_path / "here", **options)
    trained = []
    monkeypatch.setattr(tuning.Trainer, "__call__", lambda *_: trained.append(1))
    there = fit_run(
        config, folder, tmp_path / "there", **options, executor=RayExecutor(nodes.address)
    )
    assert not trained
    for place, tries in here.learning.tries.items():
        other = there.learning.tries[place]
        assert [dataclasses.replace(tried, seconds=0) for tried in other] == [
            dataclasses.replace(tried, seconds=0) for tried in tries
        ]
    for domain, measured in here.metrics[model].items():
        for name, values in measured.values.items():
            np.testing.assert_array_equal(values, there.metrics[model][domain].values[name])


def test_a_task_that_no_node_is_left_for_does_not_wait_forever(nodes, joined, monkeypatch):
    def wait():
        time.sleep(60)

    monkeypatch.setattr(tasks, "UNFIT", 1.0)

    large = add_node(nodes, memory=64 * 10**9)
    task = Task.started("a large job", Needs(1, memory=32 * 10**9), joined, wait)
    time.sleep(1)
    nodes.remove_node(large, allow_graceful=False)
    with pytest.raises(ClusterError, match=r"^a large job needs 32 GB of memory, but the largest"):
        task.result(threading.Event())


def test_a_task_raises_what_it_raised(joined, monkeypatch):
    def diverge():
        raise DivergedError("epoch 3")

    def crash():
        os._exit(1)

    def wait():
        time.sleep(9)

    monkeypatch.setattr(tasks, "LOSSES", 1)
    for do, error, told in (
        (diverge, DivergedError, r"^epoch 3$"),
        (crash, ClusterError, r"^job was lost with its worker 2 times, the last time: "),
    ):
        with pytest.raises(error, match=told):
            Task.started("job", Needs(1), joined, do).result(threading.Event())
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(ClusterError, match="job was stopped"):
        Task.started("job", Needs(1), joined, wait).result(stopped)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--on", "ray", "--jobs", "2"], "jobs is 2, which is for processes of this machine"),
        (["--on", "ray", "--memory", "8G"], "memory is 8G, which is for processes of this machine"),
        (["--address", "head:6379"], "address is 'head:6379', which is for --on ray; add that"),
    ],
)
def test_options_that_do_not_go_together(small, tmp_path, words, told):
    _, folder = small
    out = tmp_path / "out"
    settings = str(folder / "settings.toml")
    with pytest.raises(ConfigError, match=told):
        app(["compare", settings, "--out", str(out), *words], standalone_mode=False)
    assert not out.exists()
