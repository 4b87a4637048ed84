"""Items as an index of Faiss that ranks exactly by inner products."""

from collections.abc import Sequence
from pathlib import Path

from musketeers import artifacts
from musketeers.errors import ArtifactError, MissingExtraError
from musketeers.exports.parquet import write_tables
from musketeers.exports.vectors import Space
from musketeers.protocols import Rows

try:
    import faiss
except ImportError:
    raise MissingExtraError(
        "an index of Faiss needs a package that is not installed: pip install 'musketeers[faiss]'"
    ) from None


def write(out: Path, spaces: Sequence[Space], told: Rows) -> None:
    """What `parquet.write` writes, and ``items.faiss`` in each domain's folder beside it.

    Number n of the index is row n of ``items.parquet``.  Raises what `parquet.write` does.
    """
    with artifacts.new_folder(out) as draft:
        for space in spaces:
            write_tables(draft / space.domain, space, told)
            index = faiss.IndexFlatIP(space.dim)
            for step in space.steps(len(space.items)):
                index.add(space.item_vectors(step))
            try:
                faiss.write_index(index, str(draft / space.domain / "items.faiss"))
            except RuntimeError:
                raise ArtifactError(
                    f"{out}: Faiss could not write its index; free some space and try again"
                ) from None
