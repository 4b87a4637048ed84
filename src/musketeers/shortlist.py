"""Shortlists on a GPU: for each user the items that may be among the best, by torch.

Which items are then the best is told on the processor by exact scores, so that a GPU gives the same
lists, bit by bit.
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float64, Int, Int32, Int64
from torch import Tensor

from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.protocols import ScoresOnDevice

_TILE_BYTES = 2**30
"""Size of the scores that are on the GPU at once; less where memory does not suffice."""


class Shortlists:
    """`ranking.top_k` asks for candidates here, if there is a GPU."""

    def __init__(
        self,
        scores: ScoresOnDevice,
        device: torch.device,
        seen: Interactions,
        *,
        k: int,
        room: int,
    ) -> None:
        self._scores, self._device = scores, device
        self._seen, self._k, self._room = seen, k, room
        self.size = max(1, _TILE_BYTES // (4 * max(1, seen.n_items)))
        """Users at once; fewer from when the memory did not suffice."""

    def of(
        self, users: Int[np.ndarray, " user"], margins: Float64[np.ndarray, " user"]
    ) -> tuple[Int32[np.ndarray, "user room"], Int64[np.ndarray, " user"]]:
        """Unseen items within the margin of the k-th best score, ascending, and how many.

        The number is -1 where they are more than there is room for.  Raises `ConfigError` where the
        memory of the GPU does not suffice for one user.
        """
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        first = 0
        while first < len(users):
            tile = slice(first, first + self.size)
            if found := self._if_it_fits(users[tile], margins[tile]):
                parts.append(found)
                first = tile.stop
            elif self.size > 1:
                torch.cuda.empty_cache()
                self.size = (len(users[tile]) + 1) // 2
            else:
                raise ConfigError(
                    "the GPU's memory does not suffice to rank for one user; free some, or leave "
                    "out the device"
                )
        candidates, counts = zip(*parts, strict=True)
        return np.concatenate(candidates), np.concatenate(counts)

    def _if_it_fits(
        self, users: Int[np.ndarray, " user"], margins: Float64[np.ndarray, " user"]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        # an error that is still being handled holds on to the memory that was not enough
        try:
            return self._of_tile(users, margins)
        except torch.OutOfMemoryError:
            return None

    def _of_tile(
        self, users: Int[np.ndarray, " user"], margins: Float64[np.ndarray, " user"]
    ) -> tuple[Int32[np.ndarray, "user room"], Int64[np.ndarray, " user"]]:
        seen, k, room = self._seen, self._k, self._room
        with full_precision():
            scores = self._scores(users)
        counts = seen.indptr[users + 1] - seen.indptr[users]
        rows = np.repeat(np.arange(len(users)), counts)
        items = np.concatenate([seen.items[:0], *map(seen.of, users.tolist())]).astype(np.int64)
        scores[self._placed(rows), self._placed(items)] = -torch.inf
        n_best = min(room + 1, scores.shape[1])
        best, places = torch.topk(scores, n_best, dim=1)
        # in float64, where a margin is no less than it should be
        reach = best[:, min(k, n_best) - 1].double() - self._placed(margins)
        near = (best.double() >= reach[:, None]) & (best > -torch.inf)
        n_near = near.sum(dim=1)
        # what is not near goes behind, where nobody looks
        places = torch.where(near, places, scores.shape[1]).sort(dim=1).values[:, :room]
        candidates = np.zeros((len(users), room), np.int32)
        found = torch.where(places < scores.shape[1], places, 0).cpu().numpy()
        candidates[:, : found.shape[1]] = found
        return candidates, torch.where(n_near <= room, n_near, -1).cpu().numpy()

    def _placed(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


@contextmanager
def full_precision() -> Generator[None]:
    """No float32 product in this block is rounded to fewer digits, whatever others have set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def sparse(
    indptr: Int64[np.ndarray, " rows"],
    columns: Int[np.ndarray, " value"],
    values: np.ndarray,
    *,
    n_columns: int,
    device: torch.device,
) -> Tensor:
    """Rows of a sparse matrix on the GPU, in float64."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    places = torch.from_numpy(np.stack([rows, columns.astype(np.int64)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls what it does with these a beta
        return torch.sparse_coo_tensor(
            places, torch.from_numpy(values.astype(np.float64)),
            (len(indptr) - 1, n_columns), is_coalesced=True, device=device,
        )  # fmt: skip
