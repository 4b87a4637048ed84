"""From settings to a finished run folder, and from the folder back to what it found."""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from threadpoolctl import threadpool_limits

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.baselines.popularity import popularity
from musketeers.config import RunConfig
from musketeers.data import readers
from musketeers.data.domains import Domains, Split
from musketeers.data.interactions import Interactions
from musketeers.data.overlap import DomainFacts, OverlapReport, overlap_report
from musketeers.data.readers import Reading
from musketeers.data.splits import split
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError
from musketeers.evaluation.evaluate import PerUser, evaluate, metrics_frame, metrics_json
from musketeers.parallel import available_threads
from musketeers.pipeline import Models, cat_art, smf
from musketeers.ranking import Factors
from musketeers.recommender import DomainModel, Recommender
from musketeers.report.html import render
from musketeers.results import Learning, Metrics, RunResult
from musketeers.run_folder import FolderCheckpoint, RunFolder, check_place
from musketeers.seeding import Seed
from musketeers.training import Epoch, History

MODELS = ("pop", "smf", "cat_art")
"""What a fit measures; the best one that was trained is the one that recommends."""

_PURPOSES = ("train", "valid", "test")


class Watch(Protocol):
    """Who is told what a training is doing."""

    def stage(
        self, stage: str, domain: str | None, *, samples: int, max_epochs: int
    ) -> AbstractContextManager[Callable[[Epoch], None]]:
        """One fit from its first epoch to its last; `samples` are seen in each epoch."""
        ...

    def say(self, line: str) -> None:
        """Something a person should know."""
        ...


class Quiet:
    """A `Watch` that tells nobody."""

    @contextmanager
    def stage(
        self,
        stage: str,  # noqa: ARG002
        domain: str | None,  # noqa: ARG002
        *,
        samples: int,  # noqa: ARG002
        max_epochs: int,  # noqa: ARG002
    ) -> Generator[Callable[[Epoch], None]]:
        """See `Watch.stage`."""
        yield lambda epoch: None  # noqa: ARG005

    def say(self, line: str) -> None:
        """See `Watch.say`."""


def read_data(config: RunConfig, base: Path) -> tuple[Reading, OverlapReport]:
    """The configured files, and what they share; relative paths start at `base`."""
    reading = readers.read(config.data, base=base)
    return reading, overlap_report(reading)


def fit_run(
    config: RunConfig,
    base: Path,
    out: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    watch: Watch | None = None,
    only: str | None = None,
    command: Sequence[str] = (),
) -> RunResult:
    """Train, measure and save; the finished run.

    `only` names the one model of `MODELS` to train and measure.  With `resume`, an interrupted
    run of the same settings, data and threads goes on to the same result, and a finished one is
    given back.  Raises what reading, training and `RunFolder.create` raise.
    """
    check_place(out, resume=resume)
    watch, n_threads = watch or Quiet(), _thread_count(threads)
    models = _models_to_measure(only, len(config.data.domains))
    reading, overlap = read_data(config, base)
    for warning in overlap.warnings:
        watch.say(f"warning: {warning}")
    splits = split(reading.domains, config.split, Seed(config.seed))
    inputs = {**_fingerprints(reading.domains), "models": ",".join(models)}
    with (
        RunFolder.create(
            out, configuration.dump(config), data=inputs, threads=n_threads,
            command=command, resume=resume,
        ) as run,
        _limited(n_threads),
    ):  # fmt: skip
        if not run.finished:
            _train_and_save(run, config, reading.domains, overlap, splits, models, watch, n_threads)
    return open_run(out)


def open_run(path: Path) -> RunResult:
    """What a finished run found.  Raises `RunError` or `ArtifactError` if it cannot be had."""
    run = RunFolder.open(path)
    recommender = Recommender.load(path / "model")
    splits = _load_splits(path, recommender)
    return RunResult(
        path,
        configuration.load(path / "config.toml"),
        run.manifest(),
        _load_overlap(path),
        splits,
        _load_metrics(path, recommender.users),
        _load_learning(path, recommender),
        recommender,
    )


def evaluate_run(path: Path, *, threads: int | None = None) -> RunResult:
    """A finished run with its metrics computed anew from the saved models; nothing is written."""
    found, n_threads = open_run(path), _thread_count(threads)
    with _limited(n_threads):
        factors = {model: _load_factors(found, model) for model in found.metrics}
        metrics = _measure(factors, found.splits, n_threads)
    return RunResult(
        path, found.config, found.manifest, found.overlap, found.splits, metrics,
        found.learning, found.recommender,
    )  # fmt: skip


def _models_to_measure(only: str | None, n_domains: int) -> tuple[str, ...]:
    if only is not None and only not in MODELS:
        raise ConfigError(f"there is no model {only!r}; choose one of {', '.join(MODELS)}")
    if only == "cat_art" and n_domains < 2:
        raise ConfigError("cat_art needs at least two domains; this run has one, fit smf instead")
    if only is not None:
        return (only,)
    return MODELS if n_domains > 1 else ("pop", "smf")


