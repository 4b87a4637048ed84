"""Servers under measurement, started and ended as a user would."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from load import HOST

PATIENCE = 60.0
"""Seconds within which a server is to be ready, and to be gone."""


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """One that answers."""

    port: int
    process: "subprocess.Popen[bytes]"
    seconds: float
    """From its start to its first 200 of /readyz."""

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one request over a new connection; `OSError` where none comes."""
        return ask(self.port, method, path, body)

    def resident(self) -> int:
        """Bytes of memory of all its processes, what they share counted once (Linux's PSS)."""
        return sum(map(_proportional, _family(self.process.pid)))

    def processor(self) -> float:
        """Seconds that all its processes have computed."""
        return sum(map(_computed, _family(self.process.pid)))


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of one request over a new connection; `OSError` where none comes."""
    connection = HTTPConnection(HOST, port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except HTTPException as error:
        raise ConnectionError(str(error)) from None
    finally:
        connection.close()


@contextmanager
def running(
    words: Sequence[str | Path], port: int, environment: Mapping[str, str] | None = None
) -> Generator[Server]:
    """The server that ``python -m WORDS --port PORT`` starts, ready; ended with SIGTERM."""
    with tempfile.TemporaryFile() as log:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words), "--port", str(port)],
            env=os.environ | dict(environment or {}), stdout=log, stderr=log,
        )  # fmt: skip
        try:
            if not _ready(process, port, start + PATIENCE):
                log.seek(0)
                told = log.read()[-2000:].decode(errors="replace")
                sys.exit(f"error: {' '.join(map(str, words))} was not ready; it said:\n{told}")
            yield Server(port, process, time.monotonic() - start)
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> float:
    """SIGTERM, and SIGKILL for who does not go; the seconds it took."""
    start = time.monotonic()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return time.monotonic() - start


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        return trial.getsockname()[1]


def ours(folder: Path, options: Sequence[str] = ()) -> list[str | Path]:
    """The words of our server of the model in `folder`."""
    return ["musketeers", "serve", folder, *options]


def naive(app: str, workers: int) -> list[str | Path]:
    """The words of naive_service.py's `app`, by uvicorn."""
    return [
        "uvicorn", f"naive_service:{app}", "--app-dir", Path(__file__).parent,
        "--workers", str(workers), "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip


def _ready(process: "subprocess.Popen[bytes]", port: int, deadline: float) -> bool:
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask(port, "GET", "/readyz")[0] == 200:
                return True
        except OSError:
            pass
        time.sleep(0.005)
    return False


def _family(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            int(child) for one in threads for child in (one / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(child))]


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _computed(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
