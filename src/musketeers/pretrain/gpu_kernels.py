"""The inner loops of BPR on a GPU: a program for each user, or for a share of a user's pairs.

They are those of `kernels`, but for one thing: items stand still while a turn lasts, and what users
would have them change is summed.  The sums are whole numbers, so that the order in which programs
add to them, which no GPU keeps, changes nothing: the same seed gives the same bits.

A program begins at some pair and works through a `share` of them, or to the user's last; the
random numbers are those of the pair that it begins at.  Kernels are compiled for what integers are
divisible by, except the key, which is another each epoch.

Needs Triton, which comes with every build of torch for NVIDIA's GPUs.
"""

from typing import no_type_check

import triton
import triton.language as tl

ONE = tl.constexpr(2.0**32)
"""What 1 is in the sums: gradients of 2**-32 still count, and 2**31 of size 1 fit."""

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)


@triton.jit
@no_type_check
def _mix(state):
    """64 random bits of a state; see `splitmix.mix`."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
@no_type_check
def _below(bits, n):
    """The high half of 64 random bits, scaled to 0..n - 1; see `splitmix.below`."""
    return (((bits >> 32) * n.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit
@no_type_check
def _is_liked(item, liked_items, start, stop):
    """Whether each of some items is among ``liked_items[start:stop]``, which ascend."""
    last = start + tl.zeros_like(item)
    size = stop - start
    while size > 1:
        half = size // 2
        last = tl.where(tl.load(liked_items + last + half) <= item, last + half, last)
        size -= half
    return tl.load(liked_items + last) == item


@triton.jit
@no_type_check
def _stream(key, row):
    """The state where the stream of one row starts; see `splitmix.stream`."""
    return _mix(key.to(tl.uint64) + (row + 1).to(tl.uint64) * 0xD1342543DE82EF95)


@triton.jit
@no_type_check
def _draw(state, number, n_drawn: tl.constexpr, liked_items, start, stop, n_items):
    """Uniform items that the user does not like, from a number of the stream on; the next number.

    All are drawn at once, so that those who miss cost a number of each.
    """
    numbers = number + tl.arange(0, n_drawn)
    drawn = _below(_mix(state + numbers.to(tl.uint64) * _GOLDEN), n_items)
    liked = _is_liked(drawn, liked_items, start, stop)
    while tl.max(liked.to(tl.int32), axis=0) > 0:
        numbers += n_drawn
        other = _below(_mix(state + numbers.to(tl.uint64) * _GOLDEN), n_items)
        drawn = tl.where(liked, other, drawn)
        liked = liked & _is_liked(other, liked_items, start, stop)
    return drawn, tl.max(numbers, axis=0) + 1


@triton.jit
@no_type_check
def _opponents(vector, item, items, drawn, d, dim: tl.constexpr, n_candidates: tl.constexpr):
    """The vectors of an item and of the hardest of those drawn, which that is, and the difference.

    Of those drawn, a power of two, only the first `n_candidates` count.
    """
    place = tl.arange(0, drawn.shape[0])
    inside = d < dim
    first = tl.load(items + item * dim + d, inside, 0.0)
    rows = tl.load(items + drawn[:, None] * dim + d[None, :], inside[None, :], 0.0)
    scores = tl.sum(rows * vector[None, :], axis=1)
    scores = tl.where(place < n_candidates, scores, float("-inf"))
    chosen = place == tl.argmax(scores, axis=0)
    hardest = tl.sum(tl.where(chosen, drawn, 0), axis=0)
    second = tl.sum(tl.where(chosen[:, None], rows, 0.0), axis=0)
    return first, second, hardest, tl.sum((second - first) * vector, axis=0)


@triton.jit
@no_type_check
def _softplus(x):
    """log(1 + exp(x)), and its slope."""
    tail = tl.exp(-tl.abs(x))
    share = 1 / (1 + tail)
    return tl.maximum(x, 0.0) + tl.log(1 + tail), tl.where(x > 0, share, tail * share)


@triton.jit
@no_type_check
def _add(sums, row, step, d, dim: tl.constexpr):
    """Add a step to a row of sums."""
    tl.atomic_add(sums + row * dim + d, (step * ONE).to(tl.int64), d < dim, sem="relaxed")


@triton.jit
@no_type_check
def _teach(sums, square_sums, item, step, d, dim: tl.constexpr):
    """Add to an item's sums what a user would have it change."""
    _add(sums, item, step, d, dim)
    square = tl.sum(step * step, axis=0) / dim
    tl.atomic_add(square_sums + item, (square * ONE).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["key"])
