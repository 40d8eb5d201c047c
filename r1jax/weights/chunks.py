"""Arrays in chunks, a file each, as zarr has them: which files hold a part of one, and reading it.

An array lies in a folder with `.zarray`, which says the chunks' shape; chunk 2.0 is the third along
the first axis. They are not compressed: a file is the numbers of one chunk, row by row.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import ml_dtypes
import numpy as np

CHUNK_BYTES = 1 << 25  # of a file, at most
READERS = 4  # chunks that are read at the same time
ZARRAY = ".zarray"
CHUNK = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*")  # the name of a chunk's file

Box = tuple[tuple[int, int], ...]  # a part of an array: start and stop along each axis
Index = tuple[slice, ...]  # the same; axes that it does not name are taken whole


def folder_of(leaf: str) -> str:
    """Of a leaf of the tree: params/layers/query."""
    return leaf.replace("/", ".")


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def box_of(shape: Sequence[int], index: Index = ()) -> Box:
    """The part that `index` takes."""
    padded = [*index, *[slice(None)] * (len(shape) - len(index))]
    bounds = (part.indices(size) for part, size in zip(padded, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)


def chunk_shape(zarray: bytes) -> tuple[int, ...]:
    """ValueError where these are no chunks of this form."""
    about = json.loads(zarray)
    if about["compressor"] is not None or about["order"] != "C":
        raise ValueError("chunks are compressed, or column by column")
    return tuple(about["chunks"])


def chunks_in(box: Box, sizes: Sequence[int]) -> Iterator[tuple[str, Box]]:
    """The chunks that hold some of a part: the name of its file, and what of the array it holds."""
    along = [range(a // size, -(-b // size)) for (a, b), size in zip(box, sizes, strict=True)]
    for place in itertools.product(*along):
        name = ".".join(map(str, place)) or "0"
        yield name, tuple((i * size, (i + 1) * size) for i, size in zip(place, sizes, strict=True))


def read_box(
    box: Box, sizes: Sequence[int], dtype: np.dtype[Any], fetch: Callable[[str], np.ndarray]
) -> np.ndarray:
    """A part of an array; `fetch` gives a chunk by the name of its file."""
    out = _aligned([stop - start for start, stop in box], dtype)

    def place(item: tuple[str, Box]) -> None:
        name, held = item
        bounds = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, held, strict=True)]
        target = tuple(slice(s - a, t - a) for (s, t), (a, _) in zip(bounds, box, strict=True))
        source = tuple(slice(s - c, t - c) for (s, t), (c, _) in zip(bounds, held, strict=True))
        out[target] = fetch(name)[source]

    wanted = list(chunks_in(box, sizes))
    if len(wanted) == 1:
        place(wanted[0])
        return out
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(place, wanted))
    return out


def _aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array that XLA on a CPU takes as it is: another it copies."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def array_of(leaf: Any, read: Callable[[Index], np.ndarray]) -> Any:
    """A leaf with its type and sharding (a ShapeDtypeStruct), of which `read` gives parts: those of
    this process's devices, each once. Without a sharding it is a numpy array.
    """
    if leaf.sharding is None:
        return np.array(read(()), leaf.dtype)
    known: dict[Box, np.ndarray] = {}

    def part(index: Index | None) -> np.ndarray:
        box = box_of(leaf.shape, index or ())
        if box not in known:
            known[box] = np.asarray(read(index or ()), leaf.dtype)
        return known[box]

    array = jax.make_array_from_callback(leaf.shape, leaf.sharding, part)
    return array.block_until_ready()
