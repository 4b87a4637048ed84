"""Stages 1 and 3 on a GPU; where there is none, interpreted."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_art import DIM, SOURCES, looking, network_of, run, transferred, users
from test_art import ready as made_ready

from musketeers import device
from musketeers.art import network
from musketeers.art.model import AttentionTransfer
from musketeers.config import PretrainConfig
from musketeers.data.interactions import Interactions
from musketeers.device import computing_on
from musketeers.pretrain.lanes import ItemLanes
from musketeers.pretrain.mf import pretrain
from musketeers.pretrain.tables import Catalogue, Tables
from musketeers.seeding import Seed
from musketeers.splitmix import GOLDEN, below, mix, stream
from musketeers.training import Unwatched

pytest.importorskip("triton")
from musketeers.pretrain.on_gpu import ItemsOnGpu, OnGpu, placed

WHERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RATE, STRENGTH, KEY = 0.1, 0.05, np.uint64(2**62 + 77)


@pytest.fixture
def on_gpu(monkeypatch):
    """A context in which all that asks for a GPU gets one, or the interpreter."""
    monkeypatch.setattr(device, "_found", lambda _: WHERE)
    return lambda: computing_on("cuda")


class Some:
    """Pairs, vectors and Adagrad's sums; the last user has nothing, the one before everything."""

    def __init__(self, n_users=7, n_items=30, dim=6, share=0.15, entropy=0):
        make = Seed(entropy).numpy()
        likes = make.random((n_users, n_items)) < share
        likes[-1], likes[-2] = False, True
        self.train = Interactions.from_pairs(*np.nonzero(likes), n_users=n_users, n_items=n_items)
        self.users, self.items = (
            make.standard_normal((n, dim), np.float32) for n in (n_users, n_items)
        )
        self.user_squares, self.item_squares = (
            make.random(n, np.float32) + np.float32(0.1) for n in (n_users, n_items)
        )

    def placed(self, n_candidates=3):
        self.lanes = ItemLanes(self.items, self.item_squares, n_lanes=1)
        return ItemsOnGpu(self.train, self.lanes, n_candidates, WHERE)

    def learnt_users(self, order=None, n_candidates=3):
        """Users, their sums, items, theirs, and the loss after one turn."""
        items = self.placed(n_candidates)
        order = np.arange(len(self.users)) if order is None else order
        shares = order, self.train.indptr[order]
        vectors, squares = (placed(a, WHERE) for a in (self.users, self.user_squares))
        loss = items.train_users(shares, vectors, squares, RATE, STRENGTH, KEY)
        items.learn(RATE)
        items.give_back()
        found = (vectors.cpu().numpy(), squares.cpu().numpy(), self.lanes.items, self.lanes.squares)
        return *found, float(loss)

    def learnt_items(self, learns, n_candidates=3):
        """Slopes by the users' vectors, items, their sums, and the loss after one turn."""
        items = self.placed(n_candidates)
        order, vectors = np.arange(len(self.users)), placed(self.users, WHERE)
        loss, slopes = items.train_items(order, placed(learns, WHERE), vectors, STRENGTH, KEY)
        items.learn(RATE)
        items.give_back()
        return slopes.cpu().numpy(), self.lanes.items, self.lanes.squares, float(loss)


def drawn(begin, liked, n_items, n_candidates):
    """Without end the candidates that a user's liked items are set against, by the stream."""
    state, number, n_drawn = stream(KEY, begin), 1, 1 << (n_candidates - 1).bit_length()
    while True:
        numbers = number + np.arange(n_drawn)
        found = np.full(n_drawn, -1)
        while (open_ := (found < 0) | np.isin(found, liked)).any():
            states = np.uint64(state) + numbers.astype(np.uint64) * GOLDEN
            new = [int(below(np.uint64(mix(one)), n_items)) for one in states]
            found = np.where(open_, new, found)
            numbers += n_drawn
        number = numbers[-1] - n_drawn + 1
        yield found[:n_candidates]


