"""Every model that a comparison knows: what it sees, how it is trained, what is tuned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from musketeers import controls
from musketeers.art.train import Transferred, served
from musketeers.baselines.cmf import CmfSettings, cmf
from musketeers.baselines.ease import MAX_BYTES, EaseSettings, PooledEaseSettings, ease, pooled_ease
from musketeers.baselines.ga_mtcdr import GaMtcdrSettings, ga_mtcdr
from musketeers.baselines.graph_bpr import GraphSettings
from musketeers.baselines.herograph import (
    HeroGraphLSettings,
    HeroGraphSettings,
    herograph,
    herograph_l,
)
from musketeers.baselines.ials import IalsSettings, ials
from musketeers.baselines.item_knn import ItemKnnSettings, item_knn
from musketeers.baselines.light_gcn import light_gcn
from musketeers.baselines.mpf import MpfSettings, mpf
from musketeers.baselines.node2vec import Node2vecSettings
from musketeers.baselines.popularity import popularity
from musketeers.cat.train import Aligned, align
from musketeers.comparison.space import Choice, Range, Space
from musketeers.config import RunConfig, changed
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.pipeline import art, exchanged, smf
from musketeers.pretrain.mf import Pretrained, pretrain
from musketeers.protocols import Scorer
from musketeers.ranking import TILE_BYTES
from musketeers.seeding import Seed
from musketeers.training import History, Unwatched

Sees = Literal["own data", "user embeddings", "all raw data"]
_MOST_NEIGHBORS = 500

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What one training made of one domain."""

    scorer: Scorer
    history: tuple[History, ...] = ()
    """One for each strength tried; of domains that learn together the same, by their mean."""
    start: Pretrained | None = None
    """What other models start from."""
    attention: Mapping[str, float] = field(default_factory=dict[str, float])
    """Source -> mean weight, see `Transferred.attention`."""
    without: Mapping[str, Callable[[], Scorer]] = field(
        default_factory=dict[str, Callable[[], Scorer]]
    )
    """Source -> the same trained model with that source hidden from it."""


Made = Mapping[str, Fitted]
"""By domain."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one training gets."""

    splits: Mapping[str, Split]
    """All domains, or the one to train."""
    validations: Mapping[str, Validation]
    config: RunConfig
    """With the seed of this job; settings that are not tuned stay as they are here."""
    alone: Mapping[str, Pretrained]
    """The tuned SMF of every domain, for models that start from it; else empty."""
    n_threads: int
    max_bytes: int = MAX_BYTES
    """What a training may take, for models that refuse to take more."""

    @property
    def seed(self) -> Seed:
        """The root of all random streams of the job."""
        return Seed(self.config.seed)


@dataclass(frozen=True, slots=True)
class Size:
    """How much one training is about; enough to tell what memory it needs."""

    n_users: int
    n_items: tuple[int, ...]
    """Of each domain that is trained."""
    n_pairs: int
    """Of these domains together."""
    dim: int
    n_domains: int
    """Of all domains, trained or not."""


Needs = Callable[[Size], int]
"""A bound of the bytes that a training takes beside the data, tuning and measuring included."""


def _vectors(tables: int) -> Needs:
    """So many tables of vectors, one row for each user and item of each domain."""

    def needs(size: Size) -> int:
        rows = sum(size.n_users + n_items for n_items in size.n_items)
        return 2 * TILE_BYTES + 4 * tables * size.dim * rows + 64 * size.n_pairs

    return needs


_FACTORS = _vectors(8)


def _wide_vectors(size: Size) -> int:
    return _FACTORS(replace(size, dim=size.dim * size.n_domains))


def _attentive(size: Size) -> int:
    """As `ga_mtcdr` says, for its batches of 4,096 users."""
    attention = 40 * size.n_domains**2 * size.dim * size.n_users
    return _vectors(16)(size) + attention + 12 * 4096 * max(size.n_items)


def _squares(size: Size) -> int:
    """The inverse (8 bytes a cell), its weights, and those of the best try (4 each)."""
    return 2 * TILE_BYTES + 16 * sum(size.n_items) ** 2 + 64 * size.n_pairs


