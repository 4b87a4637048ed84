"""A `group.Group` whose members are processes that torch.distributed has brought together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from musketeers.errors import ClusterError


class MembersLostError(ClusterError):
    """Some of the others are gone, so nothing can be done together any more."""


@dataclass(frozen=True, slots=True)
class Collective:
    """The processes of the default process group, each by its rank.

    Sums are made by gloo around a ring, so that their order depends on the number of members alone.
    """

    @property
    def place(self) -> int:
        """See `Group.place`."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """See `Group.size`."""
        return dist.get_world_size()

    def add(self, *arrays: Shaped[np.ndarray, "..."]) -> None:
        """See `Group.add`."""
        for kind in dict.fromkeys(array.dtype for array in arrays):
            alike = [array for array in arrays if array.dtype == kind]
            # many small sums take as many times as long as one; one array is summed in place
            rows = [array.reshape(-1) for array in alike]
            flat = rows[0] if len(rows) == 1 else np.concatenate(rows)
            _reached(dist.all_reduce, torch.from_numpy(flat))
            parts = np.split(flat, np.cumsum([array.size for array in alike])[:-1])
            for array, part in zip(alike, parts, strict=True):
                array[...] = part.reshape(array.shape)

    def gathered(self, array: Shaped[np.ndarray, "..."]) -> list[Shaped[np.ndarray, "..."]]:
        """See `Group.gathered`."""
        counts = self._all(torch.tensor([len(array)]))
        n_each = [int(count) for count in counts]
        # gloo takes arrays of one length
        padded = np.zeros((max(n_each), *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        found = self._all(_bytes(padded))
        return [
            one.numpy().view(array.dtype).reshape(padded.shape)[:n]
            for one, n in zip(found, n_each, strict=True)
        ]

    def exchanged(
        self, arrays: Sequence[Shaped[np.ndarray, "..."]]
    ) -> list[Shaped[np.ndarray, "..."]]:
        """See `Group.exchanged`."""
        first, n_mine = arrays[0], np.array([len(array) for array in arrays])
        n_theirs = np.array([int(n[self.place]) for n in self._all(torch.from_numpy(n_mine))])
        found = np.empty((n_theirs.sum(), *first.shape[1:]), first.dtype)
        n_bytes = first.dtype.itemsize * int(np.prod(first.shape[1:]))
        _reached(
            dist.all_to_all_single,
            _bytes(found), _bytes(np.concatenate(arrays)),
            (n_bytes * n_theirs).tolist(), (n_bytes * n_mine).tolist(),
        )  # fmt: skip
        return np.split(found, np.cumsum(n_theirs)[:-1])

    def _all(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        _reached(dist.all_gather, found, tensor)
        return found


def _bytes(array: np.ndarray) -> Tensor:
    """The array's own memory; gloo knows no booleans."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8))


def _reached(operation: Callable[..., object], *arguments: object) -> None:
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise MembersLostError(f"the others cannot be reached: {error}") from None
