"""The format of safetensors: a header that says what follows, then the arrays' own memory.

The library itself writes what it has copied, twice, which takes gigabytes more than the arrays of a
large run.  What is written here is byte for byte what it would write.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

HEADER_LIMIT = 1 << 16
"""Bytes of a header, at most."""

_TYPES = ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")
"""The names that the format has for types, in the order in which their arrays lie."""

Parts = Sequence[bytes | np.ndarray]
"""A file's contents, one after the other."""

Layout = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Name -> type and shape."""


def in_parts(tensors: Mapping[str, np.ndarray], notes: Mapping[str, str] | None = None) -> Parts:
    """A file of these arrays, which are booleans, integers or floats of at most 64 bits."""
    layout = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    return [header(layout, notes), *(tensors[name] for name in in_order(layout))]


def header(layout: Layout, notes: Mapping[str, str] | None = None) -> bytes:
    """What such a file begins with: eight bytes that give the length of what follows, and that.

    `notes` are texts by name that are no tensors.
    """
    fields: dict[str, object] = {"__metadata__": dict(notes)} if notes else {}
    start = 0
    for name in in_order(layout):
        kind, shape = layout[name]
        stop = start + size(layout[name])
        fields[name] = {"dtype": _type(kind), "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_order(layout: Layout) -> list[str]:
    """The names as their arrays lie: wide numbers first, so that each starts at a multiple of its
    width."""
    return sorted(layout, key=lambda name: (_TYPES.index(_type(layout[name][0])), name))


def arrays(data: memoryview) -> dict[str, np.ndarray]:
    """The tensors of a file that `in_parts` made without notes: views of `data`, not copies.

    Raises `ValueError` for anything else, also for a file of the format that says the same in
    another way: whatever the header claims must be what `header` would have written.
    """
    head = bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    try:
        fields: dict[str, dict[str, Any]] = json.loads(head[8:])
        layout = {
            name: (_dtype(field["dtype"]), tuple(map(int, field["shape"])))
            for name, field in fields.items()
        }
        if any(n < 0 for _, shape in layout.values() for n in shape) or head != header(layout):
            raise ValueError("the header is not the one that belongs to its tensors")
    except (AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the header says no types and shapes: {error!r}") from None
    if len(data) - len(head) != (needed := sum(map(size, layout.values()))):
        raise ValueError(f"{len(data) - len(head)} bytes follow the header, not {needed}")
    return views(data, layout, start=len(head))


def views(data: bytearray | memoryview, layout: Layout, *, start: int = 0) -> dict[str, np.ndarray]:
    """Arrays of this layout in the memory of `data` from `start` on, which must hold them all."""
    found, memory = dict[str, np.ndarray](), np.asarray(memoryview(data))
    for name in in_order(layout):
        kind, shape = layout[name]
        flat = memory[start : start + size(layout[name])]
        array = flat.view(kind.newbyteorder("<")).reshape(shape)
        found[name] = array.astype(kind, copy=False)
        start += size(layout[name])
    return {name: found[name] for name in layout}


def size(of: tuple[np.dtype, tuple[int, ...]]) -> int:
    """Bytes of an array of this type and shape."""
    kind, shape = of
    return kind.itemsize * int(np.prod(shape, dtype=object))


def bytes_of(part: bytes | np.ndarray) -> memoryview:
    """As they are in a file: in C order, the low byte first."""
    if isinstance(part, bytes):
        return memoryview(part)
    plain = np.asarray(part, dtype=part.dtype.newbyteorder("<"), order="C")
    return plain.reshape(-1).view(np.uint8).data


def _type(kind: np.dtype) -> str:
    return "BOOL" if kind.kind == "b" else f"{kind.kind.upper()}{8 * kind.itemsize}"


def _dtype(name: str) -> np.dtype:
    if name not in _TYPES:
        raise ValueError(f"{name} is no type of an array")
    return np.dtype("bool" if name == "BOOL" else f"{name[0].lower()}{int(name[1:]) // 8}")
