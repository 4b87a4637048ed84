"""What memory there is: made-up systems, and this one."""

import ctypes
import resource
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from musketeers import memory
from musketeers.costs import metered

GIB = 2**30


def system(folder, *, free=10 * GIB, groups="", files=None):
    """Folders like /proc and /sys/fs/cgroup."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {free // 1024} kB\n")
    (folder / "proc" / "self" / "cgroup").write_text(groups)
    for name, content in (files or {}).items():
        place = folder / "groups" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{content}\n")
    return folder / "proc", folder / "groups"


def test_without_a_limit_it_is_what_the_system_says(tmp_path):
    assert memory.available(*system(tmp_path)) == 10 * GIB


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {"memory.max": 4 * GIB, "memory.current": GIB}, 3),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.current": GIB,
                       "a/memory.max": 2 * GIB, "a/memory.current": GIB}, 1),
        ("9:cpu:/\n4:memory:/pod\n0::/\n",
         {"memory/pod/memory.limit_in_bytes": 3 * GIB, "memory/pod/memory.usage_in_bytes": GIB}, 2),
        ("4:memory:/host/pod\n",
         {"memory/memory.limit_in_bytes": 6 * GIB, "memory/memory.usage_in_bytes": GIB}, 5),
        ("0::/\n", {"memory.max": 99 * GIB, "memory.current": GIB}, 10),
    ],
)  # fmt: skip
def test_the_tightest_limit_of_a_container_counts(tmp_path, groups, files, left):
    assert memory.available(*system(tmp_path, groups=groups, files=files)) == left * GIB


def test_a_system_that_does_not_tell_has_half_of_its_memory(tmp_path):
    assert memory.available(tmp_path, tmp_path) >= 2**28


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not forget")
def test_a_peak_is_of_the_time_since_it_was_forgotten():
    before = memory.peak()
    block = np.ones(2**26)
    high = memory.peak()
    assert high > before + block.nbytes // 2
    del block
    # what has been given back was held all the same, but for the kernel's rounding
    assert memory.peak() > high - 2**20
    memory.forget_peak()
    assert memory.peak() < high - 2**28


def test_work_that_fails_has_its_cost_too():
    def fails(_):
        time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), metered() as cost:
        fails(cost)
    assert cost.seconds >= 0.01
    assert cost.peak_bytes > 2**20


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from([np.float32, np.uint8]))
def test_arrays_start_on_a_cache_line_whatever_their_size(shape, dtype):
    # all kept until the end, so that each gets memory of its own
    arrays = [memory.on_cache_lines(*shape, dtype=dtype) for _ in range(20)]
    for number, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        assert array.shape == tuple(shape)
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        array[...] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()


def test_this_process_has_held_some_memory():
    held = memory.peak()
    assert held > 2**20
    assert memory.peak() >= held


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps nothing, or all"
)
def test_what_was_freed_between_things_in_use_is_given_back():
    def held():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    # too small for a place of their own; every hundredth stays, so that no end of the heap is free
    blocks = [np.ones(2**12) for _ in range(4000)]
    size = sum(block.nbytes for block in blocks)
    kept = blocks[::100]
    del blocks
    before = held()
    memory.give_back()
    assert held() < before - size // 2
    assert all((block == 1).all() for block in kept)
