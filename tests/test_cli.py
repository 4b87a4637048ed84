"""The command line from its help to a whole run."""

import io
import json
import subprocess
import sys
import tomllib

import polars as pl
import pytest

from musketeers import runs
from musketeers.__main__ import main
from musketeers.config import load
from musketeers.data.synthetic import frames, planted
from musketeers.seeding import Seed

COMMANDS = (
    "fit", "add-domain", "refresh", "evaluate", "recommend", "explain", "check", "doctor", "demo",
    "synth", "interactions",
)  # fmt: skip
SETTINGS = """
dim = 4

[data]
min_user = 3
min_item = 2

[data.domains]
tv = "tv.parquet"
"my films" = "films.csv"

[pretrain]
max_epochs = 3
tries = 2

[cat]
max_epochs = 2

[art]
max_epochs = 2
"""


def call(*arguments):
    """What `main` answers in this process: exit code, stdout as bytes, stderr."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["musketeers", *map(str, arguments)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as ended:
            main()
        out.flush()
    return ended.value.code, out.buffer.getvalue(), err.getvalue()


def text(*arguments):
    code, out, err = call(*arguments)
    assert code == 0, err
    return out.decode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data of two domains, one in Parquet with text ids, one in CSV, and the settings."""
    folder = tmp_path_factory.mktemp("place")
    found = frames(planted(("tv", "films"), Seed(3), n_users=80, n_items=30, known=0.8).domains)
    found["tv"].write_parquet(folder / "tv.parquet")
    found["films"].write_csv(folder / "films.csv")
    (folder / "settings.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def fitted(place):
    """The folder of a run, and what `fit` printed."""
    answer = call("fit", place / "settings.toml", "--out", place / "run", "--threads", 1)
    return place / "run", answer


# --- help and usage


def process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "musketeers", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_names_every_command():
    done = process("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_help_comes_without_the_heavy_packages():
    code = (
        "import sys\n"
        "sys.argv = ['musketeers', 'fit', '--help']\n"
        "from musketeers.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'polars', 'scipy', 'pyarrow', 'numpy'}\n"
        "print(*heavy & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_an_example(command):
    shown = text(command, "--help")
    assert f"Example: musketeers {command}" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_no_command_is_wrong_usage_and_shows_the_help():
    code, out, err = call()
    assert code == 2
    assert "recommend" in out.decode() + err


def test_the_version():
    assert text("--version") == "musketeers 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("fit",), "Missing argument 'CONFIG.toml'"),
        (("fit", "x.toml"), "Missing option '--out'"),
        (("fit", "x.toml", "--out", "y", "--seed", "1"), "No such option"),
        (("fit", "x.toml", "--out", "y", "--threads", "many"), "Invalid value for '--threads'"),
        (("recommend", "x", "--user", "7"), "Missing option '--domain'"),
        (
            ("recommend", "x", "--domain", "tv", "--user", "1", "--format", "xml"),
            "'xml' is not one",
        ),
        (("fix",), "No such command 'fix'"),
    ],
)
def test_wrong_usage_ends_with_two(arguments, complaint):
    code, out, err = call(*arguments)
    assert (code, out) == (2, b"")
    assert complaint in " ".join(err.replace("│", " ").split())


# --- fit


def test_fit_compares_on_stdout_and_reports_stages_on_stderr(fitted):
    path, (code, out, err) = fitted
    assert code == 0, err
    printed = out.decode()
    for expected in ("tv", "my films", "SMF", "CAT-ART", "difference", "NDCG@20", "report.html"):
        assert expected in printed
    stages = [line.split("  ")[0].split()[0] for line in err.splitlines()]
    learning = [*2 * ["bpr-4"], *2 * ["ials-4"], *2 * ["round"], "recipe", *2 * ["pretrain"]]
    assert stages == [*learning, "cat", "art", "art", "choice", "choice"]
    assert "\x1b" not in err
    page = (path / "report.html").read_text()
    assert "my films" in page
    assert load(path / "config.toml").dim == 4


def test_a_finished_run_is_never_overwritten(fitted):
    path, (_, printed, _) = fitted
    settings = path.parent / "settings.toml"
    code, out, err = call("fit", settings, "--out", path, "--threads", 1)
    assert (code, out) == (1, b"")
    assert err == (
        f"musketeers: {path}: holds a finished run, never overwritten; choose another folder\n"
    )
    before = (path / "manifest.json").read_bytes()
    code, out, err = call("fit", settings, "--out", path, "--threads", 1, "--resume")
    assert (code, err) == (0, f"{path}: the run is finished; nothing is trained\n")
    assert out == printed
    assert (path / "manifest.json").read_bytes() == before


def test_one_model_alone(place):
    printed = text("fit", place / "settings.toml", "--out", place / "pop", "--only", "pop")
    assert "Popularity" in printed
    assert "SMF" not in printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("settings.toml", "--threads", "0"), "threads is 0"),
        (("settings.toml", "--only", "magic"), "no model 'magic'"),
        (("settings.toml", "--address", "head:6379"), "for --on ray; add that"),
        (("settings.toml", "--on", "ray", "--address", "head"), "give the cluster's as HOST:PORT"),
        (("nowhere.toml",), "cannot be read"),
        (("broken.toml",), "dims: unknown key; did you mean dim?"),
    ],
)
def test_a_fit_that_cannot_be_is_one_line(place, arguments, line):
    (place / "broken.toml").write_text("dims = 3\n[data.domains]\ntv = 'tv.parquet'\n")
    first, *rest = arguments
    code, out, err = call("fit", place / first, "--out", place / "never", *rest)
    assert (code, out) == (1, b"")
    assert line in err
    assert len(err.splitlines()) == 1
    assert not (place / "never").exists()


