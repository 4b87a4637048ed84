import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musketeers import artifacts
from musketeers.errors import ArtifactError, RunError
from musketeers.run_folder import FolderCheckpoint, RunFolder, check_place

CONFIG = 'seed = 7\ndim = 64\n\n[data.domains]\ntv = "tv.parquet"\n'
INPUTS = {"data": {"tv": "ab12", "movie": "cd34"}, "threads": 2}


def create(path, config=CONFIG, **changes):
    return RunFolder.create(path, config, **(INPUTS | changes))


@pytest.fixture
def unfinished(tmp_path):
    with create(tmp_path / "run", command=["fit", "a.toml"]) as run:
        artifacts.save(run.path / "pretrain" / "tv", "smf", {"x": np.ones(2)}, {})
    return tmp_path / "run"


@pytest.fixture
def finished(unfinished):
    with create(unfinished, resume=True) as run:
        run.finish()
    return unfinished


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_new_run_says_what_it_is(unfinished):
    manifest = RunFolder(unfinished).manifest()
    assert manifest["status"] == "running"
    assert manifest["finished"] is None
    assert manifest["seed"] == 7
    assert manifest["threads"] == 2
    assert manifest["data"] == INPUTS["data"]
    assert manifest["command"] == ["fit", "a.toml"]
    assert manifest["versions"].keys() >= {"python", "numpy", "torch", "numba", "polars"}
    assert manifest["started"].endswith("+00:00")
    assert manifest["peak_memory_bytes"] > 1 << 20
    assert (unfinished / "config.toml").read_text() == CONFIG


def test_an_empty_folder_will_do(tmp_path):
    with create(tmp_path) as run:
        assert not run.finished


def test_stage_times_add_up_over_resumption(unfinished):
    for _ in range(2):
        before = RunFolder(unfinished).manifest()["seconds"].get("cat", 0)
        with create(unfinished, resume=True) as run, run.timed("cat"), run.timed("inner"):
            time_passes()
        assert run.manifest()["seconds"]["cat"] > before
    assert len(run.manifest()["resumed"]) == 2


def time_passes():
    sum(range(200_000))


def test_a_failed_stage_is_timed_too(unfinished):
    with (
        create(unfinished, resume=True) as run,
        pytest.raises(ZeroDivisionError),
        run.timed("cat"),
    ):
        raise ZeroDivisionError
    assert "cat" in run.manifest()["seconds"]


def test_a_finished_run_is_opened_and_never_written_again(finished):
    run = RunFolder.open(finished)
    assert run.finished
    assert run.manifest()["finished"] >= run.manifest()["started"]
    before = contents(finished)
    with pytest.raises(RunError, match="holds a finished run, never overwritten; choose another"):
        create(finished).__enter__()
    with create(finished, resume=True) as again:
        assert again.finished
    assert {k: v for k, v in contents(finished).items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


def test_an_unfinished_run_is_continued_only_on_request(unfinished):
    with pytest.raises(RunError, match="holds an unfinished run; add --resume"):
        create(unfinished).__enter__()
    with pytest.raises(RunError, match="the run is unfinished; finish it with --resume"):
        RunFolder.open(unfinished)
    with create(unfinished, resume=True) as run:
        assert artifacts.load(run.path / "pretrain" / "tv", "smf").tensors["x"].sum() == 2


@pytest.mark.parametrize(
    ("config", "changes", "difference"),
    [
        (CONFIG.replace("64", "32"), {}, "(dim: 64 -> 32)"),
        (CONFIG.replace("tv.p", "u.p"), {}, "(data.domains.tv: tv.parquet -> u.parquet)"),
        (CONFIG, {"threads": 4}, "(threads: 2 -> 4)"),
        (CONFIG, {"data": {"tv": "ff", "ova": "0"}}, "movie: cd34 -> None; data.ova: None -> 0"),
        (
            CONFIG.replace("7", "8") + "[cat]\npatience = 3\n",
            {"threads": 1},
            "(cat: None -> {'patience': 3}; seed: 7 -> 8; threads: 2 -> 1)",
        ),
    ],
)
@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_another_input_is_named(request, state, config, changes, difference):
    path = request.getfixturevalue(state)
    with pytest.raises(RunError) as caught:
        create(path, config, resume=True, **changes).__enter__()
    assert difference in str(caught.value)
    assert "started with other inputs" in str(caught.value)
    assert (path / "config.toml").read_text() == CONFIG


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "config.toml").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunError, match="holds other files; choose an empty folder"):
            create(tmp_path, resume=resume).__enter__()
        with pytest.raises(RunError, match="holds other files"):
            check_place(tmp_path, resume=resume)
    assert contents(tmp_path) == {tmp_path / "config.toml": b"mine"}
    with pytest.raises(RunError, match="is a file; choose a folder"):
        create(tmp_path / "config.toml").__enter__()
    with pytest.raises(RunError, match="holds no run; give the folder of a finished one"):
        RunFolder.open(tmp_path)


