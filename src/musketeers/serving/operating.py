"""Endpoints for whoever operates the service: is it there, what does it serve, serve another."""

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter, Request, Response

from musketeers.errors import MusketeersError
from musketeers.serving import contract, metrics
from musketeers.serving.keys import requires
from musketeers.serving.problems import Problem, response
from musketeers.serving.service import as_json, service_of
from musketeers.serving.version import Version
from musketeers.serving.versions import BusyError, NothingBeforeError

health = APIRouter(tags=["health"])
models = APIRouter(tags=["models"], dependencies=[requires("read")])
admin = APIRouter(tags=["admin"], dependencies=[requires("admin")], responses={409: response(409)})

_OK = b'{"status":"ok"}'


@health.get("/livez", response_model=contract.State)
@health.get("/v2/health/live", response_model=contract.State, include_in_schema=False)
async def live() -> Response:
    """Whether the server is there."""
    return Response(_OK, media_type="application/json")


@health.get("/readyz", response_model=contract.State)
@health.get("/v2/health/ready", response_model=contract.State, include_in_schema=False)
async def ready(request: Request) -> Response:
    """Whether it takes requests: a model is served, and the server is not ending."""
    if service_of(request).gate.draining:
        raise Problem(503, "draining", "The service is ending.")
    return Response(_OK, media_type="application/json")


@models.get("/metrics", response_class=Response)
async def scrape(request: Request) -> Response:
    """What was counted, in Prometheus' text format; nothing of a user is in it."""
    return Response(service_of(request).metrics.render(), media_type=metrics.MEDIA_TYPE)


@models.get("/v1/models", response_model=contract.Models)
async def show_model(request: Request) -> Response:
    """What is being served."""
    service = service_of(request)
    version = service.versions.current
    domains = {
        name: {
            "items": len(version.items[name]),
            "users": version.n_known[name],
            "model": version.recommender.about["model"][name],
            "item_ids": version.items[name].kind,
            "transfers": model.transfers or model.cold is not None,
        }
        for name, model in version.recommender.domains.items()
    }
    features = {
        "explain": service.explains,
        "across": version.stages_now() is not None,
        "fresh": service.fresh is not None,
    }
    return as_json(
        request, model_version=version.name, run=version.run, loaded_at=version.loaded_at,
        users=len(version.users), user_ids=version.users.kind, domains=domains, features=features,
    )  # fmt: skip


@models.get("/v1/models/versions", response_model=contract.VersionList)
async def show_versions(request: Request) -> Response:
    """The version that serves, the one before it, and those that were refused of late."""
    versions = service_of(request).versions
    found = [_facts("serving", versions.current)]
    if before := versions.previous:
        found.append(_facts("previous", before))
    found += [
        contract.VersionFacts(
            model_version=None, run=each.run, state="refused", at=each.at, fault=each.fault
        )
        for each in reversed(versions.refused)
    ]
    return as_json(request, versions=[each.model_dump(mode="json") for each in found])


@admin.post("/v1/admin/reload", response_model=contract.Swapped)
async def reload(request: Request) -> Response:
    """Read anew what the server was told to serve, and serve it if all of it is right."""
    return await _swapped(request, service_of(request).versions.reload)


@admin.post("/v1/admin/rollback", response_model=contract.Swapped)
async def rollback(request: Request) -> Response:
    """Serve the version before the current one again."""
    return await _swapped(request, service_of(request).versions.rollback)


def _facts(state: Literal["serving", "previous"], version: Version) -> contract.VersionFacts:
    return contract.VersionFacts(
        model_version=version.name, run=version.run, state=state, at=version.loaded_at, fault=None
    )


async def _swapped(request: Request, change: Callable[[], Version]) -> Response:
    service = service_of(request)
    try:
        now = await service.on_thread(change)
    except BusyError:
        raise Problem(409, "busy", "Another version is being read at this moment.") from None
    except NothingBeforeError:
        raise Problem(409, "no_previous", "There is no version to go back to.") from None
    except MusketeersError as error:
        # whoever may reload may read where the files are
        raise Problem(422, "refused", f"The old version goes on. {error}") from None
    before = service.versions.previous
    return as_json(request, model_version=now.name, previous=before.name if before else None)
