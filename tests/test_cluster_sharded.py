"""A run whose users are spread over the members of a cluster, whatever happens to its nodes."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest
import ray
import scipy.stats
from clusters import Orders, add_node, bury, cluster
from planted_files import write_run
from test_cli import call
from test_resume import digests

from musketeers import config as configuration
from musketeers.cluster.connection import connected
from musketeers.cluster.gang import together
from musketeers.cluster.members import Errand
from musketeers.cluster.sharded import fit_sharded
from musketeers.cluster.whole import Whole
from musketeers.data import readers
from musketeers.data.shards import shard_of
from musketeers.data.splits import split
from musketeers.errors import ClusterError, ConfigError, DataError, RunError
from musketeers.run_files import open_run
from musketeers.run_folder import RunFolder
from musketeers.runs import Quiet, fit_run
from musketeers.seeding import Seed

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # of Ray Data about itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

SETTINGS = """
dim = 8
[data]
min_user = 2
[data.domains]
tv = "tv.parquet"
film = "film.parquet"
[pretrain]
method = "bpr"
tries = 2
max_epochs = 6
[cat]
max_epochs = 3
[art]
max_epochs = 4
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with two domains and the settings."""
    return write_run(tmp_path_factory.mktemp("sharded"), SETTINGS, n_users=300)


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    return Orders(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def nodes(orders):
    """A head that does nothing, two nodes that work, and this process as their driver.

    Of one driver the nodes use their processes again, which take seconds to start.
    """
    sizes = {"num_cpus": 2}, {"num_cpus": 2}
    # members are missed before their node is
    with orders.followed(), cluster(*sizes, head={"num_cpus": 0}, missed=2) as found:
        ray.init(found.address, log_to_driver=False, logging_level="ERROR")
        yield found


def run(base, nodes, out, **options):
    config = configuration.load(base / "run.toml")
    options = {"n_shards": 2, "address": nodes.address, "threads": 1, **options}
    fit_sharded(config, base, out, **options)


@pytest.fixture(scope="module")
def alone(base):
    """The folder of a run on this machine."""
    out = base / "alone"
    fit_run(configuration.load(base / "run.toml"), base, out, threads=1)
    return out


@pytest.fixture(scope="module")
def expected(base, nodes, alone):
    """What a run that nothing happens to leaves behind.

    After the one of this machine: what that has compiled the members need not compile again, each
    for itself.
    """
    out = base / "whole"
    run(base, nodes, out)
    return digests(out)


def ndcg(out, model):
    metrics = json.loads((out / "metrics.json").read_text())
    return {name: found["ndcg@10"] for name, found in metrics["models"][model].items()}


class Replacing(Quiet):
    """Puts a new node in the place of each of the first `n` that are lost."""

    def __init__(self, nodes, n):
        self.nodes, self.left = nodes, n
        self.said, self.heard = [], {}

    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        yield lambda epoch: self.heard.update({stage: epoch.number})

    def say(self, line):
        self.said.append(line)
        if line.startswith("members were lost"):
            bury(self.nodes)
            if self.left:
                self.left -= 1
                add_node(self.nodes, num_cpus=2)


# --- what comes out


def test_each_user_is_in_one_shard_with_all_that_one_machine_reads(base, expected):
    config = configuration.load(base / "run.toml")
    reading = readers.read(config.data, base=base)
    splits = split(reading.domains, config.split, Seed(0))
    runs = [open_run(base / "whole" / "shards" / str(n)) for n in range(2)]
    for name, whole in splits.items():
        for purpose in ("train", "valid", "test"):
            table = getattr(whole, purpose)
            pairs = [pairs_of(one, name, purpose) for one in runs]
            everything = ids(table, reading.domains.users, reading.domains.domains[name].items)
            assert sorted(pairs[0] + pairs[1]) == sorted(everything)
    for n, one in enumerate(runs):
        assert set(shard_of(one.recommender.users.values, 2)) == {n}


def pairs_of(one, name, purpose):
    table = getattr(one.splits[name], purpose)
    return ids(table, one.recommender.users, one.recommender.domains[name].items)


def ids(table, users, items):
    rows = np.repeat(np.arange(table.n_users), table.counts())
    return list(zip(users.ids(rows).to_list(), items.ids(table.items).to_list(), strict=True))


def test_items_are_the_same_in_all_shards_and_users_their_own(base, expected):
    one, other = (open_run(base / "whole" / "shards" / str(n)) for n in range(2))
    for name in ("tv", "film"):
        for stage in ("alone", "transferred"):
            mine, theirs = (getattr(found.stages, stage)[name].factors for found in (one, other))
            assert np.array_equal(mine.items, theirs.items)
    assert one.stages.aligned.length == other.stages.aligned.length
    assert one.learning.verdicts == other.learning.verdicts
    known = one.recommender.users.values[:3]
    lists = one.recommender.recommend("tv", known, k=5)
    assert len(lists) == 15


def test_metrics_are_means_over_the_users_of_all_shards(base, expected):
    out = base / "whole"
    rows = pl.concat(
        [pl.read_parquet(out / "shards" / str(n) / "metrics.parquet") for n in range(2)]
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["shards"] == 2
    for model, by_domain in metrics["models"].items():
        for name, means in by_domain.items():
            cells = rows.filter(model=model, domain=name).partition_by("metric", as_dict=True)
            for (metric,), cell in cells.items():
                assert means[metric] == pytest.approx(cell["value"].mean())
                assert means["users"] == len(cell)


@pytest.mark.parametrize("n_shards", [2, 4])
def test_it_is_as_good_as_one_machine(base, nodes, alone, expected, n_shards):
    out = base / ("whole" if n_shards == 2 else "four")
    if n_shards == 4:
        run(base, nodes, out, n_shards=4)
    assert ndcg(out, "pop") == {n: pytest.approx(v) for n, v in ndcg(alone, "pop").items()}
    for model in ("smf", "cat_art"):
        here, there = ndcg(alone, model), ndcg(out, model)
        # of 300 users; how near it is of many is measured, see docs/experiments.md
        assert np.mean(list(there.values())) == pytest.approx(np.mean(list(here.values())), rel=0.1)


def test_what_is_served_is_compared_with_each_domain_alone_over_all_users(base, expected):
    found = Whole.read(base / "whole")
    runs = [open_run(base / "whole" / "shards" / str(n)) for n in range(2)]
    for (name, metric), cell in found.differences.items():
        values = {
            model: np.concatenate([one.metrics[model][name].values[metric] for one in runs])
            for model in (found.chosen[name], "smf")
        }
        test = scipy.stats.ttest_rel(values[found.chosen[name]], values["smf"])
        if found.chosen[name] == "smf":
            assert cell.p == 1
        else:
            assert cell.p == pytest.approx(test.pvalue)
        assert cell.mean_b == pytest.approx(found.means["smf"][name][metric])
    assert {name for name, _ in found.differences} == {"tv", "film"}


def test_items_in_shards_are_bit_by_bit_those_that_both_members_have(base, nodes, expected):
    out = base / "items"
    settings = {"pretrain.item_tables": "sharded"}
    config = configuration.changed(configuration.load(base / "run.toml"), settings)
    fit_sharded(config, base, out, n_shards=2, address=nodes.address, threads=1)
    assert digests(out) == expected


def test_whom_nobody_knows_gets_what_all_shards_like(base, expected):
    runs = [open_run(base / "whole" / "shards" / str(n)).recommender for n in range(2)]
    for name in ("tv", "film"):
        counts = sum(one.domains[name].seen.item_counts() for one in runs)
        order = np.argsort(-counts, kind="stable")[:5]
        for one in runs:
            listed = one.recommend(name, ["nobody"], k=5)
            assert set(listed["strategy"]) == {"popular"}
            assert listed["item_id"].to_list() == one.domains[name].items.ids(order).to_list()
            assert listed["score"].to_list() == counts[order].tolist()


def test_the_whole_names_the_runs_of_its_shards(base, expected):
    with pytest.raises(RunError, match=r"give a run's folder, such as .*whole/shards/0$"):
        open_run(base / "whole")


# --- what happens to nodes


def test_a_node_lost_in_each_stage_changes_nothing(base, nodes, expected, orders):
    """Nor does it that the last one is not replaced."""
    stages = ("pretrain", "cat", "art")
    for stage in stages:
        orders.give(stage, "die 2")
    watch = Replacing(nodes, 2)
    out = base / "lost"
    run(base, nodes, out, watch=watch)
    add_node(nodes, num_cpus=2)
    for stage in stages:
        orders.end(stage)
    assert sum("members were lost" in line for line in watch.said) == 3
    assert watch.said[-1] == "all members go on from their last epoch on 1 nodes"
    assert all(watch.heard[stage] > 1 for stage in stages)
    assert digests(out) == expected
    assert len(RunFolder(out / "shards" / "0").manifest()["resumed"]) == 3


def test_a_killed_driver_is_followed_by_one_that_goes_on(base, nodes, expected, orders):
    out = base / "killed"
    words = "from pathlib import Path; import sys; from musketeers import config as c; "
    words += "from musketeers.cluster.sharded import fit_sharded as f; b = Path(sys.argv[1]); "
    words += (
        "f(c.load(b / 'run.toml'), b, b / 'killed', n_shards=2, address=sys.argv[2], threads=1)"
    )
    orders.give("cat", "wait 1")
    driver = subprocess.Popen([sys.executable, "-c", words, str(base), nodes.address])
    while driver.poll() is None and not orders.is_obeyed("cat"):
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    with pytest.raises(RunError, match="holds an unfinished run; add --resume"):
        run(base, nodes, out)
    run(base, nodes, out, resume=True)
    orders.end("cat")
    assert digests(out) == expected
    # a finished one is left as it is
    words = [base / "run.toml", "--out", out, "--on", "ray", "--address", nodes.address]
    code, told, log = call("fit", *words, "--shards", "2", "--resume")
    assert (code, b"significantly" in told) == (0, True)
    assert "the run is finished; nothing is trained" in log
    assert digests(out) == expected


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"n_shards": 1}, "shards is 1; use 2 or more"),
        ({"only": "ease"}, "ease is not trained on shards of users"),
        ({"threads": 0}, "threads is 0; use 1 or more"),
    ],
)
def test_what_members_cannot_do_is_said_before_anything_is_written(base, nodes, options, rule):
    with pytest.raises(ConfigError, match=rule):
        run(base, nodes, base / "never", **options)
    assert not (base / "never").exists()


def test_a_method_that_needs_all_users_is_refused(base, nodes):
    config = configuration.changed(
        configuration.load(base / "run.toml"), {"pretrain.method": "ials"}
    )
    with pytest.raises(ConfigError, match=r"pretrain\.method of tv is ials"):
        fit_sharded(config, base, base / "never", n_shards=2, address=nodes.address)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--shards", "2"], "shards are for a cluster; add --on ray"),
        (["--on", "ray", "--shards", "2", "--budget", "5m"], "budget is not for shards of users"),
        (["--on", "ray", "--shards", "2", "--tune", "3"], "tune is not for shards of users"),
        (["--on", "ray", "--shards", "2", "--device", "cuda"], "device is not for shards"),
    ],
)
def test_options_that_do_not_go_with_shards_are_refused(base, words, rule):
    out = base / "never"
    code, _, log = call("fit", base / "run.toml", "--out", out, *words)
    assert (code, rule in log) == (1, True)
    assert not out.exists()


def test_data_that_cannot_be_read_leave_no_run(base, nodes):
    config = configuration.changed(
        configuration.load(base / "run.toml"),
        {"data.domains": {"tv": "gone", "film": "film.parquet"}},
    )
    out = base / "unread"
    for _ in range(2):
        with pytest.raises(DataError, match="gone"):
            fit_sharded(config, base, out, n_shards=2, address=nodes.address, threads=1)
        assert [entry.name for entry in out.iterdir()] == [".lock"]


def test_too_few_processors_are_named(base, nodes):
    with pytest.raises(ClusterError, match=r"5 members need 1 CPU each, but the nodes .* 2, 2;"):
        run(base, nodes, base / "small", n_shards=5)
    with pytest.raises(ClusterError, match="a member needs 3 CPUs, but the largest node"):
        run(base, nodes, base / "small", threads=3)
    assert not (base / "small").exists()


def test_too_little_memory_is_told_with_what_makes_a_member_smaller(base, nodes):
    errand = Errand(configuration.load(base / "run.toml"), base / "wide", ("smf",), 2, 1)
    rule = r"a member needs 1e\+06 GB .* take more shards, or put items in shards too"
    with connected(nodes.address, base) as found, pytest.raises(ClusterError, match=rule):
        together(errand, found, 10**15, Quiet())