def _neighbors(size: Size) -> int:
    """As `item_knn` says, for the most neighbours that are tried, and the best try's own."""
    kept = sum(n_items * min(n_items, _MOST_NEIGHBORS) for n_items in size.n_items)
    return 2 * TILE_BYTES + 48 * kept + 64 * size.n_pairs


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One row of the comparison."""

    sees: Sees
    """What of the domains it learns from: one alone, user embeddings of all, or everything."""
    fit: Callable[[Task, Settings], Made]
    space: Space = field(default_factory=dict[str, Range | Choice])
    """What is tuned: dotted names are settings of the run, others of the model."""
    joint: bool = False
    """Whether all domains are trained together; they are then tuned on their mean."""
    starts_from_smf: bool = False
    control: bool = False
    """Whether it is there to explain others' gains, and never the best of its kind."""
    needs: Needs = _FACTORS


# 1. Models of one domain


def _pop(task: Task, _: Settings) -> Made:
    return {name: Fitted(popularity(split.train)) for name, split in task.splits.items()}


def _item_knn(task: Task, settings: Settings) -> Made:
    chosen = ItemKnnSettings(**settings)
    return {name: Fitted(item_knn(split, chosen)) for name, split in task.splits.items()}


def _ease(task: Task, settings: Settings) -> Made:
    chosen = EaseSettings(**settings, max_bytes=task.max_bytes)
    return {name: Fitted(ease(split, chosen)) for name, split in task.splits.items()}


def _ials(task: Task, settings: Settings) -> Made:
    chosen = IalsSettings(**settings)
    found = {
        name: ials(
            split, task.validations[name], chosen, task.seed.child("ials", name), Unwatched(),
            dim=task.config.dim,
        )
        for name, split in task.splits.items()
    }  # fmt: skip
    return {name: Fitted(made.factors, (made.history,)) for name, made in found.items()}


def _light_gcn(task: Task, settings: Settings) -> Made:
    chosen = GraphSettings(**settings)
    found = {
        name: light_gcn(
            split, task.validations[name], chosen, task.seed.child("light_gcn", name), Unwatched(),
            dim=task.config.dim,
        )
        for name, split in task.splits.items()
    }  # fmt: skip
    return {name: Fitted(made.factors, (made.history,)) for name, made in found.items()}


