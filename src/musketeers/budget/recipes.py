"""Other ways to learn alone than the settings name: by another method, or with wider vectors."""

from dataclasses import dataclass, replace
from typing import Literal

from musketeers.config import RunConfig, changed
from musketeers.models.needs import FACTORS, Size

_WIDTHS = (1, 2, 4)
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
    """The settings' own way."""
    method = config.pretrain.method
    return Recipe(method if method in ("bpr", "ials") else None, config.dim)


def recipes(config: RunConfig, size: Size, max_bytes: int) -> list[Recipe]:
    """What to try, the settings' own way first, then from narrow to wide.

    `size` is of all domains; what needs more than `max_bytes` is left out, but never the first.
    Where no domain learns, since all bring their vectors, there is nothing else to try.
    """
    method, first = config.pretrain.method, own(config)
    others = [Recipe(other, width * config.dim) for width in _WIDTHS for other in _METHODS]
    return [first] + [
        recipe
        for recipe in others
        if method != "given"
        and recipe != first
        and FACTORS(replace(size, dim=recipe.dim)) <= max_bytes
    ]
