"""The compiled inner loops of BPR: user by user, with row-wise Adagrad and hard negatives.

A user's vector stays in the first-level cache while all of the user's items pass by.  Every
loop releases the interpreter's lock and takes its share of the users as an argument, so that
several may run at once on `lanes.ItemLanes`.  Items are float32, or the bits of float16 (uint16),
which `widened` and `_put` see to; all arithmetic is in float32.

Random numbers are keyed by the epoch and the user (SplitMix64), never by the thread.

What makes the loops fast, beside the order of the work: rows asked for one interaction, or one
user, ahead; no branch that depends on a score, since nobody can predict it; the parts below
compiled into the loop and not called; unsigned indices, which need no test for negative ones.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from musketeers.instructions import ask, kept, stochastically_rounded, widened
from musketeers.splitmix import mix as _mix
from musketeers.splitmix import stream as _stream

# Sums may be reordered and fused, which lets the compiler use vector instructions; NaN and
# infinity keep their meaning, so a diverging run is still noticed.
_FAST = {"reassoc", "contract", "arcp", "nsz"}

_loop = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
_part = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy", forceinline=True)

_ZERO, _ONE, _BIT = np.float32(0), np.float32(1), np.uint64(1)

_PER_PAIR, _PER_DIMENSION = np.uint64(3393), np.uint32(5063)
"""What the noise of a rounding grows by: odd, so that all of its 8,192 values come equally often,
and near irrational shares of 8,192, so that those that follow each other lie far apart."""


@_part
@no_type_check
def _row(places, item):
    """Where an item's vector is; without `places` at its own number, which costs nothing."""
    if places is None:
        return np.uint64(item)
    return np.uint64(places[item])


@_part
@no_type_check
def _n_items(items, places):
    if places is None:
        return items.shape[0]
    return len(places)


@_part
@no_type_check
def _any_other(liked, state):
    """A uniform item that the user does not like, and the new state."""
    n_items = np.uint64(len(liked))
    while True:
        state += np.uint64(0x9E3779B97F4A7C15)
        # the high 32 bits, scaled to the catalogue without a division
        item = ((_mix(state) >> np.uint64(32)) * n_items) >> np.uint64(32)
        if not liked[item]:
            return item, state


@_part
@no_type_check
def _draw(drawn, items, places, liked_item, liked, state):
    """Fill `drawn` with the rows of uniform items that the user does not like; the new state.

    Asks for these rows, and for that of the liked item that they will be set against.
    """
    for c in range(len(drawn)):
        item, state = _any_other(liked, state)
        drawn[c] = _row(places, item)
        ask(items, drawn[c])
    ask(items, _row(places, liked_item))
    return state


@_part
@no_type_check
def _dot(vectors, row, items, item):
    """The inner product of ``vectors[row]`` and ``items[item]``."""
    score = _ZERO
    for d in range(items.shape[1]):
        score += vectors[row, d] * widened(items[item, d])
    return score


@_part
@no_type_check
def _noise(key, p):
    """For the roundings of one interaction's step, another one in each epoch."""
    return np.uint32(key + _PER_PAIR * np.uint64(p))


@_part
@no_type_check
def _put(items, item, d, number, noise):
    """Let ``items[item, d]`` be this number."""
    items[item, d] = stochastically_rounded(
        items, number, np.uint32(noise + _PER_DIMENSION * np.uint32(d))
    )


@_part
@no_type_check
def _hardest(vectors, row, items, drawn, scores, bits):
    """Of the items in `drawn` the one that ``vectors[row]`` scores highest, and its score.

    One candidate is plain BPR; more is dynamic negative sampling (Zhang et al., SIGIR 2013).
    `scores` and `bits` are the same memory, as float32 and as int32.
    """
    # The largest of integers that sort as the scores do, with the place in the low byte: which
    # score wins is a coin toss, and a branch on it would be guessed wrong half of the time.
    top = np.int64(-1) << np.int64(62)
    for c in range(len(drawn)):
        scores[c] = _dot(vectors, row, items, drawn[c])
        order = np.int64(bits[c])
        order ^= (order >> np.int64(31)) & np.int64(0x7FFFFFFF)
        top = max(top, (order << np.int64(8)) | c)
    best = np.uint64(top & np.int64(0xFF))
    return drawn[best], scores[best]