def test_a_folder_of_another_kind_is_refused(tmp_path, finished):
    comparison = tmp_path / "compared"
    with create(comparison, kind="comparison") as folder:
        folder.finish()
    message = f"^{comparison}: holds a comparison, made by musketeers compare; give a run's folder"
    before = contents(comparison)
    for attempt in (
        lambda: RunFolder.open(comparison),
        lambda: create(comparison, resume=True).__enter__(),
        lambda: check_place(comparison, resume=True),
    ):
        with pytest.raises(RunError, match=message):
            attempt()
    assert contents(comparison) == before
    message = f"^{finished}: holds a run, made by musketeers fit; give a comparison's folder"
    with pytest.raises(RunError, match=message):
        check_place(finished, resume=True, kind="comparison")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a run's manifest"),
        ('{"format": 1, "kind": "smf", "about": {}}', "is not a run's manifest"),
        ('{"format": 1, "kind": ["run"]}', "is not a run's manifest"),
        ('{"format": 2, "kind": "run"}', "has format 2, this version reads 1"),
        ('{"format": 1, "kind": "run", "status": "running"}', "'settings' is missing or damaged"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=message):
        create(tmp_path, resume=True).__enter__()
    with pytest.raises(RunError, match=message):
        RunFolder.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_one_writer_at_a_time(unfinished):
    with create(unfinished, resume=True):
        for resume in (False, True):
            with pytest.raises(RunError, match=f"process {os.getpid()} is writing here; wait"):
                create(unfinished, resume=resume).__enter__()
    with create(unfinished, resume=True):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from musketeers.run_folder import RunFolder
with RunFolder.create(Path(sys.argv[1]), "seed = 0", data={}, threads=1) as run:
    print("holding", flush=True)
    time.sleep(60)
