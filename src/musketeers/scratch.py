"""A table of vectors on the disk, for what is too large for memory and read in its order."""

import os
import tempfile
from pathlib import Path

import numpy as np

from musketeers.artifacts import writing


def table_on_disk(n_rows: int, dim: int) -> np.memmap:
    """A float32 table of zeros in a file without a name, which is gone when nobody has the table.

    Memory has of it what was looked at last.  The file is in the system's folder for such (TMPDIR);
    raises `ArtifactError` at once if there is no room for all of it.
    """
    folder = Path(tempfile.gettempdir())
    with writing(folder / "a table of vectors"), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * n_rows * dim)
        return np.memmap(file, np.float32, "r+", shape=(n_rows, dim))
