"""Every model that a comparison knows: what it sees, how it is trained, what is tuned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from musketeers import controls
from musketeers.art.train import Transferred
from musketeers.baselines.cmf import CmfSettings, cmf
from musketeers.baselines.ease import EaseSettings, PooledEaseSettings, ease, pooled_ease
from musketeers.baselines.ga_mtcdr import GaMtcdrSettings, ga_mtcdr
from musketeers.baselines.graph_bpr import GraphSettings
from musketeers.baselines.herograph import SETTINGS as HEROGRAPH
from musketeers.baselines.herograph import herograph_l
from musketeers.baselines.ials import IalsSettings, ials
from musketeers.baselines.item_knn import ItemKnnSettings, item_knn
from musketeers.baselines.light_gcn import light_gcn
from musketeers.baselines.mpf import MpfSettings, mpf
from musketeers.baselines.node2vec import Node2vecSettings
from musketeers.baselines.popularity import popularity
from musketeers.cat.train import align
from musketeers.comparison.space import Choice, Range, Space
from musketeers.config import RunConfig, changed
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.pipeline import art, exchanged, smf
from musketeers.pretrain.mf import Pretrained, pretrain
from musketeers.protocols import Scorer
from musketeers.seeding import Seed
from musketeers.training import Unwatched

Sees = Literal["own data", "user embeddings", "all raw data"]
Settings = Mapping[str, Any]
Made = Mapping[str, Scorer | Pretrained]
"""A model for each domain."""


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

    @property
    def seed(self) -> Seed:
        """The root of all random streams of the job."""
        return Seed(self.config.seed)


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


# 1. Models of one domain


def _pop(task: Task, _: Settings) -> Made:
    return {name: popularity(split.train) for name, split in task.splits.items()}


def _item_knn(task: Task, settings: Settings) -> Made:
    chosen = ItemKnnSettings(**settings)
    return {name: item_knn(split, chosen) for name, split in task.splits.items()}


def _ease(task: Task, settings: Settings) -> Made:
    chosen = EaseSettings(**settings)
    return {name: ease(split, chosen) for name, split in task.splits.items()}


def _ials(task: Task, settings: Settings) -> Made:
    chosen = IalsSettings(**settings)
    return {
        name: ials(
            split, task.validations[name], chosen, task.seed.child("ials", name), Unwatched(),
            dim=task.config.dim,
        ).factors
        for name, split in task.splits.items()
    }  # fmt: skip


def _light_gcn(task: Task, settings: Settings) -> Made:
    chosen = GraphSettings(**settings)
    return {
        name: light_gcn(
            split, task.validations[name], chosen, task.seed.child("light_gcn", name), Unwatched(),
            dim=task.config.dim,
        ).factors
        for name, split in task.splits.items()
    }  # fmt: skip


def _smf(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    return {
        name: pretrain(
            split, task.validations[name], config.pretrain, task.seed.child("pretrain", name),
            Unwatched(), dim=config.dim,
        )
        for name, split in task.splits.items()
    }  # fmt: skip


def _wide_smf(task: Task, settings: Settings) -> Made:
    """As many dimensions as all domains have together: is it only capacity?"""
    wide = task.config.dim * len(task.config.data.domains)
    return _smf(task, {**settings, "dim": wide})


# 2. Models of all domains' raw data


def _cmf(task: Task, settings: Settings) -> Made:
    run, own = _parted(settings)
    chosen = CmfSettings(bpr=changed(task.config, run).pretrain, **own)
    seed = task.seed.child("cmf")
    made = cmf(task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim)
    return made.factors


def _pooled_smf(task: Task, settings: Settings) -> Made:
    return _cmf(task, {**settings, "negatives": "global"})


def _mpf(task: Task, settings: Settings) -> Made:
    run, own = _parted(settings)
    chosen = MpfSettings(bpr=changed(task.config, run).pretrain, **own)
    seed = task.seed.child("mpf")
    made = mpf(task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim)
    return made.factors


def _herograph_l(task: Task, settings: Settings) -> Made:
    chosen = replace(HEROGRAPH, **settings)
    seed = task.seed.child("herograph_l")
    made = herograph_l(
        task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim
    )
    return made.factors


def _pooled_ease(task: Task, settings: Settings) -> Made:
    own = dict(settings)
    weight: float = own.pop("source_weight", 0.5)
    found: dict[str, Scorer] = {}
    for name in task.splits:
        weights = {source: weight for source in task.splits if source != name}
        chosen = PooledEaseSettings(source_weights=weights, **own)
        found[name] = pooled_ease(task.splits, name, chosen)
    return found


def _ga_mtcdr(task: Task, settings: Settings) -> Made:
    own = dict(settings)
    graph = Node2vecSettings(return_weight=own.pop("return_weight", 1.0))
    chosen = GaMtcdrSettings(graph=graph, **own)
    seed = task.seed.child("ga_mtcdr")
    made = ga_mtcdr(task.splits, task.validations, chosen, seed, Unwatched(), dim=task.config.dim)
    return made.factors


def _ga_mtcdr_p(task: Task, settings: Settings) -> Made:
    return _ga_mtcdr(task, {"pull": 0.1, **settings})


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
        aligned = align(shared, config.cat, task.seed.child("cat"), Unwatched()).users
        found = art(
            task.splits, task.alone, shared, aligned, config, _unwatched, n_threads=task.n_threads
        )
        return _factors(found)

    return fit


def _items_control(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    return _factors(
        controls.items_control(
            task.splits, task.alone, config, _unwatched, n_threads=task.n_threads
        )
    )


def _shuffled(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    return _factors(
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


def _factors(found: Mapping[str, Transferred]) -> Made:
    return {name: made.factors for name, made in found.items()}


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


MODELS: Mapping[str, Model] = {
    "pop": Model("own data", _pop),
    "item_knn": Model(
        "own data", _item_knn,
        {"neighbors": Range(10, 500), "shrinkage": Range(0.1, 100.0),
         "activity_power": Range(0.0, 1.5, log=False)},
    ),
    "ease": Model("own data", _ease, {"regularization": Range(3.0, 3000.0)}),
    "ials": Model(
        "own data", _ials,
        {"unobserved_weight": Range(0.02, 0.5), "regularization": Range(3e-3, 5e-2)},
    ),
    "light_gcn": Model(
        "own data", _light_gcn, {**_GRAPH, "regularization": Range(1e-4, 1e-2)}
    ),
    "smf": Model("own data", _smf, _BPR),
    "smf_wide": Model("own data", _wide_smf, _BPR),
    "cmf": Model("all raw data", _cmf, _BPR, joint=True),
    "mpf": Model("all raw data", _mpf, {**_BPR, "own_strength": Range(0.3, 10.0)}, joint=True),
    "herograph_l": Model(
        "all raw data", _herograph_l, {**_GRAPH, "regularization": Range(3e-3, 0.1)}, joint=True
    ),
    # not pairs but user embeddings, and slopes of the matrices that map them, go between domains
    "ga_mtcdr": Model("user embeddings", _ga_mtcdr, _GA, joint=True),
    "ga_mtcdr_p": Model(
        "user embeddings", _ga_mtcdr_p, {**_GA, "pull": Range(1e-3, 10.0)}, joint=True
    ),
    "smf_ae": _ablation(_ART, cat__loss="reconstruction", art__sources="none"),
    "smf_cat": _ablation({**_ART, **_CONTRAST}, art__sources="none"),
    "cat_art_mean": _ablation({**_ART, **_CONTRAST}, art__sources="mean"),
    "cat_art_linear": _ablation({**_ART, **_CONTRAST}, art__sources="sum"),
    "cat_art_no_global": _ablation({**_ART, **_ATTENTION}, art__shared=False),
    "cat_art": _ablation(_WHOLE),
    "items_control": Model("own data", _items_control, _ART, joint=True, starts_from_smf=True),
    "cat_art_shuffled": Model(
        "user embeddings", _shuffled, _WHOLE, joint=True, starts_from_smf=True
    ),
    "cat_art_noise": Model(
        "user embeddings", _with_noise, _WHOLE, joint=True, starts_from_smf=True
    ),
    "pooled_smf": Model("all raw data", _pooled_smf, _BPR, joint=True),
    "pooled_ease": Model(
        "all raw data", _pooled_ease,
        {"regularization": Range(10.0, 3000.0), "source_weight": Range(0.05, 1.0)}, joint=True,
    ),
}  # fmt: skip
"""By the name in options and files."""

PAPER = (
    "smf", "cmf", "mpf", "ga_mtcdr", "herograph_l", "cat_art",
    "smf_ae", "smf_cat", "cat_art_mean", "cat_art_linear",
)  # fmt: skip
"""The models of the paper's two tables that are here."""
