import numpy as np
import pytest

from musketeers.errors import DivergedError
from musketeers.run_folder import FolderCheckpoint
from musketeers.training import Epoch, History, fit


class Walk:
    """A model whose weights wander; which epochs are good is given."""

    def __init__(self, valid, *, stop_at=None, losses=None):
        self.valid, self.stop_at, self.losses = valid, stop_at, losses or {}
        self.weights = np.zeros(3)
        self.momentum = np.zeros(3)
        self.number = 0

    def epoch(self, number):
        if number == self.stop_at:
            raise KeyboardInterrupt
        self.number = number
        self.momentum *= 0.9
        self.momentum += np.random.default_rng(number).normal(size=3)
        self.weights += self.momentum
        return self.losses.get(number, 1 / number)

    def validate(self):
        return self.valid[self.number]

    def state(self):
        return {"weights": self.weights, "momentum": self.momentum}

    def restore(self, state):
        np.copyto(self.weights, state["weights"])
        np.copyto(self.momentum, state["momentum"])


def same(one, other):
    """Equal but for the wall time."""
    return [(e.number, e.train_loss, e.valid) for e in one.epochs] == [
        (e.number, e.train_loss, e.valid) for e in other.epochs
    ]


def after(epochs):
    model = Walk([0.0] * 20)
    for number in range(1, epochs + 1):
        model.epoch(number)
    return model.state()


@pytest.mark.parametrize(
    ("valid", "patience", "epochs", "best"),
    [
        ([1, 2, 3, 4, 5, 6], 2, 6, 5),
        ([1, 3, 2, 2, 9, 9], 2, 4, 1),
        ([1, 3, 2, 2, 9, 9], 3, 6, 4),
        ([5, 1, 2, 3, 4, 4.9], 5, 6, 0),
        ([2, 2, 2, 2, 2, 2], 3, 4, 0),
        ([-3, -2, -4, -1, -5, -5], 2, 6, 3),
    ],
)
def test_the_best_epoch_is_kept(valid, patience, epochs, best):
    model, heard = Walk(valid), []
    history = fit(model, max_epochs=5, patience=patience, on_epoch=heard.append)
    assert [e.number for e in history.epochs] == list(range(epochs))
    assert history.best.number == best
    assert history.best.valid == max(valid[:epochs])
    assert heard == list(history.epochs)
    for name, value in after(best).items():
        np.testing.assert_array_equal(model.state()[name], value)


@pytest.mark.parametrize(
    ("valid", "patience", "numbers", "best"),
    [
        ([0, 9, 9, 3, 9, 9, 4, 5], 6, [0, 3, 6, 7], 7),
        ([0, 9, 9, 3, 9, 9, 2, 1], 4, [0, 3, 6, 7], 3),
        ([0, 9, 9, 3, 9, 9, 2, 1], 3, [0, 3, 6], 3),
        ([5, 9, 9, 3, 9, 9, 6, 1], 3, [0, 3], 0),
    ],
)
def test_epochs_that_nobody_looks_at_are_trained_but_never_chosen(valid, patience, numbers, best):
    model = Walk(valid)
    history = fit(model, max_epochs=7, patience=patience, every=3)
    assert [e.number for e in history.epochs] == numbers
    assert [e.passes for e in history.epochs[1:]] == np.diff(numbers).tolist()
    assert [e.train_loss for e in history.epochs[1:]] == [1 / n for n in numbers[1:]]
    assert history.best.number == best
    for name, value in after(best).items():
        np.testing.assert_array_equal(model.state()[name], value)


