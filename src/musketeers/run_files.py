"""What a finished run leaves in its folder, and how it is read back.

data/               which pair is for train, valid and test; the overlap report
pretrain/DOMAIN/    stage 1: embeddings, Adagrad sums, history
cat/                stage 2: the network, the global user embeddings, their length, history
exchange/           what the domains told each other, where some of them are not here
art/DOMAIN/         stage 3: embeddings, the network, whether it was kept, mean attention, history
choice/             what each domain's own best model reached, what the best told one
fit/                of a model fitted by itself: tries, histories, mean attention
model/              the recommender, whole in itself
metrics.json        means by model and domain
metrics.parquet     every test user's numbers
cold.parquet        those of cold users, where there are some (`split.cold`)
hidden.parquet      those of test users with one source hidden, where any domain is told of others
update.parquet      those of what was served before and after, where a run was updated
references/DOMAIN/  what a domain with new data was at the last full fit
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pyarrow.parquet import ParquetWriter

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.art.train import Transferred
from musketeers.baselines.popularity import popularity
from musketeers.budget.halving import Round
from musketeers.cat.train import Aligned
from musketeers.data.domains import ColdUsers, Split
from musketeers.data.drift import Reference
from musketeers.data.overlap import DomainFacts, OverlapReport
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError
from musketeers.evaluation.compare import Cell, Sums
from musketeers.evaluation.evaluate import PerUser, metrics_frame, metrics_json
from musketeers.exchange import UserEmbeddings
from musketeers.heads.candidates import Candidate
from musketeers.heads.choice import GroupVerdict, Verdict
from musketeers.memory import give_back
from musketeers.models.tuning import Try
from musketeers.pipeline import Models
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors
from musketeers.recommender import Recommender, described
from musketeers.results import Learning, Metrics, RunResult, sums_of
from musketeers.run_folder import RunFolder
from musketeers.scorers import Trained
from musketeers.training import History

_PURPOSES = ("train", "valid", "test", "cold history", "cold test")


def save(path: Path, result: RunResult) -> None:
    """Write everything but the report.

    What an interrupted attempt saved whole is kept: it is the same, bit by bit.
    """
    _save_stages(path, result.stages)
    learning = result.learning
    if learning.tries:
        _keep(path / "fit", "fit", {}, _of_one(result))
    if verdicts := learning.verdicts:
        about = {name: asdict(verdict) for name, verdict in verdicts.items()}
        _keep(path / "choice", "choice", {}, about)
    if learning.rounds:
        _keep(path / "search", "search", {}, {"rounds": [asdict(one) for one in learning.rounds]})
    _keep(path / "data", "data", _purposes(result), {"overlap": result.overlap.to_dict()})
    if not (path / "model").exists():
        result.recommender.save(path / "model")
    _save_metrics(path / "metrics.parquet", result.metrics, result.recommender.users)
    further = {"cold": result.cold, "hidden": result.hidden, "update": result.update}
    for name, metrics in further.items():
        if metrics:
            of = "source" if name == "hidden" else "model"
            _save_metrics(path / f"{name}.parquet", metrics, result.recommender.users, of=of)
    for name, reference in result.references.items():
        _save_reference(path / "references" / name, reference)
    chosen = result.recommender.about["model"] if learning.verdicts and not learning.tries else None
    content = metrics_json(result.metrics, chosen=chosen, cold=result.cold, update=result.update)
    text = json.dumps(content, indent=2)
    artifacts.write_text(path / "metrics.json", text + "\n")


def open_run(path: Path | str, recommender: Recommender | None = None) -> RunResult:
    """What a finished run found; its `recommender` is read, too, unless it is given.

    Raises `RunError` or `ArtifactError` if it cannot be had.
    """
    path = Path(path)
    run = RunFolder.open(path)
    recommender = recommender or Recommender.load(path / "model")
    stages, users = _load_stages(path, recommender), recommender.users
    return RunResult(
        path,
        configuration.load(path / "config.toml"),
        run.manifest(),
        _load_overlap(path),
        _load_splits(path, recommender),
        _load_metrics(path / "metrics.parquet", users),
        _load_learning(path, stages),
        recommender,
        _load_metrics(path / "cold.parquet", users, optional=True),
        _load_metrics(path / "hidden.parquet", users, of="source", optional=True),
        stages,
        _load_metrics(path / "update.parquet", users, optional=True),
        {
            name: _load_reference(path / "references" / name)
            for name in recommender.domains
            if (path / "references" / name).exists()
        },
    )


def read_back(path: Path | str) -> RunResult:
    """A run that was made just now; let go of what it was made of before.

    Both at once would be twice the memory.
    """
    give_back()
    return open_run(path)


def sums_read(path: Path) -> dict[Cell, Sums]:
    """A finished run's `RunResult.sums`, without its vectors, which may be large."""
    RunFolder.open(path)
    about, users = described(path / "model")
    return sums_of(_load_metrics(path / "metrics.parquet", users), about["model"])


