"""The linear head: the best linear model of the target's items, told the shared embeddings too."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, hstack

from musketeers.baselines.ease import MAX_BYTES, item_regression
from musketeers.baselines.linear import Linear, history
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.exchange import UserEmbeddings


@dataclass(frozen=True, slots=True)
class LinearSettings:
    """How strongly weights are held back, and how much the shared embeddings count."""

    regularization: float = 100.0
    """L2 penalty of the weights, in units of users; above 0."""
    source_weight: float = 2.0
    """What the shared embeddings are multiplied by; 0 leaves them out, and EASE remains."""
    max_bytes: int = MAX_BYTES
    """What needs more memory than this is refused before it starts."""

    def __post_init__(self) -> None:
        if not 0 < self.regularization < np.inf:
            raise ConfigError(
                f"regularization is {self.regularization}; it must be above 0 and finite"
            )
        if not 0 <= self.source_weight < np.inf:
            raise ConfigError(f"source_weight is {self.source_weight}; it must be >= 0 and finite")


def linear(
    target: str, train: Interactions, shared: UserEmbeddings, settings: LinearSettings
) -> Linear:
    r"""EASE of the target's items on the user's history and on what other domains know of the user.

    With R the target's training pairs (user x item), E the other domains' user embeddings side by
    side (`UserEmbeddings.values`; zeros where a domain does not know the user) and w
    `source_weight`, B and C minimise

    $$\|R - RB - w E C\|^2 + \lambda (\|B\|^2 + \|C\|^2), \quad diag(B) = 0$$

    over all users, those unknown to the target included, in closed form (`item_regression`; Steck,
    WWW 2019, with columns of side information as in Jeunen et al., RecSys 2020).  A weight is the
    same as a penalty of $\lambda / w^2$ on C.  A user without history in the target is scored from
    E alone; one known nowhere scores 0 everywhere.

    Of the other domains it sees what leaves them, user embeddings, and nothing else.

    Raises `DataError` for a target that is none of the domains, `ConfigError` where the square of
    all inputs exceeds `max_bytes`.
    """
    sources = shared.without(target)
    own = history(train)
    told = sources.values.reshape(train.n_users, -1) * np.float32(settings.source_weight)
    inputs = csr_array(hstack([own, csr_array(told)])) if settings.source_weight else own
    return item_regression(
        inputs, train.n_items,
        regularization=settings.regularization, max_bytes=settings.max_bytes,
    )  # fmt: skip
