"""Stage 3 on a GPU, by torch, with the loops of stage 1 there."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from musketeers.art.inputs import Batch, Inputs, Lesson
from musketeers.art.model import AttentionTransfer
from musketeers.pretrain.on_gpu import ItemsOnGpu, placed
from musketeers.pretrain.sharded import ItemTable


class OnGpu:
    """See `train.Computer`."""

    def __init__(
        self,
        model: AttentionTransfer,
        inputs: Inputs,
        lesson: Lesson,
        items: ItemTable,
        device: torch.device,
    ) -> None:
        self._model, self._lesson, self._device = model, lesson, device
        self._length, self._sharpness = float(inputs.length), inputs.sharpness
        everybody = inputs.everybody
        self._values, self._known, self._shared, self._sources = (
            placed(array, device)
            for array in (everybody.values, everybody.known, everybody.shared, everybody.sources)
        )
        self._target = everybody.target
        self._alone, self._mean = placed(inputs.alone, device), placed(lesson.mean, device)
        self._items = ItemsOnGpu(lesson.train, items, lesson.n_candidates, device)

    def learn(self, batches: Iterable[Batch], key: np.uint64) -> Iterator[Tensor]:
        """See `Computer.learn`."""
        self._items.fetch()
        for batch in batches:
            yield self._step(batch, key)
        self._items.give_back()

    def _step(self, batch: Batch, key: np.uint64) -> Tensor:
        users, seen, factors, learns, strengths = (placed(a, self._device) for a in batch)
        values, known = self._values[users], self._known[users]
        self._model.zero_grad()
        added = self._length * self._model(
            values[:, self._target], known[:, self._target] & seen,
            values[:, self._sources].transpose(0, 1), known[:, self._sources],
            self._shared[users], self._sharpness, factors,
        )  # fmt: skip
        own = self._alone[users].where(seen[:, None], self._mean)
        change = added.detach()
        loss, slopes = self._items.train_items(
            batch.users, learns, own + change, self._lesson.regularization, key
        )
        self._items.learn(self._lesson.learning_rate)
        added.backward(slopes + strengths[:, None] * change)
        return loss
