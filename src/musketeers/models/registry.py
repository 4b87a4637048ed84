"""Every model there is: what it sees, how it is trained, what is tuned."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

from musketeers import controls
from musketeers.art.train import Transferred
from musketeers.baselines.cmf import CmfSettings, cmf
from musketeers.baselines.ease import EaseSettings, PooledEaseSettings, ease, pooled_ease
from musketeers.baselines.ga_mtcdr import GaMtcdrSettings, ga_mtcdr
from musketeers.baselines.graph_bpr import GraphSettings
from musketeers.baselines.herograph import (
    HeroGraphLSettings,
    HeroGraphSettings,
    herograph,
    herograph_l,
)
from musketeers.baselines.item_knn import ItemKnnSettings, item_knn
from musketeers.baselines.light_gcn import LightGcn, light_gcn
from musketeers.baselines.linear import Linear
from musketeers.baselines.mpf import MpfSettings, mpf
from musketeers.baselines.node2vec import Node2vecSettings
from musketeers.baselines.popularity import popularity
from musketeers.budget.recipes import methods
from musketeers.budget.search import Search
from musketeers.cat.train import Aligned, align
from musketeers.config import RunConfig, changed
from musketeers.errors import ConfigError
from musketeers.exchange import UserEmbeddings
from musketeers.execution import Jobs, Renamed
from musketeers.heads.ials import IalsHeadSettings, ials_head
from musketeers.heads.linear import LinearSettings, linear
from musketeers.models.model import Fitted, Made, Model, Sees, Settings
from musketeers.models.needs import (
    FACTORS,
    MOST_NEIGHBORS,
    Needs,
    attentive,
    neighbors_kept,
    squares,
    vectors,
    wide_vectors,
    widened_squares,
)
from musketeers.models.space import Choice, Range, Space
from musketeers.pipeline import Models, art, choices, exchanged, served_with, smf
from musketeers.pretrain.ials import Ials, IalsSettings, ials
from musketeers.pretrain.mf import Pretrained
from musketeers.protocols import Scorer
from musketeers.ranking import Factors
from musketeers.scorers import Trained
from musketeers.task import Task
from musketeers.training import History

# 1. Models of one domain


def _pop(task: Task, _: Settings) -> Made:
    return {name: Fitted(popularity(split.train)) for name, split in task.splits.items()}


def _item_knn(task: Task, settings: Settings) -> Made:
    chosen = ItemKnnSettings(**settings)
    return _closed("item_knn", lambda name: item_knn(task.splits[name], chosen), task)


def _ease(task: Task, settings: Settings) -> Made:
    chosen = EaseSettings(**settings, max_bytes=task.max_bytes)
    return _closed("ease", lambda name: ease(task.splits[name], chosen), task)


def _closed(model: str, fit: Callable[[str], Trained], task: Task) -> Made:
    """A model without epochs in each domain."""
    found: dict[str, Fitted] = {}
    for name in task.targets:
        task.jobs(model, name, 0)
        found[name] = Fitted(fit(name))
    return found


def _ials(task: Task, settings: Settings) -> Made:
    tries = 1 if settings else task.config.pretrain.tries
    return _by_epochs("ials", ials, IalsSettings(**settings, tries=tries), task)


def _light_gcn(task: Task, settings: Settings) -> Made:
    return _by_epochs("light_gcn", light_gcn, GraphSettings(**settings), task)


def _by_epochs(
    model: str,
    fit: Callable[..., Ials | LightGcn],
    settings: IalsSettings | GraphSettings,
    task: Task,
) -> Made:
    """A model of vectors in each domain."""
    found = {
        name: fit(
            split, task.validations[name], settings, task.seed.child(model, name),
            task.jobs(model, name, settings.max_epochs), dim=task.config.dim,
        )
        for name, split in task.splits.items()
    }  # fmt: skip
    return {name: Fitted(made.factors, (made.history,)) for name, made in found.items()}


def _smf(task: Task, settings: Settings) -> Made:
    config = changed(task.config, _without_search(settings))
    found = smf(task.splits, config, task.jobs, n_threads=task.n_threads, given=task.given)
    return {name: Fitted(made.factors, made.history, made) for name, made in found.items()}


def _wide_smf(task: Task, settings: Settings) -> Made:
    """As many dimensions as all domains have together: is it only capacity?"""
    wide = changed(task.config, {"dim": task.config.dim * len(task.config.data.domains)})
    found = _smf(replace(task, config=wide), settings)
    return {name: replace(made, start=None) for name, made in found.items()}


# 2. Models of all domains' raw data


def _cmf(task: Task, settings: Settings, *, negatives: str = "in-domain") -> Made:
    run, own = _parted(_without_search(settings))
    chosen = CmfSettings(bpr=changed(task.config, run).pretrain, negatives=negatives, **own)
    made = _jointly("cmf", cmf, chosen, chosen.bpr.max_epochs, task)
    return _together(made.factors, made.histories)


def _pooled_smf(task: Task, settings: Settings) -> Made:
    return _cmf(task, settings, negatives="global")


def _mpf(task: Task, settings: Settings) -> Made:
    run, own = _parted(_without_search(settings))
    chosen = MpfSettings(bpr=changed(task.config, run).pretrain, **own)
    made = _jointly("mpf", mpf, chosen, chosen.bpr.max_epochs, task)
    return _together(made.factors, made.histories)


def _herograph(task: Task, settings: Settings) -> Made:
    chosen = _with_graph(HeroGraphSettings(), settings)
    made = _jointly("herograph", herograph, chosen, chosen.graph.max_epochs, task)
    return _together(made.factors, (made.history,))


def _herograph_l(task: Task, settings: Settings) -> Made:
    chosen = _with_graph(HeroGraphLSettings(), settings)
    made = _jointly("herograph_l", herograph_l, chosen, chosen.graph.max_epochs, task)
    return _together(made.factors, (made.history,))


def _ga_mtcdr(task: Task, settings: Settings) -> Made:
    own = dict(settings)
    graph = Node2vecSettings(return_weight=own.pop("return_weight", 1.0))
    chosen = GaMtcdrSettings(graph=graph, max_bytes=task.max_bytes, **own)
    made = _jointly("ga_mtcdr", ga_mtcdr, chosen, chosen.max_epochs, task)
    return _together(made.factors, (made.history,))


def _ga_mtcdr_p(task: Task, settings: Settings) -> Made:
    return _ga_mtcdr(task, {"pull": 0.1, **settings})


def _pooled_ease(task: Task, settings: Settings) -> Made:
    own = dict(settings)
    weight: float = own.pop("source_weight", 0.5)

    def fit(name: str) -> Linear:
        weights = {source: weight for source in task.splits if source != name}
        chosen = PooledEaseSettings(source_weights=weights, max_bytes=task.max_bytes, **own)
        return pooled_ease(task.splits, name, chosen)

    found = _closed("pooled_ease", fit, task)
    return {name: replace(made, transfers=True) for name, made in found.items()}


_Joint = TypeVar("_Joint")


def _jointly(
    model: str, fit: Callable[..., _Joint], settings: object, max_epochs: int, task: Task
) -> _Joint:
    """What all domains learn together."""
    return fit(
        task.splits, task.validations, settings, task.seed.child(model),
        task.jobs(model, None, max_epochs), dim=task.config.dim,
    )  # fmt: skip


def _together(factors: Mapping[str, Factors], histories: tuple[History, ...]) -> Made:
    return {name: Fitted(scorer, histories, transfers=True) for name, scorer in factors.items()}


_HeroGraph = TypeVar("_HeroGraph", HeroGraphSettings, HeroGraphLSettings)


def _with_graph(start: _HeroGraph, settings: Settings) -> _HeroGraph:
    """`start` changed, and what it says of the graph."""
    own = {name: value for name, value in settings.items() if hasattr(start, name)}
    graph = {name: value for name, value in settings.items() if name not in own}
    return replace(start, graph=replace(start.graph, **graph), **own)


def _without_search(settings: Settings) -> Settings:
    """The defaults search a strength and a rate by themselves, as iALS does its own; what a tuner
    proposes has both."""
    return {**settings, "pretrain.tries": 1} if settings else settings


def _parted(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the run, and the model's own."""
    run = {name: value for name, value in settings.items() if "." in name}
    return run, {name: value for name, value in settings.items() if name not in run}


