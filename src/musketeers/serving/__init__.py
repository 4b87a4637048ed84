"""A finished run's recommendations over HTTP."""

from importlib.util import find_spec

from musketeers.errors import MissingExtraError

if absent := [p for p in ("fastapi", "uvicorn", "prometheus_client") if find_spec(p) is None]:
    raise MissingExtraError(
        f"serving needs {absent[0]}, which is not installed: pip install 'musketeers[serve]'"
    )
