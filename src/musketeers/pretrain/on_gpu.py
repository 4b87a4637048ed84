"""BPR on a GPU: vectors are moved there for an epoch, and back for whatever looks at them."""

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from musketeers.config import PretrainConfig
from musketeers.data.interactions import Interactions
from musketeers.pretrain import kernels_on_gpu as kernels
from musketeers.pretrain.lanes import ItemLanes
from musketeers.pretrain.tables import Tables


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
        for turn in tables.turns(number):
            items = self._items[turn.catalogue]
            order = placed(turn.users, self._device)
            loss += items.train_users(
                order, users, squares, how.learning_rate, how.regularization, turn.key
            )
            items.learn(how.learning_rate)
        for here, there in ((tables.users, users), (tables.user_squares, squares)):
            torch.from_numpy(here).copy_(there)
        for items in self._items:
            items.give_back()
        return float(loss) / max(tables.n_pairs, 1)


class ItemsOnGpu:
    """The item vectors of a catalogue, and what its users would have them change."""

    def __init__(
        self, train: Interactions, lanes: ItemLanes, n_candidates: int, device: torch.device
    ) -> None:
        self._lanes, self._n_candidates, self._device = lanes, n_candidates, device
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
        order: Int64[Tensor, " turn"],
        users: Float32[Tensor, "user dim"],
        user_squares: Float32[Tensor, " user"],
        learning_rate: float,
        regularization: float,
        key: np.uint64,
    ) -> Tensor:
        """The summed loss; see `kernels_on_gpu.train_users`."""
        losses = torch.empty(len(order), dtype=torch.float32, device=self._device)
        with torch.cuda.device_of(losses):
            kernels.train_users[(len(order),)](
                order, self._indptr, self._liked_items, users, user_squares, self._items,
                self._sums, self._square_sums, losses, len(self._items), learning_rate,
                regularization, int(key), **self._sizes(),
            )  # fmt: skip
        return losses.double().sum()

    def train_items(
        self,
        order: Int64[Tensor, " turn"],
        learns: Bool[Tensor, " turn"],
        vectors: Float32[Tensor, "turn dim"],
        regularization: float,
        key: np.uint64,
    ) -> tuple[Tensor, Float32[Tensor, "turn dim"]]:
        """The summed loss and its slopes by the vectors; see `kernels_on_gpu.train_items`."""
        losses = torch.empty(len(order), dtype=torch.float32, device=self._device)
        slopes = torch.empty_like(vectors)
        with torch.cuda.device_of(losses):
            kernels.train_items[(len(order),)](
                order, learns, self._indptr, self._liked_items, vectors, slopes, self._items,
                self._sums, self._square_sums, losses, len(self._items), regularization,
                int(key), **self._sizes(),
            )  # fmt: skip
        return losses.double().sum(), slopes

    def learn(self, learning_rate: float) -> None:
        """A step of Adagrad by what users would have had the items change since the last."""
        self._squares += self._square_sums.float() / kernels.ONE.value
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


def _power_of_two(least: int) -> int:
    """The smallest that is no less; Triton knows no other sizes."""
    return 1 << (least - 1).bit_length()