"""


def test_the_lock_goes_with_a_killed_writer(tmp_path):
    path = tmp_path / "run"
    settings = {"data": {}, "threads": 1, "resume": True}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunError, match=f"process {holder.pid} is writing"):
            RunFolder.create(path, "seed = 0", **settings).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with RunFolder.create(path, "seed = 0", **settings) as run:
        run.finish()
    assert RunFolder.open(path).finished


def test_a_run_killed_before_it_began_leaves_a_free_place(tmp_path):
    (tmp_path / ".lock").write_text("12")
    (tmp_path / ".saving-12").write_text("half")
    with create(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            ".lock",
            "config.toml",
            "manifest.json",
        ]


def test_a_settings_file_lost_by_a_kill_comes_back(unfinished):
    (unfinished / "config.toml").unlink()
    with create(unfinished, resume=True):
        assert (unfinished / "config.toml").read_text() == CONFIG


def test_drafts_of_a_killed_writer_go(unfinished):
    draft = unfinished / "pretrain" / ".saving-1"
    draft.mkdir()
    (draft / "tensors.safetensors").touch()
    with create(unfinished, resume=True):
        assert not draft.exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(handle, data):
        raise OSError(28, os.strerror(28))

    with create(tmp_path / "run") as run:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ArtifactError, match=r"^disk is full: .*free some space and try again$"):
            run.finish()
        monkeypatch.undo()
    assert not run.finished


def test_checkpoints_hold_the_latest_and_go_at_the_end(unfinished):
    with create(unfinished, resume=True) as run:
        place = run.checkpoint("pretrain", "tv")
        assert place.load() is None
        for n in range(3):
            place.save({"x": np.full(4, n)}, {"n": n})
        tensors, about = run.checkpoint("pretrain", "tv").load()
        assert (tensors["x"].tolist(), about) == ([2] * 4, {"n": 2})
        assert len(list(place.folder.iterdir())) == 1
        assert run.checkpoint("pretrain", "movie").load() is None
        run.finish()
        assert not (run.path / "checkpoints").exists()


def test_writers_of_one_checkpoint_do_not_harm_each_other(tmp_path):
    """As where a cluster has given up a worker that goes on."""

    def write(name):
        place = FolderCheckpoint(tmp_path, name)
        for n in range(60):
            place.save({"x": np.full(2000, n)}, {"n": n})

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, name) for name in ("a", "b", "c")]
        while not all(writer.done() for writer in writers):
            found = FolderCheckpoint(tmp_path).load()
            if found:
                assert set(found[0]["x"].tolist()) == {found[1]["n"]}
        for writer in writers:
            writer.result()
    assert FolderCheckpoint(tmp_path).load()[1] == {"n": 59}
    # and one that works alone takes over what they left
    FolderCheckpoint(tmp_path).save({}, {"n": 60})
    assert FolderCheckpoint(tmp_path, "d").load()[1] == {"n": 60}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_killed_between_its_steps_is_the_new_one(tmp_path, monkeypatch):
    place = FolderCheckpoint(tmp_path)
    place.save({}, {"n": 0})
    monkeypatch.setattr("musketeers.run_folder._remove", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.save({}, {"n": 1})
    assert place.load() == ({}, {"n": 1})
    monkeypatch.undo()
    place.save({}, {"n": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


def test_a_failing_checkpoint_leaves_the_old_one(tmp_path, monkeypatch):
    place = FolderCheckpoint(tmp_path)
    place.save({"x": np.ones(3)}, {"n": 0})
    monkeypatch.setattr(os, "rename", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.save({"x": np.ones(3)}, {"n": 1})
    assert place.load()[1] == {"n": 0}


def test_a_damaged_checkpoint_is_not_trusted(tmp_path):
    place = FolderCheckpoint(tmp_path)
    place.save({"x": np.ones(3)}, {})
    (tmp_path / "0" / "tensors.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"0/tensors\.safetensors: has 4 bytes"):
        place.load()


CHECKPOINTER = """
import itertools, sys
from pathlib import Path
import numpy as np
from musketeers.run_folder import FolderCheckpoint
place = FolderCheckpoint(Path(sys.argv[1]))
start = place.load()
for n in itertools.count(start[1]["n"] if start else 0):
    place.save({"x": np.full(20_000, n)}, {"n": n})
    print(n, flush=True)
"""


def test_a_checkpoint_killed_at_any_time_loads(tmp_path):
    rng, saved = np.random.default_rng(1), 0
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", CHECKPOINTER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with writer:
            assert writer.stdout is not None
            for _ in range(int(rng.integers(2, 9))):
                saved = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        tensors, about = FolderCheckpoint(tmp_path).load()
        assert about["n"] >= saved
        assert (tensors["x"] == about["n"]).all()


def test_the_manifest_is_plain_json(finished):
    assert json.loads((finished / "manifest.json").read_text())["kind"] == "run"
