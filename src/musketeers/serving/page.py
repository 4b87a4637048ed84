"""The explorer, a page for people, and the run's report."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from musketeers.serving.keys import requires
from musketeers.serving.problems import Problem
from musketeers.serving.service import service_of

router = APIRouter(tags=["explorer"])

_HEADERS = {
    # nothing from elsewhere, and nobody else's page around it
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; frame-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


@router.get("/", response_class=Response, include_in_schema=False)
async def explorer() -> Response:
    """A page that asks this service; it holds no data itself."""
    return Response(_page(), media_type="text/html; charset=utf-8", headers=_HEADERS)


@router.get("/report", response_class=Response, dependencies=[requires("explain")])
async def report(request: Request) -> Response:
    """The report of the run that is served, as the fit wrote it; 404 where it has none."""
    service = service_of(request)
    html = await service.on_thread(service.versions.current.report) if service.explains else None
    if html is None:
        raise Problem(404, "no_report", "There is no report of what is served here.")
    return Response(html, media_type="text/html; charset=utf-8")


@cache
def _page() -> bytes:
    return files("musketeers.serving").joinpath("explorer.html").read_bytes()
