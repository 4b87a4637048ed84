"""Users and items of one or more domains as one graph, and the smoothing of vectors along it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol, no_type_check, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32
from numba import njit

from musketeers.data.interactions import Interactions
from musketeers.parallel import each
from musketeers.pretrain.lanes import even_parts

_PARTS_PER_THREAD = 8
"""Nodes are shared out in more parts than threads, since guesses of their cost are rough."""

Back = Callable[[np.ndarray], tuple[np.ndarray, Mapping[str, np.ndarray]]]
"""From the slope of a loss in encoded vectors, its slopes in the table and in each weight."""


@runtime_checkable
class Encoder(Protocol):
    """What makes the vectors that are scored from a table of trained ones."""

    @property
    def graph(self) -> "Graph":
        """The nodes that have a row in the table, and who is whose neighbour."""
        ...

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """All that is trained beside the table, as live memory."""
        ...

    def encode(
        self, table: Float[np.ndarray, "node dim"], rng: np.random.Generator | None, /
    ) -> tuple[Float[np.ndarray, "node dim"], Back]:
        """The encoded vectors, and the way back; without `rng` nothing is left to chance."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Who touched what, both ways: nodes are users and items, one row of a table each."""

    neighbours: Interactions
    """The neighbours of every node, as rows; symmetric.  Eight bytes a training pair."""
    scales: Float32[np.ndarray, " node"]
    """One over the root of a node's number of neighbours; 0 for a node without any."""
    users: tuple[slice, ...]
    """The nodes of each domain's users."""
    items: tuple[slice, ...]
    """The nodes of each domain's items."""

    @classmethod
    def pooled(cls, trains: Sequence[Interactions]) -> "Graph":
        """One node for each user, whatever the domain, so that users join the domains."""
        n_users = trains[0].n_users
        ends = list(accumulate((train.n_items for train in trains), initial=n_users))
        return cls._of(trains, [0] * len(trains), ends[:-1], n_nodes=ends[-1])

    @classmethod
    def apart(cls, trains: Sequence[Interactions]) -> "Graph":
        """One node for each user and domain, so that no domain hears of another."""
        ends = list(accumulate((train.n_users + train.n_items for train in trains), initial=0))
        items = [start + train.n_users for start, train in zip(ends, trains, strict=False)]
        return cls._of(trains, ends[:-1], items, n_nodes=ends[-1])

    @classmethod
    def _of(
        cls,
        trains: Sequence[Interactions],
        first_users: list[int],
        first_items: list[int],
        *,
        n_nodes: int,
    ) -> "Graph":
        places = list(zip(trains, first_users, first_items, strict=True))
        users = np.concatenate([train.users() + user for train, user, _ in places])
        items = np.concatenate([train.items.astype(np.int64) + item for train, _, item in places])
        ends = np.concatenate([users, items]), np.concatenate([items, users])
        neighbours = Interactions.from_pairs(*ends, n_users=n_nodes, n_items=n_nodes)
        degrees = neighbours.counts()
        scales = np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1)), 0)
        return cls(
            neighbours,
            scales.astype(np.float32),
            tuple(slice(user, user + train.n_users) for train, user, _ in places),
            tuple(slice(item, item + train.n_items) for train, _, item in places),
        )

    def smooth(
        self, table: Float[np.ndarray, "node dim"], layers: int, *, n_threads: int
    ) -> Float[np.ndarray, "node dim"]:
        r"""The mean of what 0 to `layers` steps along the graph make of `table`.

        LightGCN's encoder (He et al., SIGIR 2020): $P Z$ with
        $P = \frac{1}{L+1} \sum_{l=0}^{L} (D^{-1/2} A D^{-1/2})^l$.  P is symmetric, so the slope of
        a loss in Z is P times its slope in PZ: the same call carries slopes back.  A new table;
        bitwise the same on any number of threads.  Costs 2 dim multiplications for each training
        pair and layer, and two more tables.
        """
        total = table.copy()
        here, buffers = table, (np.empty_like(table), np.empty_like(table))
        parts = even_parts(1 + self.neighbours.counts(), n_threads * _PARTS_PER_THREAD)
        for layer in range(layers):
            there = buffers[layer % 2]
            self._step(here, there, total, parts, n_threads)
            here = there
        total *= np.float32(1 / (layers + 1))
        return total

    def _step(
        self,
        here: np.ndarray,
        there: np.ndarray,
        total: np.ndarray,
        parts: list[slice],
        n_threads: int,
    ) -> None:
        """Take one step from `here` to `there`, and add it to `total`."""

        def part(number: int) -> None:
            start, stop = parts[number].start, parts[number].stop
            indptr, nodes = self.neighbours.indptr, self.neighbours.items
            _propagate(indptr, nodes, self.scales, here, there, total, start, stop)

        each(part, len(parts), n_threads=n_threads)


@dataclass(frozen=True, slots=True, eq=False)
class Smoothing:
    """The encoder of LightGCN, `Graph.smooth`: without weights, and its own way back."""

    graph: Graph
    layers: int
    """0 leaves the table as it is."""
    n_threads: int
    weights: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])

    def encode(
        self, table: Float[np.ndarray, "node dim"], _rng: np.random.Generator | None, /
    ) -> tuple[Float[np.ndarray, "node dim"], Back]:
        """See `Encoder.encode`."""
        return self._smooth(table), lambda slope: (self._smooth(slope), {})

    def _smooth(self, table: np.ndarray) -> np.ndarray:
        return self.graph.smooth(table, self.layers, n_threads=self.n_threads)


# A compiled loop: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@njit(nogil=True, cache=True, fastmath={"contract"})
@no_type_check
def _propagate(indptr, neighbours, scales, here, there, total, first, last):
    """Rows first..last - 1 of the normalised adjacency matrix times `here`."""
    dim = here.shape[1]
    for node in range(first, last):
        row = there[node]
        row[:] = 0
        start, stop = indptr[node], indptr[node + 1]
        rest = stop - (stop - start) % 4
        # four at a time, in the same order: the row is loaded and stored once for all four
        for p in range(start, rest, 4):
            i, j = neighbours[p], neighbours[p + 1]
            k, m = neighbours[p + 2], neighbours[p + 3]
            for d in range(dim):
                near = row[d] + scales[i] * here[i, d] + scales[j] * here[j, d]
                row[d] = near + scales[k] * here[k, d] + scales[m] * here[m, d]
        for p in range(rest, stop):
            other = neighbours[p]
            scale = scales[other]
            for d in range(dim):
                row[d] += scale * here[other, d]
        scale = scales[node]
        for d in range(dim):
            row[d] *= scale
            total[node, d] += row[d]
