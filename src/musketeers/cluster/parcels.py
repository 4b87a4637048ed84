"""What is sent to a cluster's workers: large arrays go to the object store, each of them once."""

import io
import pickle
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

SMALL = 2**16
"""Bytes of an array that is sent with each parcel."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Anything that can be pickled, and its arrays apart, as arguments of a task."""

    data: bytes
    arrays: tuple["np.ndarray | ray.ObjectRef[Any]", ...]
    """In the order that the data number them; references of large ones."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """What lies in the object store already, as long as its array lives here."""

    _kept: dict[int, tuple[Any, "ray.ObjectRef[Any]"]] = field(default_factory=dict[int, Any])

    def pack(self, what: object) -> Parcel:
        """Equal parcels share their arrays, and so do different ones that have some in common."""
        into = io.BytesIO()
        packer = _Packer(into, protocol=pickle.HIGHEST_PROTOCOL)
        packer.dump(what)
        return Parcel(into.getvalue(), tuple(self._put(array) for array in packer.arrays))

    def _put(self, array: np.ndarray) -> "np.ndarray | ray.ObjectRef[Any]":
        if array.nbytes <= SMALL:
            return array
        key = id(array)
        if key not in self._kept:
            # an array made later may get the same id
            life = weakref.ref(array, lambda _: self._kept.pop(key, None))
            self._kept[key] = life, ray.put(array)
        return self._kept[key][1]


def unpack(data: bytes, arrays: Sequence[np.ndarray]) -> Any:
    """What was packed; its arrays are read-only, the object store's own or as if they were."""
    return _Unpacker(io.BytesIO(data), arrays).load()


class _Packer(pickle.Pickler):
    """Leaves out arrays, and remembers them."""

    def __init__(self, into: io.BytesIO, protocol: int) -> None:
        super().__init__(into, protocol)
        self.arrays: list[np.ndarray] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not np.ndarray:
            return None
        place = self._places.setdefault(id(obj), len(self._places))
        if place == len(self.arrays):
            self.arrays.append(obj)
        return place


class _Unpacker(pickle.Unpickler):
    """Puts them back."""

    def __init__(self, data: io.BytesIO, arrays: Sequence[np.ndarray]) -> None:
        super().__init__(data)
        self._arrays = arrays

    def persistent_load(self, pid: int) -> np.ndarray:
        return self._arrays[pid]
