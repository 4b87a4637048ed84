"""The whole of `musketeers compare`: a locked folder, progress, files, a last word."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.comparison import files, page
from musketeers.comparison import jobs as work
from musketeers.comparison.gains import gains
from musketeers.comparison.jobs import Job
from musketeers.comparison.results import results
from musketeers.comparison.study import checked, compare_models
from musketeers.comparison.tables import markdown
from musketeers.comparison.workers import Workers
from musketeers.config import RunConfig
from musketeers.data.overlap import overlap_report
from musketeers.data.splits import split
from musketeers.errors import ConfigError, RunError
from musketeers.models.registry import MODELS, PAPER
from musketeers.run_folder import RunFolder, check_place
from musketeers.runs import fingerprints
from musketeers.seeding import Seed


def chosen(models: str | None, *, paper: bool) -> tuple[str, ...]:
    """The models that the options ask for.  Raises `ConfigError` if they contradict."""
    if models is not None and paper:
        raise ConfigError("--models and --paper are both given; use one of them")
    if models is not None:
        return tuple(name.strip() for name in models.split(","))
    return PAPER if paper else tuple(MODELS)


def in_bytes(text: str | None) -> int | None:
    """The number that ``8G``, ``512M`` or ``2.5 GiB`` means, with units of 1024; None for None.

    Raises `ConfigError` for anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(?:i?b)?", text.strip(), re.IGNORECASE)
    n_bytes = float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " ") if found else 0
    if n_bytes < 1:
        raise ConfigError(f"memory is {text!r}; give a size such as 8G or 512M")
    return int(n_bytes)


def run(
    config: RunConfig,
    base: Path,
    out: Path,
    *,
    models: Sequence[str],
    n_seeds: int,
    n_tries: int,
    workers: Workers,
    sampled: bool = False,
    resume: bool = False,
    words: Sequence[str] = (),
) -> None:
    """Compare, write the files into `out`, print the table.

    Raises what `compare_models` and `RunFolder.create` raise, and `RunError` at the end if a job
    failed: the files are written by then, with what the others found.
    """
    names = checked(models, config, n_seeds=n_seeds, n_tries=n_tries)
    check_place(out, resume=resume, kind="comparison")
    reading = work.reading(configuration.dump(config), base.resolve())
    inputs = {
        **fingerprints(reading.domains), "models": ",".join(names), "seeds": str(n_seeds),
        "tries": str(n_tries), **({"sampled": "among 99"} if sampled else {}),
    }  # fmt: skip
    with RunFolder.create(
        out,
        configuration.dump(config),
        data=inputs,
        threads=1,
        command=words,
        resume=resume,
        kind="comparison",
    ) as folder:
        with _progress() as live:
            task = live.add_task("", total=None)

            def on_done(job: Job, done: int, every: int) -> None:
                live.update(task, total=every, completed=done, description=job.name)
                if not live.console.is_terminal:
                    live.console.print(f"{done} of {every}: {job.name}", highlight=False)

            study = compare_models(
                config, base.resolve(), out.resolve(), models=names, n_seeds=n_seeds,
                n_tries=n_tries, workers=workers, sampled=sampled, on_done=on_done,
            )  # fmt: skip
        if folder.finished:
            return
        found = results(study)
        splits = split(reading.domains, config.split, Seed(0))
        parts = gains(study, found, {name: one.train for name, one in splits.items()})
        files.write(out, study, found, parts, reading.domains.users)
        report = page.render(study, found, parts, overlap_report(reading))
        artifacts.write_text(out / "report.html", report)
        if not study.failed:
            folder.finish()
    Console(highlight=False).print(markdown(found), markup=False, soft_wrap=True)
    if study.failed:
        job, why = next(iter(found.failed.items()))
        n_failed, n_jobs = len(study.failed), len(study.failed) + len(study.found)
        raise RunError(
            f"{n_failed} of {n_jobs} jobs failed, the first: {job}: {why}; the others' results "
            f"are in {out}, --resume tries the failed ones again"
        )


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=Console(stderr=True), transient=True)
