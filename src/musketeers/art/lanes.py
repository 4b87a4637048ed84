"""Stage 3 on processors: the users of a step shared out to lanes."""

from collections.abc import Iterable, Iterator
from functools import partial, reduce

import numpy as np
import torch

from musketeers import modules
from musketeers.art import network
from musketeers.art.inputs import Batch, Inputs, Lesson
from musketeers.art.model import AttentionTransfer
from musketeers.art.network import Weights
from musketeers.group import total
from musketeers.pretrain.lanes import ItemLanes


class Lanes:
    """See `train.Computer`."""

    def __init__(
        self, model: AttentionTransfer, inputs: Inputs, lesson: Lesson, items: ItemLanes
    ) -> None:
        self._model, self._inputs, self._lesson, self._items = model, inputs, lesson, items
        self._counts = lesson.train.counts()

    def learn(self, batches: Iterable[Batch], key: np.uint64) -> Iterator[float]:
        """See `Computer.learn`."""
        waiting = 0
        for batch in batches:
            costs = self._counts[batch.users]
            job = partial(self._learn, self._model.weights(), batch, key)
            losses, slopes = zip(*self._items.run(costs, job), strict=True)
            for weight, *parts in zip(self._model.parameters(), *slopes, strict=True):
                weight.grad = torch.from_numpy(reduce(np.add, parts))
            modules.add_slopes(self._model)
            yield sum(losses)
            waiting += int(total(costs.sum()))
            if waiting >= self._items.block:
                self._items.merge()
                waiting = 0
        self._items.merge()

    def _learn(
        self,
        weights: Weights,
        batch: Batch,
        key: np.uint64,
        part: slice,
        items: np.ndarray,
        squares: np.ndarray,
        touched: np.ndarray,
    ) -> tuple[float, Weights]:
        """One lane's part of a step (`pretrain.lanes.Job`)."""
        users, seen, factors, learns, strengths = (of_each[part] for of_each in batch)
        inputs, lesson = self._inputs, self._lesson
        return network.learn(
            weights, inputs.everybody, users, seen, inputs.sharpness, factors,
            inputs.alone, lesson.mean, inputs.length, strengths, learns,
            lesson.train.indptr, lesson.train.items, items, squares, touched,
            np.float32(lesson.learning_rate), np.float32(lesson.regularization),
            lesson.n_candidates, key,
        )  # fmt: skip
