"""Graph embeddings of every domain, attention over them number by number, two towers (GA-MTCDR)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Generator, Tensor

from musketeers.baselines.ga_network import AttentiveTowers, cross_entropy, directions
from musketeers.baselines.graph_bpr import Sampler
from musketeers.baselines.joint import mean_ndcg, trains
from musketeers.baselines.node2vec import Node2vecSettings, NodeVectors, node2vec
from musketeers.data.domains import Split
from musketeers.errors import ConfigError
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.modules import Adam
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit

_BYTES = 40
"""For each number that attention has: itself, its slope and two moments; but for the slope the same
once more as the state after an epoch, and once more as the best of these."""
_ROWS = 8192


@dataclass(frozen=True, slots=True)
class GaMtcdrSettings:
    """How GA-MTCDR learns."""

    graph: Node2vecSettings = field(default_factory=Node2vecSettings)
    """How the graph embeddings, which stay as they are afterwards, are made."""
    doublings: int = 1
    """Layers of a tower that double its width, and as many that halve it again; published with 3,
    which costs twenty times the arithmetic of 1."""
    negatives: int = 7
    """Items of the domain drawn against each liked one."""
    learning_rate: float = 3e-3
    """Adam's step; published with 1e-3 and deeper towers."""
    regularization: float = 1e-5
    """Strength on the squared lengths of the towers' vectors, for each cosine; published with 1e-3
    for towers that start near 0."""
    pull: float = 0.0
    """Strength on differences between the targets' attention: above 0 it is GA-MTCDR-P."""
    batch_size: int = 4096
    """Liked pairs per step of a domain; a step passes whole catalogues through the towers."""
    max_epochs: int = 50
    patience: int = 5
    """Epochs without a better validation NDCG@10 before training stops."""
    max_bytes: int = 8 * 2**30
    """Attention that needs more memory than this is refused before it starts."""

    def __post_init__(self) -> None:
        for name, least in (("doublings", 1), ("negatives", 1), ("batch_size", 1)):
            value: int = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        if not 0 < self.learning_rate < np.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("regularization", "pull"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True, slots=True, eq=False)
class GaMtcdr:
    """All domains, trained together."""

    factors: Mapping[str, Factors]
    """Tower vectors of length 1 (or 0), so that scores are cosines."""
    history: History
    """One for all domains."""