def scorers_of(found: RunResult, model: str) -> dict[str, Trained]:
    """One of the run's measured models, by domain."""
    return {domain: _scorer_of(found, model, domain) for domain in found.metrics[model]}


def _scorer_of(found: RunResult, model: str, domain: str) -> Trained:
    if found.recommender.about["model"][domain] == model:
        return found.recommender.domains[domain].scorer
    if model == "pop":
        return popularity(found.splits[domain].train)
    made = found.stages.alone if model == "smf" else found.stages.transferred
    return made[domain].factors


def _of_one(result: RunResult) -> dict[str, Any]:
    learning = result.learning
    model = next(iter(result.recommender.about["model"].values()))
    return {
        "model": model,
        "tries": {name: [asdict(one) for one in tries] for name, tries in learning.tries.items()},
        "history": {
            name: _json(fits) for name, fits in learning.histories.get(model, {}).items()
        },
        "attention": {name: dict(weights) for name, weights in learning.attention.items()},
    }  # fmt: skip


def _save_stages(path: Path, models: Models) -> None:
    for name, alone in models.alone.items():
        tensors = {
            "users": alone.factors.users,
            "items": alone.factors.items,
            "item_squares": alone.item_squares,
        }
        about = {
            "regularization": alone.regularization,
            "learning_rate": alone.learning_rate,
            "history": _json(alone.history),
        }
        _keep(path / "pretrain" / name, "pretrain", tensors, about)
    if shared := models.shared:
        tensors = {"values": shared.values, "known": shared.known, "lengths": shared.lengths}
        _keep(path / "exchange", "exchange", tensors, {"domains": list(shared.domains)})
    if aligned := models.aligned:
        tensors = {"users": aligned.users, **aligned.weights}
        about = {"length": aligned.length, "history": _json([aligned.history])}
        _keep(path / "cat", "cat", tensors, about)
    for name, transferred in models.transferred.items():
        about = {
            "kept": transferred.kept,
            "attention": dict(transferred.attention),
            "history": _json([transferred.history]),
        }
        factors = {"users": transferred.factors.users, "items": transferred.factors.items}
        _keep(path / "art" / name, "art", {**transferred.weights, **factors}, about)


def _json(histories: Sequence[History]) -> list[list[dict[str, Any]]]:
    return [history.to_json() for history in histories]


