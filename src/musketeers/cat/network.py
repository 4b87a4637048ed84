"""The network of stage 2, there and back, compiled: what a lane does between two waits of a step.

Written out with its slope because of the time it takes: of general tensor operations with automatic
differentiation most of a step was memory taken and given back, and activations.  The formulas are
those of `model` and `losses`.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float
from numba import njit

_compiled = njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"}
)

_LANE = 16
_ROWS = 256
"""Of similarities at once; all of them would be users x users."""
_SHORTEST = 1e-12
"""Vectors are divided by their length or by this, as torch's `normalize` does."""


class Layers(NamedTuple):
    """Three linear maps with PReLU between, or the loss's gradient by each of their weights."""

    maps: tuple[Float[np.ndarray, "out in"], ...]
    biases: tuple[Float[np.ndarray, " out"], ...]
    leaks: tuple[Float[np.ndarray, " 1"], ...]
    """PReLU's slopes of what is below zero."""


class Weights(NamedTuple):
    """The parameters of `model.ContrastiveAutoencoder`, or the loss's gradient by each of them."""

    encoder: Layers
    decoder: Layers
    pad: Float[np.ndarray, " dim"]


class Passing(NamedTuple):
    """What goes through `Layers` on the way there, for the way back, and the slopes on that."""

    inputs: Float[np.ndarray, "row in"]
    first: Float[np.ndarray, "row out"]
    after_first: Float[np.ndarray, "row out"]
    second: Float[np.ndarray, "row out"]
    after_second: Float[np.ndarray, "row out"]
    made: Float[np.ndarray, "row out"]
    to_first: Float[np.ndarray, "row out"]
    to_second: Float[np.ndarray, "row out"]


class Room(NamedTuple):
    """One lane's memory for its users' views, all of one kind below those of the other.

    Taken once, since taking and giving back some megabytes in each step costs more than it looks:
    the system clears every page again.
    """

    encoder: Passing
    decoder: Passing
    units: Float[np.ndarray, "row dim"]
    """The codes divided by their lengths."""
    lengths: Float[np.ndarray, " row"]
    to_codes: Float[np.ndarray, "row dim"]
    values: Float[np.ndarray, "user domain dim"]
    known: Bool[np.ndarray, "user domain"]


def room(weights: Weights, n_users: int, n_views: int) -> Room:
    """For so many users."""
    n_rows, kind = n_views * n_users, weights.pad.dtype
    n_domains, dim = weights.encoder.maps[0].shape[1] // len(weights.pad), len(weights.pad)

    def passing(layers: Layers) -> Passing:
        widths = [layers.maps[0].shape[1], *(len(bias) for bias in layers.biases)]
        inputs, first, second, made = (np.empty((n_rows, width), kind) for width in widths)
        return Passing(
            inputs, first, np.empty_like(first), second, np.empty_like(second), made,
            np.empty_like(first), np.empty_like(second),
        )  # fmt: skip

    rows = np.empty((n_rows, dim), kind)
    return Room(
        passing(weights.encoder), passing(weights.decoder), rows, np.empty(n_rows, kind),
        np.empty_like(rows), np.empty((n_users, n_domains, dim), kind),
        np.empty((n_users, n_domains), np.bool_),
    )  # fmt: skip


@_compiled
@no_type_check
def encode(weights, values, known, rows, visible, scale, room):
    """Fill the `room` with the codes and units of those rows of the tables, times `scale`.

    One view of every user for each table of `visible`, in that order.
    """
    for u in range(len(rows)):
        room.known[u], room.values[u] = known[rows[u]], values[rows[u]] * scale
    for v in range(len(visible)):
        views = room.encoder.inputs[v * len(rows) : (v + 1) * len(rows)]
        _shown(room.values, visible[v], weights.pad, views)
    _through(weights.encoder, room.encoder)
    codes, shortest = room.encoder.made, values.dtype.type(_SHORTEST)
    for r in range(len(codes)):
        room.lengths[r] = max(np.sqrt(_dot(codes[r], codes[r])), shortest)
        room.units[r] = codes[r] / room.lengths[r]


@_compiled
@no_type_check
def _shown(values, visible, pad, inputs):
    """A view of each user as one row; what is not visible is `pad`."""
    n_users, n_domains, dim = values.shape
    for u in range(n_users):
        for d in range(n_domains):
            part = values[u, d] if visible[u, d] else pad
            for c in range(dim):
                inputs[u, d * dim + c] = part[c]


