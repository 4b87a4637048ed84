"""Stage 2 on a GPU, by torch."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from musketeers.cat.losses import info_nce, reconstruction
from musketeers.cat.model import ContrastiveAutoencoder
from musketeers.config import CatConfig
from musketeers.exchange import UserEmbeddings

_BLOCK = 8192
"""Users encoded at once."""


class OnGpu:
    """See `train.Computer`."""

    def __init__(
        self,
        model: ContrastiveAutoencoder,
        shared: UserEmbeddings,
        config: CatConfig,
        device: torch.device,
    ) -> None:
        self._model, self._config, self._device = model, config, device
        # coordinates of about unit variance, which the initial weights are made for
        self._values = self._placed(shared.values * np.float32(np.sqrt(shared.values.shape[2])))
        self._known = self._placed(shared.known)

    def learn(
        self, rows: Int[np.ndarray, " user"], visible: Bool[np.ndarray, "user domain"]
    ) -> Iterator[Tensor]:
        """See `Computer.learn`."""
        for batch, shown in self._batches(rows, visible):
            self._model.zero_grad()
            loss = self._loss(batch, shown)
            loss.backward()
            yield loss.detach().double() * len(batch)

    def losses(
        self, rows: Int[np.ndarray, " user"], visible: Bool[np.ndarray, "user domain"]
    ) -> Iterator[Tensor]:
        """See `Computer.losses`."""
        with torch.no_grad():
            for batch, shown in self._batches(rows, visible):
                yield self._loss(batch, shown).double() * len(batch)

    def encode(self) -> Float32[np.ndarray, "user dim"]:
        """See `Computer.encode`."""
        blocks = zip(self._values.split(_BLOCK), self._known.split(_BLOCK), strict=True)
        with torch.no_grad():
            return torch.cat([self._model.encode(*block) for block in blocks]).cpu().numpy()

    def _batches(
        self, rows: Int[np.ndarray, " user"], visible: Bool[np.ndarray, "user domain"]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        size = self._config.batch_size
        # copied once, not for each batch
        yield from zip(
            self._placed(rows).split(size), self._placed(visible).split(size), strict=True
        )

    def _loss(
        self, rows: Int[Tensor, " user"], visible: Bool[Tensor, "user domain"]
    ) -> Float[Tensor, ""]:
        values, known = self._values[rows], self._known[rows]
        whole, rebuilt = self._model(values, known)
        rebuild = reconstruction(rebuilt, values, known)
        if self._config.loss == "reconstruction":
            return rebuild
        part, rebuilt_from_part = self._model(values, visible)
        contrast = info_nce(
            whole, part, (visible != known).any(1), temperature=self._config.temperature
        )
        rebuild_from_part = reconstruction(rebuilt_from_part, values, known)
        weight = self._config.contrast_weight
        return weight * contrast + (1 - weight) / 2 * (rebuild + rebuild_from_part)

    def _placed(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