def _keep(
    folder: Path,
    kind: str,
    tensors: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    if not folder.exists():
        artifacts.save(folder, kind, tensors, about, files=files)


def _purposes(result: RunResult) -> dict[str, np.ndarray]:
    """For every pair that a domain has seen, in CSR order, its place in `_PURPOSES`."""
    tensors: dict[str, np.ndarray] = {}
    for name, split in result.splits.items():
        pairs = result.recommender.domains[name].seen
        purpose = np.zeros(len(pairs), np.uint8)
        cold = (split.cold.history, split.cold.test) if split.cold else ()
        for number, table in enumerate((split.train, split.valid, split.test, *cold)):
            purpose[pairs.held_by(table)] = number
        tensors[name] = purpose
    return tensors


def _load_splits(path: Path, recommender: Recommender) -> dict[str, Split]:
    found = artifacts.load(path / "data", "data")
    splits: dict[str, Split] = {}
    for name, model in recommender.domains.items():
        purpose, pairs = found.tensors.get(name), model.seen
        if purpose is None or purpose.shape != pairs.items.shape:
            raise ArtifactError(
                f"{path / 'data'}: does not belong to the model beside it; restore both or fit anew"
            )
        tables = [pairs.only(purpose == n) for n in range(len(_PURPOSES))]
        train, valid, test, history, held = tables
        splits[name] = Split(train, valid, test, ColdUsers(history, held) if len(held) else None)
    return splits


def _load_overlap(path: Path) -> OverlapReport:
    saved = artifacts.load(path / "data", "data").about["overlap"]
    return OverlapReport(
        domains={name: DomainFacts(**facts) for name, facts in saved["domains"].items()},
        known_in=tuple(saved["known_in"]),
        common=tuple(tuple(row) for row in saved["common"]),
        warnings=tuple(saved["warnings"]),
    )


def _save_metrics(file: Path, metrics: Metrics, users: Vocabulary, *, of: str = "model") -> None:
    """`of` names the column of what the metrics are by, beside the domain."""
    parts = [(model, name, found) for model, by in metrics.items() for name, found in by.items()]
    buffer = BytesIO()
    schema = metrics_frame({}, users.ids).rename({"model": of}).to_arrow().schema
    with ParquetWriter(buffer, schema, compression="zstd") as writer:
        # a domain at a time: of a million users all rows at once would take gigabytes
        for model, name, found in parts:
            frame = metrics_frame({model: {name: found}}, users.ids).rename({"model": of})
            writer.write_table(frame.to_arrow())
    artifacts.write_bytes(file, buffer.getvalue())


def _load_metrics(
    file: Path, users: Vocabulary, *, of: str = "model", optional: bool = False
) -> Metrics:
    if optional and not file.exists():
        return {}
    metrics: dict[str, dict[str, PerUser]] = {}
    try:
        # a domain at a time: of a million users all rows at once would take gigabytes
        rows = pl.scan_parquet(file)
        names = rows.select(of, "domain").unique(maintain_order=True).collect()
        for model, domain in names.iter_rows():
            here = (pl.col(of) == model) & (pl.col("domain") == domain)
            part = rows.filter(here).select("user_id", "metric", "value").collect()
            cells = part.partition_by("metric", maintain_order=True)
            values = {str(cell["metric"][0]): cell["value"].to_numpy() for cell in cells}
            found = PerUser(users.rows(cells[0]["user_id"]), values)
            metrics.setdefault(str(model), {})[str(domain)] = found
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{file}: cannot be read: {error}") from None
    return metrics


def _load_stages(path: Path, recommender: Recommender) -> Models:
    alone: dict[str, Pretrained] = {}
    transferred: dict[str, Transferred] = {}
    for name in recommender.domains:
        if (folder := path / "pretrain" / name).exists():
            found = artifacts.load(folder, "pretrain")
            about, tensors = found.about, found.tensors
            alone[name] = Pretrained(
                Factors(tensors["users"], tensors["items"]), tensors["item_squares"],
                about["regularization"], about["learning_rate"], _histories(about["history"]),
            )  # fmt: skip
        if (folder := path / "art" / name).exists():
            found = artifacts.load(folder, "art")
            (history,), weights = _histories(found.about["history"]), dict(found.tensors)
            factors = Factors(weights.pop("users"), weights.pop("items"))
            transferred[name] = Transferred(
                factors, found.about["kept"], found.about["attention"], weights, history
            )
    return Models(alone, _load_aligned(path / "cat"), transferred, _load_shared(path / "exchange"))


def _load_shared(folder: Path) -> UserEmbeddings | None:
    if not folder.exists():
        return None
    found = artifacts.load(folder, "exchange")
    return UserEmbeddings(tuple(found.about["domains"]), **found.tensors)


def _load_aligned(folder: Path) -> Aligned | None:
    if not folder.exists():
        return None
    found = artifacts.load(folder, "cat")
    (history,), weights = _histories(found.about["history"]), dict(found.tensors)
    # the first runs did not keep it; they can be measured all the same
    length = found.about.get("length", math.nan)
    return Aligned(weights.pop("users"), length, weights, history)


def _histories(saved: Sequence[list[dict[str, Any]]]) -> tuple[History, ...]:
    return tuple(History.from_json(one) for one in saved)


def _save_reference(folder: Path, reference: Reference) -> None:
    tensors = {"popularity": reference.popularity, "trained": reference.trained}
    files = {
        "items.parquet": reference.items.to_bytes(),
        "users.parquet": reference.users.to_bytes(),
    }
    _keep(folder, "reference", tensors, {}, files)


def _load_reference(folder: Path) -> Reference:
    found = artifacts.load(folder, "reference")
    items, users = (Vocabulary.from_bytes(found.files[f"{n}.parquet"]) for n in ("items", "users"))
    return Reference(items, found.tensors["popularity"], users, found.tensors["trained"])


def _load_learning(path: Path, stages: Models) -> Learning:
    learning = Learning.of(stages, "", {}, {})
    if (path / "choice").exists():
        about = artifacts.load(path / "choice", "choice").about
        verdicts = {name: _verdict(parts) for name, parts in about.items()}
        learning = replace(learning, verdicts=verdicts)
    if (path / "search").exists():
        about = artifacts.load(path / "search", "search").about
        learning = replace(learning, rounds=tuple(Round(**one) for one in about["rounds"]))
    if (path / "fit").exists():
        about = artifacts.load(path / "fit", "fit").about
        own = {name: _histories(fits) for name, fits in about["history"].items()}
        learning = replace(
            learning,
            attention={**learning.attention, **about["attention"]},
            tries={name: tuple(Try(**one) for one in of) for name, of in about["tries"].items()},
            histories={**learning.histories, **({about["model"]: own} if own else {})},
        )
    return learning


def _verdict(found: dict[str, Any]) -> Verdict:
    told, cold = (Candidate(**found[n]) if found[n] else None for n in ("told", "cold"))
    groups = tuple(GroupVerdict(**one) for one in found.get("groups", ()))
    return Verdict(Candidate(**found["own"]), told, found["p"], cold, found["popular"], groups)