def _smf(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    found = {
        name: pretrain(
            split, task.validations[name], config.pretrain, task.seed.child("pretrain", name),
            Unwatched(), dim=config.dim,
        )
        for name, split in task.splits.items()
    }  # fmt: skip
    return {name: Fitted(made.factors, made.history, made) for name, made in found.items()}


def _wide_smf(task: Task, settings: Settings) -> Made:
    """As many dimensions as all domains have together: is it only capacity?"""
    wide = task.config.dim * len(task.config.data.domains)
    found = _smf(task, {**settings, "dim": wide})
    return {name: replace(made, start=None) for name, made in found.items()}


# 2. Models of all domains' raw data


def _cmf(task: Task, settings: Settings) -> Made:
    run, own = _parted(settings)
    chosen = CmfSettings(bpr=changed(task.config, run).pretrain, **own)
    seed = task.seed.child("cmf")
    made = cmf(task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim)
    return _together(made.factors, made.histories)


def _pooled_smf(task: Task, settings: Settings) -> Made:
    return _cmf(task, {**settings, "negatives": "global"})


def _mpf(task: Task, settings: Settings) -> Made:
    run, own = _parted(settings)
    chosen = MpfSettings(bpr=changed(task.config, run).pretrain, **own)
    seed = task.seed.child("mpf")
    made = mpf(task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim)
    return _together(made.factors, made.histories)


def _herograph(task: Task, settings: Settings) -> Made:
    chosen = _with_graph(HeroGraphSettings(), settings)
    seed = task.seed.child("herograph")
    made = herograph(task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim)
    return _together(made.factors, (made.history,))


def _herograph_l(task: Task, settings: Settings) -> Made:
    chosen = _with_graph(HeroGraphLSettings(), settings)
    seed = task.seed.child("herograph_l")
    made = herograph_l(
        task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim
    )
    return _together(made.factors, (made.history,))


def _pooled_ease(task: Task, settings: Settings) -> Made:
    own = dict(settings)
    weight: float = own.pop("source_weight", 0.5)
    found: dict[str, Fitted] = {}
    for name in task.splits:
        weights = {source: weight for source in task.splits if source != name}
        chosen = PooledEaseSettings(source_weights=weights, max_bytes=task.max_bytes, **own)
        found[name] = Fitted(pooled_ease(task.splits, name, chosen))
    return found


def _ga_mtcdr(task: Task, settings: Settings) -> Made:
    own = dict(settings)
    graph = Node2vecSettings(return_weight=own.pop("return_weight", 1.0))
    chosen = GaMtcdrSettings(graph=graph, max_bytes=task.max_bytes, **own)
    seed = task.seed.child("ga_mtcdr")
    made = ga_mtcdr(task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim)
    return _together(made.factors, (made.history,))


def _ga_mtcdr_p(task: Task, settings: Settings) -> Made:
    return _ga_mtcdr(task, {"pull": 0.1, **settings})


def _together(factors: Mapping[str, Scorer], histories: tuple[History, ...]) -> Made:
    return {name: Fitted(scorer, histories) for name, scorer in factors.items()}


_HeroGraph = TypeVar("_HeroGraph", HeroGraphSettings, HeroGraphLSettings)


def _with_graph(start: _HeroGraph, settings: Settings) -> _HeroGraph:
    """`start` changed, and what it says of the graph."""
    own = {name: value for name, value in settings.items() if hasattr(start, name)}
    graph = {name: value for name, value in settings.items() if name not in own}
    return replace(start, graph=replace(start.graph, **graph), **own)


def _parted(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the run, and the model's own."""
    run = {name: value for name, value in settings.items() if "." in name}
    return run, {name: value for name, value in settings.items() if name not in run}


# 3. CAT-ART, its ablations and its controls: all from the same tuned SMF


def _cat_art(fixed: Settings) -> Callable[[Task, Settings], Made]:
    """CAT-ART with some settings fixed; with none it is the whole method."""

    def fit(task: Task, settings: Settings) -> Made:
        config = changed(task.config, {**settings, **fixed})
        shared = exchanged(task.splits, task.alone)
        aligned = align(shared, config.cat, task.seed.child("cat"), Unwatched())
        found = art(
            task.splits, task.alone, shared, aligned.users, config, _unwatched,
            n_threads=task.n_threads,
        )  # fmt: skip
        # a source can be hidden from the whole method: CAT learned with domains hidden
        hide = None if fixed else partial(_without, task.alone, shared, aligned, found, config)
        return _transferred(found, hide)

    return fit


def _items_control(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    return _transferred(
        controls.items_control(
            task.splits, task.alone, config, _unwatched, n_threads=task.n_threads
        )
    )


def _shuffled(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    return _transferred(
        controls.shuffled_alignment(
            task.splits, task.alone, config, _unwatched, n_threads=task.n_threads
        )
    )


def _with_noise(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    splits = controls.with_noise_domain(task.splits, task.seed.child("noise"))
    (noise,) = set(splits) - set(task.splits)
    alone = smf({noise: splits[noise]}, config, _unwatched, n_threads=task.n_threads)
    made = _cat_art({})(replace(task, splits=splits, alone={**task.alone, **alone}), settings)
    return {name: made[name] for name in task.splits}


def _transferred(
    found: Mapping[str, Transferred], hide: Callable[[str, str], Scorer] | None = None
) -> Made:
    """`hide` gives the target's (first) model without the source (second)."""
    return {
        name: Fitted(
            made.factors,
            (made.history,),
            attention=made.attention,
            without={other: partial(hide, name, other) for other in found if other != name}
            if hide
            else {},
        )
        for name, made in found.items()
    }


def _without(
    alone: Mapping[str, Pretrained],
    shared: UserEmbeddings,
    aligned: Aligned,
    found: Mapping[str, Transferred],
    config: RunConfig,
    target: str,
    source: str,
) -> Scorer:
    """The trained target with a source hidden from attention and from the shared embedding."""
    told = shared.hidden(source)
    return served(target, found[target], alone[target], told, aligned.of(told), config)


def _unwatched(_stage: str, _domain: str | None) -> Unwatched:
    return Unwatched()


# 4. What is tuned

_BPR: Space = {
    "pretrain.learning_rate": Range(0.03, 0.3),
    "pretrain.candidates": Choice((1, 2, 4, 8)),
    "pretrain.init_scale": Range(0.03, 0.3),
}
_GRAPH: Space = {
    "layers": Range(1, 4, log=False),
    "learning_rate": Range(5e-3, 3e-2),
    "init_scale": Range(0.1, 1.0),
}
_HEROGRAPH: Space = {
    **_GRAPH,
    "regularization": Range(1e-3, 0.1),
    "own_regularization": Range(3e-3, 0.1),
}
_GA: Space = {
    "learning_rate": Range(5e-4, 6e-3),
    "doublings": Range(1, 3, log=False),
    "regularization": Range(1e-6, 1e-3),
    "return_weight": Range(0.1, 10.0),
}
_ART: Space = {
    "art.learning_rate": Range(5e-4, 5e-3),
    "art.regularization": Range(2e-3, 0.2),
    "art.target_dropout": Range(0.0, 0.5, log=False),
    "art.batch_size": Choice((256, 512, 1024)),
}
_CONTRAST: Space = {
    "cat.contrast_weight": Range(0.05, 0.8),
    "cat.temperature": Range(0.03, 0.5),
}
_ATTENTION: Space = {"art.dropout": Range(0.0, 0.5, log=False)}
_WHOLE: Space = {**_ART, **_CONTRAST, **_ATTENTION}


def _ablation(space: Space, **fixed: Any) -> Model:
    """CAT-ART with part of it fixed; a double underscore stands for the dot."""
    settings = {name.replace("__", "."): value for name, value in fixed.items()}
    fit = _cat_art(settings)
    return Model("user embeddings", fit, space, joint=True, starts_from_smf=True)


def _control(
    sees: Sees, fit: Callable[[Task, Settings], Made], space: Space, needs: Needs = _FACTORS
) -> Model:
    return Model(sees, fit, space, joint=True, starts_from_smf=True, control=True, needs=needs)


MODELS: Mapping[str, Model] = {
    "pop": Model("own data", _pop),
    "item_knn": Model(
        "own data", _item_knn,
        {"neighbors": Range(10, _MOST_NEIGHBORS), "shrinkage": Range(0.1, 100.0),
         "activity_power": Range(0.0, 1.5, log=False)}, needs=_neighbors,
    ),
    "ease": Model("own data", _ease, {"regularization": Range(3.0, 3000.0)}, needs=_squares),
    "ials": Model(
        "own data", _ials,
        {"unobserved_weight": Range(0.02, 0.5), "regularization": Range(3e-3, 5e-2)},
    ),
    "light_gcn": Model(
        "own data", _light_gcn, {**_GRAPH, "regularization": Range(1e-4, 1e-2)}, needs=_vectors(18)
    ),
    "smf": Model("own data", _smf, _BPR),
    "smf_wide": Model("own data", _wide_smf, _BPR, needs=_wide_vectors),
    "cmf": Model("all raw data", _cmf, _BPR, joint=True),
    "mpf": Model("all raw data", _mpf, {**_BPR, "own_strength": Range(0.3, 10.0)}, joint=True),
    "herograph": Model(
        "all raw data", _herograph,
        {**_HEROGRAPH, "layers": Choice((1, 2)), "neighbours": Range(4, 64)}, joint=True,
        needs=_vectors(32),
    ),
    "herograph_l": Model(
        "all raw data", _herograph_l, _HEROGRAPH, joint=True, needs=_vectors(24)
    ),
    # not pairs but user embeddings, and slopes of the matrices that map them, go between domains
    "ga_mtcdr": Model("user embeddings", _ga_mtcdr, _GA, joint=True, needs=_attentive),
    "ga_mtcdr_p": Model(
        "user embeddings", _ga_mtcdr_p, {**_GA, "pull": Range(1e-3, 10.0)}, joint=True,
        needs=_attentive,
    ),
    "smf_ae": _ablation(_ART, cat__loss="reconstruction", art__sources="none"),
    "smf_cat": _ablation({**_ART, **_CONTRAST}, art__sources="none"),
    "cat_art_mean": _ablation({**_ART, **_CONTRAST}, art__sources="mean"),
    "cat_art_linear": _ablation({**_ART, **_CONTRAST}, art__sources="sum"),
    "cat_art_no_global": _ablation({**_ART, **_ATTENTION}, art__shared=False),
    "cat_art": _ablation(_WHOLE),
    "items_control": _control("own data", _items_control, _ART),
    "cat_art_shuffled": _control("user embeddings", _shuffled, _WHOLE),
    "cat_art_noise": _control("user embeddings", _with_noise, _WHOLE, needs=_vectors(16)),
    "pooled_smf": Model("all raw data", _pooled_smf, _BPR, joint=True),
    "pooled_ease": Model(
        "all raw data", _pooled_ease,
        {"regularization": Range(10.0, 3000.0), "source_weight": Range(0.05, 1.0)}, joint=True,
        needs=_squares,
    ),
}  # fmt: skip
"""By the name in options and files."""

PAPER = (
    "smf", "cmf", "mpf", "ga_mtcdr", "herograph", "herograph_l", "cat_art",
    "smf_ae", "smf_cat", "cat_art_mean", "cat_art_linear",
)  # fmt: skip
"""The models of the paper's two tables that are here."""