@_compiled
@no_type_check
def log_sums(units, others, temperature):
    """log sum_v exp(u.v / temperature) of each of the `units` over the `others`."""
    found = np.empty(len(units), units.dtype)
    by, turned = units.dtype.type(1 / temperature), others.T
    powers = np.empty(len(others), np.int32)
    for start in range(0, len(units), _ROWS):
        logits = np.dot(units[start : start + _ROWS], turned)
        logits *= by
        for r in range(len(logits)):
            top = _largest(logits[r])
            logits[r] -= top
            _exp(logits[r], powers)
            total = units.dtype.type(0)
            for v in range(len(others)):
                total += logits[r, v]
            found[start + r] = top + np.log(total)
    return found


@_compiled
@no_type_check
def _largest(values):
    """The maximum; one for each place of a vector first, which the compiler cannot find itself."""
    tops = values[:_LANE].copy()
    n_whole = len(values) - len(values) % _LANE
    for start in range(_LANE, n_whole, _LANE):
        for j in range(_LANE):
            value = values[start + j]
            tops[j] = value if value > tops[j] else tops[j]
    return max(tops.max(), values[max(n_whole - 1, 0) :].max())


@_compiled
@no_type_check
def _exp(values, powers):
    """Replace float32 values of at most about 0 by their exponentials, to seven digits near 0.

    As a polynomial and a shift, of which the compiler makes vector instructions; `np.exp` would be
    called for every value.  `powers` is memory for as many int32.  What is below -87 counts as -87.
    """
    for v in range(len(values)):
        value = max(values[v], np.float32(-87)) * np.float32(1.4426950408889634)
        whole = np.floor(value + np.float32(0.5))
        rest = (value - whole) * np.float32(0.6931471805599453)
        # Taylor's, within log(2) / 2 of 0: the term after the last is below the rounding
        series = np.float32(1 / 720) * rest + np.float32(1 / 120)
        series = series * rest + np.float32(1 / 24)
        series = series * rest + np.float32(1 / 6)
        series = series * rest + np.float32(0.5)
        series = series * rest + np.float32(1)
        values[v] = series * rest + np.float32(1)
        powers[v] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    scales = powers.view(np.float32)
    for v in range(len(values)):
        values[v] *= scales[v]


@_compiled
@no_type_check
def contrast(whole, part, sums, part_sums, changed, temperature):
    """The summed contrast of the users whose view `changed`; `sums`, `part_sums`: of `log_sums`."""
    loss = 0.0
    for u in range(len(whole)):
        if changed[u]:
            loss += (sums[u] + part_sums[u]) / 2 - _dot(whole[u], part[u]) / temperature
    return loss


@_compiled
@no_type_check
def contrast_slopes(first, whole, parts, sums, part_sums, changed, temperature, share):
    """The slopes of `share` times the summed contrast by `whole`, and this lane's part of those by
    all `parts`.

    `whole` are the units of the users from place `first` on, all others are of everybody.
    """
    by, turned = whole.dtype.type(1 / temperature), parts.T
    half = by * whole.dtype.type(share / 2)
    halves = half * changed.astype(whole.dtype)
    to_whole, to_parts = np.empty_like(whole), np.zeros_like(parts)
    powers, others = np.empty(len(parts), np.int32), np.empty(len(parts), whole.dtype)
    for start in range(0, len(whole), _ROWS):
        own = whole[start : start + _ROWS]
        slopes = np.dot(own, turned)
        for r in range(len(own)):
            u = first + start + r
            for v in range(len(parts)):
                others[v] = slopes[r, v] * by - part_sums[v]
                slopes[r, v] = slopes[r, v] * by - sums[u]
            _exp(others, powers)
            _exp(slopes[r], powers)
            for v in range(len(parts)):
                slopes[r, v] = halves[u] * slopes[r, v] + halves[v] * others[v]
            slopes[r, u] -= 2 * halves[u]
        to_whole[start : start + _ROWS] = np.dot(slopes, parts)
        to_parts += np.dot(slopes.T, own)
    return to_whole, to_parts


@_compiled
@no_type_check
def rebuild(weights, room, share):
    """`share` times the summed mean squared errors of known vectors.

    What was rebuilt becomes the slope by it.
    """
    room.decoder.inputs[:] = room.encoder.made
    _through(weights.decoder, room.decoder)
    rebuilt = room.decoder.made
    n_users, n_domains, dim = room.values.shape
    two, zero, loss = rebuilt.dtype.type(2 * share / dim), rebuilt.dtype.type(0), 0.0
    for r in range(len(rebuilt)):
        u = r % n_users
        for d in range(n_domains):
            error, counts = zero, two if room.known[u, d] else zero
            for c in range(dim):
                away = rebuilt[r, d * dim + c] - room.values[u, d, c]
                error += away * away
                rebuilt[r, d * dim + c] = counts * away
            loss += error if room.known[u, d] else zero
    return share * loss / dim


