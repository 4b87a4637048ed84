import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save as library_save

from musketeers import artifacts
from musketeers.errors import ArtifactError

WEIGHTS = {
    "users": np.arange(6, dtype=np.float32).reshape(3, 2),
    "known": np.array([True, False, True]),
    "step": np.array(7),
}


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "smf"
    artifacts.save(folder, "smf", WEIGHTS, {"dim": 2}, files={"items-tv.parquet": b"PAR1"})
    return folder


def change(folder, **changes):
    """Rewrite some keys of the manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_saved_comes_back(saved):
    found = artifacts.load(saved, "smf")
    assert found.about == {"dim": 2}
    assert found.files == {"items-tv.parquet": b"PAR1"}
    assert found.tensors.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        assert found.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(found.tensors[name], array)
    assert list(saved.parent.iterdir()) == [saved]


@given(
    hnp.arrays(
        st.sampled_from([bool, "i1", "u2", "<i4", ">i8", "f2", "<f4", ">f8"]),
        hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    st.booleans(),
)
def test_any_layout_and_byte_order_comes_back(tmp_path_factory, array, transposed):
    array = array.T if transposed else array
    folder = tmp_path_factory.mktemp("any") / "a"
    artifacts.save(folder, "any", {"x": array}, {}, durable=False)
    found = artifacts.load(folder, "any").tensors["x"]
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)


def test_the_file_is_what_the_library_of_the_format_writes(tmp_path):
    tensors = WEIGHTS | {
        "é": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "half": np.ones((2, 0), np.float16),
        "a": np.arange(3, dtype=np.uint64),
        "b": np.arange(2.0),
    }
    artifacts.save(tmp_path / "a", "any", tensors, {})
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    plain["step"] = tensors["step"]  # the function above makes a row of a number
    assert (tmp_path / "a" / "tensors.safetensors").read_bytes() == library_save(plain)


def test_an_artifact_needs_no_tensor(tmp_path):
    artifacts.save(tmp_path / "a", "words", {}, {"n": 1}, files={"w": b""})
    found = artifacts.load(tmp_path / "a", "words")
    assert (found.tensors, found.about, found.files) == ({}, {"n": 1}, {"w": b""})


def test_nothing_is_overwritten(saved):
    with pytest.raises(ArtifactError, match=r"smf: already exists; choose another place"):
        artifacts.save(saved, "smf", {}, {})
    assert artifacts.load(saved, "smf").about == {"dim": 2}


@pytest.mark.parametrize(
    ("tensors", "about", "files", "message"),
    [
        ({"x": np.array(["a"])}, {}, {}, "tensor 'x' has type <U1; save booleans"),
        ({"x": np.ones(2, np.complex64)}, {}, {}, "'x' has type complex64"),
        ({"x": np.ones(2, np.longdouble)}, {}, {}, "floats of at most 64 bits"),
        ({"x": np.array([[0.0], [np.nan]])}, {}, {}, "tensor 'x' holds nan in row 1"),
        ({"x": np.array(np.inf)}, {}, {}, "tensor 'x' holds inf; only finite"),
        ({"x" * 70_000: np.ones(1)}, {}, {}, "names and shapes of 1 tensors take"),
        ({}, {"p": Path()}, {}, "cannot be written as JSON: Object of type"),
        ({}, {"p": float("nan")}, {}, "cannot be written as JSON"),
        ({}, {"p": "x" * (1 << 20)}, {}, "more than 1048576; put long lists into files"),
        ({}, {}, {"../x": b""}, "'../x' cannot name a file here"),
        ({}, {}, {"/x": b""}, "'/x' cannot name"),
        ({}, {}, {".x": b""}, "'.x' cannot name"),
        ({}, {}, {"manifest.json": b""}, "'manifest.json' cannot name"),
    ],
)
def test_save_refuses_what_load_would_refuse(tmp_path, tensors, about, files, message):
    with pytest.raises(ArtifactError, match=message):
        artifacts.save(tmp_path / "a", "k", tensors, about, files=files)
    assert list(tmp_path.iterdir()) == []


def swap_file_for_link(folder):
    (folder / "items-tv.parquet").rename(folder.parent / "elsewhere")
    (folder / "items-tv.parquet").symlink_to(folder.parent / "elsewhere")


def swap_file_for_pipe(folder):
    (folder / "items-tv.parquet").unlink()
    os.mkfifo(folder / "items-tv.parquet")


def list_also(name):
    def spoil(folder):
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        change(folder, files=listed | {name: listed["items-tv.parquet"]})

    return spoil


def flip_a_bit(folder):
    data = bytearray((folder / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "tensors.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: is missing, so the folder"),
        (flip_a_bit, r"tensors\.safetensors: does not have the SHA-256"),
        (lambda f: (f / "tensors.safetensors").unlink(), r"tensors\.safetensors: is missing"),
        (lambda f: (f / "items-tv.parquet").write_bytes(b"PAR"), "has 3 bytes where .* says 4"),
        (lambda f: (f / "items-tv.parquet").write_bytes(b"PAR11"), "has 5 bytes, more than 4"),
        (lambda f: (f / "notes").touch(), r"notes: is not listed in manifest\.json; remove it"),
        (lambda f: (f / "notes").mkdir(), "notes: is not listed"),
        (swap_file_for_link, r"items-tv\.parquet: is a symbolic link"),
        (swap_file_for_pipe, "is not a regular file"),
        (list_also("../x"), r"lists '\.\./x', which is no plain file name"),
        (list_also("/etc/passwd"), "lists '/etc/passwd', which is no plain"),
        (list_also("sub/x"), "lists 'sub/x', which is no plain"),
        (lambda f: change(f, files={}), "does not list tensors"),
        (lambda f: change(f, format=2), r"written by a newer version \(format 2.*upgrade musket"),
        (lambda f: change(f, format=0), r"no known format number \(found 0"),
        (lambda f: change(f, format=True), r"no known format number \(found True"),
        (lambda f: change(f, more=1), "'more': Extra inputs"),
        (lambda f: change(f, about=[]), "'about': Input should be a valid dict"),
        (lambda f: change(f, kind="cat"), "holds 'cat' where 'smf' is needed"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"no known format .*found None"),
        (lambda f: (f / "manifest.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff"), "is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "is not JSON"),
        (lambda f: (f / "manifest.json").write_text("NaN"), "NaN is no JSON number"),
        (lambda f: (f / "manifest.json").write_bytes(b" " * 1048577), "more than 1048576"),
    ],
)
def test_load_refuses_with_one_line(saved, spoil, message):
    spoil(saved)
    with pytest.raises(ArtifactError, match=message) as caught:
        artifacts.load(saved, "smf")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(saved))


def test_load_says_when_there_is_no_folder(tmp_path):
    with pytest.raises(ArtifactError, match="none: is not an artifact folder; check the path"):
        artifacts.load(tmp_path / "none", "smf")


def tensors_replaced(folder, data):
    """The artifact with other bytes for its tensors, the manifest in agreement."""
    listed = artifacts.hashlib.sha256(data).hexdigest()
    (folder / "tensors.safetensors").write_bytes(data)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files=files | {"tensors.safetensors": {"sha256": listed, "bytes": len(data)}})


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"x": ("F32", [1], 4)}, np.float32(np.nan).tobytes(), "'x' holds nan in row 0"),
        ({"x": ("F64", [2, 1], 16)}, np.array([1, -np.inf]).tobytes(), "holds -inf in row 1"),
        ({"x": ("C64", [1], 8)}, bytes(8), "is not a readable safetensors file"),
        ({"x": ("F32", [-1], -4)}, bytes(4), "is not a readable safetensors file"),
        ({"x": ("F32", [], 4), "y": ("F32", [], 4)}, bytes(4), "is not a readable safetensors"),
        ({"x": ("BF16", [1], 2)}, bytes(2), "is not a readable safetensors file"),
        ({"x": ("F32", [9], 4)}, bytes(4), "is not a readable safetensors file"),
        ({"x" * 70_000: ("F32", [1], 4)}, bytes(4), "has a header of 70.* bytes, more than 65536"),
    ],
)
def test_load_distrusts_tensors_that_others_wrote(saved, header, body, message):
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
        for name, (dtype, shape, end) in header.items()
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    tensors_replaced(saved, len(text).to_bytes(8, "little") + text + body)
    with pytest.raises(ArtifactError, match=message):
        artifacts.load(saved, "smf")


@given(st.binary(max_size=60))
def test_load_never_fails_in_another_way(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any") / "a"
    artifacts.save(folder, "any", {}, {}, durable=False)
    tensors_replaced(folder, data)
    with pytest.raises(ArtifactError):
        artifacts.load(folder, "any")


STEPS = ("open", "write", "fsync", "mkdir", "rename", "replace", "close")


def fail_at(monkeypatch, n, code):
    """Let the n-th system call that changes the disk fail; give the list of calls made."""
    made = []

    def wrap(name, real):
        def call(*args, **kwargs):
            made.append(name)
            if len(made) == n:
                if name == "close":
                    real(*args, **kwargs)
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return made


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_step_leaves_all_or_nothing(tmp_path, code):
    for n in range(1, 100):
        place = tmp_path / str(n)
        with pytest.MonkeyPatch.context() as patch:
            made = fail_at(patch, n, code)
            try:
                artifacts.save(place / "a", "smf", WEIGHTS, {}, files={"words": b"abc"})
            except ArtifactError as error:
                text = str(error)
                full = text.startswith("disk is full: ") and "free some space" in text
                assert full if code == errno.ENOSPC else "cannot be written" in text
        if len(made) < n:
            break
        if (place / "a").exists():
            assert artifacts.load(place / "a", "smf").files == {"words": b"abc"}
        assert {p.name for p in place.glob("*")} <= {"a"}
    assert n > 15
    assert artifacts.load(place / "a", "smf").files == {"words": b"abc"}


def test_a_failure_at_any_step_leaves_the_old_file_or_the_new(tmp_path):
    path = tmp_path / "metrics.json"
    for n in range(1, 100):
        artifacts.write_text(path, "old")
        with pytest.MonkeyPatch.context() as patch:
            made = fail_at(patch, n, errno.EDQUOT)
            with suppress(ArtifactError):
                artifacts.write_text(path, "new")
        if len(made) < n:
            break
        assert path.read_text() in ("old", "new")
        assert list(tmp_path.iterdir()) == [path]
    assert n > 4
    assert path.read_text() == "new"


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:7]))
    artifacts.save(tmp_path / "a", "smf", WEIGHTS, {})
    np.testing.assert_array_equal(
        artifacts.load(tmp_path / "a", "smf").tensors["users"], WEIGHTS["users"]
    )


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifacts.save(tmp_path / "a", "smf", WEIGHTS, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_beyond_the_limit_of_the_system(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"larger than this system allows: .*/a was not"):
            artifacts.save(tmp_path / "a", "big", {"x": np.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="cannot be written: Permission denied; choose a place"):
        artifacts.save(tmp_path / "a", "smf", {}, {})


def test_a_place_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written: a file is in the way"):
        artifacts.save(tmp_path / "file" / "a", "smf", {}, {})
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifacts.write_bytes(tmp_path, b"")


WRITER = """
import itertools, sys
from pathlib import Path
import numpy as np
from musketeers import artifacts
root = Path(sys.argv[1])
print("ready", flush=True)
for n in itertools.count():
    artifacts.write_text(root / "note", str(n) * 50_000)
    artifacts.save(root / f"a{n}", "big", {"x": np.full(50_000, n)}, {}, files={"w": b"x" * n})
"""


def test_a_writer_killed_at_any_time_leaves_whole_things(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(3):
        root = tmp_path / str(n)
        root.mkdir()
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, text=True
        )
        with writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(rng.uniform(0.02, 0.1))
            writer.send_signal(signal.SIGKILL)
        for folder in root.glob("a*"):
            number = int(folder.name[1:])
            assert (artifacts.load(folder, "big").tensors["x"] == number).all()
        if (root / "note").exists():
            text = (root / "note").read_text()
            assert text == text[: len(text) // 50_000] * 50_000


def test_files_get_the_rights_the_user_chose(tmp_path):
    old = os.umask(0o027)
    try:
        artifacts.save(tmp_path / "a", "smf", WEIGHTS, {})
        artifacts.write_text(tmp_path / "note", "ä")
    finally:
        os.umask(old)
    rights = [p.stat().st_mode & 0o777 for p in (tmp_path / "a", tmp_path / "note")]
    assert rights == [0o750, 0o640]
    assert (tmp_path / "note").read_bytes() == "ä".encode()
