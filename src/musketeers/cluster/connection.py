"""The connection to a Ray cluster, and whether it can do what is asked of it."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from threading import current_thread
from typing import Any, TextIO, cast

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from musketeers import artifacts
from musketeers.errors import ClusterError
from musketeers.run_folder import versions

REACHED = 30.0
"""Seconds that a cluster may take to answer."""
LOOKED_AT = 60.0
"""Seconds that all nodes may take to say what they have, a worker process started in each."""
_GB = 10**9
_START = "start one (ray start --head) or name another (--address)"
_TRY = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
"""What another process does to find out whether the cluster answers: it can be given up."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job has for itself while it runs."""

    cpus: int
    gpus: int = 0
    memory: int = 0
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of a cluster that jobs can run on."""

    id: str
    host: str
    cpus: float
    gpus: float
    memory: float
    """Bytes that Ray gives to jobs there."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was looked at: all its nodes have what this process has."""

    address: str
    nodes: tuple[Node, ...]

    def now(self) -> "Cluster":
        """The same with the nodes that are alive now; those that joined were not looked at."""
        return replace(self, nodes=tuple(_nodes(self.address)))

    def answering(self) -> "Cluster":
        """The same with the nodes that answer; Ray may not know yet that others are dead.

        Raises `ClusterError` if there is none.
        """
        left = tuple(node for node in self.now().nodes if _answers(node))
        if not left:
            raise ClusterError(
                f"no node of the cluster at {self.address} answers; see that it runs, and go on "
                "with --resume"
            )
        return replace(self, nodes=left)

    def check(self, job: str, needs: Needs, *, smaller: str = "make the job smaller") -> None:
        """Raise `ClusterError` unless some node could meet all the needs if it had nothing else.

        `smaller` says what makes it need less memory.
        """
        kinds: tuple[tuple[Callable[[Needs | Node], float], Callable[[float], str], str], ...] = (
            (lambda of: of.cpus, in_cpus, "take fewer (--threads) or add a node that has them"),
            (lambda of: of.gpus, _gpus, "leave out the device or add a node that has one"),
            (lambda of: of.memory, _memory, f"add a node that has it, or {smaller}"),
        )
        for of, words, remedy in kinds:
            if (most := max(map(of, self.nodes))) < of(needs):
                raise ClusterError(
                    f"{job} needs {words(of(needs))}, but the largest node of the cluster at "
                    f"{self.address} has {words(most)}; {remedy}"
                )
        if not any(all(of(node) >= of(needs) for of, _, _ in kinds) for node in self.nodes):
            raise ClusterError(
                f"{job} needs {', '.join(words(of(needs)) for of, words, _ in kinds)}, but no node "
                f"of the cluster at {self.address} has all of it; add a node that has"
            )


@contextmanager
def connected(address: str | None, folder: Path | None) -> Generator[Cluster]:
    """The cluster at `address`, until the block ends, for a run that is written to `folder`.

    Without an address the one in the environment's RAY_ADDRESS, else one that runs on this
    machine; none is ever started.  A process that is connected already stays so.  `folder` is made
    if need be, and let go again if it is empty; None is for a run that writes nothing.

    Raises `ClusterError` within about two minutes for a cluster that does not answer, for a node
    with other versions of Python, ray, or what results depend on, for a node without this package,
    and for a node that does not see `folder` or may not write there.
    """
    with _session(address) as at:
        nodes = tuple(_nodes(at))
        _check_packages(nodes)
        if folder:
            _check_storage(nodes, folder.resolve())
        # one that was dead already may be known to be so by now
        alive = _alive()
        yield Cluster(at, tuple(node for node in nodes if node.id in alive))


@contextmanager
def _session(address: str | None) -> Generator[str]:
    """The address of the cluster that this process is connected to until the block ends."""
    if ray.is_initialized():
        at = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", at):
            raise ClusterError(
                f"this process is connected to the cluster at {at} already, not to {address}; "
                "leave out the address or call ray.shutdown() before"
            )
        yield at
        return
    _connect(address or os.environ.get("RAY_ADDRESS") or "auto")
    try:
        with redirect_stdout(cast(TextIO, _WithoutRay(sys.stdout))):
            yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


