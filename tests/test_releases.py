"""What leaves is noted before it leaves, whatever fails and whenever it is killed."""

import errno
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import polars as pl
import pytest
from test_artifacts import fail_at

from musketeers.data.pseudonyms import Secret
from musketeers.errors import ArtifactError, RunError
from musketeers.parties.defences import Defences
from musketeers.parties.home import Home
from musketeers.parties.publication import read_publication
from musketeers.parties.release import release
from musketeers.run_folder import locked
from musketeers.seeding import Seed

HOW = Defences(clip=1.0, epsilon=8.0, delta=1e-6)
KEYS = pl.Series("id", [f"{n:032x}" for n in range(40)])
SECRET = Secret(bytes(32))


def publish(home, out, sequence=1):
    users = Seed(0).numpy().standard_normal((40, 8)).astype(np.float32)
    return release(
        home, sequence, str(out), "tv", KEYS, users, HOW,
        axes=np.eye(8, dtype=np.float32), space="0" * 16, secret=SECRET,
    )  # fmt: skip


def check(home, out):
    """A file that left is whole, and in the list; the files kept are those of the list."""
    listed = {one.digest for one in home.releases()}
    public = {"tv": home.signer().public}
    if out.exists():
        assert read_publication(str(out), public, dim=8).digest in listed
    for number, one in enumerate(home.releases(), 1):
        kept = read_publication(str(home.file(number)), public, dim=8)
        assert kept.digest == one.digest


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_step_spends_no_noise_twice(tmp_path, code):
    for n in range(1, 100):
        home, out = Home(tmp_path / str(n)), tmp_path / str(n) / "out" / "tv"
        home.make_key()
        with pytest.MonkeyPatch.context() as patch:
            made = fail_at(patch, n, code)
            with suppress(ArtifactError):
                publish(home, out)
        check(home, out)
        left = out.read_bytes() if out.exists() else None
        publish(home, out)
        check(home, out)
        assert len(home.releases()) == 1
        assert left is None or left == out.read_bytes()
        if len(made) < n:
            break
    assert n > 12


def test_two_publishers_take_turns(tmp_path):
    home, out = Home(tmp_path), tmp_path / "out" / "tv"
    home.make_key()
    with locked(tmp_path), pytest.raises(RunError, match="is writing here; wait for it or choose"):
        publish(home, out)
    assert not out.exists()
    publish(home, out)


PUBLISHER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_releases as t
home = t.Home(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(len(home.releases()) + 1, 10_000):
    t.publish(home, Path(sys.argv[1]) / "out" / "tv", number)
"""


def test_a_publisher_killed_at_any_time_has_noted_what_left(tmp_path):
    home, out = Home(tmp_path), tmp_path / "out" / "tv"
    home.make_key()
    here = str(__file__).rsplit("/", 1)[0]
    make, counts = np.random.default_rng(0), [0]
    for _ in range(4):
        command = [sys.executable, "-c", PUBLISHER, str(tmp_path), here]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher:
            assert publisher.stdout.readline() == "ready\n"
            time.sleep(make.uniform(0.05, 0.3))
            publisher.send_signal(signal.SIGKILL)
        check(home, out)
        counts.append(len(home.releases()))
    assert counts == sorted(counts)
    assert counts[-1] > 4
    digests = [one["digest"] for one in json.loads((tmp_path / "releases.json").read_text())]
    assert len(set(digests)) == len(digests)