@_part
@no_type_check
def _logistic(difference):
    """How hard to push, 1 / (1 + exp(-difference)), and exp(-abs(difference))."""
    tail = np.exp(-abs(difference))
    share = _ONE / (_ONE + tail)
    return share if difference > _ZERO else tail * share, tail


@_part
@no_type_check
def _added(loss, factors, difference, tail):
    """Loss and factors after one more softplus: ``loss + log(factors)`` is the sum so far.

    softplus(d) = max(d, 0) + log(1 + exp(-|d|)), so that one logarithm serves many factors.
    """
    loss += max(difference, _ZERO)
    factors *= 1.0 + tail
    if factors > 1e200:
        return loss + np.log(factors), 1.0
    return loss, factors


@_part
@no_type_check
def _mark(liked, items, start, stop, value):
    """Note in `liked` which items are the user's, or clear that again."""
    for p in range(start, stop):
        liked[np.uint64(items[p])] = value


@_loop
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
    places,
    learning_rate,
    regularization,
    n_candidates,
    key,
):
    """One BPR pass over the users in `order`, changing users and items; the summed loss.

    Stage 1.  Per liked item i and drawn item j of user u, with x = u.(v_i - v_j), descends
    softplus(-x) + regularization / 2 (|u|^2 + |v_i|^2 + |v_j|^2), each row by Adagrad on
    its mean squared gradient (`*_squares` hold the sums).  Rows changed are noted in `touched`;
    an item's row is its number, or where `places` says (`lanes.Rows`).
    A user who likes everything has no negative and is passed over.
    """
    dim = users.shape[1]
    mean = _ONE / np.float32(dim)
    liked = np.zeros(_n_items(items, places), np.bool_)
    drawn = np.empty((2, n_candidates), np.uint64)
    scores = np.empty(n_candidates, np.float32)
    bits = scores.view(np.int32)
    loss, factors = 0.0, 1.0
    for place in range(len(order)):
        user = np.uint64(order[place])
        if place + 1 < len(order):
            ask(users, order[place + 1])
        start, stop = indptr[user], indptr[user + _BIT]
        if start == stop or stop - start >= len(liked):
            continue
        _mark(liked, liked_items, start, stop, True)
        state = _stream(key, user)
        state = _draw(drawn[start & 1], items, places, liked_items[start], liked, state)
        square = user_squares[user]
        for p in range(start, stop):
            i = _row(places, liked_items[p])
            if p + 1 < stop:
                # one interaction ahead, so that the rows arrive while this one is worked on
                state = _draw(drawn[(p + 1) & 1], items, places, liked_items[p + 1], liked, state)
            j, score = _hardest(users, user, items, drawn[p & 1], scores, bits)
            difference = score - _dot(users, user, items, i)
            push, tail = _logistic(difference)
            loss, factors = _added(loss, factors, difference, tail)
            sum_user, sum_first, sum_second = _ZERO, _ZERO, _ZERO
            for d in range(dim):
                u, v, w = users[user, d], widened(items[i, d]), widened(items[j, d])
                step = push * (v - w) - regularization * u
                sum_user += step * step
                step = push * u - regularization * v
                sum_first += step * step
                step = push * u + regularization * w
                sum_second += step * step
            square += sum_user * mean
            item_squares[i] += sum_first * mean
            item_squares[j] += sum_second * mean
            noise = _noise(key, p)
            rate = learning_rate / np.sqrt(square)
            rate_i = learning_rate / np.sqrt(item_squares[i])
            rate_j = learning_rate / np.sqrt(item_squares[j])
            for d in range(dim):
                u, v, w = users[user, d], widened(items[i, d]), widened(items[j, d])
                users[user, d] = u + rate * (push * (v - w) - regularization * u)
                _put(items, i, d, v + rate_i * (push * u - regularization * v), noise)
                _put(items, j, d, w - rate_j * (push * u + regularization * w), noise)
            touched[i] = touched[j] = True
        user_squares[user] = square
        _mark(liked, liked_items, start, stop, False)
    return loss + np.log(factors)


