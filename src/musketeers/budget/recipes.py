"""Other ways to learn alone than the settings name: by another method, or with wider vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from musketeers.config import RunConfig, changed

_WIDER = (2, 4)
"""In units of the settings' dim."""

_METHODS: tuple[Literal["bpr", "ials"], ...] = ("ials", "bpr")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How all domains learn alone; but those that bring their vectors, which stay as they are."""

    method: Literal["bpr", "ials"] | None
    """None: as the settings say."""
    dim: int

    @property
    def name(self) -> str:
        """Such as ``ials-128``; ``settings-64`` for what the settings say."""
        return f"{self.method or 'settings'}-{self.dim}"

    def of(self, config: RunConfig) -> RunConfig:
        """The settings with this recipe in them."""
        if self.method is None:
            return changed(config, {"dim": self.dim})
        given = dict.fromkeys(config.pretrain.given, "given")
        methods = {name: given.get(name, self.method) for name in config.data.domains}
        method = methods if given else self.method
        return changed(config, {"dim": self.dim, "pretrain.method": method})


def own(config: RunConfig) -> Recipe:
    """The settings' own way; BPR where they leave it to the fit."""
    method = config.pretrain.method
    if method == "auto":
        return Recipe("bpr", config.dim)
    return Recipe(method if method in ("bpr", "ials") else None, config.dim)


def methods(config: RunConfig) -> list[Recipe]:
    """The settings' own way, and the other method with vectors as wide."""
    first = own(config)
    return [first, *(Recipe(other, config.dim) for other in _METHODS if other != first.method)]


def recipes(config: RunConfig, fits: Callable[[int], bool]) -> list[Recipe]:
    """What to try in a time budget: `methods`, then both with wider vectors that fit.

    `fits` tells whether there is memory for vectors of a width.  Where no domain learns, since all
    bring their vectors, there is nothing else to try.
    """
    if config.pretrain.method == "given":
        return [own(config)]
    widths = [width * config.dim for width in _WIDER if fits(width * config.dim)]
    return methods(config) + [Recipe(method, width) for width in widths for method in _METHODS]
