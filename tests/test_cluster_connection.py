"""Connecting to a Ray cluster, and all that can be wrong with one."""

import json
import socket
import time

import pytest
import ray
from clusters import add_node, cluster

from musketeers.cluster import connection
from musketeers.cluster.connection import Cluster, Needs, Node, connected
from musketeers.errors import ClusterError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def nodes():
    with cluster({"num_cpus": 2}, missed=4) as found:
        yield found


@pytest.fixture
def refused(tmp_path):
    """The one line that a connection ends with, and that it leaves nothing behind."""

    def refuse(address):
        started = time.monotonic()
        with pytest.raises(ClusterError) as caught, connected(address, tmp_path / "out"):
            pass
        assert time.monotonic() - started < 60
        assert not list(tmp_path.iterdir())
        assert not ray.is_initialized()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


def test_a_cluster_that_has_all_is_described(nodes, tmp_path):
    with connected(nodes.address, tmp_path / "out") as found:
        assert found.address == nodes.address
        assert sorted(node.cpus for node in found.nodes) == [1, 2]
        assert all(node.memory > 0 for node in found.nodes)
        with connected(None, tmp_path / "out") as again:
            assert again == found
        with (
            pytest.raises(ClusterError, match=r"connected to the cluster at .* already, not to"),
            connected("127.0.0.1:1", tmp_path),
        ):
            pass
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()


def test_the_environment_names_the_cluster(nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    with connected(None, tmp_path) as found:
        assert found.address == nodes.address


def test_no_cluster_at_the_address(refused):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert refused(address).startswith(f"no cluster at {address} (")
    for wrong in ("somewhere", "ray://head:10001", "head:port"):
        assert "give the cluster's as HOST:PORT" in refused(wrong)


def test_something_that_is_no_cluster_does_not_answer(refused, monkeypatch):
    monkeypatch.setattr(connection, "REACHED", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert f"the cluster at {address} does not answer within 3 seconds" in refused(address)


def test_another_version_of_ray(nodes, refused):
    from ray._raylet import GcsClient

    store, key = GcsClient(address=nodes.address), (b"CLUSTER_METADATA", b"cluster")
    about = store.internal_kv_get(*key)
    other = json.dumps({**json.loads(about), "ray_version": "1.2.3"}).encode()
    store.internal_kv_put(key[0], other, True, key[1])
    try:
        line = refused(nodes.address)
    finally:
        store.internal_kv_put(key[0], about, True, key[1])
    assert "Ray: 1.2.3" in line
    assert line.endswith("install the same versions everywhere")


def with_first_in_path(folder):
    """A node whose processes look for modules there first."""
    return {"env_vars": {"PYTHONPATH": str(folder)}}


@pytest.fixture
def other_node(nodes, tmp_path_factory):
    """Adds a node that finds these files before all packages, for one test."""
    added = []

    def add(**files):
        folder = tmp_path_factory.mktemp("packages")
        for name, text in files.items():
            (folder / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
            (folder / name.replace("__", "/")).write_text(text)
        added.append(add_node(nodes, env_vars={"PYTHONPATH": str(folder)}))

    yield add
    for node in added:
        nodes.remove_node(node)


def test_a_node_without_the_package(nodes, other_node, refused):
    hide = "import sys; sys.modules['musketeers'] = None"
    other_node(**{"sitecustomize.py": hide})
    assert "has no package musketeers; install the same version as here" in refused(nodes.address)


def test_a_node_with_another_version_of_a_package(nodes, other_node, refused):
    about = "Metadata-Version: 2.1\nName: numba\nVersion: 0.1\n"
    other_node(**{"numba-0.1.dist-info__METADATA": about})
    line = refused(nodes.address)
    assert "has numba 0.1, here it is" in line


def test_storage_that_a_node_does_not_see(nodes, other_node, refused, tmp_path):
    # as on a machine that has another disk at that path
    hide = (
        "import pathlib\n"
        "real = pathlib.Path.exists\n"
        f"pathlib.Path.exists = lambda p: not p.is_relative_to({str(tmp_path)!r}) and real(p)\n"
    )
    other_node(**{"sitecustomize.py": hide})
    line = refused(nodes.address)
    assert f"does not see {tmp_path / 'out'}; give a folder on storage that all nodes" in line


def test_needs_that_no_node_can_meet():
    small = Node("a", "small (10.0.0.1)", cpus=2, gpus=1, memory=4e9)
    large = Node("b", "large (10.0.0.2)", cpus=8, gpus=0, memory=16e9)
    found = Cluster("10.0.0.1:6379", (small, large))
    found.check("pretrain tv", Needs(8, memory=16 * 10**9))
    found.check("art tv", Needs(2, gpus=1))
    for needs, told in {
        Needs(9): r"art tv needs 9 CPUs, but the largest node .* has 8 CPUs; take fewer",
        Needs(1, gpus=2): "art tv needs 2 GPUs, but the largest node .* has 1 GPU; leave out",
        Needs(1, memory=2 * 10**10): "needs 20 GB of memory, but the largest node .* has 16 GB",
        Needs(4, gpus=1): "needs 4 CPUs, 1 GPU, .* but no node .* has all of it",
    }.items():
        with pytest.raises(ClusterError, match=told):
            found.check("art tv", needs)


def test_a_node_that_has_just_died_is_left_out(nodes, tmp_path):
    with connected(nodes.address, None):
        dying = add_node(nodes, num_cpus=3)
        nodes.remove_node(dying, allow_graceful=False)
        # Ray takes it to be alive for some seconds more
        assert dying.node_id in {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        with connected(None, tmp_path / "out") as found:
            assert sorted(node.cpus for node in found.nodes) == [1, 2]
