"""Endpoints that recommend: to one user, to many, and items like one."""

from typing import Any

from fastapi import APIRouter, Request, Response

from musketeers.serving import contract
from musketeers.serving.contract import (
    DomainName,
    ItemId,
    QueryExcludeSeen,
    QueryK,
    UserId,
    Wish,
    Wishes,
)
from musketeers.serving.keys import requires
from musketeers.serving.lists import Asked, Listed, similar
from musketeers.serving.problems import Problem
from musketeers.serving.service import as_json, places, service_of

RECOMMEND = "/v1/domains/{domain}/recommend"

router = APIRouter(tags=["recommend"], dependencies=[requires("read")])


@router.post(RECOMMEND, response_model=contract.Recommended)
async def recommend(request: Request, domain: DomainName, wish: Wish) -> Response:
    """The best items for a user; what the user has just done can be told along."""
    service_of(request).check_recent(wish.recent)
    asked = Asked(
        wish.user_id, wish.k, wish.exclude_seen, wish.exclude_ids, wish.allow_ids, wish.recent
    )
    return await _recommended(request, domain, asked, wish.fallback)


@router.get(
    "/v1/domains/{domain}/users/{user_id:path}/recommend", response_model=contract.Recommended
)
async def recommend_simply(
    request: Request,
    domain: DomainName,
    user_id: UserId,
    k: QueryK = 10,
    exclude_seen: QueryExcludeSeen = True,
) -> Response:
    """The same for clients that have nothing but an address.

    Prefer POST, which keeps ids out of other programs' logs.
    """
    return await _recommended(request, domain, Asked(user_id, k, exclude_seen), "popular")


@router.post("/v1/domains/{domain}/recommend:batch", response_model=contract.RecommendedAll)
async def recommend_batch(request: Request, domain: DomainName, wishes: Wishes) -> Response:
    """The best items for each of several users, all from one version of the model."""
    service = service_of(request)
    service.version_with(domain)
    asked = [Asked(user, wishes.k, wishes.exclude_seen) for user in wishes.user_ids]
    version, found = await service.batches.lists(domain, asked)
    for each in found:
        service.metrics.recommended(domain, each.strategy)
    results = [_of_one(each, wishes.fallback) for each in found]
    return as_json(
        request, domain=domain, results=results, model_version=version.name,
        degraded=any(each.degraded for each in found),
    )  # fmt: skip


@router.get("/v1/domains/{domain}/items/{item_id:path}/similar", response_model=contract.Similar)
async def similar_items(
    request: Request, domain: DomainName, item_id: ItemId, k: QueryK = 10
) -> Response:
    """The items of a domain that are most like one of it."""
    service = service_of(request)
    version = service.version_with(domain)
    found = await service.on_thread(similar, version, domain, item_id, k)
    if found is None:
        raise Problem(404, "unknown_item", "The domain has no such item.")
    return as_json(
        request, item_id=found.item, domain=domain, by=found.by, items=places(found.items),
        model_version=version.name,
    )  # fmt: skip


async def _recommended(request: Request, domain: str, asked: Asked, fallback: str) -> Response:
    service = service_of(request)
    service.version_with(domain)
    version, (found,) = await service.batches.lists(domain, [asked])
    if _is_missing(found, fallback):
        raise Problem(404, "unknown_user", "Nothing is known of the user; see fallback.")
    service.metrics.recommended(domain, found.strategy)
    return as_json(
        request, user_id=found.user, domain=domain, items=places(found.items),
        strategy=found.strategy, degraded=found.degraded, model_version=version.name,
    )  # fmt: skip


def _is_missing(found: Listed, fallback: str) -> bool:
    return fallback == "none" and found.strategy == "popular"


def _of_one(found: Listed, fallback: str) -> dict[str, Any]:
    if _is_missing(found, fallback):
        return {"user_id": found.user, "status": 404, "items": [], "strategy": None}
    items = places(found.items)
    return {"user_id": found.user, "status": 200, "items": items, "strategy": found.strategy}