def by_definition(some, n_candidates, *, tunes_users, learns, share=256):
    """What a turn does, in float64: users one pair after the other, items all at the end."""
    users, items = some.users.astype(float), some.items.astype(float)
    squares, dim, loss = some.user_squares.astype(float), items.shape[1], 0.0
    sums, square_sums, slopes = np.zeros_like(items), np.zeros(len(items)), np.zeros_like(users)
    for user in range(some.train.n_users):
        liked = some.train.of(user)
        if len(liked) == len(items):
            continue
        with np.errstate(over="ignore"):
            for number, i in enumerate(liked):
                if number % share == 0:
                    begin = some.train.indptr[user] + number
                    draws = drawn(begin, liked, len(items), n_candidates)
                candidates = next(draws)
                j = candidates[np.argmax(items[candidates] @ users[user])]
                apart = users[user] @ (items[j] - items[i])
                push = 1 / (1 + np.exp(-apart))
                loss += np.logaddexp(0, apart)
                slopes[user] += push * (items[j] - items[i])
                for item, step in (
                    (i, push * users[user] - STRENGTH * items[i]),
                    (j, -push * users[user] - STRENGTH * items[j]),
                ):
                    sums[item] += learns[user] * step
                    square_sums[item] += learns[user] * (step @ step) / dim
                step = push * (items[i] - items[j]) - STRENGTH * users[user]
                if tunes_users:
                    squares[user] += step @ step / dim
                    users[user] += RATE / np.sqrt(squares[user]) * step
    item_squares = some.item_squares + square_sums
    items += (RATE / np.sqrt(item_squares))[:, None] * sums
    return users, squares, items, item_squares, loss, slopes


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from musketeers.pretrain import gpu_kernels

