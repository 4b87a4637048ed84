"""The files of a comparison: every user's numbers, and their summary for people and programs."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import polars as pl

from musketeers import artifacts
from musketeers.comparison.gains import Gains
from musketeers.comparison.results import Results
from musketeers.comparison.study import Study
from musketeers.comparison.tables import latex, markdown
from musketeers.data.vocabulary import Vocabulary
from musketeers.evaluation.evaluate import metrics_frame
from musketeers.models.registry import MODELS

FORMAT = 1


def write(out: Path, study: Study, results: Results, gains: Gains, users: Vocabulary) -> None:
    """`results.parquet`, `results.json`, `table.md` and `table.tex` in the folder `out`.

    `results.parquet` has a row for each number: model, seed, domain, user_id, metric, value.
    `results.json` begins as `metrics.json` does, with means over the seeds.
    """
    frames = [
        metrics_frame({job.model: found.metrics}, users.ids).with_columns(seed=pl.lit(job.seed))
        for job, found in study.found.items()
    ]
    order = ["model", "seed", "domain", "user_id", "metric", "value"]
    with artifacts.writing(out / "results.parquet"):
        pl.concat(frames).select(order).write_parquet(out / "results.parquet")
    text = json.dumps(_plain(_summary(study, results, gains)), indent=1, ensure_ascii=False)
    artifacts.write_text(out / "results.json", text + "\n")
    artifacts.write_text(out / "table.md", markdown(results))
    artifacts.write_text(out / "table.tex", latex(results))


def _summary(study: Study, results: Results, gains: Gains) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "split": "test",
        "seeds": study.n_seeds,
        "tries": study.n_tries,
        "models": {
            name: {
                domain: {
                    metric: results.cells[name][domain, metric].mean
                    for metric in results.metrics
                    if (domain, metric) in results.cells[name]
                }
                for domain in results.domains
            }
            for name in results.models
        },
        "details": {name: _details(study, results, name) for name in results.models},
        "best_alone": results.best_alone,
        "gains": _gains(gains),
        "failed": results.failed,
    }


def _gains(gains: Gains) -> dict[str, Any]:
    """`Gains`, by domain, model and group; by model, target and source."""
    grouped = {"by_activity": gains.by_activity, "by_known_domains": gains.by_known}
    return {
        **{
            what: {
                domain: {
                    name: [dataclasses.asdict(one) for one in of] for name, of in found.items()
                }
                for domain, found in groups.items()
            }
            for what, groups in grouped.items()
        },
        "by_source": {
            name: [
                {"target": target, "source": source, **dataclasses.asdict(found)}
                for (target, source), found in pairs.items()
            ]
            for name, pairs in gains.by_source.items()
        },
        "attention": gains.attention,
    }


def _details(study: Study, results: Results, name: str) -> dict[str, Any]:
    return {
        "sees": MODELS[name].sees,
        "control": MODELS[name].control,
        "seconds": results.seconds[name],
        "cells": [
            {"domain": domain, "metric": metric, **dataclasses.asdict(found)}
            for (domain, metric), found in results.cells[name].items()
        ],
        "against": {
            reference: [
                {"domain": domain, "metric": metric, **dataclasses.asdict(found)}
                for (domain, metric), found in models[name].items()
            ]
            for reference, models in results.against.items()
        },
        "tuning": [
            {
                "seed": job.seed, "domain": job.domain, "chosen": found.about["settings"],
                "parts": found.about["parts"], "valid": found.valid, "tries": found.about["tries"],
            }
            for job, found in study.found.items()
            if job.model == name
        ],
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """JSON has no NaN: None stands for what is undefined."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