# 3. CAT-ART, its ablations and its controls: all from the same tuned SMF


def _cat_art(fixed: Settings) -> Callable[[Task, Settings], Made]:
    """CAT-ART with some settings fixed; with none it is the whole method."""

    def fit(task: Task, settings: Settings) -> Made:
        config = changed(task.config, {**settings, **fixed})
        shared, aligned, found = _stages(task, config)
        # a source can be hidden from the whole method: CAT learned with domains hidden
        hide = None if fixed else partial(_without, task.alone, shared, aligned, found, config)
        return _transferred(found, hide)

    return fit


def _stages(
    task: Task, config: RunConfig
) -> tuple[UserEmbeddings, Aligned, Mapping[str, Transferred]]:
    """The method from the exchange on."""
    shared = exchanged(task.splits, task.alone)
    job = task.jobs("cat", None, config.cat.max_epochs)
    aligned = align(shared, config.cat, task.seed.child("cat"), job, n_threads=task.n_threads)
    found = art(
        task.splits, task.alone, shared, aligned.users, config, task.jobs, n_threads=task.n_threads
    )
    return shared, aligned, found


def _items_control(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    found = controls.items_control(
        task.splits, task.alone, config, task.jobs, n_threads=task.n_threads
    )
    return {name: replace(made, transfers=False) for name, made in _transferred(found).items()}


def _shuffled(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    found = controls.shuffled_alignment(
        task.splits, task.alone, config, task.jobs, n_threads=task.n_threads
    )
    return _transferred(found)


def _with_noise(task: Task, settings: Settings) -> Made:
    config = changed(task.config, settings)
    splits = controls.with_noise_domain(task.splits, task.seed.child("noise"))
    (noise,) = set(splits) - set(task.splits)
    alone = smf({noise: splits[noise]}, config, task.jobs, n_threads=task.n_threads)
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
            transfers=made.kept,
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
    return served_with(shared.hidden(source), target, Models(alone, aligned, found), config)


def _linear(task: Task, settings: Settings) -> Made:
    chosen = LinearSettings(**settings, max_bytes=task.max_bytes)
    shared = exchanged(task.splits, task.alone)

    def fit(name: str) -> Linear:
        return linear(name, task.splits[name].train, shared, chosen)

    found = _closed("linear", fit, task)
    return {name: replace(made, transfers=True) for name, made in found.items()}


def _ials_head(task: Task, settings: Settings) -> Made:
    chosen, shared = IalsHeadSettings(**settings), exchanged(task.splits, task.alone)

    def fit(name: str) -> Factors:
        return ials_head(name, task.splits[name].train, shared, chosen, n_threads=task.n_threads)

    found = _closed("ials_head", fit, task)
    return {name: replace(made, transfers=True) for name, made in found.items()}


def _chosen(task: Task, _: Settings) -> Made:
    task = as_a_fit_learns(task)
    _shared, aligned, transferred = _stages(task, task.config)
    found = choices(
        task.splits, Models(task.alone, aligned, transferred), task.config, task.jobs,
        n_threads=task.n_threads, max_bytes=task.max_bytes,
    )  # fmt: skip
    return {name: Fitted.of(made) for name, made in found.items()}


def as_a_fit_learns(task: Task) -> Task:
    """The task by the settings that a fit finds, and what the domains learn by these alone."""
    if task.config.pretrain.method != "auto":
        return task

    def ignore(_: object) -> None:
        pass

    @contextmanager
    def trial(name: str, _max_epochs: int) -> Generator[Jobs]:
        yield Renamed(task.jobs, name)

    to_try = methods(task.config)
    found = Search.without_budget().run(to_try, task, trial=trial, keep=ignore, say=ignore)
    config = found.of(task.config)
    if found == to_try[0]:
        return replace(task, config=config)

    # not where the trial is: begun again, the search must find what it has found
    jobs = Renamed(task.jobs, f"{found.name}, whole")
    alone = smf(task.splits, config, jobs, n_threads=task.n_threads)
    return replace(task, config=config, alone=alone)


# 4. What is tuned

_BPR: Space = {
    "pretrain.learning_rate": Range(0.01, 0.2),
    "pretrain.regularization": Range(0.01, 0.2),
    "pretrain.candidates": Choice((1, 2, 4, 8)),
    "pretrain.init_scale": Range(0.03, 0.3),
}
_GRAPH: Space = {
    "layers": Range(1, 4, log=False),
    "learning_rate": Range(5e-3, 5e-2),
    "init_scale": Range(0.1, 1.0),
}
_HEROGRAPH: Space = {
    **_GRAPH,
    "regularization": Range(1e-3, 0.1),
    "own_regularization": Range(3e-3, 0.1),
}
_GA: Space = {
    "learning_rate": Range(5e-4, 6e-3),
    "doublings": Range(1, 2, log=False),
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
    sees: Sees, fit: Callable[[Task, Settings], Made], space: Space, needs: Needs = FACTORS
) -> Model:
    return Model(sees, fit, space, joint=True, starts_from_smf=True, control=True, needs=needs)


MODELS: Mapping[str, Model] = {
    "pop": Model("own data", _pop),
    "item_knn": Model(
        "own data", _item_knn,
        {"neighbors": Range(10, MOST_NEIGHBORS), "shrinkage": Range(0.1, 100.0),
         "activity_power": Range(0.0, 1.5, log=False)}, needs=neighbors_kept,
    ),
    "ease": Model("own data", _ease, {"regularization": Range(3.0, 3000.0)}, needs=squares),
    "ials": Model(
        "own data", _ials,
        {"unobserved_weight": Range(0.02, 1.0), "regularization": Range(3e-3, 0.3)},
    ),
    "light_gcn": Model(
        "own data", _light_gcn, {**_GRAPH, "regularization": Range(1e-4, 1e-2)}, needs=vectors(18)
    ),
    "smf": Model("own data", _smf, _BPR),
    "smf_wide": Model("own data", _wide_smf, _BPR, needs=wide_vectors),
    "cmf": Model("all raw data", _cmf, _BPR, joint=True),
    "mpf": Model("all raw data", _mpf, {**_BPR, "own_strength": Range(0.3, 10.0)}, joint=True),
    "herograph": Model(
        "all raw data", _herograph,
        {**_HEROGRAPH, "layers": Choice((1, 2)), "neighbours": Range(4, 64)}, joint=True,
        needs=vectors(32),
    ),
    "herograph_l": Model(
        "all raw data", _herograph_l, _HEROGRAPH, joint=True, needs=vectors(24)
    ),
    # not pairs but user embeddings, and slopes of the matrices that map them, go between domains
    "ga_mtcdr": Model("user embeddings", _ga_mtcdr, _GA, joint=True, needs=attentive),
    "ga_mtcdr_p": Model(
        "user embeddings", _ga_mtcdr_p, {**_GA, "pull": Range(1e-3, 10.0)}, joint=True,
        needs=attentive,
    ),
    "smf_ae": _ablation(_ART, cat__loss="reconstruction", art__sources="none"),
    "smf_cat": _ablation({**_ART, **_CONTRAST}, art__sources="none"),
    "cat_art_mean": _ablation({**_ART, **_CONTRAST}, art__sources="mean"),
    "cat_art_linear": _ablation({**_ART, **_CONTRAST}, art__sources="sum"),
    # what CAT makes is not used, so it is hardly trained
    "cat_art_no_global": _ablation(
        {**_ART, **_ATTENTION}, art__shared=False, cat__max_epochs=1
    ),
    "cat_art": _ablation(_WHOLE),
    "linear": Model(
        "user embeddings", _linear,
        {"regularization": Range(3.0, 3000.0), "source_weight": Range(0.3, 10.0)},
        starts_from_smf=True, needs=widened_squares(2),
    ),
    "ials_head": Model(
        "user embeddings", _ials_head,
        {"unobserved_weight": Range(0.02, 0.5), "regularization": Range(1e-3, 0.1),
         "source_weight": Range(0.3, 10.0)}, starts_from_smf=True, needs=wide_vectors,
    ),
    "chosen": Model(
        "user embeddings", _chosen, joint=True, starts_from_smf=True, needs=widened_squares(5)
    ),
    "items_control": _control("own data", _items_control, _ART),
    "cat_art_shuffled": _control("user embeddings", _shuffled, _WHOLE),
    "cat_art_noise": _control("user embeddings", _with_noise, _WHOLE, needs=vectors(16)),
    "pooled_smf": Model("all raw data", _pooled_smf, _BPR, joint=True),
    "pooled_ease": Model(
        "all raw data", _pooled_ease,
        {"regularization": Range(10.0, 3000.0), "source_weight": Range(0.05, 1.0)},
        needs=squares,
    ),
}  # fmt: skip
"""By the name in options and files."""

PAPER = (
    "smf", "cmf", "mpf", "ga_mtcdr", "herograph", "herograph_l", "cat_art",
    "smf_ae", "smf_cat", "cat_art_mean", "cat_art_linear",
)  # fmt: skip
"""The models of the paper's two tables that are here."""


def check(names: Iterable[str], *, n_domains: int) -> None:
    """Raise `ConfigError` for a name that no model has, and for one that needs more domains."""
    for name in names:
        if name not in MODELS:
            near = get_close_matches(name, MODELS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"there is no model {name!r}; {hint}known are {', '.join(MODELS)}")
        model = MODELS[name]
        if n_domains < 2 and (model.joint or model.sees != "own data"):
            raise ConfigError(f"{name} needs at least two domains; leave it out for one")
