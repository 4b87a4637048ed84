"""HeroGRAPH and HeroGRAPH-L: each domain's own vectors beside those of one graph of all domains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from musketeers.baselines import joint
from musketeers.baselines.graph import Encoder, Graph, Smoothing
from musketeers.baselines.graph_bpr import GraphBpr, GraphSettings
from musketeers.baselines.sage import MOST_NEIGHBOURS, Sage
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.evaluation.validation import Validation
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit


@dataclass(frozen=True, slots=True)
class HeroGraphLSettings:
    """How HeroGRAPH-L learns."""

    graph: GraphSettings = field(default_factory=lambda: GraphSettings(regularization=0.02))
    """Of all; its `regularization` is for the vectors of the shared graph."""
    own_regularization: float = 0.02
    """L2 strength on the domains' own vectors."""

    def __post_init__(self) -> None:
        _check_strength(self.own_regularization)


@dataclass(frozen=True, slots=True)
class HeroGraphSettings:
    """How HeroGRAPH learns, and the memory to stay within."""

    graph: GraphSettings = field(
        default_factory=lambda: GraphSettings(
            layers=1, regularization=0.02, learning_rate=0.01, init_scale=0.3, patience=5
        )
    )
    """Of all; its `regularization` is for the vectors that the shared graph makes."""
    own_regularization: float = 0.02
    """L2 strength on the domains' own vectors."""
    neighbours: int = 16
    """Neighbours of a node that a step samples, in 1..256."""
    max_bytes: int = 8 * 2**30
    """What needs more memory than this is refused before it starts."""

    def __post_init__(self) -> None:
        _check_strength(self.own_regularization)
        if not 1 <= self.neighbours <= MOST_NEIGHBOURS:
            raise ConfigError(
                f"neighbours is {self.neighbours}; it must be from 1 to {MOST_NEIGHBOURS}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class HeroGraph:
    """All domains, trained together."""

    factors: Mapping[str, Factors]
    """Twice the dimensions: those of the shared graph, then the domain's own."""
    history: History
    """One for all domains."""


def herograph(
    splits: Mapping[str, Split],
    validations: Mapping[str, Validation],
    settings: HeroGraphSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> HeroGraph:
    """The joint model with the best mean over domains of validation NDCG@10.

    As `herograph_l`, with `Sage` as the encoder of the shared graph: max pooling over sampled
    neighbours with attention.  That is what is told of HeroGRAPH (Cui et al., 2020); its paper was
    not at hand, so the form of the attention, the score and the settings are inferred.

    A step encodes the whole graph, at a cost of 4 dim^2 + 3 dim neighbours multiplications for
    each node and layer, and twice as much on the way back.  Memory, however many neighbours a node
    has: 140 bytes a training pair; for each dimension, 64 bytes and 20 more a layer for each
    node of the shared graph, 40 for each user and item of each domain and 16 for each pair of a
    batch; and 4 bytes for each neighbour sampled.  Raises `ConfigError` where that exceeds
    `max_bytes`, and `DataError` where domains do not match.  Encodes on one thread; bitwise
    repeatable for one number of BLAS threads.
    """
    trains = list(joint.trains(splits, validations).values())
    _check_memory(trains, settings, dim)
    encoder = Sage.of(
        Graph.pooled(trains), settings.graph.layers, seed.child("weights"),
        neighbours=settings.neighbours, dim=dim,
    )  # fmt: skip
    return _trained("herograph", splits, validations, encoder, settings, seed, job, dim=dim)


def herograph_l(
    splits: Mapping[str, Split],
    validations: Mapping[str, Validation],
    settings: HeroGraphLSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> HeroGraph:
    """The joint model with the best mean over domains of validation NDCG@10.

    A user's score for an item is G(u).G(i) + E_d(u).E_d(i): E_d are the domain's own vectors, G the
    vectors of one LightGCN graph (`Graph.smooth`) over all users and items.  Every step has a batch
    of each domain, in proportion to its pairs, and sums the domains' mean losses.

    HeroGRAPH (Cui et al., 2020) has two such sets; that "-L", the variant in the CAT-ART paper's
    table, stands for LightGCN as the graph's encoder, and the sum of the two products, are
    inferred: neither paper's text was at hand.  It pools the interactions of all domains, so raw
    data leaves every one of them.

    A user without history in a domain has the mean user's own vector there; one without any history
    has the mean vector of the graph too.  Cost and memory are those of `light_gcn` over all pairs,
    with a second table for each domain's users and items.  Raises `DataError` where domains do not
    match.  Bitwise the same on any number of threads.
    """
    trains = list(joint.trains(splits, validations).values())
    threads = joint.n_threads(validations)
    encoder = Smoothing(Graph.pooled(trains), settings.graph.layers, threads)
    return _trained("herograph-l", splits, validations, encoder, settings, seed, job, dim=dim)


def _trained(
    part: str,
    splits: Mapping[str, Split],
    validations: Mapping[str, Validation],
    shared: Encoder,
    settings: HeroGraphSettings | HeroGraphLSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> HeroGraph:
    graph = settings.graph
    trains = [split.train for split in splits.values()]
    own = Smoothing(Graph.apart(trains), 0, joint.n_threads(validations))
    encoders = {
        "graph": (shared, graph.regularization),
        "own": (own, settings.own_regularization),
    }
    model = GraphBpr([validations[name] for name in splits], encoders, graph, seed, dim=dim)
    history = fit(
        model,
        max_epochs=graph.max_epochs,
        patience=graph.patience,
        checkpoint=job.checkpoint(part),
        on_epoch=job.on_epoch,
    )
    return HeroGraph(dict(zip(splits, model.factors(), strict=True)), history)


def _check_strength(own_regularization: float) -> None:
    if not 0 <= own_regularization < np.inf:
        raise ConfigError(f"own_regularization is {own_regularization}; it must not be negative")


def _check_memory(trains: Sequence[Interactions], settings: HeroGraphSettings, dim: int) -> None:
    n_pairs = sum(len(train) for train in trains)
    n_items = sum(train.n_items for train in trains)
    n_users, layers = trains[0].n_users, settings.graph.layers
    nodes, own_nodes = n_users + n_items, len(trains) * n_users + n_items
    rows = (64 + 20 * layers) * nodes + 40 * own_nodes
    rows += 16 * -(-n_pairs // settings.graph.steps)
    needed = 140 * n_pairs + dim * rows + 4 * nodes * layers * settings.neighbours
    if needed > settings.max_bytes:
        raise ConfigError(
            f"HeroGRAPH of {n_users:,} users, {n_items:,} items and {n_pairs:,} training pairs "
            f"needs {needed:,} bytes, max_bytes = {settings.max_bytes:,}; raise it, or use a "
            "smaller dim or fewer layers"
        )
