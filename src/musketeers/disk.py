"""Whether there is room for what is about to be written."""

import shutil
from pathlib import Path

from musketeers.errors import ConfigError

_UNIT = 10**9


def free(path: Path) -> int:
    """Bytes that may be written at `path`, which need not exist yet, nor its folders."""
    place = path.absolute()
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def check_room(path: Path, needed: int) -> None:
    """Raise `ConfigError` unless the disk of `path` has room for `needed` more bytes."""
    if needed > (left := free(path)):
        raise ConfigError(
            f"{path}: about {needed / _UNIT:.1f} GB are to be written and its disk has "
            f"{left / _UNIT:.1f} GB left; free some, name a folder on another disk, or ask for less"
        )
