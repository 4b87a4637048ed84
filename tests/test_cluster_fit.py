"""A fit whose domains learn on a Ray cluster: the same files as here, whatever is lost."""

import json
import logging
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import ray
from clusters import Orders, add_node, bury, cluster
from planted_files import write_run
from test_resume import digests

import musketeers
from musketeers import config as configuration
from musketeers.cluster import tasks
from musketeers.cluster.board import News, View
from musketeers.cluster.executor import RayExecutor
from musketeers.cluster.parcels import SMALL, Shelf, unpack
from musketeers.data.synthetic import frames, planted
from musketeers.errors import ClusterError, DivergedError
from musketeers.runs import Quiet, fit_run
from musketeers.seeding import Seed
from musketeers.training import Epoch

pytestmark = pytest.mark.ray

EPOCH = Epoch(3, 0.1, 0.2, 1.0, 0.1)

SETTINGS = """
seed = 5
dim = 6

[data]
min_user = 2
min_item = 2

[data.domains]
tv = "tv.parquet"
film = "film.parquet"

[pretrain]
method = "bpr"
max_epochs = 12
patience = 12
tries = 1
validate_every = 1

[cat]
max_epochs = 4
batch_size = 64

[art]
max_epochs = 12
patience = 12
batch_size = 64
"""

CHILD = """
import sys
from contextlib import contextmanager
from pathlib import Path
from musketeers import config
from musketeers.cluster.executor import RayExecutor
from musketeers.runs import Quiet, fit_run

class Telling(Quiet):
    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        yield lambda epoch: print(stage, domain, epoch.number, flush=True)

base, out, address = sys.argv[1:]
fit_run(
    config.load(Path(base) / "run.toml"), Path(base), Path(out), threads=1, watch=Telling(),
    executor=RayExecutor(address),
)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with two domains and the settings."""
    return write_run(tmp_path_factory.mktemp("cluster"), SETTINGS, n_users=100)


