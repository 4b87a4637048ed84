"""The explorer, a page for people, and the run's report."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from musketeers.serving.keys import requires
from musketeers.serving.problems import Problem
from musketeers.serving.service import service_of

router = APIRouter(tags=["explorer"])


@router.get("/", response_class=Response, include_in_schema=False)
async def explorer() -> Response:
    """A page that asks this service; it holds no data itself."""
    html, headers = _page()
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/report", response_class=Response, dependencies=[requires("explain")])
async def report(request: Request) -> Response:
    """The report of the run that is served, as the fit wrote it; 404 where it has none."""
    service = service_of(request)
    html = await service.on_thread(service.versions.current.report) if service.explains else None
    if html is None:
        raise Problem(404, "no_report", "There is no report of what is served here.")
    return Response(html, media_type="text/html; charset=utf-8")


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that let its own script run and nothing else."""
    html = files("musketeers.serving").joinpath("explorer.html").read_bytes()
    script = html.partition(b"<script>")[2].partition(b"</script>")[0]
    digest = b64encode(sha256(script).digest()).decode()
    policy = (
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        # the report has bars of its own, and its frame is held to what this page is
        "style-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src data:",
        "frame-src blob:",
        # no text becomes markup or a script
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        # nobody else's page around it
        "frame-ancestors 'none'",
    )
    return html, {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
    }