kinds = {
    "of": "*i64", "rows": "*i64", "begins": "*i64", "share": "i32", "learns": "*i1",
    "indptr": "*i64", "liked_items": "*i32", "users": "*fp32", "user_squares": "*fp32",
    "vectors": "*fp32", "slope_sums": "*i64", "items": "*fp32", "sums": "*i64",
    "square_sums": "*i64", "losses": "*fp32", "n_items": "i32", "learning_rate": "fp32",
    "regularization": "fp32", "key": "i64",
}
fixed = {"dim": 50, "width": 64, "n_candidates": 3, "n_drawn": 4}
kernel = getattr(gpu_kernels, sys.argv[1])
names = kernel.arg_names
source = ASTSource(
    kernel,
    {name: kinds.get(name, "constexpr") for name in names},
    {(names.index(name),): value for name, value in fixed.items()},
)
made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
print(len(made.asm["cubin"]), "add.u64" in made.asm["ptx"])
"""


@pytest.mark.parametrize("name", ["train_users", "train_items"])
def test_what_is_interpreted_here_compiles_for_a_gpu(name):
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, name]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    size, adds = found.stdout.split()
    assert int(size) > 10_000
    assert adds == "True"


# --- a turn of stage 1


@pytest.mark.parametrize(("dim", "n_candidates"), [(6, 3), (8, 1), (3, 4)])
def test_a_turn_is_its_definition(dim, n_candidates):
    some = Some(dim=dim)
    everybody = np.ones(len(some.users), np.bool_)
    expected = by_definition(some, n_candidates, tunes_users=True, learns=everybody)
    for found, right in zip(some.learnt_users(n_candidates=n_candidates), expected, strict=False):
        close(found, right)


def test_who_has_nothing_or_everything_teaches_nothing():
    some = Some()
    users, squares, items, item_squares, loss = some.learnt_users(order=np.array([5, 6]))
    for now, before in (
        (users, some.users), (squares, some.user_squares),
        (items, some.items), (item_squares, some.item_squares),
    ):  # fmt: skip
        np.testing.assert_array_equal(now, before)
    assert loss == 0


def test_the_order_in_which_programs_add_changes_no_bit():
    some = Some(n_users=5)
    one = some.learnt_users(order=np.arange(3))
    other = some.learnt_users(order=np.array([2, 0, 1]))
    assert [a.tobytes() for a in one[:4]] == [a.tobytes() for a in other[:4]]


def test_a_negative_is_never_a_liked_item():
    some = Some(n_users=3, n_items=20)
    some.train = Interactions.from_pairs(
        np.zeros(19, int), np.delete(np.arange(20), 13), n_users=1, n_items=20
    )
    some.users, some.user_squares = some.users[:1], some.user_squares[:1]
    expected = by_definition(some, 2, tunes_users=True, learns=[True])
    *found, _ = some.learnt_users(n_candidates=2)
    assert len(some.train.of(0)) == 19
    close(found[2], expected[2])
    # the only one left was the negative of all
    assert (found[3] - some.item_squares).argmax() == 13


def test_a_long_history_is_learned_from_over_several_turns(on_gpu, monkeypatch):
    monkeypatch.setattr("musketeers.pretrain.on_gpu.SHARE", 3)
    some = Some(n_users=9, share=0.3)
    one, other = (Catalogue(some.train, Seed(n)) for n in range(2))
    tables = Tables([one, other], Seed(0), PretrainConfig(), dim=6, n_lanes=1)
    begun = []
    train_users = ItemsOnGpu.train_users

    def noted(self, shares, *args):
        assert len(np.unique(shares[0])) == len(shares[0])
        begun.append((self, *shares))
        return train_users(self, shares, *args)

    monkeypatch.setattr(ItemsOnGpu, "train_users", noted)
    before = tables.users.copy()
    loss = OnGpu(tables, PretrainConfig(candidates=1), WHERE).epoch(1)
    counts = some.train.counts()
    # vectors near 0 tell nothing apart; who likes everything has no loss
    share = counts[counts < 30].sum() / counts.sum()
    assert loss == pytest.approx(share * np.log(2), rel=0.05)
    assert (tables.users != before).any(1).tolist() == [0 < n < 30 for n in counts]
    for items in {items for items, _, _ in begun}:
        found = np.concatenate([begins for other, _, begins in begun if other is items])
        expected = np.concatenate(
            [some.train.indptr[user] + np.arange(0, n, 3) for user, n in enumerate(counts) if n]
        )
        assert sorted(found) == sorted(expected)


# --- a turn of stage 3


@pytest.mark.parametrize("tuned", [True, False])
def test_a_turn_with_fixed_users_is_its_definition(tuned, monkeypatch):
    monkeypatch.setattr("musketeers.pretrain.on_gpu.FIXED_SHARE", 2)
    some = Some()
    learns = np.arange(len(some.users)) % 2 == 0 if tuned else np.zeros(len(some.users), np.bool_)
    _, _, items, squares, loss, slopes = by_definition(
        some, 3, tunes_users=False, learns=learns, share=2
    )
    found = some.learnt_items(learns)
    for one, right in zip(found, (slopes, items, squares, loss), strict=True):
        close(one, right)
    assert (found[1] != some.items).any() == tuned


@pytest.mark.parametrize("sources", SOURCES)
@pytest.mark.parametrize("n_sources", [1, 3])
def test_the_network_is_that_of_the_processor(n_sources, sources):
    weights, told = network_of(n_sources, DIM), users(20, n_sources, DIM)
    make = np.random.default_rng(2)
    dropped = make.choice([0, 1.25], size=(20, n_sources))
    slopes = make.normal(size=(20, DIM))
    expected, trace, (own, sharpness, factors) = run(
        weights, told, dropped=dropped, sources=sources
    )
    model = AttentionTransfer(n_sources, DIM, generator=torch.Generator()).double()
    model.load_state_dict({n: torch.tensor(w) for n, w in weights._asdict().items()})
    found = model(*(torch.tensor(a) for a in told), sharpness, torch.tensor(factors))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-9, atol=1e-9)
    found.backward(torch.tensor(slopes))
    right = network.backward(weights, own, sharpness, factors, trace, slopes)
    for name, weight in model.named_parameters():
        slope = 0 if weight.grad is None else weight.grad
        np.testing.assert_allclose(slope, getattr(right, name), rtol=1e-7, atol=1e-9, err_msg=name)


# --- whole stages


@pytest.fixture(scope="module")
def ready():
    return made_ready(n_users=24)


def test_stage_1_learns_there_and_gives_the_same_bits_again(ready, on_gpu):
    split = ready.data.splits["a"]
    settings = PretrainConfig(max_epochs=2, patience=2, tries=1, validate_every=1)

    def learnt():
        return pretrain(split, looking(split), settings, Seed(0), Unwatched(), dim=4)

    here = learnt()
    with on_gpu():
        there, again = learnt(), learnt()
    losses = [epoch.train_loss for epoch in there.history[0].epochs[1:]]
    assert losses[-1] < losses[0]
    near = [epoch.train_loss for epoch in here.history[0].epochs[1:]]
    assert losses == pytest.approx(near, rel=0.05)
    assert there.factors.items.tobytes() == again.factors.items.tobytes()
    assert there.factors.users.tobytes() == again.factors.users.tobytes()
    assert there.factors.items.tobytes() != here.factors.items.tobytes()


def test_stage_3_learns_there_and_gives_the_same_bits_again(ready, on_gpu):
    here = transferred(ready, max_epochs=2)
    with on_gpu():
        there, again = (transferred(ready, max_epochs=2) for _ in range(2))
    losses = [epoch.train_loss for epoch in there.history.epochs[1:]]
    assert losses[-1] < losses[0]
    near = [epoch.train_loss for epoch in here.history.epochs[1:]]
    assert losses == pytest.approx(near, rel=0.05)
    assert {n: w.tobytes() for n, w in there.weights.items()} == {
        n: w.tobytes() for n, w in again.weights.items()
    }
    assert there.factors.items.tobytes() == again.factors.items.tobytes()