@pytest.fixture(scope="module")
def expected(base):
    """What the run leaves behind that is done here."""
    run(base, base / "here")
    return digests(base / "here")


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    return Orders(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def nodes(orders):
    """A head that runs no jobs and two nodes that run one each."""
    with orders.followed(), cluster({}, {}, head={"num_cpus": 0}) as found:
        # connected once: to look at a cluster takes seconds
        ray.init(found.address, log_to_driver=False, logging_level=logging.ERROR)
        yield found


def run(base, out, **options):
    config = configuration.load(base / "run.toml")
    return fit_run(config, base, out, **{"threads": 1, **options})


class Watching(Quiet):
    """Remembers what it is told, and does something when both domains come to an epoch."""

    def __init__(self, stage=None, number=0, do=None):
        self.heard, self.said, self.open, self.most = [], [], 0, 0
        self.when, self.do = (stage, number), do

    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        assert samples > 0
        self.open += 1
        self.most = max(self.most, self.open)
        yield lambda epoch: self.on_epoch(stage, domain, epoch.number)
        self.open -= 1

    def on_epoch(self, stage, domain, number):
        self.heard.append((stage, domain, number))
        both = {(self.when[0], name, self.when[1]) for name in ("tv", "film")}
        if self.do and both <= set(self.heard):
            do, self.do = self.do, None
            do()

    def say(self, line):
        self.said.append((len(self.heard), line))


def test_the_same_files_as_here(base, expected, nodes, orders, tmp_path):
    # neither is over before the other has begun
    orders.give("pretrain", "wait 2")
    watch = Watching("pretrain", 1, lambda: orders.end("pretrain"))
    found = run(base, tmp_path / "run", executor=RayExecutor(), watch=watch)
    assert digests(tmp_path / "run") == expected
    here = json.loads((base / "here" / "manifest.json").read_text())
    assert found.manifest["seconds"].keys() == here["seconds"].keys()
    assert found.manifest["peak_bytes"]["art/tv"] > 0
    assert watch.most == 2
    for stage in ("pretrain", "art"):
        for domain in ("tv", "film"):
            epochs = [n for *job, n in watch.heard if job == [stage, domain]]
            assert epochs == list(range(13))
    assert not watch.open


def test_the_same_in_memory(base, nodes):
    tables = frames(planted(("tv", "film"), Seed(0), n_users=100, n_items=40, known=0.8).domains)
    settings = {"dim": 6, "data": {"min_user": 2, "min_item": 2}, "threads": 1, "only": "smf"}
    here = musketeers.fit(tables, **settings)
    there = musketeers.fit(tables, **settings, executor=RayExecutor())
    users = tables["tv"]["user_id"].unique().to_list()
    for domain in tables:
        assert there.recommender.recommend(domain, users).equals(
            here.recommender.recommend(domain, users)
        )


@pytest.mark.parametrize("stage", ["pretrain", "art"])
def test_a_node_is_killed(base, expected, nodes, orders, tmp_path, stage):
    out = tmp_path / "run"
    watch = Watching()
    orders.give(stage, "die 5")
    try:
        run(base, out, executor=RayExecutor(), watch=watch)
    finally:
        bury(nodes)
        add_node(nodes)
    orders.end(stage)
    assert digests(out) == expected
    ((place, line),) = watch.said
    lost = next(name for name in ("tv", "film") if f" {name} " in line)
    assert line.startswith(f"{stage:<8} {lost:<11}  lost its worker and goes on on ")
    before = [n for *job, n in watch.heard[:place] if job == [stage, lost]]
    after = [n for *job, n in watch.heard[place:] if job == [stage, lost]]
    assert after[0] > before[-1] > 0
    assert after == list(range(after[0], after[-1] + 1))


def test_the_driver_is_killed(base, expected, nodes, orders, tmp_path):
    out = tmp_path / "run"
    orders.give("pretrain", "wait 10")
    command = [sys.executable, "-c", CHILD, str(base), str(out), nodes.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        # the other one, which goes on
        other = next(line for line in child.stdout if line.endswith(" 12\n")).split()[1]
        child.send_signal(signal.SIGKILL)
    watch = Watching()
    found = run(base, out, resume=True, executor=RayExecutor(), watch=watch)
    orders.end("pretrain")
    assert digests(out) == expected
    assert len(found.manifest["resumed"]) == 1
    of_stage = {(domain, number) for stage, domain, number in watch.heard if stage == "pretrain"}
    (domain,) = {"tv", "film"} - {other}
    assert of_stage == {(domain, number) for number in range(10, 13)}


def test_what_a_job_raises_comes_back(base, nodes, tmp_path):
    config = configuration.load(base / "run.toml")
    wild = config.pretrain.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(DivergedError, match=r"^epoch 1: training loss is .*smaller one$"):
        fit_run(
            config.model_copy(update={"pretrain": wild}), base, tmp_path / "run", threads=1,
            executor=RayExecutor(),
        )  # fmt: skip


def test_a_job_that_no_node_can_do_is_refused_before_anything_is_written(base, nodes, tmp_path):
    with pytest.raises(ClusterError, match=r"^a job of (tv|film) needs 3 CPUs, but the largest"):
        run(base, tmp_path / "run", threads=3, executor=RayExecutor())
    assert not list(tmp_path.iterdir())


def test_the_command(base, nodes, tmp_path):
    # a process of its own, to which Ray would tell what it does when it is connected
    command = [
        sys.executable, "-m", "musketeers", "fit", str(base / "run.toml"), "--threads", "1",
        "--only", "smf", "--out", str(tmp_path / "run"), "--on", "ray", "--address", nodes.address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # on a busy machine reading leaves a line too
    lines = [line.split()[:2] for line in sorted(done.stderr.splitlines()) if line[:4] != "read"]
    assert lines == [["pretrain", "film"], ["pretrain", "tv"]]
    assert done.stdout.startswith(" ")


def test_what_an_attempt_tells_that_was_given_up_is_not_shown():
    heard, lost = [], []

    @contextmanager
    def watched(job):
        heard.append(f"{job} begins")
        yield lambda epoch: heard.append((job, epoch.number))
        heard.append(f"{job} ends")

    view = View(watched, lambda *job_and_host: lost.append(job_and_host))
    first, second = partial(News, "tv", "a", "here"), partial(News, "tv", "b", "there")
    for news in (first(), first(EPOCH), second(), first(EPOCH), second(EPOCH)):
        view.hear(news)
    view.end("tv")
    # what comes too late
    view.hear(second(EPOCH))
    view.close()
    assert heard == ["tv begins", ("tv", 3), ("tv", 3), "tv ends"]
    assert lost == [("tv", "there")]


def test_arrays_are_sent_once_as_long_as_they_live(nodes):
    shelf, shared = Shelf(), np.arange(SMALL)
    own = [np.ones(SMALL), np.zeros(SMALL)]
    small = np.arange(3)
    first, second = (shelf.pack({"shared": shared, "own": one, "small": small}) for one in own)
    assert first.arrays[0] == second.arrays[0]
    assert first.arrays[1] != second.arrays[1]
    assert first.arrays[2] is small
    found = unpack(first.data, [*ray.get(list(first.arrays[:2])), small])
    assert found["shared"].tolist() == shared.tolist()
    assert found["own"].sum() == SMALL
    assert not found["shared"].flags.writeable
    assert len(shelf.pack([own, own, shared]).arrays) == 3
    del own[:]
    assert shelf.pack(np.full(SMALL, 7)).arrays[0] not in (*first.arrays[:2], second.arrays[1])


def test_a_cluster_that_loses_all_its_nodes_is_not_waited_for_forever(
    base, nodes, orders, tmp_path, monkeypatch
):
    monkeypatch.setattr(tasks, "UNFIT", 1.0)
    monkeypatch.setattr(tasks, "LOOK", 0.5)

    # one is not over before they are gone
    orders.give("pretrain", "wait 10")

    def kill():
        while not orders.is_obeyed("pretrain"):
            time.sleep(0.05)
        for node in list(nodes.worker_nodes):
            nodes.remove_node(node, allow_graceful=False)

    try:
        with pytest.raises(ClusterError, match=r"has no node with a CPU; add one$"):
            run(base, tmp_path / "run", executor=RayExecutor(), watch=Watching("pretrain", 5, kill))
    finally:
        for _ in range(2):
            add_node(nodes)
    orders.end("pretrain")
