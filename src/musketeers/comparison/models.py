"""Every model that a comparison knows: what it sees, how it is trained, what is tuned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from musketeers.art.train import transfer
from musketeers.baselines.popularity import popularity
from musketeers.cat.train import align
from musketeers.comparison.space import Choice, Range, Space
from musketeers.config import RunConfig, changed
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.pretrain.mf import Pretrained, pretrain
from musketeers.seeding import Seed
from musketeers.training import Unwatched

Sees = Literal["own data", "user embeddings", "all raw data"]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one training gets."""

    splits: Mapping[str, Split]
    """All domains, or the one to train."""
    validations: Mapping[str, Validation]
    config: RunConfig
    seed: Seed
    alone: Mapping[str, Pretrained] = field(default_factory=dict[str, Pretrained])
    """The tuned SMF of every domain, for models that start from it."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One row of the comparison."""

    sees: Sees
    """What of the other domains it learns from: nothing, their user embeddings, or everything."""
    fit: Callable[[Task, Settings], Mapping[str, Any]]
    """A `Scorer` for each domain of the task; for smf a `Pretrained`, which holds one."""
    space: Space = field(default_factory=dict[str, Range | Choice])
    """What is tuned; a name in `RunConfig` is dotted, any other is a field of the settings."""
    joint: bool = False
    """Whether all domains are trained together, so that they are tuned on their mean."""
    starts_from_smf: bool = False


def _settled(kind: Callable[[], Any], settings: Settings) -> Any:
    return replace(kind(), **settings)


def _pop(task: Task, _: Settings) -> dict[str, Any]:
    return {name: popularity(split.train) for name, split in task.splits.items()}


def _smf(task: Task, settings: Settings) -> dict[str, Any]:
    config = changed(task.config, settings)
    return {
        name: pretrain(
            split, task.validations[name], config.pretrain, task.seed.child("pretrain", name),
            Unwatched(), dim=config.dim,
        )
        for name, split in task.splits.items()
    }  # fmt: skip


def _wide_smf(task: Task, settings: Settings) -> dict[str, Any]:
    """As many dimensions as all domains have together: is it only capacity?"""
    wide = task.config.dim * len(task.config.data.domains)
    return _smf(replace(task, config=changed(task.config, {"dim": wide})), settings)


def _cat_art(**fixed: Any) -> Callable[[Task, Settings], dict[str, Any]]:
    """CAT-ART, or with some settings fixed an ablation of it, from the tuned SMF."""
    fixed = {name.replace("__", "."): value for name, value in fixed.items()}

    def fit(task: Task, settings: Settings) -> dict[str, Any]:
        return _transferred(task, changed(task.config, {**settings, **fixed}), _collected(task))

    return fit


def _items_control(task: Task, settings: Settings) -> dict[str, Any]:
    """Stage 3 that is told nothing of other domains: is it only more training of the items?"""
    shared = _collected(task)
    nothing = np.zeros((len(shared.known), task.config.dim), np.float32)
    return _targets(task, changed(task.config, settings), shared.hidden(), nothing)


def _collected(task: Task) -> UserEmbeddings:
    known = {name: split.train.known_users() for name, split in task.splits.items()}
    return UserEmbeddings.collect(
        {name: made.factors.users for name, made in task.alone.items()}, known
    )


def _transferred(task: Task, config: RunConfig, shared: UserEmbeddings) -> dict[str, Any]:
    aligned = align(shared, config.cat, task.seed.child("cat"), Unwatched())
    return _targets(task, config, shared, aligned.users)


def _targets(
    task: Task,
    config: RunConfig,
    shared: UserEmbeddings,
    aligned: Float32[np.ndarray, "user dim"],
) -> dict[str, Any]:
    return {
        name: transfer(
            name, split, task.validations[name], task.alone[name], shared, aligned,
            config, task.seed.child("art", name), Unwatched(),
        ).factors
        for name, split in task.splits.items()
    }  # fmt: skip


_SMF: Space = {
    "pretrain.learning_rate": Range(0.03, 0.3),
    "pretrain.candidates": Choice((1, 2, 4, 8)),
    "pretrain.init_scale": Range(0.03, 0.3),
}
_CAT_ART: Space = {
    "cat.contrast_weight": Range(0.05, 0.8),
    "cat.temperature": Range(0.03, 0.5),
    "art.learning_rate": Range(5e-4, 5e-3),
    "art.regularization": Range(2e-3, 0.2),
    "art.dropout": Range(0.0, 0.5, log=False),
    "art.batch_size": Choice((256, 512, 1024)),
}

MODELS: Mapping[str, Model] = {
    "pop": Model("own data", _pop),
    "smf": Model("own data", _smf, _SMF),
    "smf_wide": Model("own data", _wide_smf, _SMF),
    "items_control": Model("own data", _items_control, _CAT_ART, joint=True, starts_from_smf=True),
    "cat_art": Model("user embeddings", _cat_art(), _CAT_ART, joint=True, starts_from_smf=True),
}

PAPER = ("smf", "cat_art")
"""The models of the paper's main table, and of its ablations."""
