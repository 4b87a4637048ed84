"""Tables, page and progress lines, on results made up for the purpose."""

import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from musketeers import config, progress
from musketeers.data.overlap import DomainFacts, OverlapReport
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError
from musketeers.evaluation.compare import compare
from musketeers.evaluation.evaluate import PerUser, means_of
from musketeers.recommender import Recommender
from musketeers.report import answers, environment, html, svg, tables, words
from musketeers.results import Learning, RunResult
from musketeers.training import Epoch, History

NAMES = [f"{metric}@{k}" for k in (10, 20) for metric in ("precision", "recall", "ndcg")]
VOID = {"meta", "path", "polyline", "circle"}


def per_user(values):
    values = np.asarray(values, dtype=np.float64)
    return PerUser(np.arange(len(values)), dict.fromkeys(NAMES, values))


def metrics():
    """Better in tv, worse in film, the same in music, which nobody tested."""
    base = np.linspace(0.1, 0.3, 1200)
    noise = np.tile([0.01, 0.02], 600)
    smf = {"tv": per_user(base), "film": per_user(base), "music": per_user([])}
    ours = {"tv": per_user(base + noise), "film": per_user(base - noise), "music": per_user([])}
    return {"smf": smf, "cat_art": ours}


def facts(users):
    return DomainFacts(users, 350_000, 101_981_793, 0.000874, 87.4, 101_999_999, 12, 345)


def overlap(names, warnings=()):
    common = tuple(tuple(1_000_000 + i + j for i in range(len(names))) for j in range(len(names)))
    known_in = tuple(range(10, 10 + len(names)))
    return OverlapReport({name: facts(1_166_552) for name in names}, known_in, common, warnings)


def history(*valid):
    return History(tuple(Epoch(n, 0.5 if n else None, v, 1.0, 0.5) for n, v in enumerate(valid)))


def result(found, names, *, warnings=(), learning=None):
    settings = config.parse({"data": {"domains": {n: f"<{n}>.csv" for n in names}}}, "test")
    learning = learning or Learning(
        {},
        {
            "pretrain": {n: (history(0.1, 0.2), history(0.1, 0.25, 0.24)) for n in names},
            "cat": {"all": (history(-0.9, -0.5, -0.6),)},
            "art": {n: (history(0.25),) for n in names},
        },
        dict.fromkeys(names, True),
        {a: {b: 0.25 for b in names if b != a} for a in names},
    )
    manifest = {
        "started": "2026-11-23T12:00:00+00:00", "threads": 2, "seconds": {"pretrain/tv": 75.0},
        "peak_memory_bytes": 2_500_000_000, "versions": {"python": "3.11", "torch": "2.13.0+cpu"},
    }  # fmt: skip
    return RunResult(
        Path("runs/a<b"), settings, manifest, overlap(names, warnings), {}, found, learning,
        # of the model itself the page shows what it is
        Recommender(None, {}, {"model": dict.fromkeys(found["smf"], "cat_art")}),
    )  # fmt: skip


def rendered(*parts, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(*parts, sep="\n")
    return out.getvalue()


def row(text, label):
    return next(line for line in text.splitlines() if line.strip().startswith(label)).split()


# --- words


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds, shown):
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (9e15, "9000.0 TB")],
)
def test_sizes(n_bytes, shown):
    assert words.size(n_bytes) == shown


