"""Endpoints that tell what moved a user's list, and what is known of a user; off by default."""

import random
from collections.abc import Iterable

import numpy as np
from fastapi import APIRouter, Request, Response

from musketeers.serving import contract
from musketeers.serving.contract import DomainName, QueryAlso, Question, UserId
from musketeers.serving.explanation import explained
from musketeers.serving.ids import Id
from musketeers.serving.keys import Key, requires
from musketeers.serving.problems import Problem
from musketeers.serving.service import as_json, service_of
from musketeers.serving.version import Version

router = APIRouter(tags=["explain"], dependencies=[requires("explain")])


@router.post("/v1/domains/{domain}/explain", response_model=contract.Explained)
async def explain(request: Request, domain: DomainName, question: Question) -> Response:
    """What moved a user's list, found by leaving each thing out and making the list again.

    Tells which other domains know the user.  It explains what the model says, without what the
    user has done since.
    """
    service = service_of(request)
    _check_offered(request)
    version = service.version_with(domain)
    found = await service.on_thread(explained, version, domain, question.user_id, question.k)
    return as_json(request, domain=domain, model_version=version.name, **found)


@router.get("/v1/users/{user_id:path}/history", response_model=contract.History)
async def show_history(request: Request, user_id: UserId) -> Response:
    """What the model knows of a user, in each domain that the key is for."""
    service = service_of(request)
    _check_offered(request)
    version, key = service.versions.current, request.state.key
    (row,) = version.users.rows([user_id]).tolist()
    if row < 0:
        raise Problem(404, "unknown_user", "No domain knows the user.")
    return as_json(
        request, user_id=version.users.as_written(user_id),
        domains=version.history(row, _seen_by(key, version.items)),
        model_version=version.name,
    )  # fmt: skip


@router.get("/v1/domains/{domain}/somebody", response_model=contract.Somebody)
async def pick_somebody(request: Request, domain: DomainName, also: QueryAlso = None) -> Response:
    """A user whom the domain knows, and the other one too if there is one, picked at random.

    404 where users have pseudonyms, with which nobody could ask.
    """
    service = service_of(request)
    _check_offered(request)
    version = service.version_with(domain)
    domains = [domain] if also is None else [domain, also]
    if also is not None:
        service.version_with(also)
        request.state.key.check_domain(also)
    if version.users.secret:
        raise Problem(404, "not_offered", "Users have pseudonyms here, and nobody is picked.")
    user = await service.on_thread(_somebody, version, domains)
    if user is None:
        raise Problem(404, "nobody", "There is no such user.")
    return as_json(request, user_id=user, domain=domain, model_version=version.name)


def _somebody(version: Version, domains: list[str]) -> Id | None:
    """A user whom all `domains` know."""
    known = [version.recommender.domains[name].known for name in domains]
    rows = np.flatnonzero(np.logical_and.reduce(known))
    return version.users.ids(rows[[random.randrange(len(rows))]])[0] if len(rows) else None


def _seen_by(key: Key, domains: Iterable[str]) -> list[str]:
    return [name for name in domains if key.may_see(name)]


def _check_offered(request: Request) -> None:
    if not service_of(request).explains:
        raise Problem(
            404, "not_offered", "This server tells nothing of users; start it with --explain."
        )
