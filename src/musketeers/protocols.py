"""What the parts of the package promise each other."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int

if TYPE_CHECKING:
    import torch  # whoever only recommends does without

ScoresOnDevice = Callable[[Int[np.ndarray, " batch"]], "torch.Tensor"]
"""Rows of users -> float32 scores of all items, batch x item."""

Rows = Callable[[str, str], AbstractContextManager[Callable[[int], object]]]
"""Told of a stage of a domain that passes over its rows or pairs; what it gives is told, each time
some are done, how many."""


@contextmanager
def untold(stage: str, domain: str) -> Generator[Callable[[int], object]]:  # noqa: ARG001
    """The `Rows` that tells nobody."""
    yield lambda n_rows: None  # noqa: ARG005


@runtime_checkable
class Scorer(Protocol):
    """Anything that can rank one domain's items for a batch of users.

    CAT-ART, every baseline and the served model satisfy this; ranking, evaluation and
    serving know nothing more about a model.
    """

    @property
    def n_items(self) -> int:
        """Size of the domain's catalogue."""
        ...

    def score(self, users: Int[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch item"]:
        """Preference of each user for every item; larger is better, no fixed scale.

        Fast, and within `error` of `exact`.  A new array, which the caller may write into.
        Several threads call it at once.
        """
        ...

    def exact(
        self, users: Int[np.ndarray, " batch"], items: Int[np.ndarray, "batch k"]
    ) -> Float64[np.ndarray, "batch k"]:
        """The scores of chosen items, bitwise the same on any machine and in any batch."""
        ...

    def error(self, users: Int[np.ndarray, " batch"]) -> Float64[np.ndarray, " batch"]:
        """Per user, a bound on ``abs(score - exact)`` over all items; not negative."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """A `Scorer` whose fast scores a GPU can give."""

    def scores_on(self, device: "torch.device") -> ScoresOnDevice | None:
        """The same as `Scorer.score`, within `Scorer.error`; None where it is not worth it."""
        ...
