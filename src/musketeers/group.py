"""The members of a run that share its users out among them; nearly always there is one.

Every member does the same on its own users, and where all users matter the members add up what
they have.  Like the device, that belongs to the machines and not to the method, so it is set
around a run and not handed through it.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Shaped

from musketeers.seeding import Seed


@runtime_checkable
class Group(Protocol):
    """What one member knows of all; every member must call the same methods in the same order."""

    @property
    def place(self) -> int:
        """Which member this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def add(self, *arrays: Shaped[np.ndarray, "..."]) -> None:
        """Make each array, in place, the sum of all members' arrays, bit by bit the same for all.

        The order in which they are added depends on the number of members alone.
        """
        ...

    def gathered(self, array: Shaped[np.ndarray, "..."]) -> list[Shaped[np.ndarray, "..."]]:
        """Every member's array, in their order; they may differ in their first axis alone."""
        ...

    def exchanged(
        self, arrays: Sequence[Shaped[np.ndarray, "..."]]
    ) -> list[Shaped[np.ndarray, "..."]]:
        """What each member has for this one, in their order; ``arrays[n]`` is for the n-th.

        They may differ in their first axis alone.
        """
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """A group of one."""

    place: int = 0
    size: int = 1

    def add(self, *arrays: Shaped[np.ndarray, "..."]) -> None:
        """See `Group.add`."""

    def gathered(self, array: Shaped[np.ndarray, "..."]) -> list[Shaped[np.ndarray, "..."]]:
        """See `Group.gathered`."""
        return [array]

    def exchanged(
        self, arrays: Sequence[Shaped[np.ndarray, "..."]]
    ) -> list[Shaped[np.ndarray, "..."]]:
        """See `Group.exchanged`."""
        return list(arrays)


_ALONE = Alone()
_GROUP: ContextVar[Group] = ContextVar("group", default=_ALONE)


def group() -> Group:
    """The members that work together here."""
    return _GROUP.get()


@contextmanager
def member_of(one: Group) -> Generator[None]:
    """Work in this block as a member of that group."""
    token = _GROUP.set(one)
    try:
        yield
    finally:
        _GROUP.reset(token)


def own(seed: Seed) -> Seed:
    """The stream of a member for what it draws for its own users; alone, the stream itself."""
    members = group()
    return seed if members.size == 1 else seed.child("member", str(members.place))


def total(number: float) -> float:
    """The sum of all members' numbers, exact for whole ones up to 2**53."""
    summed = np.array([number], np.float64)
    group().add(summed)
    return float(summed[0])


def meet() -> None:
    """Go on when every member has come here."""
    total(0)


def of_all(
    rows: Shaped[np.ndarray, "one ..."], members: Group | None = None
) -> Shaped[np.ndarray, "all ..."]:
    """Every member's rows one after the other; by default those of the `group`."""
    return np.concatenate((members or group()).gathered(rows))


def in_steps(rows: Int[np.ndarray, " row"], size: int) -> list[Int[np.ndarray, " step"]]:
    """A member's rows, apart by step, where all members together take `size` rows in each.

    All members have equally many steps; some of a member's may be empty.  Rows keep their order.
    """
    n_all = int(total(len(rows)))
    cuts = [min(step * len(rows) // max(n_all, 1), len(rows)) for step in range(0, n_all, size)]
    return [rows[a:b] for a, b in pairwise([*cuts, len(rows)])]


def everywhere(holds: bool) -> bool:
    """Whether it holds for every member, such as that memory suffices."""
    return total(not holds) == 0


def mean_of(rows: Float32[np.ndarray, "row ..."]) -> Float32[np.ndarray, "..."]:
    """The mean row of all members; zeros where there is none."""
    summed, n = np.asarray(rows.sum(axis=0)), np.array([len(rows)], np.int64)
    group().add(summed, n)
    summed /= max(int(n[0]), 1)
    return summed


def first_tells(array: Shaped[np.ndarray, "..."]) -> None:
    """Make the array, in place, that of the first member."""
    if group().place > 0:
        array[...] = 0
    group().add(array)
