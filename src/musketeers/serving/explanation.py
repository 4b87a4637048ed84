"""What moved one user's list, by leaving things out."""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from musketeers.recommender import ranked
from musketeers.serving.ids import Id
from musketeers.serving.lists import Asked, lists
from musketeers.serving.problems import Problem
from musketeers.serving.service import places
from musketeers.serving.version import Version

if TYPE_CHECKING:
    from musketeers.serving.stages import Stages  # brings torch


def explained(version: Version, domain: str, user: Id, k: int) -> dict[str, Any]:
    """The fields of `contract.Explained` that are the model's.

    Raises `Problem`: 404 for a user whom no domain knows and where what serves the domain cannot be
    told less, 503 while the stages are being read.
    """
    rows = version.users.rows([user])
    if rows[0] < 0:
        raise Problem(404, "unknown_user", "No domain knows the user.")
    (whole,) = lists(version, domain, [Asked(user, k)])
    stages = _stages(version)
    explainer = stages.explainers.get(domain)
    if explainer is None:
        raise Problem(404, "not_explained", "From what serves this domain nothing can be left out.")
    users = version.recommender.users.ids(rows)
    sources = explainer.explain(users, k, n_threads=1).filter(pl.col("source").is_not_null())
    own = stages.own[domain].explain(users, k, n_threads=1)
    own = own.filter(pl.col("item_id").is_not_null())
    return {
        "user_id": whole.user,
        "strategy": whole.strategy,
        "items": places(whole.items),
        "own": [
            {"id": _ids(version, domain, [row["item_id"]])[0], **_moved(version, domain, row)}
            for row in own.iter_rows(named=True)
        ],
        "sources": [
            {
                "domain": row["source"], "attention": row["attention"],
                **_moved(version, domain, row),
            }
            for row in sources.iter_rows(named=True)
        ],
        "without_transfer": _untold(version, stages, domain, rows, k),
    }  # fmt: skip


def _stages(version: Version) -> "Stages":
    if found := version.stages_now():
        return found
    if version.stages is not None and not version.stages.done():
        raise Problem(
            503, "reading", "What the stages made is being read.", headers={"Retry-After": "1"}
        )
    raise Problem(404, "no_stages", "The server has the model alone, without what made it.")


def _moved(version: Version, domain: str, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "kept": row["kept"],
        "leaves": _ids(version, domain, row["leaves"]),
        "enters": _ids(version, domain, row["enters"]),
    }


def _ids(version: Version, domain: str, ids: list[Any] | None) -> list[Id]:
    items = version.recommender.domains[domain].items
    if not ids:
        return []
    return version.items[domain].ids(items.rows(pl.Series(ids, dtype=items.values.dtype)))


def _untold(
    version: Version, stages: "Stages", domain: str, rows: np.ndarray, k: int
) -> dict[str, Any]:
    """The list with all other domains hidden."""
    told, model = stages.told[domain], version.recommender.domains[domain]
    shared = told.latest.told(rows) if told.latest else None
    others = [name for name in (shared.domains if shared else ()) if name != domain]
    parts = told.parts(rows, shared.hidden(*others) if shared and others else shared)
    ranking = ranked(
        parts, 1, k=min(k, len(model.items)), skip=model.seen.of_each(rows), n_threads=1
    )
    found = ranking.items[0][ranking.items[0] >= 0]
    items = zip(version.items[domain].ids(found), ranking.scores[0].tolist(), strict=False)
    return {"items": places(list(items)), "strategy": parts[0].strategy}