class _WithoutRay:
    """A stdout for results: what ray's threads print of nodes that die goes to stderr."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        ours = not current_thread().name.startswith("ray_")
        return (self._stdout if ours else sys.stderr).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def _answers(node: Node) -> bool:
    def answer() -> dict[str, Any]:
        return {}

    try:
        return len(list(_asked((node,), answer))) == 1
    except ClusterError:
        return False


def _connect(address: str) -> None:
    """Ray itself tries for minutes, so another process asks first."""
    if address != "auto":
        _check_port(address)
    where = "on this machine" if address == "auto" else f"at {address}"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY, address],
            capture_output=True, text=True, check=False, timeout=REACHED,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"the cluster {where} does not answer within {REACHED:.0f} seconds; {_START}, and run "
            "this on one of its nodes"
        ) from None
    if tried.returncode:
        raise ClusterError(_refusal(where, tried.stderr))
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, OSError, RayError) as error:
        raise ClusterError(_refusal(where, str(error))) from None


def _check_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ClusterError(f"address is {address!r}; give the cluster's as HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no cluster at {address} ({error}); {_START}") from None


def _refusal(where: str, told: str) -> str:
    """What ray told of a connection that failed, in one line."""
    if "Could not find any running Ray instance" in told:
        return f"no Ray cluster {where}; {_START}"
    if "InvalidAuthToken" in told:
        return (
            f"the cluster {where} asks for a token that this process does not have; set "
            "RAY_AUTH_MODE=token and, unless it is in ~/.ray/auth_token, RAY_AUTH_TOKEN as there"
        )
    lines = told.strip().splitlines() or ["no reason was given"]
    if (mismatch := told.find("Version mismatch")) >= 0:
        told = " ".join(told[mismatch:].split())
        return f"the cluster {where} cannot be used: {told}; install the same versions everywhere"
    return f"the cluster {where} cannot be used: {lines[-1]}; {_START}"


def _nodes(address: str) -> Generator[Node]:
    """Those that are alive and run jobs."""
    found = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not found:
        raise ClusterError(f"the cluster at {address} has no node with a CPU; add one")
    for node in found:
        has: Mapping[str, float] = node["Resources"]
        yield Node(
            node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            has["CPU"], has.get("GPU", 0.0), has.get("memory", 0.0),
        )  # fmt: skip


def _alive() -> set[str]:
    """The ids of the nodes that Ray takes to be alive now."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _check_packages(nodes: tuple[Node, ...]) -> None:
    """Raise `ClusterError` for the first node without this package, or with other versions."""
    here = {**versions(), "ray": ray.__version__}
    for node, has in _asked(nodes, _installed(), tuple(here)):
        if has["musketeers"] is None:
            raise ClusterError(
                f"node {node.host} has no package musketeers; install the same version as here "
                f"({here['musketeers']}) there: pip install 'musketeers[ray]'"
            )
        for name, version in here.items():
            if has[name] != version:
                raise ClusterError(
                    f"node {node.host} has {name} {has[name] or 'not at all'}, here it is "
                    f"{version}; install the same everywhere, results depend on it"
                )


def _check_storage(nodes: tuple[Node, ...], folder: Path) -> None:
    """Raise `ClusterError` for the first node that does not see the folder or may not write."""
    token = folder / f"{artifacts.DRAFT_PREFIX}{token_hex(8)}"
    with artifacts.writing(token):
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text(token.name, encoding="utf-8")
    try:
        for node, may in _asked(nodes, _sight(), str(token)):
            if not may["see"]:
                raise ClusterError(
                    f"node {node.host} does not see {folder}; give a folder on storage that all "
                    "nodes share under the same path (--out)"
                )
            if not may["write"]:
                raise ClusterError(
                    f"node {node.host} may not write to {folder}; let the user of its Ray "
                    "processes do so"
                )
    finally:
        token.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: it is somebody's
            folder.rmdir()


def _asked(
    nodes: tuple[Node, ...], question: Callable[..., dict[str, Any]], *arguments: object
) -> Generator[tuple[Node, dict[str, Any]]]:
    """What each node answers to the question, which is run there; one that is gone does not."""
    remote = ray.remote(question)
    answers = [
        remote.options(
            num_cpus=0, max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote(*arguments)
        for node in nodes
    ]  # fmt: skip
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=LOOKED_AT)
    for node, answer in zip(nodes, answers, strict=True):
        if answer not in ready:
            raise ClusterError(
                f"node {node.host} does not answer within {LOOKED_AT:.0f} seconds; look at its "
                "logs, or take it out of the cluster"
            )
        try:
            yield node, ray.get(answer)
        except RayError as error:
            if node.id not in _alive():
                continue
            reason = str(error).strip().splitlines()[-1]
            raise ClusterError(
                f"node {node.host} cannot run a job: {reason}; look at its logs, or take it out "
                "of the cluster"
            ) from None


# What nodes are asked: a function within a function is sent whole, and needs no package there.


def _installed() -> Callable[..., dict[str, Any]]:
    def installed(names: tuple[str, ...]) -> dict[str, str | None]:
        import platform
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec

        found: dict[str, str | None] = {}
        for name in names:
            try:
                # a package whose files are gone may have left its description behind
                found[name] = version(name) if find_spec(name) else None
            except PackageNotFoundError:
                found[name] = None
        return {**found, "python": platform.python_version()}

    return installed


def _sight() -> Callable[..., dict[str, Any]]:
    def sight(token: str) -> dict[str, bool]:
        import os
        import time
        from pathlib import Path

        file, until = Path(token), time.monotonic() + 5
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.2)  # a network's file system may tell of new files late
        return {
            "see": file.exists() and file.read_text(encoding="utf-8") == file.name,
            "write": os.access(file.parent, os.W_OK),
        }

    return sight


def in_cpus(number: float) -> str:
    """In words: ``1 CPU``, ``2 CPUs``."""
    return f"{number:g} CPU{'' if number == 1 else 's'}"


def _gpus(number: float) -> str:
    return f"{number:g} GPU{'' if number == 1 else 's'}"


def _memory(number: float) -> str:
    return f"{number / _GB:.2g} GB of memory"
