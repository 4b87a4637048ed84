"""The item table where it is too large for one member of a run: each holds a share of its rows.

Members work on blocks of their users.  Before a block each fetches the rows that its users will
look at, which their draws tell beforehand; after it, it sends back what has changed.  So the items
learn as they do where every member has all of them, and who holds a row does not matter.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32, Int64

from musketeers.config import ItemTables
from musketeers.data.interactions import Interactions
from musketeers.group import Alone, group, of_all
from musketeers.memory import on_cache_lines
from musketeers.parallel import each
from musketeers.pretrain import kernels
from musketeers.pretrain.lanes import MEMBERS_BLOCK, ItemLanes, Job, Result, even_parts, held_down
from musketeers.scratch import table_on_disk

ROWS_AT_A_TIME = 1 << 18
"""Of a table that all members go through together."""


class ShardedItems:
    """This member's rows of a table, with Adagrad's sums, and what it has fetched of all rows.

    Beside its own rows and the fetched ones, of which each lane has a copy, a member holds a few
    numbers for each item.
    """

    def __init__(
        self,
        items: Float32[np.ndarray, "own dim"],
        squares: Float32[np.ndarray, " own"],
        *,
        n_items: int,
        n_lanes: int,
        n_candidates: int,
    ) -> None:
        self._members, self._n_items = group(), n_items
        self._n_lanes, self._n_candidates = n_lanes, n_candidates
        self._edges = _edges(n_items)
        self.items, self.squares = on_cache_lines(*items.shape, dtype=np.float32), squares.copy()
        self.items[:] = items
        self._places = np.empty(n_items, np.int32)
        self._table: np.memmap | None = None
        self._let_go()

    @property
    def block(self) -> int:
        """Interactions that all members should work through between two merges.

        So few that what a member fetches is not much more than what it holds.
        """
        n = self._members.size
        share = self._n_items // n // (1 + self._n_candidates)
        block = n * max(self._n_lanes * MEMBERS_BLOCK, share)
        return held_down(block, n * self._n_lanes, self._n_items)

    def fetch(self, train: Interactions, users: Int64[np.ndarray, " user"], key: np.uint64) -> None:
        """Have what these users look at until the next merge, with the draws of `key`."""
        self._let_go()
        self._numbers = self._looked_at(train, users, key)
        exchanged = self._members.exchanged
        asked = exchanged(np.split(self._numbers, self._starts(self._numbers)))
        own = [numbers - self._edges[self._members.place] for numbers in asked]
        # together: of small blocks a message costs more than what is in it
        found = [np.column_stack((self.items[rows], self.squares[rows])) for rows in own]
        fetched = np.concatenate(exchanged(found))
        self._rows, self._sums = fetched[:, :-1], fetched[:, -1]
        self._places[self._numbers] = np.arange(len(self._numbers))
        self._lanes = self._apart()

    def run(self, costs: Int64[np.ndarray, " user"], job: Job[Result]) -> list[Result]:
        """See `ItemLanes.run`; of users whose items were fetched."""
        return self._lanes.run(costs, job, self._places)

    def merge(self) -> None:
        """Bring what all lanes of all members have changed to who holds it."""
        self._lanes.merge()
        moved, added = self._lanes.items, self._lanes.squares
        moved -= self._rows
        added -= self._sums
        changed = (added != 0) | moved.any(axis=1)
        changes = np.column_stack((moved[changed], added[changed]))
        starts = self._starts(numbers := self._numbers[changed])
        exchanged = self._members.exchanged
        theirs = exchanged(np.split(numbers, starts))
        self._take(theirs, exchanged(np.split(changes, starts)))
        self._let_go()

    def table(self) -> Float32[np.ndarray, "item dim"]:
        """The vectors of all items as they are now, on the disk; the next call writes over them."""
        if self._table is None:
            self._table = table_on_disk(self._n_items, self.items.shape[1])
        n_each = max(1, ROWS_AT_A_TIME // self._members.size)
        for start in range(0, int(np.diff(self._edges).max()), n_each):
            parts = self._members.gathered(self.items[start : start + n_each])
            for first, part in zip(self._edges.tolist(), parts, strict=False):
                self._table[first + start :][: len(part)] = part
        return self._table

    def all_squares(self) -> Float32[np.ndarray, " item"]:
        """Adagrad's sums of all items."""
        return of_all(self.squares, self._members)

    def restore(
        self, items: Float32[np.ndarray, "own dim"], squares: Float32[np.ndarray, " own"]
    ) -> None:
        """Take over saved values of this member's rows."""
        self.items[:], self.squares[:] = items, squares

    def _let_go(self) -> None:
        self._numbers = np.empty(0, np.int32)
        self._rows, self._sums = self.items[:0], self.squares[:0]
        self._lanes = self._apart()

    def _apart(self) -> ItemLanes:
        return ItemLanes(self._rows, self._sums, n_lanes=self._n_lanes, members=Alone())

    def _looked_at(
        self, train: Interactions, users: Int64[np.ndarray, " user"], key: np.uint64
    ) -> Int32[np.ndarray, " fetched"]:
        noted = np.zeros(self._n_items, np.bool_)
        parts = even_parts(train.indptr[users + 1] - train.indptr[users], self._n_lanes)

        def note(number: int) -> None:
            # all of them write the same value, so it does not matter who was last
            kernels.note_items(
                users[parts[number]], train.indptr, train.items, self._n_candidates, key, noted
            )

        each(note, len(parts), n_threads=self._n_lanes)
        return np.flatnonzero(noted).astype(np.int32)

    def _starts(self, numbers: Int32[np.ndarray, " row"]) -> Int64[np.ndarray, " holder"]:
        """Where among ascending numbers those begin that the second member holds, and so on."""
        return np.searchsorted(numbers, self._edges[1:-1])

    def _take(
        self,
        numbers: Sequence[Int32[np.ndarray, "..."]],
        changes: Sequence[Float32[np.ndarray, "..."]],
    ) -> None:
        """Add the members' changes, one member's after the other's, to the rows held here.

        The last column is what they add to Adagrad's sums.
        """
        rows, of_each = np.unique(np.concatenate(numbers), return_inverse=True)
        summed = np.zeros((len(rows), self.items.shape[1] + 1), np.float32)
        starts = np.cumsum([len(one) for one in numbers])[:-1]
        for places, change in zip(np.split(of_each, starts), changes, strict=True):
            summed[places] += change
        own = rows - self._edges[self._members.place]
        self.items[own] += summed[:, :-1]
        self.squares[own] += summed[:, -1]


ItemTable = ItemLanes | ShardedItems


def rows_held(n_items: int, how: ItemTables) -> slice:
    """The items whose rows this member has: all, or its share, which may be none."""
    if not _shares(how):
        return slice(0, n_items)
    edges, place = _edges(n_items).tolist(), group().place
    return slice(edges[place], edges[place + 1])


def item_table(
    items: Float32[np.ndarray, "own dim"],
    squares: Float32[np.ndarray, " own"],
    how: ItemTables,
    *,
    n_items: int,
    n_lanes: int,
    n_candidates: int,
) -> ItemTable:
    """What learns from there on; `items` and `squares` are those of `rows_held`."""
    if not _shares(how):
        return ItemLanes(items, squares, n_lanes=n_lanes)
    return ShardedItems(items, squares, n_items=n_items, n_lanes=n_lanes, n_candidates=n_candidates)


def _shares(how: ItemTables) -> bool:
    """Whether a member has its share; one alone has all."""
    return how == "sharded" and group().size > 1


def _edges(n_items: int) -> Int64[np.ndarray, " edge"]:
    """Member n has the rows from edge n to edge n + 1."""
    n = group().size
    return np.arange(n + 1) * n_items // n