# --- add-domain, refresh


def test_a_domain_is_added_and_refreshed(fitted, tmp_path):
    path, _ = fitted
    music = frames(planted(("music",), Seed(5), n_users=80, n_items=30).domains)["music"]
    music.rename({"user_id": "who"}).write_csv(tmp_path / "music.csv")
    named = ("--domain", "music", "--data", tmp_path / "music.csv", "--threads", 1)
    code, _, err = call("add-domain", path, *named, "--out", tmp_path / "failed")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "no column 'user_id' among 'who', 'item_id', 'timestamp'" in err
    second = tmp_path / "second"
    code, out, err = call("add-domain", path, *named, "--user", "who", "--out", second)
    assert code == 0, err
    printed = out.decode()
    for expected in ("music", "What changed", "Before", "After", str(second / "report.html")):
        assert expected in printed
    stages = [line.split("  ")[0].split()[0] for line in err.splitlines()]
    assert stages == ["pretrain", "cat", *3 * ["art"], *3 * ["choice"]]

    third = tmp_path / "third"
    code, out, err = call("refresh", second, *named, "--out", third)
    assert code == 0, err
    assert "music since the last full fit: 0% of its items are new" in err
    assert "What changed" in out.decode()
    assert out.decode().startswith(text("evaluate", third, "--threads", 1))
    again = call("refresh", second, *named, "--out", third, "--resume")
    assert again[:2] == (0, out)
    assert f"{third}: the run is finished; nothing is trained" in again[2]
    code, out, err = call("refresh", second, *named, "--out", third)
    assert (code, out) == (1, b"")
    assert err.endswith("holds a finished run, never overwritten; choose another folder\n")
    update = json.loads((third / "metrics.json").read_text())["update"]
    assert update.keys() == {"before", "after"}
    assert update["before"] == update["after"]
    assert update["after"].keys() == {"tv", "my films", "music"}


# --- evaluate, recommend, check


def test_evaluate_measures_the_same_again(fitted):
    path, (_, printed, _) = fitted
    assert printed.decode().startswith(text("evaluate", path, "--threads", 1))


