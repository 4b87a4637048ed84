"""The search for a way to learn alone within a time budget."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from musketeers.budget.clock import Clock
from musketeers.budget.estimate import Costs, estimate
from musketeers.budget.halving import Round, Trial, halve
from musketeers.budget.recipes import Recipe, recipes
from musketeers.errors import ConfigError
from musketeers.models.model import Task
from musketeers.models.needs import Size

Keep = Callable[[Mapping[str, Any]], None]
"""Where a search writes what it has decided and found."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What a budget was found to be enough for, and what has been tried since."""

    clock: Clock
    costs: Costs
    """Of a fit by the settings as they are."""
    rounds: list[Round]

    @classmethod
    def begin(cls, clock: Clock, task: Task) -> "Search":
        """A search that has tried nothing.

        Raises `ConfigError` if a fit by the settings as they are would not end in time.
        """
        costs = estimate(task)
        needed = clock.seconds - clock.left + costs.fit
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
            "spent": self.clock.seconds - self.clock.left,
            "decisions": self.clock.decisions,
            "costs": asdict(self.costs),
            "rounds": [asdict(one) for one in self.rounds],
        }

    def run(
        self,
        task: Task,
        size: Size,
        *,
        trial: Trial,
        keep: Keep,
        say: Callable[[str], None],
    ) -> Recipe:
        """The recipe that successive halving leaves (`halving.halve`), or the settings' own.

        `size` is of all domains.  `keep` is given `to_json` whenever there is something new, so
        that a search that is begun again from there ends with the same.
        """

        def on_round(done: Round) -> None:
            keep(self.to_json())
            say(in_words(done))

        say(f"budget   a fit takes about {self.costs.fit:.0f} s of {self.clock.seconds:.0f} s")
        self.clock.keep = lambda: keep(self.to_json())
        found = halve(
            recipes(task.config, size, task.max_bytes), task, self.clock, self.costs,
            self.rounds, trial=trial, on_round=on_round,
        )  # fmt: skip
        say(self._verdict(found))
        return found

    def _verdict(self, found: Recipe) -> str:
        if not self.rounds:
            return f"budget   {found.name}; no other way to learn alone was tried"
        tried = len(self.rounds[0].valid)
        return f"budget   {found.name}, the best of {tried} ways to learn alone"


def in_words(done: Round) -> str:
    """One round in a line: each recipe's value, the best first."""
    values = ", ".join(f"{name} {valid:.4f}" for name, valid in done.valid.items())
    return f"round    {done.looks} looks     NDCG@10 {values}"