@given(st.text())
def test_printable_text_steers_no_terminal_and_loses_nothing_readable(text):
    shown = words.printable(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


def test_an_undefined_number_is_said_to_be_none():
    assert words.number(math.nan) == words.percent(math.nan) == "n/a"


def test_the_headline_counts_wins_losses_and_the_defined_differences():
    found = metrics()
    line = words.headline(compare(found["cat_art"], found["smf"]))
    assert "better in 1 (tv), significantly worse in 1 (film), of 3" in line
    assert line.endswith("mean relative difference +0.0%.")
    assert "nothing is compared" in words.headline({})


# --- tables


def test_the_comparison_shows_means_users_and_marks():
    found = metrics()
    text = rendered(tables.comparison(means_of(found), compare(found["cat_art"], found["smf"])))
    assert row(text, "tv") == ["tv", "1,200"]
    assert row(text, "SMF") == ["SMF", *["0.2000"] * 6]
    assert row(text, "CAT-ART") == ["CAT-ART", *["0.2150"] * 6]
    assert row(text, "difference") == ["difference", *["+7.5%", "▲"] * 6]
    assert "-7.5% ▼" in text
    assert text.count("n/a") == 18
    assert max(map(len, text.splitlines())) <= 80


def test_one_model_alone_has_no_difference_and_no_legend():
    text = rendered(tables.comparison(means_of({"smf": metrics()["smf"]}), {}))
    assert "SMF" in text
    assert "difference" not in text
    assert "▲" not in text


def test_large_data_with_long_names_fit_80_columns():
    names = [f"department-{n}" for n in range(8)]
    text = rendered(tables.overlap(overlap(names, ("ids \x1b[2J are odd; check them",))))
    assert max(map(len, text.splitlines())) <= 80
    assert "1,166,552" in text
    assert "101,981,793" in text
    assert "…" not in text
    # eight domains: the matrix goes on below
    assert re.search(r"shared users +1 +2 +3 +4 +5 +6 *\n", text)
    assert re.search(r"shared users +7 +8 *\n", text)
    assert "warning: ids \\x1b[2J are odd" in text


def test_one_domain_has_no_shared_users():
    assert "shared users" not in rendered(tables.overlap(overlap(["tv"])))


def test_recommendations_stand_together_by_user_and_are_no_markup():
    frame = pl.DataFrame(
        {"user_id": ["[b]u", "[b]u", "v"], "rank": [1, 2, 1], "item_id": ["\x1b[31mi", "j", "k"],
         "score": [0.5, 0.25, 0.125]}
    )  # fmt: skip
    text = rendered(tables.answer(frame))
    assert text.count("[b]u") == 1
    assert row(text, "2") == ["2", "j", "0.2500"]
    assert "\\x1b[31mi" in text


# --- page


class Tags(HTMLParser):
    """Fails on tags that are not closed in order; collects what is there."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read_page(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_intervals_stand_where_their_values_are():
    points = {"A<b": [(1.0, 0.0, 2.0), (-2.0, math.nan, math.nan)], "C": [(0.0, -1.0, 1.0)] * 2}
    text = svg.intervals([("few", "3 users"), ("many", "1 user")], points, what="tv <gain>")
    tags = read_page(text)
    assert "tv <gain>" in tags.texts
    assert "A<b, few, 3 users: +1.00 [+0.00, +2.00]" in tags.texts
    assert {"+2.00", "0", "-2.00"} <= set(tags.texts)
    heights = {
        float(a["d"].split()[1].split("m")[0])
        for tag, a in tags.seen
        if tag == "path" and a.get("class") == "mark"
    }
    # -2 at the bottom (128), 2 at the top (12)
    assert heights == {128.0, 70.0, 41.0}
    reaches = [a["d"] for tag, a in tags.seen if tag == "path" and not a.get("class")]
    assert [reach.split()[1] for reach in reaches if reach] == ["70.0V12.0", *["99.0V41.0"] * 2]


def test_the_page_is_whole_and_needs_nothing_else():
    names = ["tv", "film", "music"]
    page = html.render(result(metrics(), names, warnings=("tv is <small>",)))
    tags = read_page(page)
    kinds = {tag for tag, _ in tags.seen}
    assert not kinds & {"script", "link", "img", "iframe", "small>"}
    assert "http" not in page
    assert "@import" not in page
    assert kinds >= {"table", "svg", "title", "details", "figure"}
    # every table scrolls in a box that has a name, every picture says what it shows
    boxes = [a for t, a in tags.seen if t == "div" and a.get("role") == "region"]
    assert len(boxes) == sum(tag == "table" for tag, _ in tags.seen)
    assert all(box["aria-label"] and box["tabindex"] == "0" for box in boxes)
    svgs = [attributes for tag, attributes in tags.seen if tag == "svg"]
    assert len(svgs) == 7
    assert "pretrain, tv: validation NDCG@10 from 0.1000 to 0.2500 at epoch 1" in tags.texts
    assert "cat, all domains: validation loss from 0.9000 to 0.5000 at epoch 1" in tags.texts


def test_the_page_says_what_the_run_found():
    page = html.render(result(metrics(), ["tv", "film", "music"], warnings=("look out",)))
    assert "significantly better in 1 (tv)" in page
    assert "look out" in page
    assert '<span class="better">+7.5% ▲</span>' in page
    assert '<span class="worse">-7.5% ▼</span>' in page
    assert "[n/a, n/a]" in page
    assert "tv, 1,200 users" in page
    assert "1 min 15 s" in page
    assert "2.5 GB" in page
    assert "2.13.0+cpu" in page
    assert 'color-mix(in srgb, var(--heat) 100%, var(--page))">0.25</td>' in page


def test_the_page_says_which_domains_took_nothing():
    found = result(metrics(), ["tv", "film"])
    some = dataclasses.replace(
        found.learning,
        kept={"tv": True, "film": False},
        attention={"tv": {"film": 1.0}, "film": {}},
    )
    page = html.render(dataclasses.replace(found, learning=some))
    assert page.count("within noise of epoch 0, the domain alone, which was kept") == 1
    assert "film: NDCG@10 0.2500 at epoch 0; within noise" in page
    assert "Mean attention" in page


def test_a_run_that_asks_no_source_has_no_attention_and_kept_its_transfer():
    found = result(metrics(), ["tv", "film"])
    unasked = dataclasses.replace(found.learning, attention={"tv": {}, "film": {}})
    page = html.render(dataclasses.replace(found, learning=unasked))
    assert "Mean attention" not in page
    assert "within noise" not in page


def test_names_and_settings_are_escaped():
    hostile = "<script>alert(1)</script>"
    found = result({"smf": {hostile: per_user([0.5])}}, ["tv"], warnings=(hostile,))
    page = html.render(found)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "&lt;tv&gt;.csv" in page
    assert "Run a&lt;b" in page
    read_page(page)


def test_a_run_in_memory_has_no_folder_and_no_costs():
    found = dataclasses.replace(result(metrics(), ["tv"]), path=None, manifest={})
    page = html.render(found)
    assert "Run in memory" in page
    assert "Wall time" not in page
    read_page(page)


def test_a_run_of_one_domain_leaves_out_what_it_lacks():
    learning = Learning({}, {"pretrain": {"tv": (history(0.1),)}}, {}, {})
    page = html.render(result({"smf": {"tv": per_user([0.5])}}, ["tv"], learning=learning))
    assert "nothing is compared" in page
    for absent in ("Attention", "share</caption>", "3. What", "Warnings", "95 % interval"):
        assert absent not in page
    read_page(page)


# --- answers


def test_typed_ids_take_the_type_of_the_model_where_nothing_is_lost():
    numbers = Vocabulary.of(pl.Series([7, 8]))
    assert answers.typed_ids(["7", "12"], numbers).to_list() == [7, 12]
    assert answers.typed_ids(["7", "007"], numbers).to_list() == ["7", "007"]
    assert answers.typed_ids(["7"], Vocabulary.of(pl.Series(["7"]))).to_list() == ["7"]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_ids_of_bytes_need_parquet(form):
    frame = pl.DataFrame({"item_id": [b"\xff"]})
    with pytest.raises(ConfigError, match=f"bytes, which {form} cannot hold; use --format parquet"):
        answers.write(frame, form, None)


def test_a_table_goes_into_no_file(tmp_path):
    with pytest.raises(ConfigError, match="add --format json, csv or parquet"):
        answers.write(pl.DataFrame(), "table", tmp_path / "x")


def test_parquet_is_kept_off_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(ConfigError, match="add --out FILE or redirect"):
        answers.write(pl.DataFrame(), "parquet", None)


# --- environment


def test_the_environment_is_described_also_where_a_package_is_missing(monkeypatch):
    monkeypatch.setattr(environment, "_PACKAGES", ("numpy", "no-such-package"))
    found = environment.environment()
    assert found["numpy"] == np.__version__
    assert found["no-such-package"] == "not installed"
    assert {"python", "cores", "threads", "gpu", "blas", "numba cache"} <= set(found)
    assert "not installed" in rendered(environment.as_table(found))


# --- progress


def watch(tmp_path, *, terminal):
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal)
    return out, progress.watching(tmp_path, resume=True, console=console)


def test_without_a_terminal_each_stage_leaves_one_plain_line(tmp_path):
    out, watching = watch(tmp_path, terminal=False)
    with watching as watcher:
        with watcher.stage("pretrain", "tv", samples=1_000_000, max_epochs=9) as on_epoch:
            for epoch in history(0.1, 0.3, 0.2).epochs:
                on_epoch(epoch)
        with watcher.stage("cat", None, samples=500, max_epochs=9) as on_epoch:
            for epoch in history(-0.5, -0.25).epochs:
                on_epoch(epoch)
        with watcher.stage("art", "tv", samples=500, max_epochs=9):
            pass
        watcher.say("[red]a line")
    lines = out.getvalue().splitlines()
    assert lines == [
        "pretrain tv           NDCG@10 0.3000  2 epochs, 1.0 M samples/s, 0.0 s",
        "cat      all domains  loss 0.2500  1 epoch, 0.5 k samples/s, 0.0 s",
        "art      tv           was complete",
        "[red]a line",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_rows_are_told_with_their_rate_if_they_took_a_while(tmp_path, monkeypatch, terminal):
    for unnoticed, said in ((0.0, 1), (60.0, 0)):
        monkeypatch.setattr(progress, "UNNOTICED", unnoticed)
        out, watching = watch(tmp_path, terminal=terminal)
        with watching as watcher, watcher.rows("read", "tv") as on_rows:
            on_rows(1_000_000)
            on_rows(234_567)
        found = re.findall(
            r"read     tv           1,234,567 rows  \d+\.\d [kM]/s, ", out.getvalue()
        )
        assert len(found) == said


def test_a_stage_that_fails_leaves_no_summary(tmp_path):
    for terminal in (False, True):
        out, watching = watch(tmp_path, terminal=terminal)
        with (
            pytest.raises(ZeroDivisionError),
            watching as watcher,
            watcher.stage("art", "tv", samples=1, max_epochs=2),
        ):
            raise ZeroDivisionError
        assert "was complete" not in out.getvalue()


def test_a_terminal_shows_epochs_rate_and_time_left_on_one_line(tmp_path):
    tally = progress.Tally("pretrain", "MEAT-PCKGD", samples=3_000_000, max_epochs=200)
    assert tally.running().endswith("starting")
    assert tally.left() == ""
    for epoch in history(0.1, 0.3, 0.2).epochs:
        tally.add(epoch)
    assert tally.running() == "pretrain MEAT-PCKGD   epoch 2/≤200  NDCG@10 0.3000  3.0 M/s"
    assert tally.left() == "≤04:57 left"  # 198 epochs of 1.5 seconds
    assert len(f"{tally.running()} 0:00:00 {tally.left()}") <= 80
    out, watching = watch(tmp_path, terminal=True)
    with watching as watcher, watcher.stage("art", "tv", samples=1, max_epochs=2) as on_epoch:
        on_epoch(Epoch(0, None, 0.5, 0.0, 0.1))
    assert "NDCG@10 0.5000  0 epochs, 0 samples/s" in out.getvalue()


def test_what_is_solved_without_epochs_says_how_often_and_the_best_so_far():
    tally = progress.Tally("choice", "tv", samples=3_000, max_epochs=0)
    assert tally.running().endswith("solving")
    for number, valid in ((1, 0.2), (2, 0.25), (3, 0.25)):
        tally.add(Epoch(number, None, valid, 1.0, 0.5))
    assert tally.running() == "choice   tv           NDCG@10 0.2500  3 solved"
    assert tally.left() == ""
    assert tally.summary() == "choice   tv           NDCG@10 0.2500  3 solved, 0.0 s"
