"""One safetensors file, read a part of a tensor at a time, from a disk or from gs://.

The library of that name reads neither gs:// nor, for numpy, float8. The format is a header in JSON,
8 bytes of its length before it, and the tensors' bytes behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from etils import epath

from r1jax.config import DataError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
LONGEST_HEADER = 100_000_000  # bytes, as the library has it


@dataclass(frozen=True)
class Tensor:
    """What the header says of one."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # byte of the file

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


class SafetensorsFile:
    """`tensors` by name, and `read`."""

    def __init__(self, path: epath.PathLike) -> None:
        """Raises DataError where the file is missing or no whole safetensors file."""
        self.path = epath.Path(path)
        try:
            self._file = self.path.open("rb")
            self.tensors = self._header()
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as safetensors: {error}") from error

    def _header(self) -> dict[str, Tensor]:
        size = self.path.stat().length
        length = int.from_bytes(self._bytes(0, 8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError(f"its header would be {length} bytes long")
        header = json.loads(self._bytes(8, length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            found[name] = Tensor(entry["dtype"], tuple(entry["shape"]), 8 + length + begin)
            width = DTYPES.get(entry["dtype"], np.dtype(np.uint8)).itemsize
            if entry["dtype"] in DTYPES and end - begin != found[name].numbers * width:
                raise ValueError(f"tensor {name} has {end - begin} bytes for {entry['shape']}")
            if 8 + length + end > size:
                raise ValueError(f"it ends before tensor {name} does")
        return found

    def _bytes(self, begin: int, count: int) -> bytes:
        self._file.seek(begin)
        found: bytes = self._file.read(count)
        if len(found) != count:
            raise ValueError(f"it ends after {begin + len(found)} bytes")
        return found

    def read(self, name: str, index: Sequence[slice] = ()) -> np.ndarray:
        """tensor[index] in the file's type; no more is read than the rows in index[0]."""
        tensor = self.tensors[name]
        dtype = DTYPES[tensor.dtype]
        if not tensor.shape:
            return np.frombuffer(self._bytes(tensor.begin, dtype.itemsize), dtype).reshape(())
        start, stop, _ = (index[0] if index else slice(None)).indices(tensor.shape[0])
        shape = (max(stop - start, 0), *tensor.shape[1:])
        row = math.prod(tensor.shape[1:]) * dtype.itemsize
        try:
            content = self._bytes(tensor.begin + start * row, shape[0] * row)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: tensor {name} cannot be read: {error}") from error
        values = np.frombuffer(content, dtype).reshape(shape)
        return values[(slice(None), *index[1:])]
