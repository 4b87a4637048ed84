"""The app: all endpoints behind the gate."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from fastapi import FastAPI

from musketeers.serving import explaining, operating, page, recommending, telling
from musketeers.serving.direct import recommend_directly
from musketeers.serving.problems import RESPONSES, install
from musketeers.serving.service import Service

_ABOUT = """Recommendations in several domains that share users.

Errors are problem documents (RFC 9457). Ids that are integers are JSON numbers, all others strings.
"""


Life = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def app_of(service: Service, life: Life | None = None) -> FastAPI:
    """What an ASGI server runs for `service`; `life` is entered at its begin, left at its end."""
    app = FastAPI(
        title="musketeers", version=version("musketeers"), description=_ABOUT,
        # their pages would fetch scripts from elsewhere; the document itself is at /openapi.json
        docs_url=None, redoc_url=None, responses=RESPONSES, lifespan=life,
        # FastAPI's would export paths, which have ids; ours is in metrics.py and logs.py
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(service.gate.around)
    for router in (
        recommending.router, telling.router, explaining.router, operating.models,
        operating.admin, operating.health, page.router,
    ):  # fmt: skip
        app.include_router(router)
    app.router.routes.insert(0, recommend_directly())
    install(app)
    return app
