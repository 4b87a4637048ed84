"""Two models of a domain as one: their scores added up."""

import numpy as np
from jaxtyping import Int64
from scipy.sparse import csr_array, hstack

from musketeers.baselines.linear import Linear
from musketeers.protocols import Scorer
from musketeers.ranking import Factors


def blend(first: Linear, second: Factors, weight: float) -> Linear:
    """The model whose score is the first's plus `weight` times the second's.

    A user's vector becomes inputs, the items' vectors rows of weights, one for each dimension; so
    what was linear stays so.  Sparse weights become dense ones.
    """
    weights = first.weights if isinstance(first.weights, np.ndarray) else first.weights.toarray()
    vectors = csr_array(np.float32(weight) * second.users)
    inputs = csr_array(hstack([first.inputs, vectors]))
    return Linear.of(inputs, np.concatenate([weights, second.items.T]))


def equal_weight(first: Scorer, second: Scorer, users: Int64[np.ndarray, " user"]) -> float:
    """The weight at which the second's scores spread as far over the items as the first's.

    The mean over the users of each one's standard deviation counts; 0 if the second tells no items
    apart.
    """
    here, there = (float(scorer.score(users).std(axis=1).mean()) for scorer in (first, second))
    return here / there if there else 0.0
