"""Endpoints that take what users have just done and keep it until the next fit."""

import time
from collections.abc import Callable

from fastapi import APIRouter, Request, Response

from musketeers.errors import ArtifactError
from musketeers.serving import contract
from musketeers.serving.contract import Met, UserId
from musketeers.serving.fresh import Store
from musketeers.serving.keys import Key, requires
from musketeers.serving.problems import Problem
from musketeers.serving.service import Result, as_json, service_of

router = APIRouter(tags=["fresh"], dependencies=[requires("write")])

_PATH = "/v1/users/{user_id:path}/interactions"


@router.post(_PATH, response_model=contract.Stored, status_code=201)
async def store_interactions(request: Request, user_id: UserId, met: Met) -> Response:
    """Keep what a user has just done: it counts in the next answer, and in the next fit.

    An answer means that it is on the disk.
    """
    service, store = service_of(request), _store(request)
    service.version_with(met.domain)
    key: Key = request.state.key
    key.check_domain(met.domain)
    items = [str(item) for item in met.item_ids]
    at = int(time.time())
    await _kept(request, store.add, user_id, met.domain, items, at)
    return as_json(request, 201, stored=len(items))


@router.get(_PATH, response_model=contract.Kept)
async def show_interactions(request: Request, user_id: UserId) -> Response:
    """What is kept of a user since the model was fitted, as far as it counts in answers."""
    (found,) = await _kept(request, _store(request).recent, [user_id])
    key: Key = request.state.key
    mine = {name: items for name, items in found.items() if key.may_see(name)}
    return as_json(request, user_id=user_id, domains=mine)


@router.delete(_PATH, response_model=contract.Stored)
async def forget_interactions(request: Request, user_id: UserId) -> Response:
    """Forget all that is kept of a user since the model was fitted."""
    await _kept(request, _store(request).forget, user_id)
    return as_json(request, stored=0)


def _store(request: Request) -> Store:
    store = service_of(request).fresh
    if store is None:
        raise Problem(
            404, "not_offered", "This server keeps no interactions; start it with --fresh."
        )
    return store


async def _kept(request: Request, work: Callable[..., Result], *args: object) -> Result:
    try:
        return await service_of(request).on_thread(work, *args)
    except ArtifactError:
        # its text has a path, or an address
        raise Problem(
            503, "store_unavailable", "Nothing was kept: the store does not take it.",
            headers={"Retry-After": "1"},
        ) from None  # fmt: skip
