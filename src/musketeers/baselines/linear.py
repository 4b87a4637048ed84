"""Scores that are linear in what a user did: a sparse row of inputs times a matrix of weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, no_type_check

import numpy as np
from jaxtyping import Float32, Float64, Int
from numba import njit
from scipy.sparse import csr_array

from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.protocols import ScoresOnDevice

if TYPE_CHECKING:
    import torch

_HALF_ULP = 2.0**-24
_TINY = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A model whose score is a user's inputs times the weights of the ranked items.

    The inputs are mostly what a user did, one column an item.  There may be more of them than
    ranked items: what the user did elsewhere, or numbers that describe the user.
    """

    inputs: csr_array
    """Float32, user x input; a user whose row is empty scores 0 everywhere."""
    weights: Float32[np.ndarray, "input item"] | csr_array
    """Float32, input x item; rows of an array, or sparse rows where most weights are 0."""
    largest: Float64[np.ndarray, " input"]
    """The largest absolute weight of each input."""

    @classmethod
    def of(
        cls, inputs: csr_array, weights: Float32[np.ndarray, "input item"] | csr_array
    ) -> "Linear":
        """The model with these matrices, which are not copied.

        Raises `DataError` where the weights are for another number of inputs.
        """
        n_inputs, n_rows = shape(inputs)[1], shape(weights)[0]
        if n_inputs != n_rows:
            raise DataError(
                f"users have {n_inputs} inputs, but there are weights for {n_rows}; give one row "
                "of weights per input"
            )
        return cls(inputs, weights, _largest(weights))

    @property
    def n_items(self) -> int:
        """See `Scorer.n_items`."""
        return shape(self.weights)[1]

    def score(self, users: Int[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch item"]:
        """See `Scorer.score`; the exact scores rounded to float32, so the same on any machine.

        Adds up one row of weights per input that the user has: as fast as a float32 sparse
        product, because both wait for the weights, and many times faster than a dense one.
        """
        scores = np.empty((len(users), self.n_items), dtype=np.float32)
        rows = _arrays(self.inputs[users])
        if isinstance(self.weights, np.ndarray):
            _score_dense(rows, self.weights, scores)
        else:
            _score_sparse(rows, _arrays(self.weights), scores)
        return scores

    def scores_on(self, device: "torch.device") -> ScoresOnDevice | None:
        """See `OnDevice.scores_on`; sparse weights stay where they are."""
        if not isinstance(self.weights, np.ndarray):
            return None
        import torch

        from musketeers.shortlist import sparse

        weights = torch.from_numpy(self.weights).to(device).double()

        def scores(users: Int[np.ndarray, " batch"]) -> "torch.Tensor":
            indptr, columns, values = _arrays(self.inputs[users])
            rows = sparse(indptr, columns, values, n_columns=len(weights), device=device)
            return (rows @ weights).float()

        return scores

    def exact(
        self, users: Int[np.ndarray, " batch"], items: Int[np.ndarray, "batch k"]
    ) -> Float64[np.ndarray, "batch k"]:
        """See `Scorer.exact`; float64 sums, in the order in which a user's inputs are stored.

        A product of two float32 numbers is exact in float64, so a machine that fuses the
        multiplication with the addition gets the same bits as one that does not.
        """
        scores = np.empty(items.shape, dtype=np.float64)
        rows = _arrays(self.inputs[users])
        if isinstance(self.weights, np.ndarray):
            _exact_dense(rows, self.weights, items, scores)
        else:
            _exact_sparse(rows, _arrays(self.weights), self.n_items, items, scores)
        return scores

    def error(self, users: Int[np.ndarray, " batch"]) -> Float64[np.ndarray, " batch"]:
        r"""See `Scorer.error`; 0 for a user without inputs, inf where float32 may overflow.

        Rounding an exact score $e$ to float32 moves it by at most $2^{-24} |e|$, or by less than
        the smallest normal number, and $|e| \le \sum_j |x_j| \max_i |w_{ji}|$ but for
        rounding in float64, which the factor 2 covers many times over.
        """
        reach = abs(self.inputs[users]).astype(np.float64) @ self.largest
        bounds = np.where(reach > 0, 2 * (_HALF_ULP * reach + _TINY), 0.0)
        return np.where(reach < _LARGEST, bounds, np.inf)


def history(pairs: Interactions) -> csr_array:
    """Who did what, as float32 ones: user x item."""
    ones = np.ones(len(pairs), dtype=np.float32)
    return csr_array((ones, pairs.items, pairs.indptr), shape=(pairs.n_users, pairs.n_items))


def shape(matrix: np.ndarray | csr_array) -> tuple[int, int]:
    """Rows and columns, which scipy's sparse matrices have but do not declare."""
    return cast(tuple[int, int], matrix.shape)


def _arrays(matrix: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return matrix.indptr, matrix.indices, matrix.data


def _largest(
    weights: Float32[np.ndarray, "input item"] | csr_array,
) -> Float64[np.ndarray, " input"]:
    if isinstance(weights, np.ndarray):
        # abs() would copy the weights
        extremes = (weights.max(axis=1, initial=0), -weights.min(axis=1, initial=0))
        return np.maximum(*extremes).astype(np.float64)
    largest = np.zeros(shape(weights)[0])
    np.maximum.at(
        largest, np.repeat(np.arange(len(largest)), np.diff(weights.indptr)), np.abs(weights.data)
    )
    return largest


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.
# Sparse matrices come as (indptr, columns, values).


@njit(nogil=True, cache=True)
@no_type_check
def _score_dense(rows, weights, scores):
    indptr, inputs, values = rows
    total = np.empty(weights.shape[1])
    for user in range(len(scores)):
        total[:] = 0
        for place in range(indptr[user], indptr[user + 1]):
            value = np.float64(values[place])
            row = weights[inputs[place]]
            for item in range(len(total)):
                total[item] += value * np.float64(row[item])
        scores[user] = total


@njit(nogil=True, cache=True)
@no_type_check
def _exact_dense(rows, weights, items, scores):
    indptr, inputs, values = rows
    for user in range(len(scores)):
        for k in range(items.shape[1]):
            total = 0.0
            for place in range(indptr[user], indptr[user + 1]):
                weight = weights[inputs[place], items[user, k]]
                total += np.float64(values[place]) * np.float64(weight)
            scores[user, k] = total


@njit(nogil=True, cache=True)
@no_type_check
def _score_sparse(rows, weights, scores):
    total = np.empty(scores.shape[1])
    for user in range(len(scores)):
        _add_up(user, rows, weights, total)
        scores[user] = total


@njit(nogil=True, cache=True)
@no_type_check
def _exact_sparse(rows, weights, n_items, items, scores):
    # Adding whole rows costs less than finding one item in each of them.
    total = np.empty(n_items)
    for user in range(len(scores)):
        _add_up(user, rows, weights, total)
        for k in range(items.shape[1]):
            scores[user, k] = total[items[user, k]]


@njit(nogil=True, cache=True)
@no_type_check
def _add_up(user, rows, weights, total):
    indptr, inputs, values = rows
    starts, items, numbers = weights
    total[:] = 0
    for place in range(indptr[user], indptr[user + 1]):
        value = np.float64(values[place])
        row = inputs[place]
        for cell in range(starts[row], starts[row + 1]):
            total[items[cell]] += value * np.float64(numbers[cell])
