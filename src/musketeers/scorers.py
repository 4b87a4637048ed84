"""What every model trains, as plain arrays and back, for saving."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from jaxtyping import Int64
from scipy.sparse import csr_array

from musketeers.baselines.linear import Linear, shape
from musketeers.heads.gate import Gated, Model
from musketeers.ranking import Factors

Trained = Factors | Linear | Gated
"""The `Scorer` of a trained model, whichever it is."""

Layout = Mapping[str, tuple[type[np.generic], int]]
"""Name of an array -> its type and number of axes."""


def _csr(name: str) -> Layout:
    return {
        f"{name}_indptr": (np.int64, 1),
        f"{name}_columns": (np.int32, 1),
        f"{name}_values": (np.float32, 1),
    }


_FACTORS: Layout = {"users": (np.float32, 2), "items": (np.float32, 2)}
_DENSE: Layout = {**_csr("inputs"), "weights": (np.float32, 2)}
_SPARSE: Layout = {**_csr("inputs"), **_csr("weights")}


_TAKES, _SIDES = "takes", ("told", "own")
"""Of a gate."""


def arrays(scorer: Trained) -> dict[str, np.ndarray]:
    """All that `scorer_of` needs; most of them live memory of the scorer."""
    if isinstance(scorer, Factors):
        return {"users": scorer.users, "items": scorer.items}
    if isinstance(scorer, Gated):
        sides = {"told": arrays(scorer.told), "own": arrays(scorer.own)}
        parts = {_part(side, n): array for side, of in sides.items() for n, array in of.items()}
        return {_TAKES: scorer.takes, **parts}
    weights = scorer.weights
    kept = {"weights": weights} if isinstance(weights, np.ndarray) else _parts("weights", weights)
    return {**_parts("inputs", scorer.inputs), **kept}


def scorer_of(arrays: Mapping[str, np.ndarray], *, n_items: int) -> Trained:
    """The scorer of arrays without `fault`; its scores are bitwise those of the one they are of."""
    if "users" in arrays:
        return Factors(arrays["users"], arrays["items"])
    if _TAKES in arrays:
        told, own = (
            cast(Model, scorer_of(_side(side, arrays), n_items=n_items)) for side in _SIDES
        )
        return Gated(told, own, arrays[_TAKES])
    weights = arrays.get("weights")
    if weights is None:
        weights = _matrix("weights", arrays, n_columns=n_items)
    return Linear.of(_matrix("inputs", arrays, n_columns=shape(weights)[0]), weights)


def made_ready(scorer: Trained) -> Trained:
    """The same, for many rankings of a few users (`Factors.made_ready`)."""
    if isinstance(scorer, Factors):
        return scorer.made_ready()
    if isinstance(scorer, Gated):
        told, own = (cast(Model, made_ready(side)) for side in (scorer.told, scorer.own))
        return replace(scorer, told=told, own=own)
    return scorer


def sides(scorer: Trained, n_users: int) -> list[tuple[Model, Int64[np.ndarray, " user"]]]:
    """What scores the users, and whom of them: behind a gate two models, else one."""
    if not isinstance(scorer, Gated):
        return [(scorer, np.arange(n_users))]
    return [
        (scorer.told, np.flatnonzero(scorer.takes)), (scorer.own, np.flatnonzero(~scorer.takes))
    ]  # fmt: skip


def layout(names: Mapping[str, object]) -> Layout:
    """What the arrays among which these are should be."""
    if _TAKES in names:
        parts = {
            _part(side, name): kind
            for side in _SIDES
            for name, kind in layout(_side(side, names)).items()
        }
        return {_TAKES: (np.bool_, 1), **parts}
    if "weights" in names:
        return _DENSE
    return _SPARSE if "weights_values" in names else _FACTORS


def layout_fault(arrays: Mapping[str, np.ndarray], wanted: Layout) -> str | None:
    """Which array is not of the type that it should be."""
    for name, (dtype, ndim) in wanted.items():
        found = arrays[name]
        if found.dtype != dtype or found.ndim != ndim:
            kind = f"{np.dtype(dtype)} with {ndim} axes"
            return f"{name!r} is {found.dtype} with {found.ndim} axes, not {kind}"
    return None


def fault(arrays: Mapping[str, np.ndarray], *, n_users: int, n_items: int) -> str | None:
    """What keeps arrays of the right types from being a scorer of so many users and items."""
    if _TAKES in arrays:
        sides = (fault(_side(side, arrays), n_users=n_users, n_items=n_items) for side in _SIDES)
        found = next((odd for odd in sides if odd), None)
        return found or _count_fault("marks of a gate", len(arrays[_TAKES]), "users", n_users)
    if "users" in arrays:
        users, items = arrays["users"], arrays["items"]
        if users.shape[1] != items.shape[1]:
            return f"user vectors have {users.shape[1]} dimensions, item vectors {items.shape[1]}"
        return _count_fault("user vectors", len(users), "users", n_users) or _count_fault(
            "item vectors", len(items), "items", n_items
        )
    if "weights" in arrays:
        n_inputs, n_columns = arrays["weights"].shape
        odd = _count_fault("columns of weights", n_columns, "items", n_items)
    else:
        n_inputs = len(arrays["weights_indptr"]) - 1
        odd = _matrix_fault("weights", arrays, n_rows=n_inputs, n_columns=n_items)
    return odd or _matrix_fault("inputs", arrays, n_rows=n_users, n_columns=n_inputs)


def csr_fault(indptr: np.ndarray, columns: np.ndarray, *, n_columns: int) -> str | None:
    """Which rule of rows with ascending columns the arrays break."""
    # compared, not subtracted: a damaged difference could overflow
    rises = len(indptr) > 0 and not (indptr[1:] < indptr[:-1]).any()
    if not rises or indptr[0] != 0 or indptr[-1] != len(columns):
        return f"are {len(columns)} pairs that the ends of the rows do not divide"
    if not len(columns):
        return None
    if not 0 <= columns.min() <= columns.max() < n_columns:
        return f"span rows {columns.min()}..{columns.max()}, outside 0..{n_columns - 1}"
    # where columns fall, a new row must begin; there are fewer such places than rows
    falls = np.flatnonzero(columns[1:] <= columns[:-1]) + 1
    inside = indptr[np.searchsorted(indptr, falls)] != falls
    if inside.any():
        row = int(np.searchsorted(indptr, falls[inside][0], side="right")) - 1
        return f"of row {row} do not ascend"
    return None


def _part(side: str, name: str) -> str:
    return f"{side}/{name}"


def _side(side: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of one of a gate's models."""
    start = _part(side, "")
    return {n.removeprefix(start): array for n, array in arrays.items() if n.startswith(start)}


