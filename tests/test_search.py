"""The search for a strength and a rate, on models whose value is known."""

import math

import pytest

from musketeers.config import PretrainConfig
from musketeers.pretrain.search import climb, search
from musketeers.training import Unwatched, fit


class Known:
    """A `Trainable` that is worth the more, the nearer its setting is to a peak."""

    def __init__(self, config, peak):
        self.setting = config.regularization, config.learning_rate
        self._value = -sum(abs(math.log2(a / b)) for a, b in zip(self.setting, peak, strict=True))

    def epoch(self, number):
        return 0.0

    def validate(self):
        return self._value

    def state(self):
        return {}

    def restore(self, state):
        pass


def path(peak, **settings):
    """What the search chose, and the settings it tried in order."""
    tried = []

    def at(config):
        tried.append((config.regularization, config.learning_rate))
        return Known(config, peak)

    config = PretrainConfig(regularization=1.0, learning_rate=1.0, max_epochs=2, **settings)
    found = search(at, config, Unwatched())
    assert found.model.setting == (found.setting.regularization, found.setting.learning_rate)
    assert [one.best.valid for one in found.history] == [
        Known(config.model_copy(update={"regularization": s, "learning_rate": r}), peak).validate()
        for s, r in tried
    ]
    return found.model.setting, tried


def test_it_goes_down_in_strength_then_in_rate_then_in_strength():
    chosen, tried = path((0.25, 1 / 16))
    assert chosen == (0.25, 1 / 16)
    assert tried == [
        (1, 1), (0.5, 1), (0.25, 1), (0.125, 1),
        (0.25, 1 / 4), (0.25, 1 / 16), (0.25, 1 / 64),
        (0.125, 1 / 16),
    ]  # fmt: skip


def test_a_peak_at_the_start_takes_one_look_to_each_side():
    assert path((1, 1)) == ((1, 1), [(1, 1), (0.5, 1), (1, 1 / 4)])


def test_strength_is_tried_again_at_the_slower_rate():
    # weaker pays only where slow: |log| of the product makes a valley that bends
    class Bent(Known):
        def __init__(self, config, _):
            super().__init__(config, (1, 1))
            strength, rate = self.setting
            self._value = {(1, 1): 0, (1, 0.25): 1, (0.5, 0.25): 2}.get((strength, rate), -1)

    tried = []
    config = PretrainConfig(regularization=1.0, learning_rate=1.0, max_epochs=1)
    found = search(lambda c: tried.append(c) or Bent(c, None), config, Unwatched())
    assert found.model.setting == (0.5, 0.25)
    assert [(c.regularization, c.learning_rate) for c in tried] == [
        (1, 1), (0.5, 1), (1, 0.25), (1, 1 / 16), (0.5, 0.25), (0.25, 0.25), (0.5, 1 / 16)
    ]  # fmt: skip


@pytest.mark.parametrize("tries", [1, 2, 4, 6])
def test_it_ends_after_so_many_tries_with_the_best_of_them(tries):
    chosen, tried = path((1e-6, 1e-6), tries=tries)
    assert len(tried) == tries
    assert chosen == (0.5 ** (tries - 1), 1)


def test_a_climb_goes_both_ways_and_never_back_to_what_was_tried():
    tried = []

    def at(setting):
        tried.append(setting)
        return Known(PretrainConfig(regularization=setting, learning_rate=1.0), (4.0, 1.0))

    def train(model, setting):
        assert setting == tried[-1]
        return fit(model, max_epochs=1, patience=1)

    moves = (lambda x: 2 * x, lambda x: x / 2)
    found = climb(at, 1.0, moves, train, tries=20)
    assert found.setting == 4.0
    assert tried == [1, 2, 4, 8]
    assert [one.best.valid for one in found.history] == [-2, -1, 0, -1]
    tried.clear()
    assert climb(at, 16.0, moves, train, tries=20).setting == 4.0
    assert tried == [16, 32, 8, 4, 2]
