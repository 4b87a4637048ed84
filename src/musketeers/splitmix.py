"""SplitMix64 for compiled loops: a stream of random numbers for each key and row.

A loop that draws from `stream(key, row)` gives the same whichever thread runs it.  Steele et al.,
OOPSLA 2014.
"""

from typing import no_type_check

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""What a stream's state grows by; ``state += GOLDEN`` and then ``mix(state)`` is its next draw."""

_part = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


@_part
@no_type_check
def mix(state):
    """64 random bits of a state: SplitMix64's output function."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_part
@no_type_check
def stream(key, row):
    """The state where the stream of one row starts; `key` stands for the seed and the use."""
    return mix(np.uint64(key) + (np.uint64(row) + np.uint64(1)) * np.uint64(0xD1342543DE82EF95))


@_part
@no_type_check
def below(bits, n):
    """The high half of 64 random bits, scaled to 0..n - 1 without a division; n < 2**32."""
    return ((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
