"""Endpoints for whoever operates the service: is it there, what does it serve, serve another."""

from collections.abc import Callable

from fastapi import APIRouter, Request, Response

from musketeers.errors import MusketeersError
from musketeers.serving import contract, metrics
from musketeers.serving.keys import requires
from musketeers.serving.problems import Problem, response
from musketeers.serving.service import Service, as_json
from musketeers.serving.version import Version
from musketeers.serving.versions import BusyError, NothingBeforeError


def router(service: Service) -> APIRouter:
    """Health, metrics, versions and their administration."""
    routes = APIRouter()
    health = APIRouter(tags=["health"])
    facts = APIRouter(tags=["models"], dependencies=[requires("read")])
    admin = APIRouter(
        tags=["admin"], dependencies=[requires("admin")], responses={409: response(409)}
    )

    @health.get("/livez", response_model=contract.State)
    @health.get("/v2/health/live", response_model=contract.State, include_in_schema=False)
    async def live() -> Response:
        """Whether the server is there."""
        return _OK

    @health.get("/readyz", response_model=contract.State)
    @health.get("/v2/health/ready", response_model=contract.State, include_in_schema=False)
    async def ready() -> Response:
        """Whether it takes requests: a model is served, and the server is not ending."""
        if service.gate.draining:
            raise Problem(503, "draining", "The service is ending.")
        return _OK

    @health.get("/metrics", response_class=Response)
    async def scrape() -> Response:
        """What was counted, in Prometheus' text format; no user is in it."""
        return Response(service.metrics.render(), media_type=metrics.MEDIA_TYPE)

    @facts.get("/v1/models", response_model=contract.Models)
    async def models(request: Request) -> Response:
        """What is being served."""
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
            users=len(version.users), user_ids=version.users.kind, domains=domains,
            features=features,
        )  # fmt: skip

    @facts.get("/v1/models/versions", response_model=contract.VersionList)
    async def versions(request: Request) -> Response:
        """The version that serves, the one before it, and those that were refused of late."""
        found = [
            {
                "model_version": each.name, "run": each.run, "state": state,
                "at": each.loaded_at, "fault": None,
            }
            for state, each in (
                ("serving", service.versions.current), ("previous", service.versions.previous)
            )
            if each
        ]  # fmt: skip
        found += [
            {
                "model_version": None, "run": each.run, "state": "refused", "at": each.at,
                "fault": each.fault,
            }
            for each in reversed(service.versions.refused)
        ]  # fmt: skip
        return as_json(request, versions=found)

    async def swap(request: Request, change: Callable[[], Version]) -> Response:
        try:
            now = await service.on_thread(change)
        except BusyError:
            raise Problem(409, "busy", "Another version is being read at this moment.") from None
        except NothingBeforeError:
            raise Problem(409, "no_previous", "There is no version to go back to.") from None
        except MusketeersError as error:
            # an operator's own paths and names; the version that served goes on
            raise Problem(422, "refused", f"The old version goes on: {error}") from None
        before = service.versions.previous
        return as_json(request, model_version=now.name, previous=before.name if before else None)

    @admin.post("/v1/admin/reload", response_model=contract.Swapped)
    async def reload(request: Request) -> Response:
        """Read anew what the server was told to serve, and serve it if all of it is right."""
        return await swap(request, service.versions.reload)

    @admin.post("/v1/admin/rollback", response_model=contract.Swapped)
    async def rollback(request: Request) -> Response:
        """Serve the version before the current one again."""
        return await swap(request, service.versions.rollback)

    for part in (health, facts, admin):
        routes.include_router(part)
    return routes


_OK = Response(b'{"status":"ok"}', media_type="application/json")
