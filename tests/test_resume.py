"""A run that was interrupted anywhere ends as if nothing had happened, to the bit."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from planted_files import write_run

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.data.synthetic import frames, planted
from musketeers.errors import RunError
from musketeers.runs import Quiet, fit_run
from musketeers.seeding import Seed

SETTINGS = """
seed = 5
dim = 6

[data]
min_user = 2
min_item = 2

[data.domains]
tv = "tv.parquet"
film = "film.parquet"

[pretrain]
method = "bpr"
max_epochs = 8
patience = 2
tries = 3
regularization = 0.07

[cat]
max_epochs = 6
batch_size = 64

[art]
max_epochs = 6
batch_size = 64
"""

CHILD = """
import sys
from contextlib import contextmanager
from pathlib import Path
import torch
from musketeers import config
from musketeers.runs import Quiet, fit_run

torch.set_num_threads(1)

class Telling:
    rows = Quiet().rows

    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        yield lambda epoch: print("epoch", stage, domain, epoch.number, flush=True)

    def say(self, line):
        pass

base, out = Path(sys.argv[1]), Path(sys.argv[2])
fit_run(
    config.load(base / "run.toml"), base, out, resume=True, threads=1, watch=Telling(),
)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with two domains and the settings."""
    return write_run(tmp_path_factory.mktemp("resume"), SETTINGS, n_users=100)


@pytest.fixture(scope="module")
def expected(base):
    """What a run that nobody interrupts leaves behind."""
    run(base, base / "whole")
    return digests(base / "whole")


def run(base, out, **options):
    config = configuration.load(base / "run.toml")
    return fit_run(config, base, out, **{"threads": 1, **options})


def digests(out):
    """Every file whose content is decided by settings and data alone.

    The others tell of time: when, how long, how often resumed.
    """
    files = [*out.rglob("*.safetensors"), *out.rglob("*.parquet"), out / "metrics.json"]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class Interrupting:
    """A `Watch` that presses Ctrl-C when one epoch of one stage has ended."""

    def __init__(self, stage, domain, number):
        self.when = stage, domain, number

    rows = Quiet().rows

    @contextmanager
    def stage(self, stage, domain, *, samples, max_epochs):
        def on_epoch(epoch):
            if (stage, domain, epoch.number) == self.when:
                raise KeyboardInterrupt

        yield on_epoch

    def say(self, line):
        pass


def test_the_digests_cover_every_stage(expected):
    assert {Path(name).parts[0] for name in expected} == {
        "art", "cat", "choice", "data", "metrics.json", "metrics.parquet", "model", "pretrain",
    }  # fmt: skip


@pytest.mark.parametrize(
    "when",
    [("pretrain", "tv", 0), ("pretrain", "film", 3), ("cat", None, 2), ("art", "tv", 1),
     ("art", "film", 4)],
)  # fmt: skip
def test_ctrl_c_in_any_stage(base, expected, tmp_path, when):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(base, out, watch=Interrupting(*when))
    assert json.loads((out / "manifest.json").read_text())["status"] == "running"
    with pytest.raises(RunError, match=r"holds an unfinished run; add --resume"):
        run(base, out)
    finished = run(base, out, resume=True)
    assert digests(out) == expected
    assert len(finished.manifest["resumed"]) == 1
    assert not (out / "checkpoints").exists()


def test_ctrl_c_again_and_again(base, expected, tmp_path):
    out = tmp_path / "run"
    for when in (("pretrain", "tv", 3), ("pretrain", "tv", 6), ("cat", None, 1), ("cat", None, 2)):
        with pytest.raises(KeyboardInterrupt):
            run(base, out, resume=True, watch=Interrupting(*when))
    finished = run(base, out, resume=True)
    assert digests(out) == expected
    assert len(finished.manifest["resumed"]) == 4


@pytest.mark.parametrize("nth", [2, 7])
def test_an_interrupt_while_the_results_are_saved(base, expected, tmp_path, monkeypatch, nth):
    out, save, calls = tmp_path / "run", artifacts.save, []

    def interrupted(folder, *arguments, durable=True, **options):
        if durable:  # a checkpoint is not
            calls.append(folder)
            if len(calls) == nth:
                raise KeyboardInterrupt
        save(folder, *arguments, durable=durable, **options)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(base, out)
    run(base, out, resume=True)
    assert digests(out) == expected


def test_a_resumed_run_does_not_repeat_the_epochs_that_were_done(base, tmp_path):
    out, heard = tmp_path / "run", []
    with pytest.raises(KeyboardInterrupt):
        run(base, out, watch=Interrupting("cat", None, 2))

    class Listening(Interrupting):
        @contextmanager
        def stage(self, stage, domain, *, samples, max_epochs):
            yield lambda epoch: heard.append((stage, domain, epoch.number))

    run(base, out, resume=True, watch=Listening(None, None, None))
    assert heard[0] == ("cat", None, 3)
    assert {stage for stage, _, _ in heard} == {"cat", "art", "choice"}


def test_other_settings_data_or_threads_are_refused(base, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(base, out, watch=Interrupting("pretrain", "tv", 3))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    config = configuration.load(base / "run.toml")

    def refused(match, *, config=config, base=base, **options):
        with pytest.raises(RunError, match=match):
            fit_run(config, base, out, **{"threads": 1, "resume": True, **options})

    refused(r"other inputs \(seed: 5 -> 6\)", config=config.model_copy(update={"seed": 6}))
    refused(r"other inputs \(threads: 1 -> 2\)", threads=2)
    refused(r"other inputs \(data\.models: pop,smf,cat_art,chosen -> smf\)", only="smf")
    other = tmp_path / "other"
    other.mkdir()
    data = planted(("tv", "film"), Seed(1), n_users=100, n_items=40, known=0.8)
    for name, frame in frames(data.domains).items():
        frame.write_parquet(other / f"{name}.parquet")
    refused(r"other inputs \(data\.film, pairs: \w{64} -> \w{64}; data\.tv, pairs", base=other)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def killed_after(base, out, *, n_epochs, wait):
    """Start or resume the run in a process of its own, and kill it in the middle.

    False if it was done before.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(base), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        told = 0
        for line in child.stdout:
            told += line.startswith("epoch")
            if line.startswith("done"):
                child.wait()
                return False
            if told == n_epochs:
                break
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
    assert "Error" not in rest
    return "done" not in rest


def test_kill_at_random_moments(base, expected, tmp_path):
    """No handler, no farewell: whatever is on the disk then has to do."""
    out, rng = tmp_path / "run", np.random.default_rng(0)
    n_killed = 0
    for _ in range(4):
        n_epochs, wait = int(rng.integers(1, 7)), float(rng.uniform(0, 0.03))
        n_killed += killed_after(base, out, n_epochs=n_epochs, wait=wait)
    assert n_killed >= 3
    finished = run(base, out, resume=True)
    assert digests(out) == expected
    assert len(finished.manifest["resumed"]) >= 3
    assert not list(out.rglob(f"{artifacts.DRAFT_PREFIX}*"))
