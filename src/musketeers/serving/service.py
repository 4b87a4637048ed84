"""What the endpoints work with, and what several of them do."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic_core import to_json

from musketeers.serving.batches import Batches
from musketeers.serving.fresh import Store
from musketeers.serving.gate import Gate
from musketeers.serving.ids import Id
from musketeers.serving.metrics import Metrics
from musketeers.serving.problems import Fault, Problem
from musketeers.serving.version import Version
from musketeers.serving.versions import Versions

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """All that is shared by the requests of one server."""

    versions: Versions
    batches: Batches
    threads: Executor
    """For what takes long and is no list."""
    fresh: Store | None
    explains: bool
    gate: Gate
    metrics: Metrics

    async def on_thread(self, work: Callable[..., Result], *args: object) -> Result:
        """What `work` gives, done where nobody waits for it."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *args)

    def version_with(self, domain: str) -> Version:
        """The version that serves now; raises `Problem` (404) if it has no such domain."""
        version = self.versions.current
        if domain not in version.items:
            raise Problem(404, "unknown_domain", "The model has no such domain; see /v1/models.")
        return version

    def check_recent(self, recent: Mapping[str, object]) -> None:
        """Raise `Problem` (404) for a domain that the model does not have."""
        if recent.keys() - self.versions.current.items.keys():
            fault = Fault("/body/recent", "There is a domain that the model does not have")
            raise Problem(404, "unknown_domain", errors=[fault])


def service_of(request: Request) -> Service:
    """Of the app that the request came to."""
    return request.app.state.service


def as_json(request: Request, status: int = 200, **fields: Any) -> Response:
    """An answer with the request's id.

    Written at once: a response model would check and copy what was made here and is known to fit
    it (tests hold every answer against the OpenAPI document).
    """
    body = to_json({**fields, "request_id": request.state.request_id})
    return Response(body, status, media_type="application/json")


def places(pairs: Sequence[tuple[Id, float]]) -> list[dict[str, Any]]:
    """A list as `contract.Item` has it."""
    return [
        {"rank": rank, "id": id, "score": score} for rank, (id, score) in enumerate(pairs, start=1)
    ]
