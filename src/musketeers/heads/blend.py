"""Two models of a domain as one: their scores added up."""

import numpy as np
from jaxtyping import Float32, Int64
from scipy.sparse import csr_array, hstack

from musketeers.baselines.linear import Linear, history, shape
from musketeers.data.interactions import Interactions
from musketeers.protocols import Scorer
from musketeers.ranking import Factors


def blend(first: Linear | Factors, second: Factors, weight: float) -> Linear | Factors:
    """The model whose score is the first's plus `weight` times the second's.

    Of two models of vectors, the vectors stand side by side.  Else a user's vector becomes inputs,
    the items' vectors rows of weights, one for each dimension; so what was linear stays so.
    Sparse weights become dense ones.
    """
    users = np.float32(weight) * second.users
    if isinstance(first, Factors):
        return Factors(np.hstack([first.users, users]), np.hstack([first.items, second.items]))
    weights = first.weights if isinstance(first.weights, np.ndarray) else first.weights.toarray()
    inputs = csr_array(hstack([first.inputs, csr_array(users)]))
    return Linear.of(inputs, np.concatenate([weights, second.items.T]))


def with_history(model: Linear, pairs: Interactions) -> Linear:
    """The same trained model for users who also have these pairs: nothing is trained anew."""
    more = history(pairs)
    more.resize(model.inputs.shape)
    return Linear(csr_array(model.inputs + more), model.weights, model.largest)


def reblended(model: Linear | Factors, vectors: Factors, weight: float) -> Linear | Factors:
    """A blend whose second model has other vectors of its users than when it was made.

    With those of then it is the same bit by bit.
    """
    users, dim = np.float32(weight) * vectors.users, vectors.users.shape[1]
    if isinstance(model, Factors):
        return Factors(np.hstack([model.users[:, :-dim], users]), model.items)
    inputs = csr_array(hstack([model.inputs[:, :-dim], csr_array(users)]))
    return Linear(inputs, model.weights, model.largest)


def without_inputs(model: Linear | Factors, columns: slice) -> Linear | Factors:
    """The same trained model, told 0 in these columns of every user's inputs or vector."""
    if isinstance(model, Factors):
        users = model.users.copy()
        users[:, columns] = 0
        return Factors(users, model.items)
    kept = np.ones(shape(model.inputs)[1], np.float32)
    kept[columns] = 0
    inputs = model.inputs.copy()
    inputs.data *= kept[inputs.indices]
    return Linear(inputs, model.weights, model.largest)


def with_inputs(
    model: Linear | Factors, start: int, values: Float32[np.ndarray, "user column"]
) -> Linear | Factors:
    """The same trained model, told these values in place of as many columns from `start` on."""
    stop = start + values.shape[1]
    if isinstance(model, Factors):
        return Factors(
            np.hstack([model.users[:, :start], values, model.users[:, stop:]]), model.items
        )
    parts = [model.inputs[:, :start], csr_array(values), model.inputs[:, stop:]]
    return Linear(csr_array(hstack(parts)), model.weights, model.largest)


def equal_weight(first: Scorer, second: Scorer, users: Int64[np.ndarray, " user"]) -> float:
    """The weight at which the second's scores spread as far over the items as the first's.

    The mean over the users of each one's standard deviation counts; 0 if the second tells no items
    apart.
    """
    here, there = (float(scorer.score(users).std(axis=1).mean()) for scorer in (first, second))
    return here / there if there else 0.0
