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
from musketeers.pretrain.lanes import Rows
from musketeers.pretrain.sharded import ItemTable


class Lanes:
    """See `train.Computer`."""

    def __init__(
        self, model: AttentionTransfer, inputs: Inputs, lesson: Lesson, items: ItemTable
    ) -> None:
        self._model, self._inputs, self._lesson, self._items = model, inputs, lesson, items
        self._counts = lesson.train.counts()

    def learn(self, batches: Iterable[Batch], key: np.uint64) -> Iterator[float]:
        """See `Computer.learn`."""
        for block in self._blocks(batches):
            users = np.concatenate([batch.users for batch in block])
            self._items.fetch(self._lesson.train, users, key)
            for batch in block:
                job = partial(self._learn, self._model.weights(), batch, key)
                found = self._items.run(self._counts[batch.users], job)
                losses, slopes = zip(*found, strict=True)
                for weight, *parts in zip(self._model.parameters(), *slopes, strict=True):
                    weight.grad = torch.from_numpy(reduce(np.add, parts))
                modules.add_slopes(self._model)
                yield sum(losses)
            self._items.merge()

    def _blocks(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """The batches between one merge and the next."""
        block, n_pairs = list[Batch](), 0
        for batch in batches:
            block.append(batch)
            n_pairs += int(total(self._counts[batch.users].sum()))
            if n_pairs >= self._items.block:
                yield block
                block, n_pairs = [], 0
        if block:
            yield block

    def _learn(
        self,
        weights: Weights,
        batch: Batch,
        key: np.uint64,
        part: slice,
        rows: Rows,
    ) -> tuple[float, Weights]:
        """One lane's part of a step (`pretrain.lanes.Job`)."""
        users, seen, factors, learns, strengths = (of_each[part] for of_each in batch)
        inputs, lesson = self._inputs, self._lesson
        return network.learn(
            weights, inputs.everybody, users, seen, inputs.sharpness, factors,
            inputs.alone, lesson.mean, inputs.length, strengths, learns,
            lesson.train.indptr, lesson.train.items, *rows,
            np.float32(lesson.learning_rate), np.float32(lesson.regularization),
            lesson.n_candidates, key,
        )  # fmt: skip