def _thread_count(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; use 1 or more")
    return threads or available_threads()


@contextmanager
def _limited(n_threads: int) -> Generator[None]:
    """Keep torch's and BLAS's own pools as small as ours; they take turns, not sides."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)


def _fingerprints(domains: Domains) -> dict[str, str]:
    """One digest for each domain of everything that training sees of it."""
    digests: dict[str, str] = {}
    for name, domain in domains.domains.items():
        digest = hashlib.sha256()
        for ids in (domains.users, domain.items):
            digest.update(ids.to_bytes())
        for array in (domain.pairs.indptr, domain.pairs.items, domain.times):
            digest.update(b"none" if array is None else array.data)
        digests[name] = digest.hexdigest()
    return digests


class _Jobs:
    """Hands each fit its checkpoints, its watcher and its clock; one fit at a time."""

    def __init__(
        self, run: RunFolder, config: RunConfig, splits: Mapping[str, Split], watch: Watch
    ) -> None:
        self._run, self._config, self._splits, self._watch = run, config, splits, watch
        self._current = ExitStack()

    def __call__(self, stage: str, domain: str | None) -> "_Job":
        """See `pipeline.Jobs`.  The fit before is over when the next one starts."""
        self.close()
        everyone = next(iter(self._splits.values())).train.n_users
        samples = everyone if domain is None else len(self._splits[domain].train)
        max_epochs: int = getattr(self._config, stage).max_epochs
        self._current.enter_context(self._run.timed(f"{stage}/{domain or 'all'}"))
        on_epoch = self._current.enter_context(
            self._watch.stage(stage, domain, samples=samples, max_epochs=max_epochs)
        )
        return _Job(self._run, (stage, domain or "all"), on_epoch)

    def close(self) -> None:
        """End the fit that is under way."""
        self._current.close()


@dataclass(frozen=True, slots=True)
class _Job:
    run: RunFolder
    name: tuple[str, str]
    on_epoch: Callable[[Epoch], None]

    def checkpoint(self, part: str) -> FolderCheckpoint:
        """See `training.Job.checkpoint`."""
        return self.run.checkpoint(*self.name, part)


def _train_and_save(
    run: RunFolder,
    config: RunConfig,
    domains: Domains,
    overlap: OverlapReport,
    splits: Mapping[str, Split],
    models: Sequence[str],
    watch: Watch,
    n_threads: int,
) -> None:
    jobs = _Jobs(run, config, splits, watch)
    try:
        factors = _train(run, config, splits, models, jobs, watch, n_threads)
    finally:
        jobs.close()
    with run.timed("evaluate"):
        metrics = _measure({name: factors[name] for name in models}, splits, n_threads)
    with run.timed("save"):
        recommender = _recommender(domains, splits, factors[models[-1]], models[-1], config)
        _keep(run.path / "data", "data", _purposes(domains, splits), {"overlap": overlap.to_dict()})
        if not (run.path / "model").exists():
            recommender.save(run.path / "model")
        _write_metrics(run.path, metrics, domains.users)
    result = RunResult(
        run.path, config, run.manifest(), overlap, splits, metrics,
        _load_learning(run.path, recommender), recommender,
    )  # fmt: skip
    artifacts.write_text(run.path / "report.html", render(result))
    run.finish()


def _train(
    run: RunFolder,
    config: RunConfig,
    splits: Mapping[str, Split],
    models: Sequence[str],
    jobs: _Jobs,
    watch: Watch,
    n_threads: int,
) -> dict[str, Mapping[str, Factors]]:
    """Each model's factors by domain; what the stages made is on disk afterwards."""
    factors: dict[str, Mapping[str, Factors]] = {
        "pop": {name: popularity(split.train) for name, split in splits.items()}
    }
    if "cat_art" in models:
        made = cat_art(splits, config, jobs, n_threads=n_threads)
        _save_transfer(run.path, made)
        factors["cat_art"] = {name: model.factors for name, model in made.transferred.items()}
        alone = made.alone
    elif "smf" in models:
        if len(splits) == 1:
            watch.say("one domain only: there is nobody to learn from, SMF alone is fitted")
        alone = smf(splits, config, jobs, n_threads=n_threads)
    else:
        return factors
    for name, model in alone.items():
        tensors = {
            "users": model.factors.users,
            "items": model.factors.items,
            "item_squares": model.item_squares,
        }
        history = [h.to_json() for h in model.history]
        about = {"regularization": model.regularization, "history": history}
        _keep(run.path / "pretrain" / name, "pretrain", tensors, about)
    factors["smf"] = {name: model.factors for name, model in alone.items()}
    return factors


def _save_transfer(path: Path, made: Models) -> None:
    aligned = {"users": made.aligned.users, **made.aligned.weights}
    _keep(path / "cat", "cat", aligned, {"history": [made.aligned.history.to_json()]})
    for name, model in made.transferred.items():
        about = {"attention": dict(model.attention), "history": [model.history.to_json()]}
        _keep(path / "art" / name, "art", model.weights, about)


def _measure(
    factors: Mapping[str, Mapping[str, Factors]], splits: Mapping[str, Split], n_threads: int
) -> Metrics:
    return {
        model: {
            name: evaluate(by_domain[name], split.test, split.seen(), n_threads=n_threads)
            for name, split in splits.items()
        }
        for model, by_domain in factors.items()
    }


def _recommender(
    domains: Domains,
    splits: Mapping[str, Split],
    factors: Mapping[str, Factors],
    model: str,
    config: RunConfig,
) -> Recommender:
    parts = {
        name: DomainModel.of(domain, factors[name], train=splits[name].train)
        for name, domain in domains.domains.items()
    }
    about = {"model": dict.fromkeys(parts, model), "seed": config.seed}
    return Recommender.of(domains.users, parts, about)


def _keep(
    folder: Path, kind: str, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Save once; what an earlier, interrupted attempt saved whole is the same, bit by bit."""
    if not folder.exists():
        artifacts.save(folder, kind, tensors, about)


def _purposes(domains: Domains, splits: Mapping[str, Split]) -> dict[str, np.ndarray]:
    """For every pair of a domain, in CSR order, which table it is in."""
    tensors: dict[str, np.ndarray] = {}
    for name, parts in splits.items():
        pairs = domains.domains[name].pairs
        keys = pairs.users() * pairs.n_items + pairs.items
        purpose = np.zeros(len(pairs), np.uint8)
        for number, which in enumerate(_PURPOSES):
            table: Interactions = getattr(parts, which)
            purpose[np.searchsorted(keys, table.users() * table.n_items + table.items)] = number
        tensors[name] = purpose
    return tensors


def _load_splits(path: Path, recommender: Recommender) -> dict[str, Split]:
    found = artifacts.load(path / "data", "data")
    splits: dict[str, Split] = {}
    for name, model in recommender.domains.items():
        purpose, pairs = found.tensors.get(name), model.seen
        if purpose is None or purpose.shape != pairs.items.shape:
            raise ArtifactError(
                f"{path / 'data'}: does not fit the model; restore both or fit anew"
            )
        users = pairs.users()
        tables = [
            Interactions.from_sorted(
                users[purpose == n], pairs.items[purpose == n],
                n_users=pairs.n_users, n_items=pairs.n_items,
            )
            for n in range(len(_PURPOSES))
        ]  # fmt: skip
        splits[name] = Split(*tables)
    return splits


def _load_overlap(path: Path) -> OverlapReport:
    saved = artifacts.load(path / "data", "data").about["overlap"]
    return OverlapReport(
        domains={name: DomainFacts(**facts) for name, facts in saved["domains"].items()},
        known_in=tuple(saved["known_in"]),
        common=tuple(tuple(row) for row in saved["common"]),
        warnings=tuple(saved["warnings"]),
    )


def _load_factors(found: RunResult, model: str) -> dict[str, Factors]:
    if model == found.recommender.about["model"][next(iter(found.splits))]:
        return {name: part.factors for name, part in found.recommender.domains.items()}
    if model == "pop":
        return {name: popularity(split.train) for name, split in found.splits.items()}
    saved = {
        name: artifacts.load(found.path / "pretrain" / name, "pretrain") for name in found.splits
    }
    return {name: Factors(a.tensors["users"], a.tensors["items"]) for name, a in saved.items()}


def _load_learning(path: Path, recommender: Recommender) -> Learning:
    histories: dict[str, dict[str, tuple[History, ...]]] = {}
    abouts: dict[tuple[str, str], Mapping[str, Any]] = {}
    places = [("cat", "all", path / "cat")]
    places += [(s, d, path / s / d) for s in ("pretrain", "art") for d in recommender.domains]
    for stage, domain, folder in places:
        if folder.exists():
            about = abouts[stage, domain] = artifacts.load(folder, stage).about
            fits = tuple(History.from_json(one) for one in about["history"])
            histories.setdefault(stage, {})[domain] = fits
    return Learning(
        {d: about["regularization"] for (stage, d), about in abouts.items() if stage == "pretrain"},
        histories,
        {d: about["attention"] for (stage, d), about in abouts.items() if stage == "art"},
    )


def _write_metrics(path: Path, metrics: Metrics, users: Vocabulary) -> None:
    artifacts.write_bytes(path / "metrics.parquet", _parquet(metrics_frame(metrics, users.ids)))
    text = json.dumps(metrics_json(metrics), indent=2)
    artifacts.write_text(path / "metrics.json", text + "\n")


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _load_metrics(path: Path, users: Vocabulary) -> Metrics:
    try:
        frame = pl.read_parquet(path / "metrics.parquet")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{path / 'metrics.parquet'}: cannot be read: {error}") from None
    metrics: dict[str, dict[str, PerUser]] = {}
    for (model, domain), part in frame.group_by("model", "domain", maintain_order=True):
        values = {
            str(metric): cell["value"].to_numpy()
            for (metric,), cell in part.group_by("metric", maintain_order=True)
        }
        first = part.filter(pl.col("metric") == next(iter(values)))
        rows = users.rows(first["user_id"])
        metrics.setdefault(str(model), {})[str(domain)] = PerUser(rows, values)
    return metrics
