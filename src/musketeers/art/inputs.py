"""What a target's users have to say in stage 3, and what the network makes of it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from musketeers.art import network
from musketeers.art.network import Everybody, Weights
from musketeers.config import RunConfig
from musketeers.data.interactions import Interactions
from musketeers.exchange import UserEmbeddings
from musketeers.parallel import each
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors

_BLOCK = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a target's items learn from, and how."""

    train: Interactions
    mean: Float32[np.ndarray, " dim"]
    """What stage 1 gives a user without history."""
    learning_rate: float
    regularization: float
    n_candidates: int


class Batch(NamedTuple):
    """Some users, and how a step of the training takes them."""

    users: Int[np.ndarray, " batch"]
    seen: Bool[np.ndarray, " batch"]
    """Whether the network is shown the target's own vector."""
    factors: Float32[np.ndarray, "batch source"]
    """What the attention is multiplied by: `Inputs.weighing` under dropout."""
    learns: Bool[np.ndarray, " batch"]
    """Whether items learn from this user."""
    strengths: Float32[np.ndarray, " batch"]
    """How much the square of what is added is held down."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """All that a target's users have to say in stage 3."""

    everybody: Everybody
    sources: tuple[str, ...]
    alone: Float32[np.ndarray, "user dim"]
    length: np.float32
    """Of the target's vectors; what the network adds is in this unit."""
    sharpness: float
    weighing: Float32[np.ndarray, "user source"]

    @classmethod
    def of(
        cls,
        target: str,
        alone: Pretrained,
        shared: UserEmbeddings,
        aligned: Float32[np.ndarray, "user dim"],
        config: RunConfig,
    ) -> "Inputs":
        """Of all users, whatever domain knows them."""
        index = shared.index(target)
        others = np.flatnonzero(np.arange(len(shared.domains)) != index)
        everybody = Everybody(
            _fixed(shared.values),
            _fixed(shared.known),
            _fixed(aligned if config.art.shared else np.zeros_like(aligned)),
            index,
            others,
        )
        sharpness, factors = network.weighing(
            config.art.sources, shared.known[:, others], aligned.shape[1]
        )
        names = tuple(shared.domains[place] for place in others)
        length = np.float32(shared.lengths[index])
        users = _fixed(alone.factors.users)
        return cls(everybody, names, users, length, sharpness, factors)

    def forward(
        self, weights: Weights, rows: Int[np.ndarray, " batch"]
    ) -> tuple[np.ndarray, network.Trace]:
        """What transfer adds, in units of the target's length, without any dropout."""
        nobody_hidden = np.ones(len(rows), np.bool_)
        told = network.told_of(self.everybody, rows, nobody_hidden, weights.pad)
        return network.forward(weights, told, self.sharpness, self.weighing[rows])

    def attention(
        self, weights: Weights, rows: Int[np.ndarray, " batch"]
    ) -> Float32[np.ndarray, "batch source"]:
        """The weights in use; 0 for a source that does not know the user."""
        _, trace = self.forward(weights, rows)
        return trace.attention * self.weighing[rows]

    def factors(
        self,
        weights: Weights,
        items: Float32[np.ndarray, "item dim"],
        *,
        n_threads: int,
        of: Int[np.ndarray, " row"] | None = None,
    ) -> Factors:
        """The model; user vectors of all users, or `of` some of them, and 0 of all others."""
        users = np.zeros(self.alone.shape, np.float32)
        some = blocks(np.arange(len(users)) if of is None else of)

        def fill(number: int) -> None:
            rows = some[number]
            users[rows] = self.alone[rows] + self.length * self.forward(weights, rows)[0]

        each(fill, len(some), n_threads=n_threads)
        return Factors(users, items)


def _fixed(array: np.ndarray) -> np.ndarray:
    """Not to be written to, wherever it lies: loops are compiled once for shared memory too."""
    view = array.view()
    view.flags.writeable = False
    return view


def blocks(rows: Int[np.ndarray, " row"]) -> list[Int[np.ndarray, " block"]]:
    """As many at a time as need little memory; part of the result, since products round."""
    return np.split(rows, range(_BLOCK, len(rows), _BLOCK))