def ga_mtcdr(
    splits: Mapping[str, Split],
    validations: Mapping[str, Validation],
    settings: GaMtcdrSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> GaMtcdr:
    """The joint model with the best mean over domains of validation NDCG@10.

    Zhu et al., "A Unified Framework for Cross-Domain and Cross-System Recommendations" (TKDE 2023):
    each domain's graph embeddings (`node2vec`), `AttentiveTowers`, and as loss the cross-entropy of
    whether a user likes an item, given the cosine of their tower vectors.  The domains take turns;
    each step lowers the loss of one domain.

    Inferred: graphs have the training pairs alone, since public data have no texts to join similar
    users by; validation chooses the epoch, where the source takes the best on test; the scale of
    what GA-MTCDR-P adds (`AttentiveTowers.pull`).  Changed: weights start equal and towers larger
    (`AttentiveTowers`), and no cosine is clipped (`cross_entropy`).

    Between domains go user embeddings, slopes of the matrices that map them and, with a pull,
    attention; pairs and items stay, though all is done in one process.  A user whom a domain does
    not know is mapped from the domains that do; one known nowhere has the mean direction of the
    domain's users.

    Memory: 40 n^2 bytes for each user and dimension at n domains, and in a step about 12 for each
    user of the batch times each item.  Raises `ConfigError` where the former exceeds `max_bytes`,
    `DataError` where domains do not match.  Bitwise repeatable on one thread.
    """
    tables = trains(splits, validations)
    n_users, n = next(iter(tables.values())).n_users, len(tables)
    needed = _BYTES * n_users * n**2 * dim
    if needed > settings.max_bytes:
        raise ConfigError(
            f"attention of {n_users:,} users over {n} domains in {dim} dimensions needs {needed:,} "
            f"bytes, more than max_bytes = {settings.max_bytes:,}; raise it, or use a smaller dim"
        )
    vectors = {
        name: node2vec(train, settings.graph, seed.child("graph", name), dim=dim)
        for name, train in tables.items()
    }
    model = _Training(vectors, validations, settings, seed)
    history = fit(
        model,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        checkpoint=job.checkpoint("ga-mtcdr"),
        on_epoch=job.on_epoch,
    )
    return GaMtcdr(model.factors(), history)


class _Training:
    """The `Trainable`: one network for all domains, one optimiser, domains in turn."""

    def __init__(
        self,
        vectors: Mapping[str, NodeVectors],
        validations: Mapping[str, Validation],
        settings: GaMtcdrSettings,
        seed: Seed,
    ) -> None:
        self._validations, self._settings, self._seed = validations, settings, seed
        self._names = list(vectors)
        known = {name: validations[name].split.train.known_users() for name in vectors}
        shared = UserEmbeddings.collect({name: v.users for name, v in vectors.items()}, known)
        n_users, n_domains, dim = shared.values.shape
        # coordinates of about unit variance, which the initial weights are made for
        self._users = torch.from_numpy(shared.values * np.float32(np.sqrt(dim)))
        self._known = torch.from_numpy(shared.known)
        self._items = [torch.from_numpy(_scaled(v.items)) for v in vectors.values()]
        self._samplers = [Sampler(validations[name].split.train) for name in vectors]
        init = Generator().manual_seed(seed.child("init").integer())
        self.network = AttentiveTowers(n_users, n_domains, dim, settings.doublings, generator=init)
        self._optimizer = Adam(self.network, learning_rate=settings.learning_rate)

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`; each domain's batches are spread evenly over the epoch."""
        rng = self._seed.child("epoch", str(number)).numpy()
        turns = [
            ((place + rng.random()) / len(batches), domain, batch)
            for domain, sampler in enumerate(self._samplers)
            for batches in [self._batches(sampler, rng)]
            for place, batch in enumerate(batches)
        ]
        loss = 0.0
        for _, domain, pairs in sorted(turns, key=lambda turn: turn[0]):
            self.network.zero_grad()
            step = self.loss(domain, pairs, rng)
            step.backward()
            self._optimizer.step()
            loss += step.item() * len(pairs)
        return loss / max(1, sum(len(sampler.pairs) for sampler in self._samplers))

    def _batches(
        self, sampler: Sampler, rng: np.random.Generator
    ) -> list[Int64[np.ndarray, " pair"]]:
        """All pairs, users in random order: the fewer users in a batch, the less to compute."""
        order = rng.permutation(len(self._users))[sampler.users[sampler.pairs]]
        pairs = sampler.pairs[np.argsort(order, kind="stable")]
        return np.array_split(pairs, max(1, -(-len(pairs) // self._settings.batch_size)))

    def loss(
        self, domain: int, pairs: Int64[np.ndarray, " pair"], rng: np.random.Generator
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the pairs and of items drawn against them, for each pair."""
        n = self._settings.negatives
        sampler, n_items = self._samplers[domain], len(self._items[domain])
        drawn = sampler.draw(pairs.repeat(n), rng)
        shown = np.column_stack([drawn.liked[::n], drawn.others.reshape(-1, n)])
        user_rows, user = _rows(drawn.users[::n], len(self._users))
        item_rows, item = _rows(shown.flatten(), n_items)
        known = self._known[user_rows]
        weights = self.network.weights(domain, user_rows, known)
        users = self.network.users(domain, weights, self._users[user_rows])
        items = self.network.items(domain, self._items[domain][item_rows])
        # all users by all items of the batch: one product costs less than one row for each draw
        cosines = (directions(users) @ directions(items).T).flatten()
        places = user.repeat_interleave(1 + n) * len(items) + item
        loss = cross_entropy(cosines.index_select(0, places).unflatten(0, shown.shape))
        # a vector counts as often as its cosine is asked for
        lengths = (1 + n) * (users.square().sum(1) @ torch.bincount(user).float())
        lengths = lengths + items.square().sum(1) @ torch.bincount(item).float()
        loss = loss + self._settings.regularization / len(pairs) * lengths
        if self._settings.pull:
            loss = loss + self._settings.pull * self.network.pull(domain, user_rows, known)
        return loss

    def validate(self) -> float:
        """See `Trainable.validate`; the mean of the domains."""
        return mean_ndcg(self._validations, self.factors())

    def factors(self) -> dict[str, Factors]:
        """The domains' models as they are now."""
        return {name: self._factors(domain) for domain, name in enumerate(self._names)}

    @torch.no_grad()
    def _factors(self, domain: int) -> Factors:
        users = [
            self.network.users(
                domain, self.network.weights(domain, rows, self._known[rows]), self._users[rows]
            )
            for rows in torch.arange(len(self._users)).split(_ROWS)
        ]
        items = [self.network.items(domain, part) for part in self._items[domain].split(_ROWS)]
        mine, theirs = directions(torch.cat(users)), directions(torch.cat(items))
        mine[~self._known.any(dim=1)] = mine[self._known[:, domain]].mean(dim=0)
        return Factors(mine.numpy(), theirs.numpy())

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        return self._optimizer.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self._optimizer.restore(state)


def _scaled(vectors: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
    """Vectors whose coordinates have about unit variance, as the users' have."""
    size = np.sqrt(np.mean(np.square(vectors), dtype=np.float64)) or 1.0
    return vectors / np.float32(size)


def _rows(numbers: Int64[np.ndarray, " draw"], n: int) -> tuple[Tensor, Tensor]:
    """The distinct ones of some numbers below n, ascending, and where each is among them."""
    present = np.zeros(n, np.bool_)
    present[numbers] = True
    places = np.cumsum(present) - 1
    return torch.from_numpy(np.flatnonzero(present)), torch.from_numpy(places[numbers])
