"""Ray clusters on this machine, for tests: raylets of their own, small and quiet."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

# nothing is told to Ray's makers, nor asked of a monitor that is not here
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

STORE = 100 * 2**20
"""Bytes of a node's object store; Ray takes no less than 75 MB."""


@dataclass(frozen=True)
class Orders:
    """What is to happen to nodes at a certain moment: see `on_nodes/sitecustomize.py`."""

    folder: Path

    @contextmanager
    def followed(self):
        """Nodes that are started in the block obey."""
        first = [str(Path(__file__).parent / "on_nodes"), os.environ.get("PYTHONPATH", "")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, first)))
            patch.setenv("ORDERS", str(self.folder))
            yield

    def give(self, stage, what):
        (self.folder / stage).write_text(what)

    def is_obeyed(self, stage):
        return self._obeyed(stage).exists()

    def end(self, stage):
        """Whoever waits goes on; fails if nobody has obeyed."""
        self._obeyed(stage).unlink()

    def _obeyed(self, stage):
        return self.folder / f"{stage}.obeyed"


@contextmanager
def cluster(*nodes, head=None, missed=1.0):
    """A cluster of a head and `nodes`, each as the options of `Cluster.add_node`; no driver yet.

    A dead node is known to be so after about `missed` seconds; by itself Ray takes a quarter of a
    minute.  One that is merely slow is not taken for dead: an answer may take ten seconds.
    """
    checks = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": round(250 * missed),
        "health_check_failure_threshold": 4,
    }
    common = {
        "object_store_memory": STORE, "num_gpus": 0, "num_cpus": 1, "_system_config": checks,
        "include_dashboard": False, "include_log_monitor": False, "no_monitor": True,
    }  # fmt: skip
    found = Cluster(initialize_head=True, head_node_args={**common, **(head or {})})
    try:
        for options in nodes:
            add_node(found, **options)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def add_node(found, **options):
    """One more node."""
    return found.add_node(object_store_memory=STORE, num_gpus=0, **{"num_cpus": 1, **options})


def bury(found):
    """Forget the nodes that have died, which Ray's cluster does not see."""
    for node in list(found.worker_nodes):
        if node.dead_processes():
            found.remove_node(node, allow_graceful=False)
