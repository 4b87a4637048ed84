"""The same runs on a Ray cluster; ray is imported nowhere else."""

from importlib.util import find_spec

from musketeers.errors import MissingExtraError

if find_spec("ray") is None:
    raise MissingExtraError("this needs ray, which is not installed: pip install 'musketeers[ray]'")
