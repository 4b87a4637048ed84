"""What the documents say: examples run, settings are read, tables and the file tree are true."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin

import annotated_types as limits
import pytest
import typer
from pydantic import BaseModel

from musketeers.__main__ import main
from musketeers.cli import app
from musketeers.config import RunConfig, parse
from musketeers.data.synthetic import frames, planted
from musketeers.seeding import Seed

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EVERY_PAGE = [
    *PAGES,
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.toml)\n")
SETTING = re.compile(r"`(\w+)\.(\w+) = ([^`]+)`")


def name(page):
    return str(page.relative_to(ROOT))


def read(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The fenced blocks of one language on a page, in order."""
    return [text for kind, text in FENCE.findall(read(page)) if kind == language]


def commands(page):
    """The console commands on a page, in order, each as its words."""
    return [shlex.split(line) for text in blocks(page, "console") for line in text.splitlines()]


# --- examples


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The data that the examples speak of, in the folder where they run."""
    data = planted(("tv", "movie", "music"), Seed(3), n_users=120, n_items=30, known=0.8)
    for domain, frame in frames(data.domains).items():
        frame.write_parquet(tmp_path / f"{domain}.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_examples_run(page, place):
    known = {"__name__": "example"}
    for text in blocks(page, "python"):
        exec(compile(text, name(page), "exec"), known)


def run(words):
    """The exit code of a `musketeers` command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_run_on_the_settings_beside_them(page, place, capsys):
    for text in blocks(page, "toml"):
        if file := FILE_NAME.match(text):
            (place / file[1]).write_text(text, encoding="utf-8")
    for program, *words in commands(page):
        if program != "musketeers":
            continue
        if words == ["demo"]:  # takes minutes: only parsed
            typer.main.get_command(app).commands["demo"].make_context("demo", [])
            continue
        assert run([program, *words]) == 0, (words, capsys.readouterr().err)


def test_the_walk_through_of_three_companies(place):
    """As a shell runs it, in programs of their own."""
    script = "\n".join(blocks(ROOT / "docs" / "parties.md", "bash"))
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, **path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (place / "tv" / "model" / "tv" / "report.html").is_file()
    assert "A4 membership" in (place / "tv" / "audit.csv").read_text()
    assert "user-001" in done.stdout
    assert sorted(path.name for path in (place / "exchange" / "publish").iterdir()) == [
        "movie", "music", "tv",
    ]  # fmt: skip
    assert not list((place / "coordinator").rglob("users.key"))


def test_the_walk_through_of_a_server(place):
    """As a shell runs it; port 8000 may be taken, so another one stands for it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = "\n".join(blocks(ROOT / "docs" / "serving.md", "bash")).replace("8000", port)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = "trap 'kill $server 2>/dev/null || true' EXIT\n"
    done = subprocess.run(
        ["bash", "-e", "-c", ended + script], capture_output=True, text=True, check=False,
        env={**os.environ, **path, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stderr, (place / "serve.log").read_text())
    assert done.stdout.count('"strategy":"personalised"') >= 3
    assert '"strategy":"cross_domain"' in done.stdout
    assert '"state":"previous"' in done.stdout
    assert '"stored":1' in done.stdout
    assert '"event":"ended"' in (place / "serve.log").read_text()
    assert (place / "keys.toml").read_text().count("[keys.") == 2


def test_the_readme_shows_fitting_and_asking(place):
    shown = {words[1] for words in commands(ROOT / "README.md") if words[0] == "musketeers"}
    trained = {"fit", "add-domain", "refresh", "compare", "demo"}
    asked = {"recommend", "explain", "evaluate"}
    assert {"check", "doctor", *trained, *asked} == shown
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^(\w+):", read(ROOT / "Makefile"), re.MULTILINE))
    for program, *words in commands(page):
        if program == "make":
            assert set(words) <= targets


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_settings_shown_are_valid(page):
    for text in blocks(page, "toml"):
        parse(tomllib.loads(text), name(page))


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", read(page)):
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), anchor


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


# --- settings


def settings(model=RunConfig, section=""):
    """(section, key) -> its field, for every setting that is no section itself."""
    found = {}
    for key, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= settings(kind, key)
        else:
            found[section, key] = field
    return found


def default(field):
    if field.is_required():
        return "required"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def bounds(field):
    """As the table writes them: `x >= 1`, `0 <= x < 1`, or the values to choose from."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    low = high = ""
    for limit in field.metadata:
        match limit:
            case limits.Ge(ge=least):
                low, alone = f"{least} <= ", f"x >= {least}"
            case limits.Gt(gt=least):
                low, alone = f"{least} < ", f"x > {least}"
            case limits.Le(le=most):
                high = f" <= {most}"
            case limits.Lt(lt=most):
                high = f" < {most}"
    if not low:
        return ""
    return f"{low}x{high}" if high else alone


def test_every_setting_has_its_row_with_default_and_bounds():
    rows = re.findall(
        r"^\| (?:`(\w+)`)? *\| `(\w+)` \| ([^|]+) \| ([^|]*)\| ([^|]+) \|$",
        read(ROOT / "docs" / "configuration.md"),
        re.MULTILINE,
    )
    shown = {(section, key): (value, limit.strip()) for section, key, value, limit, _ in rows}
    expected = {place: (default(field), bounds(field)) for place, field in settings().items()}
    expected["", "seed"] = ("`0`", "0 <= x < 2^63")
    assert settings()["", "seed"].metadata[1] == limits.Lt(2**63)
    assert shown == expected
    assert [row[:2] for row in rows] == list(expected)


def test_defaults_named_in_the_method_are_those_of_the_settings():
    fields = settings()
    found = SETTING.findall(read(ROOT / "docs" / "method.md"))
    assert len(found) > 20
    for section, key, value in found:
        assert default(fields[section, key]) == f"`{value}`", (section, key)


# --- the tree, the version


def modules_shown():
    """The files in the README's tree, as paths within the package."""
    tree = next(text for text in blocks(ROOT / "README.md", "text") if "src/musketeers/" in text)
    folder, found = "", []
    for line in tree.splitlines()[1:]:
        indent, entry = re.match(r"( +)(\S+)  ", line).groups()
        if entry.endswith("/"):
            folder = entry
        else:
            found.append(entry if len(indent) == 2 else folder + entry)
    return found


def test_the_readme_lists_every_module_once():
    package = ROOT / "src" / "musketeers"
    files = (path.relative_to(package) for path in package.rglob("*.py"))
    # a folder's own line says what its __init__.py says
    modules = [str(file) for file in files if file.parent == Path() or file.name != "__init__.py"]
    assert sorted(modules_shown()) == sorted(modules)


def test_the_changelog_begins_with_this_version():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    versions = re.findall(r"^## \[([^]]+)\]", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == project["version"]


def test_every_decision_is_in_the_index_with_its_title():
    folder = ROOT / "docs" / "decisions"
    pages = sorted(page for page in folder.glob("*.md") if page.name != "README.md")
    rows = re.findall(r"^\| \[(\d+)\]\(([^)]+)\) \| (.+) \|$", read(folder / "README.md"), re.M)
    assert [file for _, file, _ in rows] == [page.name for page in pages]
    for (number, _, title), page in zip(rows, pages, strict=True):
        assert read(page).startswith(f"# {number} {title}\n")
