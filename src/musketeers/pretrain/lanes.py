"""The item table while several threads train it at once, deterministically.

Threads that write one table at the same time (Hogwild) never give the same result twice.  Here
each thread, a lane, has its own users and its own copy of the table for a while; then the lanes'
changes are added in a fixed order.  Where a run has several members (`group`), so it is with them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt16

from musketeers.data.interactions import Interactions
from musketeers.device import gpu
from musketeers.group import Group, group
from musketeers.instructions import has_float16
from musketeers.memory import on_cache_lines
from musketeers.parallel import each
from musketeers.pretrain import kernels

BLOCK, BLOCK_PER_ITEM = 65536, 4
"""Interactions a lane works through before the lanes are merged: at least so many, and at least so
many for each item, because a merge visits nearly every row of the table."""

MEMBERS_BLOCK = 16384
"""The same where there are several members, each of which looks at few of all users: the more
there are, the older is what a lane knows of the others' changes."""

FEW_LANES = 4
"""So many lanes, of all members together, lose little however large their blocks are."""

MET = 384
"""Of more lanes: how often an item is met between two merges at most, on average.  Each lane goes
on from what it knows, so what many of them add up to goes too far."""


LARGE = 8 << 20
"""Bytes of a table beyond which lanes keep it in float16: the rows come from a cache that is shared
or from memory then, and half as many bytes of them are fetched sooner."""


class Rows(NamedTuple):
    """What a lane sees of a table of items, and may change."""

    items: Float32[np.ndarray, "row dim"] | UInt16[np.ndarray, "row dim"]
    """Numbers, or the bits of such in float16 (`instructions.widened`)."""
    squares: Float32[np.ndarray, " row"]
    touched: Bool[np.ndarray, " row"]
    """Which rows were changed."""
    places: Int32[np.ndarray, " item"] | None
    """The row of each item; None where each is in the row of its own number."""


Result = TypeVar("Result")
Job = Callable[[slice, Rows], Result]
"""(users of this lane, the items) -> what the lane found."""


class ItemLanes:
    """Copies of item vectors and their Adagrad sums, and one private copy of both per lane.

    With one lane and a table that is not `LARGE` there is no private copy and no merge but with
    other `members`, by default those of the `group`.
    """

    def __init__(
        self,
        items: Float32[np.ndarray, "item dim"],
        squares: Float32[np.ndarray, " item"],
        *,
        n_lanes: int,
        members: Group | None = None,
    ) -> None:
        self._members = members or group()
        kept_as = np.float16 if items.nbytes > LARGE and has_float16() else np.float32
        copies = n_lanes if n_lanes > 1 or kept_as is np.float16 else 0
        self.items, self.squares = on_cache_lines(*items.shape, dtype=np.float32), squares.copy()
        self._items = on_cache_lines(copies, *items.shape, dtype=kept_as)
        self._squares = np.empty((copies, len(items)), np.float32)
        together = self._members.size > 1
        self._merged = (np.empty_like(self.items), squares.copy()) if together else None
        self.restore(items, squares)
        self._touched = np.zeros((n_lanes, len(items)), np.bool_)

    @property
    def n_lanes(self) -> int:
        """Threads that work at the same time."""
        return len(self._touched)

    @property
    def block(self) -> int:
        """Interactions that all lanes of all members should work through between two merges."""
        n_members = self._members.size
        least = BLOCK if n_members == 1 else MEMBERS_BLOCK
        n_lanes, n_items = n_members * self.n_lanes, len(self.items)
        return held_down(n_lanes * max(least, BLOCK_PER_ITEM * n_items), n_lanes, n_items)

    def fetch(self, train: Interactions, users: Int64[np.ndarray, " user"], key: np.uint64) -> None:
        """Have what these users look at until the next merge: all items are here."""

    def run(
        self,
        costs: Int64[np.ndarray, " user"],
        job: Job[Result],
        places: Int32[np.ndarray, " item"] | None = None,
    ) -> list[Result]:
        """Give every lane its part of some users; what the lanes found, in their order.

        `costs` are the users' interactions; the parts are neighbours of about equal cost.
        Until `merge` each lane sees its own changes alone.
        """
        parts = even_parts(costs, self.n_lanes)
        if not len(self._items):
            return [job(parts[0], Rows(self.items, self.squares, self._touched[0], places))]
        results: dict[int, Result] = {}

        def lane(number: int) -> None:
            mine = self._kept()[number], self._squares[number], self._touched[number]
            results[number] = job(parts[number], Rows(*mine, places))

        each(lane, self.n_lanes, n_threads=self.n_lanes)
        return [results[number] for number in range(self.n_lanes)]

    def merge(self) -> None:
        """Bring the changes of all lanes into `items` and `squares`, and give them to all lanes."""
        if len(self._items):
            each(self._merge, self.n_lanes, n_threads=self.n_lanes)
        if self._merged:
            self._merge_members(*self._merged)

    def table(self) -> Float32[np.ndarray, "item dim"]:
        """The vectors of all items."""
        return self.items

    def all_squares(self) -> Float32[np.ndarray, " item"]:
        """Adagrad's sums of all items."""
        return self.squares

    def restore(
        self, items: Float32[np.ndarray, "item dim"], squares: Float32[np.ndarray, " item"]
    ) -> None:
        """Take over saved values."""
        self.items[:], self.squares[:] = items, squares
        self._tell_lanes()
        if self._merged:
            for merged, now in zip(self._merged, (items, squares), strict=True):
                merged[:] = now

    def _merge(self, number: int) -> None:
        start, stop = (len(self.items) * n // self.n_lanes for n in (number, number + 1))
        kernels.merge_rows(
            start, stop, self.items, self.squares, self._kept(), self._squares, self._touched
        )

    def _kept(self) -> np.ndarray:
        """The lanes' vectors as the loops take them: they do not know float16."""
        return self._items.view(np.uint16) if self._items.dtype == np.float16 else self._items

    def _merge_members(self, items: np.ndarray, squares: np.ndarray) -> None:
        """Add what every member changed since the last merge, whose result these are."""
        changes = self.items - items, self.squares - squares
        self._members.add(*changes)
        items += changes[0]
        squares += changes[1]
        self.items[:], self.squares[:] = items, squares
        self._tell_lanes()

    def _tell_lanes(self) -> None:
        with np.errstate(over="ignore"):  # infinite from then on, which is noticed
            self._items[:] = self.items
        self._squares[:] = self.squares


def lanes_for(n_threads: int) -> int:
    """As many as threads; one where a GPU learns, which has its own table."""
    return n_threads if gpu() is None else 1


def held_down(block: int, n_lanes: int, n_items: int) -> int:
    """A block that is not larger than so many lanes of all members may have it."""
    return block if n_lanes <= FEW_LANES else min(block, MET * n_items)


def even_parts(costs: Int64[np.ndarray, " user"], n_parts: int) -> list[slice]:
    """Neighbouring slices over all users, each of about the same summed cost; some may be empty."""
    ends = np.cumsum(costs)
    total = ends[-1] if len(ends) else 0
    cuts = np.searchsorted(ends, total * np.arange(1, n_parts) / n_parts, side="left") + 1
    edges = [0, *np.minimum(cuts, len(costs)).tolist(), len(costs)]
    return [slice(a, max(a, b)) for a, b in pairwise(edges)]
