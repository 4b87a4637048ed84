"""Stage 2 on processors: a step shared out to lanes, which wait for each other where all meet."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int

from musketeers import modules
from musketeers.cat import network
from musketeers.cat.model import ContrastiveAutoencoder
from musketeers.cat.network import Layers, Room, Weights
from musketeers.config import CatConfig
from musketeers.exchange import UserEmbeddings
from musketeers.group import Alone, group, in_steps, of_all, total
from musketeers.parallel import each
from musketeers.pretrain.lanes import even_parts

_BLOCK = 4096
"""Users encoded at once; part of the result, since products of other sizes round otherwise."""

Result = TypeVar("Result")


class Lanes:
    """See `train.Computer`."""

    def __init__(
        self,
        model: ContrastiveAutoencoder,
        shared: UserEmbeddings,
        config: CatConfig,
        *,
        n_threads: int,
    ) -> None:
        self._model, self._config, self._n_threads = model, config, n_threads
        self._values, self._known = shared.values, shared.known
        # coordinates of about unit variance, which the initial weights are made for
        self._scale = np.float32(np.sqrt(shared.values.shape[2]))
        self._rooms: dict[tuple[int, int, int], tuple[Room, Weights]] = {}
        self._together = group() if config.contrast_users == "gathered" else Alone()

    def learn(
        self, rows: Int[np.ndarray, " user"], visible: Bool[np.ndarray, "user domain"]
    ) -> Iterator[float]:
        """See `Computer.learn`."""
        return self._steps(rows, visible, learns=True)

    def losses(
        self, rows: Int[np.ndarray, " user"], visible: Bool[np.ndarray, "user domain"]
    ) -> Iterator[float]:
        """See `Computer.losses`."""
        return self._steps(rows, visible, learns=False)

    def encode(self) -> Float32[np.ndarray, "user dim"]:
        """See `Computer.encode`."""
        weights, n_users = self._model.weights(), len(self._values)
        codes = np.empty((n_users, self._values.shape[2]), np.float32)

        def block(number: int) -> None:
            rows = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, n_users))
            place = network.room(weights, len(rows), 1)
            shown = self._known[rows][None]
            network.encode(weights, self._values, self._known, rows, shown, self._scale, place)
            codes[rows] = place.encoder.made

        each(block, -(-n_users // _BLOCK), n_threads=self._n_threads)
        return codes

    def _steps(
        self,
        rows: Int[np.ndarray, " user"],
        visible: Bool[np.ndarray, "user domain"],
        *,
        learns: bool,
    ) -> Iterator[float]:
        start = 0
        for batch in in_steps(rows, self._config.batch_size):
            shown = visible[start : start + len(batch)]
            yield int(total(len(batch))) * self._step(batch, shown, learns=learns)
            start += len(batch)

    def _step(
        self,
        rows: Int[np.ndarray, " user"],
        visible: Bool[np.ndarray, "user domain"],
        *,
        learns: bool,
    ) -> float:
        """The loss of a batch, or a member's part of it.

        If it `learns`, the model's parameters have the whole batch's slopes then.
        """
        weights, contrasts = self._model.weights(), self._config.loss == "full"
        whole = self._known[rows]
        shown = np.stack([whole, visible] if contrasts else [whole])
        each_costs = np.ones(len(rows), np.int64)
        shares = even_parts(each_costs, max(1, min(self._n_threads, len(rows))))
        rooms = [
            self._room(lane, share.stop - share.start, len(shown))
            for lane, share in enumerate(shares)
        ]

        def encode(lane: int) -> None:
            network.encode(
                weights, self._values, self._known, rows[shares[lane]], shown[:, shares[lane]],
                self._scale, rooms[lane][0],
            )  # fmt: skip

        self._each(encode, len(shares))
        loss, to_units = 0.0, [np.zeros_like(room.units) for room, _ in rooms]
        if contrasts:
            changed = (whole != visible).any(axis=1)
            units = [np.split(room.units, 2) for room, _ in rooms]
            loss, to_units = self._contrast(shares, units, changed, learns=learns)
        weight = (1 - self._config.contrast_weight) / 2 if contrasts else 1.0
        weight /= max(int(total(whole.sum())), 1)

        def rebuild(lane: int) -> float:
            room, slopes = rooms[lane]
            loss = network.rebuild(weights, room, weight)
            if learns:
                network.back(weights, shown[:, shares[lane]], to_units[lane], room, slopes)
            return loss

        loss += sum(self._each(rebuild, len(shares)))
        if learns:
            self._model.set_slopes([slopes for _, slopes in rooms])
            modules.add_slopes(self._model)
        return loss

    def _contrast(
        self,
        shares: list[slice],
        units: list[list[np.ndarray]],
        changed: Bool[np.ndarray, " user"],
        *,
        learns: bool,
    ) -> tuple[float, list[np.ndarray]]:
        """The weighted contrast, and its slopes by the units of each lane, if it `learns`."""
        temperature, together = self._config.temperature, self._together
        weight = self._config.contrast_weight / max(int(total(changed.sum())), 1)
        whole, parts = (np.concatenate(view) for view in zip(*units, strict=True))
        first = sum(map(len, together.gathered(whole)[: together.place]))
        mine = slice(first, first + len(whole))
        # of everybody whom the own users are told apart from
        whole, parts, changed = (of_all(rows, together) for rows in (whole, parts, changed))

        def summed(lane: int) -> tuple[np.ndarray, np.ndarray, float]:
            own = _moved(shares[lane], first)
            sums = network.log_sums(whole[own], parts, temperature)
            part_sums = network.log_sums(parts[own], whole, temperature)
            loss = network.contrast(
                whole[own], parts[own], sums, part_sums, changed[own], temperature
            )
            return sums, part_sums, loss

        sums, part_sums, losses = zip(*self._each(summed, len(shares)), strict=True)
        loss = weight * sum(losses)
        if not learns:
            return loss, []
        sums, part_sums = (of_all(np.concatenate(rows), together) for rows in (sums, part_sums))

        def slopes(lane: int) -> tuple[np.ndarray, np.ndarray]:
            own = _moved(shares[lane], first)
            return network.contrast_slopes(
                own.start, whole[own], parts, sums, part_sums, changed, temperature, weight
            )

        to_whole, to_parts = zip(*self._each(slopes, len(shares)), strict=True)
        to_part = reduce(np.add, to_parts)
        together.add(to_part)
        to_part = to_part[mine]
        return loss, [
            np.concatenate([own, to_part[share]])
            for own, share in zip(to_whole, shares, strict=True)
        ]

    def _room(self, lane: int, n_users: int, n_views: int) -> tuple[Room, Weights]:
        """A lane's own; it always has the same number of users, but in the last batch."""
        found = self._rooms.get((lane, n_users, n_views))
        if found is None:
            weights = self._model.weights()
            encoder, decoder = (_like(layers) for layers in (weights.encoder, weights.decoder))
            slopes = Weights(encoder, decoder, np.empty_like(weights.pad))
            found = network.room(weights, n_users, n_views), slopes
            self._rooms[lane, n_users, n_views] = found
        return found

    def _each(self, job: Callable[[int], Result], n: int) -> list[Result]:
        found: dict[int, Result] = {}

        def run(number: int) -> None:
            found[number] = job(number)

        each(run, n, n_threads=self._n_threads)
        return [found[number] for number in range(n)]


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _like(layers: Layers) -> Layers:
    return Layers(*(tuple(map(np.empty_like, arrays)) for arrays in layers))
