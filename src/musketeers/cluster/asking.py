"""Ray Data as the other files here use it: silent, of tasks alone, and with faults that are told.

An error loses its type on its way from a task, and Ray prints where it was raised; so a fault in
the data is an answer as any other.
"""

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyarrow as pa

from musketeers.data.files import one_line
from musketeers.errors import ArtifactError, ClusterError, DataError, MissingExtraError

try:
    import ray.data
    from ray.data import Dataset
    from ray.data.context import DataContext, ShuffleStrategy
    from ray.exceptions import RayError
except ImportError as error:
    raise MissingExtraError(
        f"this needs {error.name}, which is not installed: pip install 'musketeers[ray]'"
    ) from None

Told = tuple[dict[str, Any], bytes]
"""What a task found: plain numbers and texts, and bytes beside them."""

_FAULTS = {fault.__name__: fault for fault in (ArtifactError, DataError, MissingExtraError)}
_ANSWER = pa.schema([("number", pa.int64()), ("told", pa.string()), ("content", pa.large_binary())])


@contextmanager
def settings() -> Generator[None]:
    """Ray Data without a progress and a log of its own, and with a shuffle of tasks alone.

    A task that is lost with its node is done again, and what an actor held would be gone.  Whatever
    fails in the block, and is no fault that a task told, is one `ClusterError`.
    """
    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.shuffle_strategy, log.level
    context.enable_progress_bars = False
    context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except RayError as error:
        # the rest is where it was raised
        reason = one_line(str(error).split("\n\n")[0].splitlines()[-1])
        raise ClusterError(
            f"the cluster could not read the data ({reason}); look at its nodes (ray status) and "
            "run the same again"
        ) from None
    finally:
        context.enable_progress_bars, context.shuffle_strategy = before[:2]
        log.setLevel(before[2])


def each(tasks: Sequence[Mapping[str, Any]]) -> Dataset:
    """A block for each task, of plain numbers and texts."""
    rows = [{"number": n, "task": json.dumps(task)} for n, task in enumerate(tasks)]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def tasks(table: pa.Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """The numbered tasks of a block."""
    for row in table.to_pylist():
        yield row["number"], json.loads(row["task"])


def on_blocks(parts: Dataset, work: Callable[[pa.Table], object]) -> Dataset:
    """What `work` makes of each block, a table or several."""
    return parts.map_batches(cast(Any, work), batch_size=None, batch_format="pyarrow")


def on_groups(parts: Dataset, column: str, work: Callable[[pa.Table], pa.Table]) -> Dataset:
    """What `work` makes of all rows that have the same in `column`."""
    return parts.groupby(column).map_groups(cast(Any, work), batch_format="pyarrow")


def answer(number: int, find: Callable[[], Told]) -> pa.Table:
    """What is found, or the fault."""
    try:
        told, content = find()
    except (ArtifactError, DataError, MissingExtraError) as error:
        told, content = {"fault": [type(error).__name__, str(error)]}, b""
    columns = {"number": [number], "told": [json.dumps(told)], "content": [content]}
    return pa.table(columns, schema=_ANSWER)


def answers(asked: Dataset) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    """Numbers and what was found, as they come; then the fault of the lowest number, if any."""
    faults: dict[int, list[str]] = {}
    for table in asked.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in cast(pa.Table, table).to_pylist():
            told = json.loads(row["told"])
            if "fault" in told:
                faults[row["number"]] = told["fault"]
            else:
                yield row["number"], told, row["content"]
    if faults:
        name, text = faults[min(faults)]
        raise _FAULTS[name](text)
