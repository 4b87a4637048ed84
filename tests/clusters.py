"""Ray clusters on this machine, for tests: raylets of their own, small and quiet."""

import os
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

# nothing is told to Ray's makers, nor asked of a monitor that is not here
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

STORE = 100 * 2**20
"""Bytes of a node's object store; Ray takes no less than 75 MB."""


@contextmanager
def cluster(*nodes, head=None):
    """A cluster of a head and `nodes`, each as the options of `Cluster.add_node`; no driver yet."""
    common = {"object_store_memory": STORE, "include_dashboard": False, "num_gpus": 0}
    found = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": 1, **(head or {})})
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