@_compiled
@no_type_check
def back(weights, visible, to_units, room, slopes):
    """After `rebuild`, into `slopes`: the loss's gradient by the weights, given that by units."""
    _back_through(weights.decoder, room.decoder, slopes.decoder)
    np.dot(room.decoder.to_first, weights.decoder.maps[0], room.to_codes)
    # the codes' slopes take the place of the codes, which nobody needs any more
    to_codes = room.encoder.made
    for r in range(len(to_codes)):
        along = _dot(to_units[r], room.units[r])
        for c in range(to_codes.shape[1]):
            across = (to_units[r, c] - along * room.units[r, c]) / room.lengths[r]
            to_codes[r, c] = room.to_codes[r, c] + across
    _back_through(weights.encoder, room.encoder, slopes.encoder)
    _to_pad(weights, visible, room.encoder.to_first, slopes.pad)


@_compiled
@no_type_check
def _to_pad(weights, visible, to_first, to_pad):
    """What is hidden was fed as `pad`: one product for each domain, not for each user."""
    dim, first = len(weights.pad), weights.encoder.maps[0]
    hidden = 1 - np.concatenate((visible[0], visible[-1]))[: len(to_first)].astype(to_first.dtype)
    sums = np.dot(hidden.T, to_first)
    to_pad[:] = 0
    for d in range(visible.shape[2]):
        for o in range(len(first)):
            for c in range(dim):
                to_pad[c] += sums[d, o] * first[o, d * dim + c]


@_compiled
@no_type_check
def _through(layers, passing):
    _mapped(passing.inputs, layers.maps[0], layers.biases[0], passing.first)
    _bent(passing.first, layers.leaks[0], passing.after_first)
    _mapped(passing.after_first, layers.maps[1], layers.biases[1], passing.second)
    _bent(passing.second, layers.leaks[1], passing.after_second)
    _mapped(passing.after_second, layers.maps[2], layers.biases[2], passing.made)


@_compiled
@no_type_check
def _back_through(layers, passing, slopes):
    """The gradient by the weights, given that by what was made, which is in its place."""
    np.dot(passing.made.T, passing.after_second, slopes.maps[2])
    _sum(passing.made, slopes.biases[2])
    np.dot(passing.made, layers.maps[2], passing.to_second)
    _unbent(passing.to_second, passing.second, layers.leaks[1], slopes.leaks[1])
    np.dot(passing.to_second.T, passing.after_first, slopes.maps[1])
    _sum(passing.to_second, slopes.biases[1])
    np.dot(passing.to_second, layers.maps[1], passing.to_first)
    _unbent(passing.to_first, passing.first, layers.leaks[0], slopes.leaks[0])
    np.dot(passing.to_first.T, passing.inputs, slopes.maps[0])
    _sum(passing.to_first, slopes.biases[0])


@_compiled
@no_type_check
def _mapped(inputs, weight, bias, made):
    np.dot(inputs, weight.T, made)
    for r in range(len(made)):
        for c in range(len(bias)):
            made[r, c] += bias[c]


@_compiled
@no_type_check
def _bent(values, leak, made):
    """PReLU."""
    below, zero = leak[0], values.dtype.type(0)
    for r in range(len(values)):
        for c in range(values.shape[1]):
            made[r, c] = max(values[r, c], zero) + below * min(values[r, c], zero)


@_compiled
@no_type_check
def _unbent(slopes, values, leak, to_leak):
    """Turn slopes by what PReLU made into slopes by the `values`; the gradient by its leak."""
    below, zero, one = leak[0], slopes.dtype.type(0), slopes.dtype.type(1)
    to_leak[0] = 0
    for r in range(len(values)):
        total = zero
        for c in range(values.shape[1]):
            total += slopes[r, c] * min(values[r, c], zero)
            slopes[r, c] *= one if values[r, c] > zero else below
        to_leak[0] += total


@_compiled
@no_type_check
def _sum(rows, total):
    """Over all rows."""
    total[:] = 0
    for r in range(len(rows)):
        for c in range(rows.shape[1]):
            total[c] += rows[r, c]


@_compiled
@no_type_check
def _dot(a, b):
    total = a[0] * b[0]
    for c in range(1, len(a)):
        total += a[c] * b[c]
    return total
