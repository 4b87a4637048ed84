"""The package as its users meet it."""

import ast
import errno
import inspect
import os
import subprocess
import sys
from types import ModuleType

import pytest
import typer

import musketeers
from musketeers import errors
from musketeers.__main__ import main

HEAVY = {"torch", "numba", "polars", "pandas", "pyarrow", "scipy"}


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )


def test_every_public_name_loads_and_is_declared_to_type_checkers():
    declared = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(inspect.getsource(musketeers)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("musketeers.")
        for alias in node.names
    }
    public = {
        name
        for name in dir(musketeers)
        if not name.startswith("_") and not isinstance(getattr(musketeers, name), ModuleType)
    }
    assert public == declared
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        musketeers.rnu  # noqa: B018


def test_the_command_line_starts_without_the_heavy_packages():
    code = f"import musketeers.__main__, musketeers.cli, sys; print(*{HEAVY} & set(sys.modules))"
    done = python(code)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_error_is_ours_and_a_builtin_too_and_stands_in_the_tree():
    found = [e for e in vars(errors).values() if isinstance(e, type)]
    assert len(found) == 9
    tree = inspect.getdoc(errors)
    for error in found:
        assert issubclass(error, errors.MusketeersError)
        assert f"- {error.__name__}" in tree.replace("*", "-")
        assert str(error("one line")) == "one line"
        if error is not errors.MusketeersError:
            assert any(base.__module__ == "builtins" for base in error.__mro__[1:-3])


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `main` over a small app with one command, `work`, and give what it answered."""

    def run(work, *arguments):
        app = typer.Typer()
        app.command("work")(work)
        app.callback()(lambda: None)
        fake = ModuleType("musketeers.cli")
        fake.app = app
        monkeypatch.setitem(sys.modules, "musketeers.cli", fake)
        monkeypatch.setattr(sys, "argv", ["musketeers", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capsys.readouterr()

    return run


def raising(error):
    def work():
        raise error

    return work


def test_success_ends_with_zero(call):
    assert call(lambda: typer.echo("done"), "work") == (0, "done\n", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.DataError("tv.csv: line 3: no item_id"), 1, "tv.csv: line 3: no item_id"),
        (errors.ArtifactError("disk is full: x"), 1, "disk is full: x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            1,
            "No space left on device; free some space and try again",
        ),
    ],
)
def test_a_foreseen_failure_is_one_line(call, error, code, line):
    assert call(raising(error), "work") == (code, "", f"musketeers: {line}\n")


def test_wrong_usage_ends_with_two(call):
    code, out, err = call(lambda: None, "work", "--colour")
    assert (code, out) == (2, "")
    assert "No such option" in err


def test_a_chosen_exit_code_stays(call):
    assert call(raising(typer.Exit(3)), "work") == (3, "", "")


@pytest.mark.parametrize("error", [RuntimeError, PermissionError])
def test_what_nobody_foresaw_keeps_its_traceback(call, error):
    with pytest.raises(error):
        call(raising(error("?")), "work")


FAKE = """
import sys, types, typer
app = typer.Typer()
app.callback()(lambda: None)
@app.command()
def work(lines: int):
    for n in range(lines):
        print(n)
fake = types.ModuleType("musketeers.cli")
fake.app = app
sys.modules["musketeers.cli"] = fake
sys.argv = ["musketeers", "work", "{lines}"]
from musketeers.__main__ import main
main()
"""


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_hears_nothing(lines):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-c", FAKE.format(lines=lines)],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_a_cluster_without_ray_is_one_line():
    done = python(
        "import sys; sys.modules['ray'] = None\n"
        "from musketeers.errors import MissingExtraError\n"
        "try:\n    import musketeers.cluster.executor\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    assert done.stdout == (
        "this needs ray, which is not installed: pip install 'musketeers[ray]'\n"
    ), done.stderr
