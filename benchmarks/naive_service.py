"""What an afternoon gives: the service that ours is measured beside.

FastAPI, pydantic models of request and answer, both matrices in memory, one product a request.
``NAIVE_MODEL=FOLDER OPENBLAS_NUM_THREADS=1 uvicorn naive_service:plain`` serves the FOLDER that
`served_model.write_naive` wrote; uvicorn takes uvloop and httptools by itself.  Which of `plain`
and `awaited` is faster depends on the number of workers, so `serve.py` measures both.  Two threads
for a product are several times slower than one as soon as requests come together.
"""

import os
from pathlib import Path
from uuid import uuid4

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

FOLDER = Path(os.environ["NAIVE_MODEL"])
USERS, ITEMS, POPULAR, INDPTR, SEEN, USER_IDS, ITEM_IDS = (
    np.load(FOLDER / f"{name}.npy")
    for name in ("users", "items", "popular", "indptr", "seen", "user_ids", "item_ids")
)
ROWS = {user: row for row, user in enumerate(USER_IDS.tolist())}
VERSION = "naive"

plain = FastAPI()
"""Its handler runs in FastAPI's pool of threads."""
awaited = FastAPI()
"""Its handler runs in the event loop."""


class Ask(BaseModel):
    """For whom, and how many."""

    user_id: int
    k: int = Field(10, ge=1, le=500)
    exclude_seen: bool = True


class Item(BaseModel):
    """One of a list."""

    rank: int
    id: int
    score: float


class Answer(BaseModel):
    """A list, best first."""

    user_id: int
    domain: str
    items: list[Item]
    strategy: str
    degraded: bool = False
    model_version: str
    request_id: str


@plain.get("/readyz")
@awaited.get("/readyz")
def ready() -> dict[str, str]:
    """Answers once the model is loaded."""
    return {"status": "ready"}


@plain.post("/v1/domains/{domain}/recommend")
def recommend(domain: str, ask: Ask) -> Answer:
    """The `k` items with the largest scores that the user has not seen."""
    if domain != "main":
        raise HTTPException(404, "unknown domain")
    row = ROWS.get(ask.user_id)
    scores = POPULAR.copy() if row is None else ITEMS @ USERS[row]
    if row is not None and ask.exclude_seen:
        scores[SEEN[INDPTR[row] : INDPTR[row + 1]]] = -np.inf
    best = np.argpartition(scores, -ask.k)[-ask.k :]
    best = best[np.argsort(-scores[best])]
    pairs = zip(ITEM_IDS[best].tolist(), scores[best].tolist(), strict=True)
    items = [Item(rank=n, id=item, score=score) for n, (item, score) in enumerate(pairs, 1)]
    return Answer(
        user_id=ask.user_id,
        domain=domain,
        items=items,
        strategy="popular" if row is None else "personalised",
        model_version=VERSION,
        request_id=uuid4().hex,
    )


@awaited.post("/v1/domains/{domain}/recommend")
async def recommend_at_once(domain: str, ask: Ask) -> Answer:
    """The same, without a thread."""
    return recommend(domain, ask)
