"""Two models of a domain as one: their scores added up."""

from dataclasses import replace
from typing import cast

import numpy as np
from jaxtyping import Float32, Int64
from scipy.sparse import csr_array, hstack

from musketeers.baselines.linear import Linear, history
from musketeers.data.interactions import Interactions
from musketeers.group import mean_of
from musketeers.protocols import Scorer
from musketeers.ranking import Factors


def blend(first: Linear | Factors, second: Factors, weight: float) -> Linear | Factors:
    """The model whose score is the first's plus `weight` times the second's.

    Of two models of vectors, the vectors stand side by side.  Else a user's vector becomes inputs,
    the items' vectors rows of weights, one for each dimension; so what was linear stays so.
    Sparse weights become dense ones.
    """
    if isinstance(first, Factors):
        users = cast(np.ndarray, beside(first.users, second.users, weight))
        return Factors(users, np.hstack([first.items, second.items]))
    weights = first.weights if isinstance(first.weights, np.ndarray) else first.weights.toarray()
    inputs = cast(csr_array, beside(first.inputs, second.users, weight))
    return Linear.of(inputs, np.concatenate([weights, second.items.T]))


Inputs = csr_array | Float32[np.ndarray, "user column"]
"""What a model is told of its users: sparse rows of a linear one, else vectors."""


def beside(inputs: Inputs, vectors: Float32[np.ndarray, "user dim"], weight: float) -> Inputs:
    """What a blend is told of users: the first model's `inputs`, and the second's vectors."""
    users = np.float32(weight) * vectors
    if isinstance(inputs, np.ndarray):
        return np.hstack([inputs, users])
    return csr_array(hstack([inputs, csr_array(users)]))


def of_inputs(model: Linear | Factors, inputs: Inputs) -> Linear | Factors:
    """The same trained model of users of whom it is told these; items are not copied."""
    if isinstance(model, Factors):
        return replace(model, users=cast(np.ndarray, inputs))
    return Linear(cast(csr_array, inputs), model.weights, model.largest)


def with_history(model: Linear, pairs: Interactions) -> Linear:
    """The same trained model for users who also have these pairs: nothing is trained anew."""
    more = history(pairs)
    more.resize(model.inputs.shape)
    return Linear(csr_array(model.inputs + more), model.weights, model.largest)


def equal_weight(first: Scorer, second: Scorer, users: Int64[np.ndarray, " user"]) -> float:
    """The weight at which the second's scores spread as far over the items as the first's.

    The mean over the users of each one's standard deviation counts; 0 if the second tells no items
    apart.
    """
    here, there = (float(mean_of(scorer.score(users).std(axis=1))) for scorer in (first, second))
    return here / there if there else 0.0
