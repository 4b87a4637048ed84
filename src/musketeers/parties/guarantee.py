"""What may be said of a release of vectors with Gaussian noise, and how much noise it takes.

The noise of one release has the standard deviation sigma in every number, and a user's vector, cut
to the length C, can differ by 2 C at most.  Such a release is mu-GDP with mu = 2 C / sigma (Dong,
Roth and Su, 2022); T of them together are sqrt(mu_1^2 + ... + mu_T^2)-GDP, exactly; and mu-GDP is
(epsilon, delta)-private for every epsilon with

    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

(Balle and Wang, ICML 2018, Theorem 8).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from scipy.optimize import brentq
from scipy.special import log_ndtr

Mode = Literal["vectors", "fold-in"]
"""How users' vectors come from data: trained with everybody's, or each solved for from the user's
own alone, against items that only donors trained."""

_LEAST, _MOST = 1e-6, 1e6
"""Where mu and epsilon are looked for."""


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta at which mu-GDP is (epsilon, delta)-private, in 0..1."""
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    # the two are nearly equal where delta is small: their difference by its logarithm
    return math.exp(first) * -math.expm1(second - first) if second < first else 0.0


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon at which mu-GDP is (epsilon, delta)-private; 0 for no release at all."""
    if not mu or delta_of(mu, 0.0) <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        return delta_of(mu, epsilon) - delta

    return _root(excess, 0.0, _MOST)


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu that is (epsilon, delta)-private: sigma is then 2 C / mu."""

    def excess(mu: float) -> float:
        return delta_of(mu, epsilon) - delta

    return _root(excess, _LEAST, _MOST)


def _root(of: Callable[[float], float], low: float, high: float) -> float:
    found: Any = brentq(of, low, high, xtol=1e-12)
    return float(found)


def together(mus: Iterable[float]) -> float:
    """What several releases of the same users are together."""
    return math.sqrt(math.fsum(mu * mu for mu in mus))


def statement(mode: Mode, mu: float | None, delta: float | None) -> str:
    """What a party's releases guarantee, in one sentence; if one is without noise, that nothing.

    `mu` is that of all its releases so far, and `mode` the weaker of theirs.
    """
    if mu is None or delta is None:
        return (
            "No guarantee: the vectors are as they were trained, and tell whoever has them about "
            "the interactions that they were trained on."
        )
    bound = f"({epsilon_of(mu, delta):.4g}, {delta:.2g})"
    if mode == "fold-in":
        return (
            f"All releases of this party together are {bound}-differentially private for each "
            "folded-in user's whole history in this domain (replacement of one user's data); "
            "donors, who trained the items, and that a user is known here at all are not protected."
        )
    return (
        f"All releases of this party together make any two values of one user's vector "
        f"{bound}-indistinguishable (replacement of one vector); this is no guarantee for the "
        "user's interactions, which also moved the items and so the vectors of others, and that a "
        "user is known here at all is not protected."
    )
