"""Stage 3 on a GPU, by torch, with the loops of stage 1 there."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from musketeers.art.inputs import Batch, Inputs, Lesson
from musketeers.art.model import AttentionTransfer
from musketeers.pretrain.lanes import ItemLanes
from musketeers.pretrain.on_gpu import ItemsOnGpu, placed


class OnGpu:
    """See `train.Computer`."""

    def __init__(
        self,
        model: AttentionTransfer,
        inputs: Inputs,
        lesson: Lesson,
        items: ItemLanes,
        device: torch.device,
    ) -> None:
        self._model, self._lesson, self._device = model, lesson, device
        self._length, self._sharpness = float(inputs.length), inputs.sharpness
        self._told = [placed(of_all, device) for of_all in inputs.everybody]
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
        target, target_known, sources, sources_known, shared = self._told
        self._model.zero_grad()
        added = self._length * self._model(
            target[users], target_known[users] & seen, sources[:, users], sources_known[users],
            shared[users], self._sharpness, factors,
        )  # fmt: skip
        own = self._alone[users].where(seen[:, None], self._mean)
        change = added.detach()
        loss, slopes = self._items.train_items(
            batch.users, learns, own + change, self._lesson.regularization, key
        )
        self._items.learn(self._lesson.learning_rate)
        added.backward(slopes + strengths[:, None] * change)
        return loss
