"""BPR over domains at once, by batches, where scores add up inner products of encoded vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int, Int64
from numba import njit

from musketeers.baselines.graph import Encoder
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
    learning_rate: float = 0.02
    """Adam's step."""
    regularization: float = 2e-3
    """L2 strength on the vectors of a batch (see `GraphBpr` which), for each pair."""
    steps: int = 8
    """Steps in an epoch; each encodes whole tables, so they are few and large."""
    init_scale: float = 1.0
    """Expected length of a vector before training, before the graph."""
    max_epochs: int = 500
    patience: int = 10
    """Epochs without a better validation NDCG@10 before training stops."""

    def __post_init__(self) -> None:
        for name, least in (("layers", 0), ("steps", 1)):
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
    """Trained vectors, one for each node of an encoder's graph, and Adam's memory of them."""

    def __init__(
        self, encoder: Encoder, regularization: float, table: Float[np.ndarray, "node dim"]
    ) -> None:
        self.encoder, self.regularization, self.table = encoder, regularization, table
        shapes = self.trained()
        self.first = {name: np.zeros_like(values) for name, values in shapes.items()}
        self.second = {name: np.zeros_like(values) for name, values in shapes.items()}

    def trained(self) -> dict[str, np.ndarray]:
        """The table and the encoder's weights, as live memory."""
        return {"table": self.table, **self.encoder.weights}

    def nodes(self, domain: int, batch: Batch) -> Batch:
        """The batch, with rows of the table in place of the domain's."""
        graph = self.encoder.graph
        user, item = graph.users[domain].start, graph.items[domain].start
        return Batch(batch.users + user, batch.liked + item, batch.others + item)

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Encoded vectors of each domain's users and items.

        Whoever has no neighbour to learn from gets the mean vector of the users who have one.
        """
        graph, (encoded, _) = self.encoder.graph, self.encoder.encode(self.table, None)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for mine, items in zip(graph.users, graph.items, strict=True):
            users, known = encoded[mine].copy(), graph.scales[mine] > 0
            users[~known] = users[known].mean(axis=0)
            found.append((users, encoded[items]))
        return found


class GraphBpr:
    """The `Trainable` of models that add up `Embedding`s; every step has a batch of each domain.

    Minimises, summed over domains, the mean over triples of softplus(-x) + the sum over embeddings
    of regularization / 2 (|e_u|^2 + |e_i|^2 + |e_j|^2), with x the score of i less that of j from
    encoded vectors, and e the trained ones; or the encoded ones, where the encoder has weights,
    since behind those a short trained vector holds nothing back.  Memory: about eight tables for
    each embedding, and what its encoder keeps for the way back.
    """

    def __init__(
        self,
        validations: Sequence[Validation],
        encoders: Mapping[str, tuple[Encoder, float]],
        settings: GraphSettings,
        seed: Seed,
        *,
        dim: int,
    ) -> None:
        """`encoders`: each with its L2 strength."""
        self._validations, self._settings, self._seed = validations, settings, seed
        self._samplers = [Sampler(validation.split.train) for validation in validations]
        scale = np.float32(settings.init_scale / np.sqrt(dim))
        self.embeddings: dict[str, Embedding] = {}
        for name, (encoder, regularization) in encoders.items():
            rng = seed.child("init", name).numpy()
            draws = rng.standard_normal((len(encoder.graph.scales), dim), dtype=np.float32)
            self.embeddings[name] = Embedding(encoder, regularization, scale * draws)
        self._steps = 0

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`; the domains are cut into the same number of batches."""
        rng = self._seed.child("epoch", str(number)).numpy()
        n_steps = self._settings.steps
        orders = [
            np.array_split(rng.permutation(sampler.pairs), n_steps) for sampler in self._samplers
        ]
        losses = 0.0
        # what diverges is not finite, and the loss tells
        with np.errstate(over="ignore", invalid="ignore"):
            for pairs in zip(*orders, strict=True):
                drawn = zip(self._samplers, pairs, strict=True)
                batches = [sampler.draw(chosen, rng) for sampler, chosen in drawn]
                loss, slopes = self.slopes(batches, rng)
                self._descend(slopes)
                losses += loss
        return losses / n_steps

    def slopes(
        self, batches: Sequence[Batch], rng: np.random.Generator | None
    ) -> tuple[float, list[dict[str, np.ndarray]]]:
        """The loss of a step, and its slopes in all that each embedding trains.

        `rng` is for the encoders.
        """
        encoded = [e.encoder.encode(e.table, rng) for e in self.embeddings.values()]
        vectors, backs = zip(*encoded, strict=True)
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
        found: list[dict[str, np.ndarray]] = []
        for embedding, made, back, slope, share in zip(
            self.embeddings.values(), vectors, backs, slopes, shares, strict=True
        ):
            strengths = (embedding.regularization * share).astype(slope.dtype)
            held = made if embedding.encoder.weights else embedding.table
            lengths = np.einsum("nd,nd->n", held, held, dtype=np.float64)
            loss += float(strengths @ lengths) / 2
            pull = strengths[:, None] * held
            if embedding.encoder.weights:
                slope += pull
            of_table, of_weights = back(slope)
            if not embedding.encoder.weights:
                of_table += pull
            found.append({"table": of_table, **of_weights})
        return loss, found

    def validate(self) -> float:
        """See `Trainable.validate`; the mean of the domains."""
        values = [v.ndcg(f) for v, f in zip(self._validations, self.factors(), strict=True)]
        return float(np.mean(values))

    def factors(self) -> list[Factors]:
        """The domains' models as they are now: the embeddings' vectors, side by side."""
        parts = [embedding.parts() for embedding in self.embeddings.values()]
        sides = (
            [np.concatenate(side, axis=1) for side in zip(*domain, strict=True)]
            for domain in zip(*parts, strict=True)
        )
        return [Factors(users, items) for users, items in sides]

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        return {"steps": np.array(self._steps), **self._arrays()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self._steps = int(state["steps"])
        for name, values in self._arrays().items():
            values[:] = state[name]

    def _arrays(self) -> dict[str, np.ndarray]:
        """All that is trained and Adam's memory of it, as live memory."""
        return {
            f"{name}/{part}/{key}": values
            for name, embedding in self.embeddings.items()
            for part, arrays in (
                ("trained", embedding.trained()),
                ("first", embedding.first),
                ("second", embedding.second),
            )
            for key, values in arrays.items()
        }

    def _descend(self, slopes: list[dict[str, np.ndarray]]) -> None:
        """One step of Adam."""
        self._steps += 1
        # the corrections of both moments for their start at 0, in one factor
        correction = np.sqrt(1 - _SQUARE_DECAY**self._steps) / (1 - _DECAY**self._steps)
        rate = np.float32(self._settings.learning_rate * correction)
        for embedding, found in zip(self.embeddings.values(), slopes, strict=True):
            for name, values in embedding.trained().items():
                _adam(values, found[name], embedding.first[name], embedding.second[name], rate)


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
