"""One user table and the item tables that learn with it: whose turn it is, and all weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Int

from musketeers.config import PretrainConfig
from musketeers.data.interactions import Interactions
from musketeers.group import first_tells, group, mean_of, own, total
from musketeers.memory import on_cache_lines
from musketeers.pretrain.lanes import FEW_LANES, Rows, even_parts
from musketeers.pretrain.sharded import ROWS_AT_A_TIME, ItemTable, item_table, rows_held
from musketeers.seeding import Seed

SQUARES_AT_START = 1e-3
"""Adagrad's sums before the first step; bounds the first steps at about 30 learning rates."""

MERGES = 4
"""Merges in an epoch at least, however few interactions there are."""

MEMBERS_MERGES = 32
"""The same where there are several members: with fewer they learn a little worse than one does
where users have few items."""

FIRST_MET, FIRST_MERGES = 4, 256
"""In the first epoch Adagrad's sums are small and steps long, so that many lanes are merged more
often: when an item has been met so often, on average, but for that no more than so many times."""


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """What one item table learns from; its negatives come from the same items."""

    train: Interactions
    seed: Seed
    """For the order of its users and for their negatives."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Some users of one catalogue, whose items learn until the lanes are merged."""

    catalogue: int
    """Its place among the catalogues."""
    users: Int[np.ndarray, " user"]
    key: np.uint64
    """Of the negatives; the same all through an epoch."""
    when: float
    """The share of the epoch that is over before it, about."""


Learn = Callable[[Turn, slice, Rows], float]
"""(turn, this lane's part of its users, the catalogue's items) -> the summed loss."""


class Tables:
    """Vectors of all users, and of the items of each catalogue in lanes, with Adagrad's sums.

    All catalogues must have the same users.  Vectors start as normal noise of expected length
    near `PretrainConfig.init_scale`.  Users are those of one member (`group`), items all members'.
    """

    def __init__(
        self,
        catalogues: Sequence[Catalogue],
        seed: Seed,
        config: PretrainConfig,
        *,
        dim: int,
        n_lanes: int,
    ) -> None:
        self.catalogues = catalogues
        rng = own(seed).child("init").numpy()
        scale = np.float32(config.init_scale / np.sqrt(dim))

        def drawn(n_rows: int) -> np.ndarray:
            table = on_cache_lines(n_rows, dim, dtype=np.float32)
            rng.standard_normal(dtype=np.float32, out=table)
            table *= scale
            return table

        def start(train: Interactions) -> ItemTable:
            rows = rows_held(train.n_items, config.item_tables)
            held = on_cache_lines(rows.stop - rows.start, dim, dtype=np.float32)
            for first in range(0, train.n_items, ROWS_AT_A_TIME):
                some = drawn(min(ROWS_AT_A_TIME, train.n_items - first))
                first_tells(some)
                mine = slice(max(rows.start - first, 0), max(rows.stop - first, 0))
                held[max(first - rows.start, 0) :][: len(some[mine])] = some[mine]
            return item_table(
                held, np.full(len(held), SQUARES_AT_START, np.float32), config.item_tables,
                n_items=train.n_items, n_lanes=n_lanes, n_candidates=config.candidates,
            )  # fmt: skip

        self.users = drawn(catalogues[0].train.n_users)
        self.user_squares = np.full(len(self.users), SQUARES_AT_START, np.float32)
        self.lanes = [start(catalogue.train) for catalogue in catalogues]
        self._counts = [c.train.counts() for c in catalogues]
        self._n_pairs = [int(total(len(c.train))) for c in catalogues]
        self._n_lanes = group().size * n_lanes

    def epoch(self, number: int, learn: Learn) -> float:
        """Let every user of every catalogue learn once; the mean loss of an interaction."""
        loss = 0.0
        for turn in self.turns(number):
            lanes = self.lanes[turn.catalogue]
            costs = self._counts[turn.catalogue][turn.users]
            lanes.fetch(self.catalogues[turn.catalogue].train, turn.users, turn.key)
            loss += sum(lanes.run(costs, partial(learn, turn)))
            lanes.merge()
        return total(loss) / max(self.n_pairs, 1)

    def turns(self, number: int) -> list[Turn]:
        """Whose turn it is in an epoch.

        Each catalogue's users come in a random order and in blocks.  Where there are several
        catalogues their blocks take turns, each catalogue's spread evenly over the epoch.
        """
        turns = [turn for place in range(len(self.lanes)) for turn in self._turns(place, number)]
        return sorted(turns, key=lambda turn: turn.when)

    def _turns(self, place: int, number: int) -> Iterator[Turn]:
        stream = self.catalogues[place].seed.child("epoch", str(number))
        counts, users = self._counts[place], own(stream)
        order = users.numpy().permutation(np.flatnonzero(counts))
        key = np.uint64(users.child("negatives").integer())
        n_blocks = self._n_merges(place, number)
        # somewhere in its share of the epoch, so that no catalogue always has the last word
        whens = (np.arange(n_blocks) + stream.child("turns").numpy().random(n_blocks)) / n_blocks
        for block, when in zip(even_parts(counts[order], n_blocks), whens.tolist(), strict=True):
            yield Turn(place, order[block], key, when)

    def _n_merges(self, place: int, number: int) -> int:
        n_pairs, n_items = self._n_pairs[place], self.catalogues[place].train.n_items
        least = MERGES if group().size == 1 else MEMBERS_MERGES
        n_merges = max(least, n_pairs // self.lanes[place].block)
        if number > 1 or self._n_lanes <= FEW_LANES:
            return n_merges
        return max(n_merges, min(FIRST_MERGES, n_pairs // (FIRST_MET * n_items)))

    @property
    def n_pairs(self) -> int:
        """Interactions of all catalogues and all members."""
        return sum(self._n_pairs)

    def known_users(self) -> Bool[np.ndarray, " user"]:
        """Whether each user has any pair in any catalogue."""
        return np.any([counts > 0 for counts in self._counts], axis=0)

    def give_unknown_users_the_mean(self) -> None:
        """One who has no history is taken for the mean user until another table says more."""
        known = self.known_users()
        self.users[~known] = mean_of(self.users[known])

    def state(self) -> Mapping[str, np.ndarray]:
        """All weights and sums, as `training.Trainable.state` wants them."""
        state = {"users": self.users, "user_squares": self.user_squares}
        for place, lanes in enumerate(self.lanes):
            state |= {f"items-{place}": lanes.items, f"item_squares-{place}": lanes.squares}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave."""
        self.users[:], self.user_squares[:] = state["users"], state["user_squares"]
        for place, lanes in enumerate(self.lanes):
            lanes.restore(state[f"items-{place}"], state[f"item_squares-{place}"])
