"""The search for a way to learn alone, within a time budget if there is one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from musketeers.budget.clock import Clock
from musketeers.budget.estimate import Costs, estimate
from musketeers.budget.halving import Round, Trial, halve
from musketeers.budget.recipes import Recipe
from musketeers.errors import ConfigError
from musketeers.task import Task

Keep = Callable[[Mapping[str, Any]], None]
"""Where a search writes what it has decided and found."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What has been tried, and what there is time for."""

    clock: Clock
    costs: Costs
    """Of a fit by the settings as they are; nothing where time does not matter."""
    rounds: list[Round]

    @classmethod
    def without_budget(cls) -> "Search":
        """A search that time does not cut short, and that depends on settings and data alone."""
        return cls(Clock(math.inf), Costs(0.0, 0.0, 0.0, 0.0, 0.0), [])

    @classmethod
    def within(cls, clock: Clock, task: Task) -> "Search":
        """A search that a time budget bounds.

        Raises `ConfigError` if a fit by the settings as they are would not end in time.
        """
        costs = estimate(task)
        needed = clock.spent + costs.fit
        if needed > clock.seconds:
            raise ConfigError(
                f"budget is {clock.seconds:g}s, but a fit of these data, on this machine as busy "
                f"as it is, takes about {needed:.0f}s: each domain alone {costs.pretrain:.0f}s, "
                f"transfer {costs.cat + costs.art:.0f}s, the choice {costs.choice:.0f}s, the rest "
                f"reading and estimating; give at least that (--budget {needed:.0f}s), fit one "
                "model (--only ease), or leave out the budget"
            )
        return cls(clock, costs, [])

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Search":
        """The search that `to_json` wrote; its clock goes on where it was."""
        clock = Clock(saved["seconds"], dict(saved["decisions"]))
        clock.start -= saved["spent"]
        rounds = [Round(**one) for one in saved["rounds"]]
        return cls(clock, Costs(**saved["costs"]), rounds)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "seconds": self.clock.seconds,
            "spent": self.clock.spent,
            "decisions": self.clock.decisions,
            "costs": asdict(self.costs),
            "rounds": [asdict(one) for one in self.rounds],
        }

    def run(
        self,
        recipes: Sequence[Recipe],
        task: Task,
        *,
        trial: Trial,
        keep: Keep,
        say: Callable[[str], None],
    ) -> Recipe:
        """The recipe that successive halving leaves (`halving.halve`), or the first.

        `keep` is given `to_json` whenever there is something new, so that a search that is begun
        again from there ends with the same.
        """

        def on_round(done: Round) -> None:
            keep(self.to_json())
            say(in_words(done))

        if math.isfinite(self.clock.seconds):
            say(f"budget   a fit takes about {self.costs.fit:.0f} s of {self.clock.seconds:.0f} s")
        self.clock.keep = lambda: keep(self.to_json())
        found = halve(
            recipes, task, self.clock, self.costs, self.rounds, trial=trial, on_round=on_round
        )
        say(self._verdict(found))
        return found

    def _verdict(self, found: Recipe) -> str:
        if not self.rounds:
            return f"recipe   {found.name}; no other way to learn alone was tried"
        tried = len(self.rounds[0].valid)
        return f"recipe   {found.name}, the best of {tried} ways to learn alone"


def in_words(done: Round) -> str:
    """One round in a line: each recipe's value, the best first."""
    values = ", ".join(f"{name} {valid:.4f}" for name, valid in done.valid.items())
    return f"round    {done.looks} looks     NDCG@10 {values}"
