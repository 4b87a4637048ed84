"""The whole of `musketeers export`: what is exported, by which options, and where it is then."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from musketeers import run_files
from musketeers.errors import ConfigError
from musketeers.exports.vectors import Space, served_by
from musketeers.recommender import Recommender, version_of
from musketeers.report.words import model_name
from musketeers.run_folder import RunFolder
from musketeers.runs import Watch

System = Literal["parquet", "faiss", "pgvector", "redis"]


def run(
    run: Path,
    to: System,
    *,
    watch: Watch,
    out: Path | None = None,
    url: str | None = None,
    domains: Sequence[str] = (),
    model: str | None = None,
    prefix: str = "musketeers",
) -> str:
    """Export the `domains` of a finished run, all by default; a line that says where they are.

    Nothing is written unless all of them can be.  Raises `RunError` or `ArtifactError` for a run
    that cannot be read, `ConfigError` for options that do not go together, what `Space.of` and
    `served_by` raise, and what writing to the system raises.
    """
    files = to in ("parquet", "faiss")
    # an address may stand in the environment for other exports
    if files and out is None:
        raise ConfigError(f"--to {to} writes files; give --out DIR")
    if not files and (url is None or out is not None):
        raise ConfigError(f"--to {to} writes to a server; give --url URL, and no --out")
    recommender = _recommender(run, model, domains, watch)
    version = version_of(run / "model")
    names = list(dict.fromkeys(domains)) or list(recommender.domains)
    spaces = [Space.of(recommender, name, version) for name in names]
    what = ", ".join(f"{space.domain} ({space.dim} numbers a vector)" for space in spaces)
    return f"{_written(to, spaces, out, url, prefix, watch)}: {what}, model version {version}"


def _recommender(run: Path, model: str | None, domains: Sequence[str], watch: Watch) -> Recommender:
    if model is None:
        return Recommender.load(RunFolder.open(run).path / "model")
    found = run_files.open_run(run)
    names = list(domains) or list(found.recommender.domains)
    served = served_by(found, model, names)
    for name in names:
        if (serves := found.recommender.about["model"][name]) != model:
            watch.say(
                f"note: {name} is served by {model_name(serves)}; exported is "
                f"{model_name(model)}, whose lists are others"
            )
    return served


def _written(
    to: System,
    spaces: Sequence[Space],
    out: Path | None,
    url: str | None,
    prefix: str,
    watch: Watch,
) -> str:
    """Where the vectors are, once they are."""
    if out is not None:
        if to == "faiss":
            from musketeers.exports import faiss as files
        else:
            from musketeers.exports import parquet as files
        files.write(out, spaces, watch.rows)
        return str(out)
    if to == "pgvector":
        from musketeers.exports import pgvector

        place = pgvector.write(url or "", prefix, spaces, watch.rows)
        for space in spaces:
            if (note := pgvector.index_note(space)) is not None:
                watch.say(note)
        return place
    from musketeers.exports import redis

    place, indexed = redis.write(url or "", prefix, spaces, watch.rows)
    if not indexed:
        watch.say(
            "note: the server has no query engine, so there is no index; docs/exports.md has a "
            "script that ranks inside the server"
        )
    return place