def test_evaluate_also_ranks_among_random_items_if_asked(fitted):
    shown = text("evaluate", fitted[0], "--threads", 1, "--sampled")
    assert shown.count("Popularity") == 4
    assert "sampled HR@10 sampled NDCG@10" in " ".join(shown.split())
    assert "Krichene and Rendle, KDD 2020" in " ".join(shown.split())


def rows(path, *arguments):
    return json.loads(
        text("recommend", path, "--domain", "my films", "--format", "json", *arguments)
    )


def test_all_formats_hold_the_same_rows_and_ids_come_back(fitted, tmp_path):
    path, _ = fitted
    arguments = ("recommend", path, "--domain", "tv", "--user", "user-07", "--user", "?", "--k", 3)
    found = json.loads(text(*arguments, "--format", "json"))
    assert [row["user_id"] for row in found] == ["user-07"] * 3 + ["?"] * 3
    assert [row["rank"] for row in found] == [1, 2, 3, 1, 2, 3]
    assert {row["strategy"] for row in found[3:]} == {"popular"}
    items = set(pl.read_parquet(path.parent / "tv.parquet")["item_id"])
    assert all(row["item_id"] in items for row in found)

    table = pl.read_csv(io.StringIO(text(*arguments, "--format", "csv")))
    assert table.rows() == [tuple(row.values()) for row in found]
    _, out, _ = call(*arguments, "--format", "parquet")
    assert pl.read_parquet(io.BytesIO(out)).to_dicts() == found
    for form in ("json", "csv", "parquet"):
        file = tmp_path / "new" / f"rows.{form}"
        assert text(*arguments, "--format", form, "--out", file) == ""
        assert file.read_bytes() == call(*arguments, "--format", form)[1]
    shown = text(*arguments)
    assert all(row["item_id"] in shown for row in found)


def test_seen_items_are_left_out_unless_asked_for(fitted):
    path, _ = fitted
    seen = set(pl.read_csv(path.parent / "films.csv").filter(user_id="user-07")["item_id"])
    assert seen
    unseen = {row["item_id"] for row in rows(path, "--user", "user-07", "--k", 99)}
    assert not seen & unseen
    everything = rows(path, "--user", "user-07", "--k", 99, "--include-seen")
    assert {row["item_id"] for row in everything} == seen | unseen


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--domain", "films"), "domain 'films' is not among 'tv', 'my films'; did you mean"),
        (("--domain", "tv", "--k", "-3"), "k is -3; give at least 1"),
        (("--domain", "tv", "--out", "x"), "a table is for reading; add --format"),
    ],
)
def test_a_request_that_cannot_be_answered_is_one_line(fitted, arguments, line):
    path, _ = fitted
    code, out, err = call("recommend", path, "--user", "1", *arguments)
    assert (code, out) == (1, b"")
    assert err.startswith(f"musketeers: {line}")
    assert len(err.splitlines()) == 1


def test_the_lists_of_all_users_are_those_of_each(fitted, tmp_path, monkeypatch):
    from musketeers import recommender

    path, _ = fitted
    monkeypatch.setattr(recommender, "_USERS_AT_A_TIME", 7)
    place = tmp_path / "new" / "lists.parquet"
    assert text("recommend", path, "--domain", "tv", "--all-users", "--k", 3, "--out", place) == ""
    model = recommender.Recommender.load(path / "model")
    each = model.recommend("tv", model.users.values, 3)
    assert pl.read_parquet(place).equals(each)
    assert each["user_id"].n_unique() == len(model.users) > 7
    assert [file.name for file in place.parent.iterdir()] == ["lists.parquet"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name users (--user ID), or ask for all of them (--all-users)"),
        (("--user", "1", "--all-users"), "name users (--user ID), or ask for all of them"),
        (("--all-users",), "the lists of all users are many rows, and are written as Parquet"),
        (("--all-users", "--format", "csv", "--out", "x"), "are written as Parquet; give --out"),
    ],
)
def test_whose_lists_are_wanted_must_be_clear(fitted, words, message):
    code, _, err = call("recommend", fitted[0], "--domain", "tv", *words)
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [("evaluate",), ("recommend", "--domain", "tv", "--user", "1")])
def test_a_folder_without_a_run_is_one_line(tmp_path, command):
    first, *rest = command
    code, _, err = call(first, tmp_path, *rest)
    assert (code, err) == (
        1, f"musketeers: {tmp_path}: holds no run; give the folder of a finished one\n"
    )  # fmt: skip