@_loop
@no_type_check
def train_common_users(
    order,
    indptr,
    liked_items,
    common,
    common_squares,
    own,
    own_squares,
    has_own,
    items,
    item_squares,
    touched,
    learning_rate,
    regularization,
    own_regularization,
    n_candidates,
    key,
):
    """One BPR pass with user vectors of two parts, one common to all domains; the summed loss.

    As `train_users` with u = ``common[user] + own[user]``, where x = u.(v_i - v_j) and a step
    descends softplus(-x) + regularization / 2 (|common|^2 + |v_i|^2 + |v_j|^2)
    + own_regularization / 2 |own|^2.  `own` stays as it is where not ``has_own[user]``.
    """
    dim = common.shape[1]
    mean = _ONE / np.float32(dim)
    liked = np.zeros(items.shape[0], np.bool_)
    drawn = np.empty((2, n_candidates), np.uint64)
    scores = np.empty(n_candidates, np.float32)
    bits = scores.view(np.int32)
    both, row = np.empty((1, dim), np.float32), np.uint64(0)
    loss, factors = 0.0, 1.0
    for one in order:
        user = np.uint64(one)
        start, stop = indptr[user], indptr[user + _BIT]
        if start == stop or stop - start >= items.shape[0]:
            continue
        _mark(liked, liked_items, start, stop, True)
        state = _stream(key, user)
        state = _draw(drawn[start & 1], items, None, liked_items[start], liked, state)
        square, own_square = common_squares[user], own_squares[user]
        learns = _ONE if has_own[user] else _ZERO
        for d in range(dim):
            both[row, d] = common[user, d] + own[user, d]
        for p in range(start, stop):
            i = np.uint64(liked_items[p])
            if p + 1 < stop:
                # one interaction ahead, so that the rows arrive while this one is worked on
                state = _draw(drawn[(p + 1) & 1], items, None, liked_items[p + 1], liked, state)
            j, score = _hardest(both, row, items, drawn[p & 1], scores, bits)
            difference = score - _dot(both, row, items, i)
            push, tail = _logistic(difference)
            loss, factors = _added(loss, factors, difference, tail)
            sum_common, sum_own, sum_first, sum_second = _ZERO, _ZERO, _ZERO, _ZERO
            for d in range(dim):
                u, v, w = both[row, d], widened(items[i, d]), widened(items[j, d])
                pull = push * (v - w)
                step = pull - regularization * common[user, d]
                sum_common += step * step
                step = learns * (pull - own_regularization * own[user, d])
                sum_own += step * step
                step = push * u - regularization * v
                sum_first += step * step
                step = push * u + regularization * w
                sum_second += step * step
            square += sum_common * mean
            own_square += sum_own * mean
            item_squares[i] += sum_first * mean
            item_squares[j] += sum_second * mean
            noise = _noise(key, p)
            rate = learning_rate / np.sqrt(square)
            rate_own = learns * learning_rate / np.sqrt(own_square)
            rate_i = learning_rate / np.sqrt(item_squares[i])
            rate_j = learning_rate / np.sqrt(item_squares[j])
            for d in range(dim):
                u, v, w = both[row, d], widened(items[i, d]), widened(items[j, d])
                pull = push * (v - w)
                common[user, d] += rate * (pull - regularization * common[user, d])
                own[user, d] += rate_own * (pull - own_regularization * own[user, d])
                both[row, d] = common[user, d] + own[user, d]
                _put(items, i, d, v + rate_i * (push * u - regularization * v), noise)
                _put(items, j, d, w - rate_j * (push * u + regularization * w), noise)
            touched[i] = touched[j] = True
        common_squares[user], own_squares[user] = square, own_square
        _mark(liked, liked_items, start, stop, False)
    return loss + np.log(factors)


