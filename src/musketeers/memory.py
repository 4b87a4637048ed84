"""How much memory there is, how much this process has had, and memory that is quick to use."""

import ctypes
import math
import resource
import sys
from contextlib import suppress
from os import sysconf
from pathlib import Path

import numpy as np

LINE = 64
"""Bytes of a cache line."""
_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")
_FILES = (
    ("", "memory.max", "memory.current"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of control groups, version 2 and 1: folder, limit, use."""


def available(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Bytes that new processes can have without swapping; a container's limit counts.

    Where the system does not tell what is free (macOS), half of what the machine has.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        (free,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES") // 2
    return min([1024 * free, *_left_in_groups(proc, groups)])


def peak(proc: Path = _PROC) -> int:
    """The most bytes that this process has held, on Linux since `forget_peak`."""
    try:
        lines = (proc / "self" / "status").read_text().splitlines()
        (most,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError):
        return _peak_since_the_start()
    return 1024 * most


def forget_peak(proc: Path = _PROC) -> None:
    """Let `peak` start from what is held now; elsewhere than on Linux it goes on."""
    with suppress(OSError):
        # the number that the kernel asks for (proc(5), clear_refs)
        (proc / "self" / "clear_refs").write_text("5")


def give_back() -> None:
    """Let the system have what was freed: the C library keeps much of it for later, if it is glibc.

    After a fit of the paper's size these are gigabytes, in holes between what is still in use.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def on_cache_lines(*shape: int, dtype: type[np.generic]) -> np.ndarray:
    """An array of that shape, not cleared, that starts on a cache line.

    Wherever numpy puts it, a row of 64 float32 would lie on five lines in place of four, and every
    second load of a wide vector on two.
    """
    n_bytes = np.dtype(dtype).itemsize * math.prod(shape)
    space = np.empty(n_bytes + LINE, np.uint8)
    start = -space.ctypes.data % LINE
    return space[start : start + n_bytes].view(dtype).reshape(shape)


def _peak_since_the_start() -> int:
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def _left_in_groups(proc: Path, groups: Path) -> list[int]:
    """What each group that this process is in, up to the outermost, leaves it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    left: list[int] = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        for folder, limit, used in _FILES:
            if folder not in kinds.split(","):
                continue
            inner = Path(path.lstrip("/"))
            for group in (inner, *inner.parents):
                place = groups / folder / group
                try:
                    left.append(int((place / limit).read_text()) - int((place / used).read_text()))
                except (OSError, ValueError):  # no such group in here, or "max"
                    continue
    return left
