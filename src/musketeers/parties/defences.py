"""What a party may do to its users' vectors before it gives them away, and what that guarantees."""

import os
from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import BaseModel, Field, ValidationError

from musketeers.errors import ConfigError
from musketeers.parallel import available_threads, each
from musketeers.parties.guarantee import Mode, mu_of
from musketeers.parties.sealed import STRICT

_DRAWS = 4
"""Normal draws that are added up for one number of noise: one double has gaps from which what it
was added to can be guessed (Mironov, CCS 2012); a sum of several hides them better, not surely."""
_CHUNK = 1 << 18


def _nobody(_: int) -> None:
    """Hears and does nothing."""


class Defences(BaseModel):
    """None by default: vectors leave as they are."""

    model_config = STRICT

    mode: Mode = "vectors"
    dims: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Numbers that are left of each vector, those along the directions in which items differ most.
    """
    clip: Annotated[float, Field(gt=0)] | None = None
    """Longer vectors are cut to this length; a number that does not depend on the data."""
    epsilon: Annotated[float, Field(gt=0, le=1e5)] | None = None
    """Of this release's noise; needs `clip` and `delta`."""
    delta: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    bits: Annotated[int, Field(ge=1, le=16)] | None = None
    """Of each number: it is rounded to one of 2^bits that lie evenly."""

    @classmethod
    def of(cls, **options: object) -> "Defences":
        """As asked for; raises `ConfigError` for what breaks a rule or does not go together."""
        try:
            how = cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{where} is {first['input']!r}: {first['msg']}") from None
        how.check()
        return how

    @property
    def mu(self) -> float | None:
        """How much a release tells (`guarantee`); None without noise."""
        return (
            None if self.epsilon is None or self.delta is None else mu_of(self.epsilon, self.delta)
        )

    def check(self) -> None:
        """Raise `ConfigError` for what does not go together."""
        if (self.epsilon is None) != (self.delta is None):
            raise ConfigError(
                f"epsilon is {self.epsilon} and delta {self.delta}; noise takes both, such as "
                "epsilon 8 and delta 1e-6"
            )
        if self.epsilon is not None and self.clip is None:
            raise ConfigError(
                f"epsilon is {self.epsilon} but vectors are not clipped; noise only hides what has "
                "a bound: give a length (clip) that you choose without looking at the data"
            )


def defended(
    users: Float32[np.ndarray, "user dim"],
    axes: Float32[np.ndarray, "dim dim"],
    how: Defences,
    on_rows: Callable[[int], object] = _nobody,
) -> Float32[np.ndarray, "user dims"]:
    """The vectors after `how`, in this order: fewer numbers, cut, noise, rounded.

    Columns of `axes` are orthogonal, the first the one to keep longest.  Noise is drawn from the
    system's entropy: no seed gives it again.  `on_rows` hears how many rows have their noise.
    """
    how.check()
    if how.dims is not None:
        users = users @ axes[:, : how.dims]
    if how.clip is not None:
        lengths = np.linalg.norm(users, axis=1, keepdims=True)
        users = users * np.minimum(1, how.clip / np.maximum(lengths, np.float32(1e-30)))
    if how.mu is not None and how.clip is not None:
        noise = gaussian((len(users), users.shape[1]), on_rows)
        users = (users + 2 * how.clip / how.mu * noise).astype(np.float32)
    if how.bits is not None:
        most = np.abs(users).max()
        step = 2 * most / (2**how.bits - 1)
        users = (np.round((users + most) / step) * step - most).astype(np.float32)
    return users.astype(np.float32, copy=False)


def gaussian(
    shape: tuple[int, int], on_rows: Callable[[int], object] = _nobody
) -> Float64[np.ndarray, "row column"]:
    """Normal noise of standard deviation 1 from the system's entropy (Box and Muller, 1958).

    `on_rows` hears how many rows more are done.
    """
    noise = np.empty(shape)
    step = max(1, _CHUNK // max(shape[1], 1))
    parts = [noise[start : start + step] for start in range(0, shape[0], step)]

    def fill(number: int) -> None:
        part = parts[number].reshape(-1)
        half = (part.size + 1) // 2
        uniform = _uniform(2 * _DRAWS * half).reshape(2, _DRAWS, half)
        radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
        for of, draws in ((part[:half], np.cos(angle)), (part[half:], np.sin(angle))):
            draws *= radius
            of[:] = draws.sum(axis=0)[: of.size] / np.sqrt(_DRAWS)
        on_rows(len(parts[number]))

    each(fill, len(parts), n_threads=available_threads())
    return noise


def _uniform(size: int) -> Float64[np.ndarray, " draw"]:
    """In (0, 1], 53 bits each."""
    bits = np.frombuffer(os.urandom(8 * size), np.uint64) >> np.uint64(11)
    return (bits.astype(np.float64) + 1) * 2.0**-53