def test_an_interrupt_between_looks_costs_the_epochs_since_the_last(tmp_path):
    valid, settings = [0, 0, 0, 5, 0, 0, 6, 0, 0, 4], {"max_epochs": 9, "patience": 9, "every": 3}
    whole = Walk(valid)
    expected = fit(whole, **settings)
    checkpoint = FolderCheckpoint(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        fit(Walk(valid, stop_at=5), **settings, checkpoint=checkpoint)
    resumed, heard = Resumed(valid), []
    history = fit(resumed, **settings, checkpoint=checkpoint, on_epoch=heard.append)
    assert same(history, expected)
    assert [e.number for e in heard] == [6, 9]
    assert resumed.weights.tobytes() == whole.weights.tobytes()


def test_no_epoch_at_all_leaves_the_start():
    history = fit(Walk([0.5]), max_epochs=0, patience=1)
    assert [(e.number, e.train_loss, e.valid) for e in history.epochs] == [(0, None, 0.5)]


@pytest.mark.parametrize(
    "valid", [[1, 2, 5, 4, 4, 3, 2], [1, 2, 3, 4, 5, 6, 7], [9, 1, 1, 1, 1, 1]]
)
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, valid, stop_at):
    whole = Walk(valid)
    expected = fit(whole, max_epochs=5, patience=3)
    checkpoint = FolderCheckpoint(tmp_path / "c")
    settings = {"max_epochs": 5, "patience": 3, "checkpoint": checkpoint}
    try:
        fit(Walk(valid, stop_at=stop_at), **settings)
    except KeyboardInterrupt:
        assert len(checkpoint.load()[1]["epochs"]) == stop_at
    resumed, heard = Resumed(valid), []
    history = fit(resumed, **settings, on_epoch=heard.append)
    assert same(history, expected)
    assert [e.number for e in heard] == [e.number for e in expected.epochs[stop_at:]]
    assert resumed.weights.tobytes() == whole.weights.tobytes()
    assert resumed.momentum.tobytes() == whole.momentum.tobytes()


class Resumed(Walk):
    """Knows after `restore` which epoch its weights are from, as a real model would."""

    def restore(self, state):
        super().restore(state)
        self.number = next(n for n in range(9) if np.array_equal(after(n)["weights"], self.weights))


def test_a_complete_fit_returns_at_once(tmp_path):
    checkpoint = FolderCheckpoint(tmp_path / "c")
    first = Walk([1, 3, 2, 2, 2, 2])
    expected = fit(first, max_epochs=5, patience=2, checkpoint=checkpoint)
    again = Walk([], stop_at=1)
    history = fit(again, max_epochs=5, patience=2, checkpoint=checkpoint)
    assert history == expected
    np.testing.assert_array_equal(again.weights, first.weights)


@pytest.mark.parametrize(
    ("valid", "losses", "message"),
    [
        ([1, 2, 3], {2: float("nan")}, r"epoch 2: training loss is nan; learning_rate is probably"),
        ([1, 2, 3], {1: float("inf")}, r"epoch 1: training loss is inf; .*too large, start again"),
        ([1, float("nan")], {}, "epoch 1: validation value is nan"),
        ([float("nan")], {}, "before training: validation value is nan; the starting weights"),
    ],
)
def test_divergence_says_where_and_why(tmp_path, valid, losses, message):
    checkpoint = FolderCheckpoint(tmp_path / "c")
    with pytest.raises(DivergedError, match=message):
        fit(Walk(valid, losses=losses), max_epochs=9, patience=9, checkpoint=checkpoint)
    found = checkpoint.load()
    bad = next((n for n in losses), None) or next(n for n, v in enumerate(valid) if v != v)
    assert (len(found[1]["epochs"]) if found else 0) == bad


def test_the_best_state_is_copied_into_the_same_memory():
    class Spy(Walk):
        def restore(self, state):
            self.restored = state

    model = Spy([1, 2, 3, 4])
    fit(model, max_epochs=3, patience=1)
    assert model.restored["weights"] is not model.weights
    np.testing.assert_array_equal(model.restored["weights"], model.weights)


def test_history_survives_json():
    history = History((Epoch(0, None, 0.25, 0.1, 0.2), Epoch(1, 0.7, 0.5, 1.5, 0.2)))
    assert History.from_json(history.to_json()) == history
    assert history.last.number == 1
