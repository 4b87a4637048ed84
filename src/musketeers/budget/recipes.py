"""Other ways to learn alone than the settings name: by another method, or with wider vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from musketeers.config import Method, RunConfig, changed
from musketeers.models.needs import FACTORS, Size

_WIDTHS = (1, 2, 4)
"""In units of the settings' dim."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How all domains learn alone; but those that bring their vectors, which stay as they are."""

    method: Method | None
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


def recipes(config: RunConfig, size: Size, max_bytes: int) -> list[Recipe]:
    """What to try, the settings' own way first, then from narrow to wide.

    `size` is of all domains; what needs more than `max_bytes` is left out, but never the first.
    """
    method = config.pretrain.method
    own = None if isinstance(method, dict) else method
    first = Recipe(own if own != "given" else None, config.dim)
    return [first, *_others(first, size, max_bytes)] if own != "given" else [first]


def _others(first: Recipe, size: Size, max_bytes: int) -> Sequence[Recipe]:
    every = [Recipe(method, width * first.dim) for width in _WIDTHS for method in ("ials", "bpr")]
    return [
        recipe
        for recipe in every
        if recipe != first and FACTORS(replace(size, dim=recipe.dim)) <= max_bytes
    ]
