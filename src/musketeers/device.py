"""Where large products are computed: on the processor, or on a GPU by torch.

Like the number of threads it belongs to the machine and not to the method, so it is set around a
run and not handed through it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING

from musketeers.errors import ConfigError

if TYPE_CHECKING:
    import torch  # whoever only recommends does without

_GPU: ContextVar["torch.device | None"] = ContextVar("gpu", default=None)


@contextmanager
def computing_on(name: str) -> Generator[None]:
    """Compute in this block on the device of that name: ``cpu``, ``cuda``, or ``cuda:1``.

    Raises `ConfigError` for any other name, for a GPU that is not there, and where the GPU's memory
    does not suffice for what cannot be done in smaller parts.
    """
    token = _GPU.set(_found(name))
    try:
        yield
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise ConfigError(
            f"the memory of {name} does not suffice ({str(error).partition('.')[0]}); free some, "
            "take smaller batches (cat.batch_size, art.batch_size), or leave out the device"
        ) from None
    finally:
        _GPU.reset(token)


def gpu() -> "torch.device | None":
    """The GPU to compute on; None for the processor."""
    return _GPU.get()


def _found(name: str) -> "torch.device | None":
    if name == "cpu":
        return None
    import torch

    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise ConfigError(f"device is {name!r}; use cpu, cuda, or one of several GPUs as cuda:1")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device is {name!r}, but torch {torch.__version__} finds no GPU here; install a build "
            "of torch for the GPU and its driver, or leave out the device"
        )
    if int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {name!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0"
        )
    if find_spec("triton") is None:
        raise ConfigError(
            f"device is {name!r}, but Triton is not here, which torch for GPUs brings on Linux; "
            "install the package triton, or leave out the device"
        )
    return torch.device(name)
