"""BPR on a GPU: vectors are moved there for an epoch, and back for whatever looks at them."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor

from musketeers.config import PretrainConfig
from musketeers.data.interactions import Interactions
from musketeers.pretrain import gpu_kernels as kernels
from musketeers.pretrain.sharded import ItemTable
from musketeers.pretrain.tables import Tables

SHARE, FIXED_SHARE = 256, 64
"""Pairs of a user that one program works through: all others of the turn wait for the longest.
With the users' vectors fixed, a user's shares need not wait for each other and may be smaller."""

Shares = tuple[Int64[np.ndarray, "..."], Int64[np.ndarray, "..."]]
"""Users, and the pair that each goes on from."""


class OnGpu:
    """Lets the users of some tables learn, as `mf.Factorization` does on the processor."""

    def __init__(self, tables: Tables, config: PretrainConfig, device: torch.device) -> None:
        self._tables, self._config, self._device = tables, config, device
        self._items = [
            ItemsOnGpu(catalogue.train, lanes, config.candidates, device)
            for catalogue, lanes in zip(tables.catalogues, tables.lanes, strict=True)
        ]

    def epoch(self, number: int) -> float:
        """See `tables.Tables.epoch`."""
        tables, how = self._tables, self._config
        users, squares = (placed(a, self._device) for a in (tables.users, tables.user_squares))
        for items in self._items:
            items.fetch()
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        for place, shares, key in self._turns(number):
            items = self._items[place]
            loss += items.train_users(
                shares, users, squares, how.learning_rate, how.regularization, key
            )
            items.learn(how.learning_rate)
        for here, there in ((tables.users, users), (tables.user_squares, squares)):
            torch.from_numpy(here).copy_(there)
        for items in self._items:
            items.give_back()
        return float(loss) / max(tables.n_pairs, 1)

    def _turns(self, number: int) -> Iterator[tuple[int, Shares, np.uint64]]:
        """Catalogue by catalogue, as `Tables.turns` has it, who learns, and the key.

        What is left of users with many pairs waits for the catalogue's next turn.
        """
        waiting = [(np.empty(0, np.int64), np.empty(0, np.int64)) for _ in self._items]
        keys = [np.uint64(0) for _ in self._items]
        for turn in self._tables.turns(number):
            place, (users, begins) = turn.catalogue, waiting[turn.catalogue]
            firsts = self._tables.catalogues[place].train.indptr[turn.users]
            shares = np.concatenate([users, turn.users]), np.concatenate([begins, firsts])
            yield place, shares, turn.key
            keys[place], waiting[place] = turn.key, self._left(place, shares)
        while any(len(users) for users, _ in waiting):
            for place, shares in enumerate(waiting):
                yield place, shares, keys[place]
                waiting[place] = self._left(place, shares)

    def _left(self, place: int, shares: Shares) -> Shares:
        users, begins = shares
        ends = begins + SHARE
        more = ends < self._tables.catalogues[place].train.indptr[users + 1]
        return users[more], ends[more]


class ItemsOnGpu:
    """The item vectors of a catalogue, and what its users would have them change."""

    def __init__(
        self, train: Interactions, lanes: ItemTable, n_candidates: int, device: torch.device
    ) -> None:
        self._train, self._lanes, self._device = train, lanes, device
        self._n_candidates = n_candidates
        self._indptr, self._liked_items = (placed(a, device) for a in (train.indptr, train.items))
        self.fetch()
        self._sums = torch.zeros_like(self._items, dtype=torch.int64)
        self._square_sums = torch.zeros_like(self._squares, dtype=torch.int64)

    def fetch(self) -> None:
        """Take over the vectors and Adagrad's sums that the processor has."""
        self._items = placed(self._lanes.items, self._device)
        self._squares = placed(self._lanes.squares, self._device)

    def give_back(self) -> None:
        """Let the processor have them as they are now."""
        self._lanes.restore(self._items.cpu().numpy(), self._squares.cpu().numpy())

    def train_users(
        self,
        shares: Shares,
        users: Float32[Tensor, "user dim"],
        user_squares: Float32[Tensor, " user"],
        learning_rate: float,
        regularization: float,
        key: np.uint64,
    ) -> Tensor:
        """The summed loss; see `gpu_kernels.train_users`."""
        of, begins = (placed(a, self._device) for a in shares)
        losses = torch.empty(len(of), dtype=torch.float32, device=self._device)
        with torch.cuda.device_of(losses):
            kernels.train_users[(len(of),)](
                of, begins, SHARE, self._indptr, self._liked_items, users, user_squares,
                self._items, self._sums, self._square_sums, losses, len(self._items),
                learning_rate, regularization, int(key), **self._sizes(),
            )  # fmt: skip
        return losses.double().sum()

    def train_items(
        self,
        users: Int[np.ndarray, " turn"],
        learns: Bool[Tensor, " turn"],
        vectors: Float32[Tensor, "turn dim"],
        regularization: float,
        key: np.uint64,
    ) -> tuple[Tensor, Float32[Tensor, "turn dim"]]:
        """The summed loss and its slopes by the vectors; see `gpu_kernels.train_items`."""
        of = placed(users, self._device)
        rows, begins = (placed(a, self._device) for a in _fixed_shares(self._train.indptr, users))
        losses = torch.empty(len(rows), dtype=torch.float32, device=self._device)
        slopes = torch.zeros_like(vectors, dtype=torch.int64)
        with torch.cuda.device_of(losses):
            kernels.train_items[(len(rows),)](
                of, rows, begins, FIXED_SHARE, learns, self._indptr, self._liked_items, vectors,
                slopes, self._items, self._sums, self._square_sums, losses, len(self._items),
                regularization, int(key), **self._sizes(),
            )  # fmt: skip
        return losses.double().sum(), slopes / kernels.ONE.value

    def learn(self, learning_rate: float) -> None:
        """A step of Adagrad by what users would have had the items change since the last."""
        self._squares += self._square_sums / kernels.ONE.value
        rates = learning_rate / kernels.ONE.value * self._squares.rsqrt()
        self._items += rates[:, None] * self._sums
        self._sums.zero_()
        self._square_sums.zero_()

    def _sizes(self) -> dict[str, int]:
        dim = self._items.shape[1]
        return {
            "dim": dim,
            "width": _power_of_two(dim),
            "n_candidates": self._n_candidates,
            "n_drawn": _power_of_two(self._n_candidates),
            "num_warps": 1,
        }


def placed(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of the array on the device."""
    return torch.tensor(array, device=device)


def _fixed_shares(
    indptr: Int64[np.ndarray, " user_plus_one"], users: Int[np.ndarray, " turn"]
) -> Shares:
    """All pairs of some users in shares: of which place each is, and the pair that it begins at."""
    counts = -(-(indptr[users + 1] - indptr[users]) // FIXED_SHARE)
    rows = np.repeat(np.arange(len(users)), counts)
    numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, indptr[users[rows]] + FIXED_SHARE * numbers


def _power_of_two(least: int) -> int:
    """The smallest that is no less; Triton knows no other sizes."""
    return 1 << (least - 1).bit_length()