def _parts(name: str, matrix: csr_array) -> dict[str, np.ndarray]:
    return {
        f"{name}_indptr": matrix.indptr.astype(np.int64, copy=False),
        f"{name}_columns": matrix.indices.astype(np.int32, copy=False),
        f"{name}_values": matrix.data,
    }


def _matrix(name: str, arrays: Mapping[str, np.ndarray], *, n_columns: int) -> csr_array:
    indptr = arrays[f"{name}_indptr"]
    parts = arrays[f"{name}_values"], arrays[f"{name}_columns"], indptr
    return csr_array(parts, shape=(len(indptr) - 1, n_columns))


def _matrix_fault(
    name: str, arrays: Mapping[str, np.ndarray], *, n_rows: int, n_columns: int
) -> str | None:
    indptr, columns = arrays[f"{name}_indptr"], arrays[f"{name}_columns"]
    if len(arrays[f"{name}_values"]) != len(columns):
        return f"{name} have {len(arrays[f'{name}_values'])} values in {len(columns)} places"
    if odd := csr_fault(indptr, columns, n_columns=n_columns):
        return f"{name} {odd}"
    return _count_fault(f"rows of {name}", len(indptr) - 1, "users", n_rows)


def _count_fault(part: str, found: int, whole: str, wanted: int) -> str | None:
    return None if found == wanted else f"{found} {part} for {wanted} {whole}"