# within stage 3's step, too
@_part
@no_type_check
def train_items(
    order,
    learns,
    vectors,
    gradients,
    indptr,
    liked_items,
    items,
    item_squares,
    touched,
    places,
    learning_rate,
    regularization,
    n_candidates,
    key,
):
    """One BPR pass with the users' vectors fixed; the summed loss.

    Stage 3.  Row r of `vectors` belongs to user ``order[r]``.  Where ``learns[r]``, items learn
    from this user as in `train_users`.  ``gradients[r]`` becomes the gradient of the user's summed
    BPR loss with respect to ``vectors[r]``, for whatever made the vectors to learn from.
    """
    dim = items.shape[1]
    mean = _ONE / np.float32(dim)
    liked = np.zeros(_n_items(items, places), np.bool_)
    drawn = np.empty((2, n_candidates), np.uint64)
    scores = np.empty(n_candidates, np.float32)
    bits = scores.view(np.int32)
    loss, factors = 0.0, 1.0
    for place in range(len(order)):
        r, user = np.uint64(place), np.uint64(order[place])
        gradients[r, :] = 0
        start, stop = indptr[user], indptr[user + _BIT]
        if start == stop or stop - start >= len(liked):
            continue
        _mark(liked, liked_items, start, stop, True)
        state = _stream(key, user)
        state = _draw(drawn[start & 1], items, places, liked_items[start], liked, state)
        for p in range(start, stop):
            i = _row(places, liked_items[p])
            if p + 1 < stop:
                # one interaction ahead, so that the rows arrive while this one is worked on
                state = _draw(drawn[(p + 1) & 1], items, places, liked_items[p + 1], liked, state)
            j, score = _hardest(vectors, r, items, drawn[p & 1], scores, bits)
            difference = score - _dot(vectors, r, items, i)
            push, tail = _logistic(difference)
            loss, factors = _added(loss, factors, difference, tail)
            sum_first, sum_second = _ZERO, _ZERO
            for d in range(dim):
                u, v, w = vectors[r, d], widened(items[i, d]), widened(items[j, d])
                gradients[r, d] += push * (w - v)
                step = push * u - regularization * v
                sum_first += step * step
                step = push * u + regularization * w
                sum_second += step * step
            if not learns[r]:
                continue
            item_squares[i] += sum_first * mean
            item_squares[j] += sum_second * mean
            rate_i = learning_rate / np.sqrt(item_squares[i])
            rate_j = learning_rate / np.sqrt(item_squares[j])
            noise = _noise(key, p)
            for d in range(dim):
                u, v, w = vectors[r, d], widened(items[i, d]), widened(items[j, d])
                _put(items, i, d, v + rate_i * (push * u - regularization * v), noise)
                _put(items, j, d, w - rate_j * (push * u + regularization * w), noise)
            touched[i] = touched[j] = True
        _mark(liked, liked_items, start, stop, False)
    return loss + np.log(factors)


@_loop
@no_type_check
def note_items(order, indptr, liked_items, n_candidates, key, noted):
    """Mark in `noted` every item that learning from the users in `order` looks at."""
    liked = np.zeros(len(noted), np.bool_)
    for one in order:
        user = np.uint64(one)
        start, stop = indptr[user], indptr[user + _BIT]
        if start == stop or stop - start >= len(noted):
            continue
        _mark(liked, liked_items, start, stop, True)
        _mark(noted, liked_items, start, stop, True)
        state = _stream(key, user)
        for _ in range((stop - start) * n_candidates):
            item, state = _any_other(liked, state)
            noted[item] = True
        _mark(liked, liked_items, start, stop, False)


@_loop
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
                    now = widened(lane_items[lane, row, d])
                    change[d] += now - widened(kept(lane_items, items[row, d]))
                lane_touched[lane, row] = False
        item_squares[row] += square
        for d in range(dim):
            items[row, d] += change[d]
        for lane in range(n_lanes):
            lane_squares[lane, row] = item_squares[row]
            for d in range(dim):
                lane_items[lane, row, d] = kept(lane_items, items[row, d])
