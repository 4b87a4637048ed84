"""BPR over domains at once, by batches, where scores add up inner products of smoothed vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int, Int64
from numba import njit

from musketeers.baselines.graph import Graph
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.evaluation.validation import Validation
from musketeers.ranking import Factors
from musketeers.seeding import Seed

_DECAY, _SQUARE_DECAY, _TINY = 0.9, 0.999, 1e-8
"""Adam's constants (Kingma and Ba, ICLR 2015)."""


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """How a graph model learns."""

    layers: int = 3
    """Steps along the graph; 0 is plain matrix factorisation."""
    learning_rate: float = 0.01
    """Adam's step."""
    regularization: float = 2e-3
    """L2 strength on the unsmoothed vectors of a batch, for each pair."""
    batch_size: int = 8192
    """Pairs per step over all domains; each step smooths whole tables, so few large ones."""
    init_scale: float = 1.0
    """Expected length of a vector before training and smoothing."""
    max_epochs: int = 500
    patience: int = 10
    """Epochs without a better validation NDCG@10 before training stops."""

    def __post_init__(self) -> None:
        for name, least in (("layers", 0), ("batch_size", 1)):
            value: int = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        for name in ("learning_rate", "init_scale"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a number above 0")
        if not 0 <= self.regularization < np.inf:
            raise ConfigError(f"regularization is {self.regularization}; it must not be negative")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Triples of one domain: a user, an item the user likes, one that is not known to be liked."""

    users: Int64[np.ndarray, " batch"]
    liked: Int64[np.ndarray, " batch"]
    others: Int64[np.ndarray, " batch"]


class Embedding:
    """A table of trained vectors, one for each node of a graph, and Adam's memory of it."""

    def __init__(
        self, graph: Graph, layers: int, table: Float[np.ndarray, "node dim"], *, n_threads: int
    ) -> None:
        self.graph, self.table = graph, table
        self.first, self.second = np.zeros_like(table), np.zeros_like(table)
        self._layers, self._n_threads = layers, n_threads

    def smooth(self, table: Float[np.ndarray, "node dim"]) -> Float[np.ndarray, "node dim"]:
        """See `Graph.smooth`; for vectors, and for slopes on their way back."""
        return self.graph.smooth(table, self._layers, n_threads=self._n_threads)

    def nodes(self, domain: int, batch: Batch) -> Batch:
        """The batch, with rows of the table in place of the domain's."""
        user, item = self.graph.users[domain].start, self.graph.items[domain].start
        return Batch(batch.users + user, batch.liked + item, batch.others + item)

    def parts(self, domain: int) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed vectors of a domain's users and items.

        Whoever has no neighbour to learn from gets the mean vector of the users who have one.
        """
        smoothed, mine = self.smooth(self.table), self.graph.users[domain]
        users, known = smoothed[mine], self.graph.scales[mine] > 0
        users[~known] = users[known].mean(axis=0)
        return users, smoothed[self.graph.items[domain]]


class GraphBpr:
    """The `Trainable` of models that add up `Embedding`s; every step has a batch of each domain.

    Minimises, summed over domains, the mean over triples of softplus(-x) + regularization / 2
    (|e_u|^2 + |e_i|^2 + |e_j|^2), with x the score of i less that of j from smoothed vectors, and
    e the unsmoothed ones of all embeddings.  Memory: about eight tables for each embedding.
    """

    def __init__(
        self,
        validations: Sequence[Validation],
        graphs: Mapping[str, tuple[Graph, int]],
        settings: GraphSettings,
        seed: Seed,
        *,
        dim: int,
    ) -> None:
        self._validations, self._settings, self._seed = validations, settings, seed
        self._samplers = [Sampler(validation.split.train) for validation in validations]
        scale = np.float32(settings.init_scale / np.sqrt(dim))
        self.embeddings: dict[str, Embedding] = {}
        for name, (graph, layers) in graphs.items():
            rng = seed.child("init", name).numpy()
            draws = rng.standard_normal((len(graph.scales), dim), dtype=np.float32)
            self.embeddings[name] = Embedding(
                graph, layers, scale * draws, n_threads=validations[0].n_threads
            )
        self._steps = 0

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`; the domains are cut into the same number of batches."""
        rng = self._seed.child("epoch", str(number)).numpy()
        n_pairs = sum(len(sampler.pairs) for sampler in self._samplers)
        n_steps = max(1, -(-n_pairs // self._settings.batch_size))
        orders = [
            np.array_split(rng.permutation(sampler.pairs), n_steps) for sampler in self._samplers
        ]
        losses = 0.0
        # what diverges is not finite, and the loss tells
        with np.errstate(over="ignore", invalid="ignore"):
            for pairs in zip(*orders, strict=True):
                drawn = zip(self._samplers, pairs, strict=True)
                loss, slopes = self.slopes([sampler.draw(chosen, rng) for sampler, chosen in drawn])
                self._descend(slopes)
                losses += loss
        return losses / n_steps

    def slopes(self, batches: Sequence[Batch]) -> tuple[float, list[np.ndarray]]:
        """The loss of a step, and its slope in each embedding's table."""
        vectors = [embedding.smooth(embedding.table) for embedding in self.embeddings.values()]
        slopes = [np.zeros_like(table) for table in vectors]
        shares = [np.zeros(len(table)) for table in vectors]
        loss = 0.0
        for domain, batch in enumerate(batches):
            if not len(batch.users):
                continue
            nodes = [embedding.nodes(domain, batch) for embedding in self.embeddings.values()]
            ahead = np.sum(
                [_ahead(table, rows) for table, rows in zip(vectors, nodes, strict=True)], axis=0
            )
            loss += float(np.logaddexp(0, -ahead).mean())
            push = (np.exp(-np.logaddexp(0, ahead)) / len(ahead)).astype(ahead.dtype)
            for table, rows, slope, share in zip(vectors, nodes, slopes, shares, strict=True):
                _add_slopes(table, rows.users, rows.liked, rows.others, push, slope)
                every = np.concatenate([rows.users, rows.liked, rows.others])
                share += np.bincount(every, minlength=len(share)) / len(ahead)
        found: list[np.ndarray] = []
        for embedding, slope, share in zip(self.embeddings.values(), slopes, shares, strict=True):
            strengths = (self._settings.regularization * share).astype(slope.dtype)
            lengths = np.einsum("nd,nd->n", embedding.table, embedding.table, dtype=np.float64)
            loss += float(strengths @ lengths) / 2
            found.append(embedding.smooth(slope) + strengths[:, None] * embedding.table)
        return loss, found

    def validate(self) -> float:
        """See `Trainable.validate`; the mean of the domains."""
        values = [v.ndcg(f) for v, f in zip(self._validations, self.factors(), strict=True)]
        return float(np.mean(values))

    def factors(self) -> list[Factors]:
        """The domains' models as they are now: the embeddings' vectors, side by side."""
        parts = [
            [embedding.parts(domain) for embedding in self.embeddings.values()]
            for domain in range(len(self._validations))
        ]
        return [
            Factors(*(np.concatenate(side, axis=1) for side in zip(*part, strict=True)))
            for part in parts
        ]

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        arrays = {"steps": np.array(self._steps)}
        for name, embedding in self.embeddings.items():
            arrays[name] = embedding.table
            arrays[f"{name}/first"], arrays[f"{name}/second"] = embedding.first, embedding.second
        return arrays

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self._steps = int(state["steps"])
        for name, embedding in self.embeddings.items():
            embedding.table[:] = state[name]
            embedding.first[:], embedding.second[:] = (
                state[f"{name}/first"],
                state[f"{name}/second"],
            )

    def _descend(self, slopes: list[np.ndarray]) -> None:
        """One step of Adam."""
        self._steps += 1
        # the corrections of both moments for their start at 0, in one factor
        correction = np.sqrt(1 - _SQUARE_DECAY**self._steps) / (1 - _DECAY**self._steps)
        rate = np.float32(self._settings.learning_rate * correction)
        for embedding, slope in zip(self.embeddings.values(), slopes, strict=True):
            _adam(embedding.table, slope, embedding.first, embedding.second, rate)


class Sampler:
    """One domain's training pairs, and items that their users do not like."""

    def __init__(self, train: Interactions) -> None:
        self.users, self._items, self._n_items = train.users(), train.items, train.n_items
        self._keys = self.users * train.n_items + train.items
        # who likes everything has no other item
        self.pairs = np.flatnonzero(train.counts()[self.users] < train.n_items)

    def draw(self, pairs: Int64[np.ndarray, " batch"], rng: np.random.Generator) -> Batch:
        """The pairs, each with a uniform item that is none of the user's."""
        users, others = self.users[pairs], np.empty(len(pairs), np.int64)
        wrong = np.arange(len(pairs))
        while len(wrong):
            others[wrong] = rng.integers(self._n_items, size=len(wrong))
            wrong = wrong[self._liked(users[wrong], others[wrong])]
        return Batch(users, self._items[pairs].astype(np.int64), others)

    def _liked(
        self, users: Int[np.ndarray, " batch"], items: Int[np.ndarray, " batch"]
    ) -> np.ndarray:
        keys = users * self._n_items + items
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return self._keys[places] == keys


def _ahead(vectors: Float[np.ndarray, "node dim"], rows: Batch) -> Float[np.ndarray, " batch"]:
    """By how much each user scores the liked item above the other."""
    return np.einsum("bd,bd->b", vectors[rows.users], vectors[rows.liked] - vectors[rows.others])


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@njit(nogil=True, cache=True, fastmath={"contract"})
@no_type_check
def _add_slopes(vectors, users, liked, others, push, slopes):
    """Add the slope of the batch's loss in `vectors` to `slopes`."""
    for b in range(len(push)):
        u, i, j = users[b], liked[b], others[b]
        for d in range(vectors.shape[1]):
            taste = push[b] * vectors[u, d]
            slopes[u, d] -= push[b] * (vectors[i, d] - vectors[j, d])
            slopes[i, d] -= taste
            slopes[j, d] += taste


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def _adam(table, slope, first, second, rate):
    """One step of Adam on every row, `rate` corrected for the start of both moments."""
    decay, square_decay, tiny = np.float32(_DECAY), np.float32(_SQUARE_DECAY), np.float32(_TINY)
    one = np.float32(1)
    for row in range(table.shape[0]):
        for d in range(table.shape[1]):
            g = slope[row, d]
            first[row, d] += (one - decay) * (g - first[row, d])
            second[row, d] += (one - square_decay) * (g * g - second[row, d])
            table[row, d] -= rate * first[row, d] / (np.sqrt(second[row, d]) + tiny)