@no_type_check
def train_users(
    of,
    begins,
    share,
    indptr,
    liked_items,
    users,
    user_squares,
    items,
    sums,
    square_sums,
    losses,
    n_items,
    learning_rate,
    regularization,
    key,
    dim: tl.constexpr,
    width: tl.constexpr,
    n_candidates: tl.constexpr,
    n_drawn: tl.constexpr,
):
    """`kernels.train_users` of user ``of[p]`` from pair ``begins[p]`` on; ``losses[p]`` is the sum.

    No user may be there twice.
    """
    place = tl.program_id(0)
    user, begin = tl.load(of + place), tl.load(begins + place)
    start, stop = tl.load(indptr + user), tl.load(indptr + user + 1)
    state, number = _stream(key, begin), tl.full((), 1, tl.int64)
    d = tl.arange(0, width)
    vector = tl.load(users + user * dim + d, d < dim, 0.0)
    square = tl.load(user_squares + user)
    loss = 0.0
    if stop - start < n_items:
        for p in range(begin, tl.minimum(begin + share, stop)):
            item = tl.load(liked_items + p).to(tl.int64)
            drawn, number = _draw(state, number, n_drawn, liked_items, start, stop, n_items)
            first, second, other, difference = _opponents(
                vector, item, items, drawn, d, dim, n_candidates
            )
            added, push = _softplus(difference)
            loss += added
            _teach(sums, square_sums, item, push * vector - regularization * first, d, dim)
            _teach(sums, square_sums, other, -push * vector - regularization * second, d, dim)
            step = push * (first - second) - regularization * vector
            square += tl.sum(step * step, axis=0) / dim
            vector += learning_rate / tl.sqrt(square) * step
    tl.store(users + user * dim + d, vector, d < dim)
    tl.store(user_squares + user, square)
    tl.store(losses + place, loss)


@triton.jit(do_not_specialize=["key"])
@no_type_check
def train_items(
    of,
    rows,
    begins,
    share,
    learns,
    indptr,
    liked_items,
    vectors,
    slope_sums,
    items,
    sums,
    square_sums,
    losses,
    n_items,
    regularization,
    key,
    dim: tl.constexpr,
    width: tl.constexpr,
    n_candidates: tl.constexpr,
    n_drawn: tl.constexpr,
):
    """`kernels.train_items` of user ``of[rows[p]]`` from pair ``begins[p]`` on, as above.

    The slope by ``vectors[rows[p]]`` is added to that row of `slope_sums`.
    """
    place = tl.program_id(0)
    row, begin = tl.load(rows + place), tl.load(begins + place)
    user, learn = tl.load(of + row), tl.load(learns + row)
    start, stop = tl.load(indptr + user), tl.load(indptr + user + 1)
    state, number = _stream(key, begin), tl.full((), 1, tl.int64)
    d = tl.arange(0, width)
    vector = tl.load(vectors + row * dim + d, d < dim, 0.0)
    slope = tl.zeros_like(vector)
    loss = 0.0
    if stop - start < n_items:
        for p in range(begin, tl.minimum(begin + share, stop)):
            item = tl.load(liked_items + p).to(tl.int64)
            drawn, number = _draw(state, number, n_drawn, liked_items, start, stop, n_items)
            first, second, other, difference = _opponents(
                vector, item, items, drawn, d, dim, n_candidates
            )
            added, push = _softplus(difference)
            loss += added
            slope += push * (second - first)
            if learn:
                _teach(sums, square_sums, item, push * vector - regularization * first, d, dim)
                _teach(sums, square_sums, other, -push * vector - regularization * second, d, dim)
    _add(slope_sums, row, slope, d, dim)
    tl.store(losses + place, loss)
