"""The compiled inner loops of BPR: user by user, with row-wise Adagrad and hard negatives.

A user's vector stays in the first-level cache while all of the user's items pass by.  Every
loop releases the interpreter's lock and takes its share of the users as an argument, so that
several may run at once on `lanes.ItemLanes`.

Random numbers are keyed by the epoch and the user (SplitMix64), never by the thread.
"""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Sums may be reordered and fused, which lets the compiler use vector instructions; NaN and
# infinity keep their meaning, so a diverging run is still noticed.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(nogil=True, cache=True, inline="always")
@no_type_check
def _mix(state):
    """SplitMix64's output function (Steele et al., OOPSLA 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
@no_type_check
def _stream(key, user):
    """Where the stream of one user starts; `key` stands for seed and epoch."""
    return _mix(np.uint64(key) + np.uint64(user + 1) * np.uint64(0xD1342543DE82EF95))


@intrinsic
@no_type_check
def _prefetch(_typing, table, _row, _column):
    """Ask for the cache line of ``table[_row, _column]``, to be there when it is needed."""

    @no_type_check
    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        place = cgutils.get_item_pointer(context, builder, kind, array, arguments[1:])
        place = builder.bitcast(place, cgutils.voidptr_t)
        number = ir.IntType(32)
        hint = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, hint, "llvm.prefetch.p0")
        # for reading, kept near, data
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(table, types.intp, types.intp), codegen


@njit(nogil=True, cache=True)
@no_type_check
def _draw(drawn, items, liked_item, liked, state):
    """Fill `drawn` with uniform items that the user does not like; the new state.

    Asks for their rows, and for the row of the liked item that they will be set against: from a
    large table, waiting for rows costs more than all arithmetic.
    """
    n_items = np.uint64(len(liked))
    for c in range(len(drawn)):
        while True:
            state += np.uint64(0x9E3779B97F4A7C15)
            # the high 32 bits, scaled to the catalogue without a division
            item = np.int64(((_mix(state) >> np.uint64(32)) * n_items) >> np.uint64(32))
            if not liked[item]:
                break
        drawn[c] = item
        for d in range(0, items.shape[1], 16):
            _prefetch(items, item, d)
    for d in range(0, items.shape[1], 16):
        _prefetch(items, liked_item, d)
    return state


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def _hardest(vector, items, drawn):
    """Of the items in `drawn` the one that the user's vector scores highest, and its score.

    One candidate is plain BPR; more is dynamic negative sampling (Zhang et al., SIGIR 2013).
    """
    best, best_score = np.int64(-1), np.float32(-np.inf)
    for c in range(len(drawn)):
        item = drawn[c]
        score = np.float32(0)
        for d in range(vector.shape[0]):
            score += vector[d] * items[item, d]
        if best < 0 or score > best_score:
            best, best_score = item, score
    return best, best_score


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def train_users(
    order,
    indptr,
    liked_items,
    users,
    user_squares,
    items,
    item_squares,
    touched,
    learning_rate,
    regularization,
    n_candidates,
    key,
):
    """One BPR pass over the users in `order`, changing users and items; the summed loss.

    Stage 1.  Per liked item i and drawn item j of user u, with x = u.(v_i - v_j), descends
    softplus(-x) + regularization / 2 (|u|^2 + |v_i|^2 + |v_j|^2), each row by Adagrad on
    its mean squared gradient (`*_squares` hold the sums).  Rows changed are noted in `touched`.
    A user who likes everything has no negative and is passed over.
    """
    dim = users.shape[1]
    liked = np.zeros(items.shape[0], np.bool_)
    drawn = np.empty((2, n_candidates), np.int64)
    loss, factors = 0.0, 1.0
    for user in order:
        start, stop = indptr[user], indptr[user + 1]
        if stop - start >= items.shape[0]:
            continue
        for p in range(start, stop):
            liked[liked_items[p]] = True
        state = _stream(key, user)
        if start < stop:
            state = _draw(drawn[start % 2], items, liked_items[start], liked, state)
        vector = users[user]
        square = user_squares[user]
        for p in range(start, stop):
            i = liked_items[p]
            if p + 1 < stop:
                # one interaction ahead, so that the rows arrive while this one is worked on
                state = _draw(drawn[(p + 1) % 2], items, liked_items[p + 1], liked, state)
            j, difference = _hardest(vector, items, drawn[p % 2])
            first, second = items[i], items[j]
            for d in range(dim):
                difference -= vector[d] * first[d]
            # softplus(d) = max(d, 0) + log(1 + exp(-|d|)); one logarithm serves many factors
            tail = np.exp(-abs(difference))
            share = np.float32(1) / (np.float32(1) + tail)
            push = share if difference > 0 else tail * share
            loss += max(difference, np.float32(0))
            factors *= 1.0 + tail
            if factors > 1e200:
                loss += np.log(factors)
                factors = 1.0
            sum_user, sum_first, sum_second = np.float32(0), np.float32(0), np.float32(0)
            for d in range(dim):
                step = push * (first[d] - second[d]) - regularization * vector[d]
                sum_user += step * step
                step = push * vector[d] - regularization * first[d]
                sum_first += step * step
                step = push * vector[d] + regularization * second[d]
                sum_second += step * step
            square += sum_user / dim
            item_squares[i] += sum_first / dim
            item_squares[j] += sum_second / dim
            rate = learning_rate / np.sqrt(square)
            rate_i = learning_rate / np.sqrt(item_squares[i])
            rate_j = learning_rate / np.sqrt(item_squares[j])
            for d in range(dim):
                u, v, w = vector[d], first[d], second[d]
                vector[d] += rate * (push * (v - w) - regularization * u)
                first[d] += rate_i * (push * u - regularization * v)
                second[d] -= rate_j * (push * u + regularization * w)
            touched[i] = touched[j] = True
        user_squares[user] = square
        for p in range(start, stop):
            liked[liked_items[p]] = False
    return loss + np.log(factors)


@njit(nogil=True, cache=True, fastmath=_FAST)
@no_type_check
def train_items(
    order,
    vectors,
    gradients,
    indptr,
    liked_items,
    items,
    item_squares,
    touched,
    learning_rate,
    regularization,
    n_candidates,
    key,
):
    """One BPR pass with the users' vectors fixed; the summed loss.

    Stage 3.  Row r of `vectors` belongs to user ``order[r]``.  Items learn as in `train_users`,
    or stay where `learning_rate` is 0; ``gradients[r]`` becomes the gradient of the user's
    summed BPR loss with respect to ``vectors[r]``, for whatever made the vectors to learn from.
    """
    dim = items.shape[1]
    liked = np.zeros(items.shape[0], np.bool_)
    drawn = np.empty((2, n_candidates), np.int64)
    loss, factors = 0.0, 1.0
    for r in range(len(order)):
        user = order[r]
        start, stop = indptr[user], indptr[user + 1]
        vector, gradient = vectors[r], gradients[r]
        gradient[:] = 0
        if stop - start >= items.shape[0]:
            continue
        for p in range(start, stop):
            liked[liked_items[p]] = True
        state = _stream(key, user)
        if start < stop:
            state = _draw(drawn[start % 2], items, liked_items[start], liked, state)
        for p in range(start, stop):
            i = liked_items[p]
            if p + 1 < stop:
                # one interaction ahead, so that the rows arrive while this one is worked on
                state = _draw(drawn[(p + 1) % 2], items, liked_items[p + 1], liked, state)
            j, difference = _hardest(vector, items, drawn[p % 2])
            first, second = items[i], items[j]
            for d in range(dim):
                difference -= vector[d] * first[d]
            # softplus(d) = max(d, 0) + log(1 + exp(-|d|)); one logarithm serves many factors
            tail = np.exp(-abs(difference))
            share = np.float32(1) / (np.float32(1) + tail)
            push = share if difference > 0 else tail * share
            loss += max(difference, np.float32(0))
            factors *= 1.0 + tail
            if factors > 1e200:
                loss += np.log(factors)
                factors = 1.0
            for d in range(dim):
                gradient[d] += push * (second[d] - first[d])
            if learning_rate == 0:
                continue
            sum_first, sum_second = np.float32(0), np.float32(0)
            for d in range(dim):
                step = push * vector[d] - regularization * first[d]
                sum_first += step * step
                step = push * vector[d] + regularization * second[d]
                sum_second += step * step
            item_squares[i] += sum_first / dim
            item_squares[j] += sum_second / dim
            rate_i = learning_rate / np.sqrt(item_squares[i])
            rate_j = learning_rate / np.sqrt(item_squares[j])
            for d in range(dim):
                first[d] += rate_i * (push * vector[d] - regularization * first[d])
                second[d] -= rate_j * (push * vector[d] + regularization * second[d])
            touched[i] = touched[j] = True
        for p in range(start, stop):
            liked[liked_items[p]] = False
    return loss + np.log(factors)


@njit(nogil=True, cache=True)
@no_type_check
def merge_rows(start, stop, items, item_squares, lane_items, lane_squares, lane_touched):
    """Add what every lane changed in rows start..stop - 1, and give all lanes the sum.

    Lanes are added in their order, so the result does not depend on which ended first.
    """
    n_lanes, dim = lane_items.shape[0], items.shape[1]
    change = np.empty(dim, np.float32)
    for row in range(start, stop):
        changed = False
        for lane in range(n_lanes):
            changed |= lane_touched[lane, row]
        if not changed:
            continue
        change[:] = 0
        square = np.float32(0)
        for lane in range(n_lanes):
            if lane_touched[lane, row]:
                square += lane_squares[lane, row] - item_squares[row]
                for d in range(dim):
                    change[d] += lane_items[lane, row, d] - items[row, d]
                lane_touched[lane, row] = False
        item_squares[row] += square
        for d in range(dim):
            items[row, d] += change[d]
        for lane in range(n_lanes):
            lane_squares[lane, row] = item_squares[row]
            for d in range(dim):
                lane_items[lane, row, d] = items[row, d]
