"""Randomness: one seed per run, one named stream per consumer.

A stream depends on the run's seed and its own name alone, so adding a domain, running
jobs in another order, or moving them to another machine changes no other stream.
"""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Seed:
    """A node in the tree of random streams."""

    entropy: int
    path: tuple[str, ...] = ()

    def child(self, *names: str) -> "Seed":
        """The stream for a sub-task, e.g. ``seed.child("pretrain", "books")``."""
        return Seed(self.entropy, self.path + names)

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator at the start of this stream."""
        return np.random.default_rng(self._sequence())

    def integer(self) -> int:
        """A number in 0..2**63 - 1, for generators that are seeded by one (torch, kernels)."""
        return int(self._sequence().generate_state(1, np.uint64)[0]) & (2**63 - 1)

    def _sequence(self) -> np.random.SeedSequence:
        digest = hashlib.blake2b("\x00".join(self.path).encode(), digest_size=16).digest()
        return np.random.SeedSequence([self.entropy, int.from_bytes(digest, "big")])