def test_integer_ids_stay_integers(tmp_path):
    frame = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 2, 12, 12, 12], "item_id": [7, 8, 9] * 3})
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "c.toml").write_text(
        "[data]\nmin_user = 1\nmin_item = 1\n[data.domains]\na = 'a.parquet'"
    )
    runs.fit_run(load(tmp_path / "c.toml"), tmp_path, tmp_path / "run", threads=1, only="pop")
    wanted = ("--domain", "a", "--user", "12", "--include-seen", "--format", "json", "--k", 1)
    found = json.loads(text("recommend", tmp_path / "run", *wanted))
    assert [(row["user_id"], row["item_id"]) for row in found] == [(12, 7)]


def test_check_shows_settings_sizes_and_warnings_and_trains_nothing(place, tmp_path):
    before = sorted(place.rglob("*"))
    printed = text("check", place / "settings.toml")
    assert sorted(place.rglob("*")) == before
    settings, _, tables = printed.partition("\n\n ")
    assert tomllib.loads(settings)["data"]["domains"]["my films"] == "films.csv"
    assert "users known in" in tables
    assert "warning" not in tables

    alone = tmp_path / "alone.toml"
    alone.write_text(f"[data]\nmin_item = 1\n[data.domains]\ntv = '{place / 'tv.parquet'}'")
    assert "warning: tv is the only domain" in text("check", alone)


def test_check_of_a_missing_file_is_one_line(tmp_path):
    (tmp_path / "c.toml").write_text("[data.domains]\ntv = 'tv.parquet'")
    code, out, err = call("check", tmp_path / "c.toml")
    assert (code, out) == (1, b"")
    assert err == (
        f"musketeers: {tmp_path / 'tv.parquet'}: no such file or folder; check data.domains\n"
    )


def test_doctor_names_versions_threads_and_the_gpu():
    printed = text("doctor")
    for expected in ("python", "musketeers", "torch", "polars", "cores", "blas", "gpu", "numba"):
        assert f"{expected} " in printed


def test_synth_writes_a_workload_and_says_what_is_next(tmp_path):
    sizes = ("--domains", 2, "--users", 50, "--items", 100, "--pairs", 400, "--threads", 1)
    printed = text("synth", *sizes, "--ids", "text", "--out", tmp_path / "data")
    first, following, ideal = printed.splitlines()
    assert first.startswith(f"{tmp_path / 'data'}: 2 domains, 50 users, 800 pairs, ")
    assert following == f"Next:  musketeers fit {tmp_path / 'data' / 'settings.toml'} --out RUN"
    assert ideal.endswith(f"{tmp_path / 'data' / 'ideal.toml'} --only smf --out IDEAL")
    assert pl.read_parquet(tmp_path / "data" / "app_use.parquet")["user_id"][0] == "user-00"
    code, out, err = call("synth", *sizes, "--out", tmp_path / "data")
    assert (code, out) == (1, b"")
    assert err == (
        f"musketeers: {tmp_path / 'data'}: already exists; choose another place or remove it\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--preset", "papers", "preset is 'papers'; choose one of paper, sparse"),
        ("--ids", "uuid", "ids is 'uuid'; choose one of integer, text"),
        ("--scale", 2, "scale is 2.0; it is above 0 and at most 1"),
    ],
)
def test_synth_refuses_what_it_does_not_know(tmp_path, option, value, complaint):
    code, out, err = call("synth", option, value, "--out", tmp_path / "data")
    assert (code, out, err) == (1, b"", f"musketeers: {complaint}\n")
    assert not list(tmp_path.iterdir())
