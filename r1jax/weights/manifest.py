"""What the files of a checkpoint were when they were written, and whether they still are.

Every process writes `files.P.json`, the checksums of its own files: the chunks of its devices'
shards, and the first process's also all that is of no array. `manifest.json`, written last, has the
shapes of all leaves and the checksums of these lists; in checkpoints of earlier versions it has
those of all files itself.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
import tensorstore as ts
from etils import epath

from r1jax.config import UserError
from r1jax.files import in_bucket, names_below, read_bytes, write_json
from r1jax.machines import hosts
from r1jax.machines.hosts import of_first_process
from r1jax.weights.chunks import (
    CHUNK,
    READERS,
    ZARRAY,
    Box,
    Index,
    array_of,
    box_of,
    chunk_shape,
    chunks_in,
    dtype_of,
    folder_of,
    read_box,
)

STATE, EXTRA, MANIFEST = "state", "extra.json", "manifest.json"
_LIST = re.compile(r"files\.\d+\.json")
T = TypeVar("T")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""


class DamagedError(CheckpointError):
    """Its files are not what was written."""


def agreed(work: Callable[[], T]) -> T:
    """What it gives here; where it fails on any process, every process raises that error."""
    return hosts.agreed(work, DamagedError, CheckpointError)


def leaves_of(state: Any) -> dict[str, Any]:
    """{"params/embed/kernel": leaf} in the order of the tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """An array's shape, type and sharding."""
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def specs_of(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{"params/embed/kernel": ["float32", [64, 32]]}."""
    return {name: [str(np.dtype(leaf.dtype)), list(leaf.shape)] for name, leaf in leaves.items()}


# ---- writing ----


def write_list(directory: epath.Path, leaves: Mapping[str, Any]) -> None:
    """The checksums of this process's own files. `leaves` have shapes and shardings."""
    own = list(_own_chunks(directory, leaves))
    if jax.process_index() == 0:
        state = (f"{STATE}/{name}" for name in names_below(directory / STATE))
        own += [EXTRA, *(name for name in state if not _is_chunk(name))]
    write_json(directory / _list_of(jax.process_index()), _checksums(directory, own))


def write_manifest(directory: epath.Path, leaves: Mapping[str, Any]) -> None:
    """When every process has written its list."""
    lists = [_list_of(process) for process in range(jax.process_count())]
    files = _checksums(directory, lists)
    write_json(directory / MANIFEST, {"leaves": specs_of(leaves), "files": files})


def _own_chunks(directory: epath.Path, leaves: Mapping[str, Any]) -> Iterator[str]:
    """Of what several devices have, each has its share."""
    for name, leaf in leaves.items():
        folder = f"{STATE}/{folder_of(name)}"
        sizes = chunk_shape(read_bytes(directory / folder / ZARRAY))
        for box, processes in _holders(leaf).items():
            chunks = [chunk for chunk, _ in chunks_in(box, sizes)]
            for place, chunk in enumerate(chunks):
                if processes[place * len(processes) // len(chunks)] == jax.process_index():
                    yield f"{folder}/{chunk}"


def _holders(leaf: Any) -> dict[Box, list[int]]:
    """{part of an array: the processes of the devices that have it}; what is on the host alone is
    the first process's.
    """
    if getattr(leaf, "sharding", None) is None:
        return {box_of(leaf.shape): [0]}
    holders: dict[Box, list[int]] = {}
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        holders.setdefault(box_of(leaf.shape, index), []).append(device.process_index)
    return holders


def _list_of(process: int) -> str:
    return f"files.{process}.json"


def _is_chunk(name: str) -> bool:
    return CHUNK.fullmatch(name.rpartition("/")[2]) is not None


def _checksums(directory: epath.Path, names: Sequence[str]) -> dict[str, int | None]:
    """By name; None where there is no such file."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(lambda name: _crc32(directory / name), names), strict=True))


def _crc32(path: epath.Path) -> int | None:
    value = 0
    try:
        if in_bucket(path):
            return zlib.crc32(read_bytes(path))
        with path.open("rb") as file:
            while block := file.read(2**24):
                value = zlib.crc32(block, value)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return value


# ---- reading ----


class Saved:
    """A checkpoint that is read: each file is compared with its checksum by who reads it."""

    def __init__(self, directory: epath.Path) -> None:
        """Every process comes here at the same time. What is read is of the first process; that
        chunks are damaged is said when they are read.
        """
        self.directory = directory
        first = jax.process_index() == 0
        manifest = of_first_process(agreed(lambda: _read_manifest(directory) if first else None))
        self.leaves: dict[str, list[Any]] = manifest["leaves"]
        self._files: dict[str, int] = agreed(lambda: self._all_files(manifest["files"]))
        chunked = any(name.endswith(f"/{ZARRAY}") for name in self._files)
        self._sound: set[str] = set()  # files that were compared
        self._entry: Callable[[str], bytes] | None = None  # of what is no file of this machine
        if not chunked:  # an earlier version's: arrays lie in a database, several in a file
            agreed(self.check_share)
            self._entry = self._database()
        elif in_bucket(directory):
            self._entry = functools.lru_cache(2 * READERS)(self._object)

    def _all_files(self, files: dict[str, int]) -> dict[str, int]:
        """Their checksums, of `files` and the lists in it; those of no chunk are compared."""
        lists = {name: checksum for name, checksum in files.items() if _LIST.fullmatch(name)}
        _compare(self.directory, lists)
        for name in lists:
            files = files | json.loads(read_bytes(self.directory / name))
        if jax.process_index() == 0:
            others = {name: checksum for name, checksum in files.items() if not _is_chunk(name)}
            _compare(self.directory, others)
        return files

    def check_share(self) -> None:
        """Compares files that no other process compares; all of them where it is the only one."""
        mine = list(self._files.items())[jax.process_index() :: jax.process_count()]
        _compare(self.directory, dict(mine))

    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        """A part of a leaf; DamagedError where its files are not what was written."""
        name, shape = self.leaves[leaf]
        folder, dtype = folder_of(leaf), dtype_of(name)
        sizes = chunk_shape(self._bytes(f"{folder}/{ZARRAY}"))

        def chunk(file: str) -> np.ndarray:
            name = f"{folder}/{file}"
            if self._entry is not None:
                return np.frombuffer(self._entry(name), dtype).reshape(sizes)
            path = self._checked(name)
            return np.memmap(path, dtype, "r", shape=sizes)  # of which parts may be wanted

        return read_box(box_of(shape, index), sizes, dtype, chunk)

    def _bytes(self, name: str) -> bytes:
        return self._checked(name).read_bytes() if self._entry is None else self._entry(name)

    def arrays(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Leaves with their types and shardings; without sharding as a numpy array."""
        return {
            name: array_of(leaf, functools.partial(self.read, name))
            for name, leaf in leaves.items()
        }

    def _checked(self, name: str) -> epath.Path:
        """The file, compared when it is first asked for."""
        name = f"{STATE}/{name}"
        if name not in self._sound:
            checksum = self._files.get(name)
            if checksum is None or _crc32(self.directory / name) != checksum:
                raise _damaged(self.directory, name)
            self._sound.add(name)
        return self.directory / name

    def _object(self, name: str) -> bytes:
        """As _checked, of a bucket: it is read once, and compared."""
        name = f"{STATE}/{name}"
        try:
            content = read_bytes(self.directory / name)
        except FileNotFoundError:
            raise _damaged(self.directory, name) from None
        if zlib.crc32(content) != self._files.get(name):
            raise _damaged(self.directory, name)
        return content

    def _database(self) -> Callable[[str], bytes]:
        base = f"{'' if in_bucket(self.directory) else 'file://'}{self.directory / STATE}/"
        store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()

        @functools.lru_cache(2)
        def entry(name: str) -> bytes:
            return bytes(store.read(name).result().value)

        return entry


def _read_manifest(directory: epath.Path) -> dict[str, Any]:
    """{"leaves": {name: [dtype, shape]}, "files": {name: checksum}}."""
    path = directory / MANIFEST
    if not path.exists():
        raise DamagedError(f"{directory} is not a complete checkpoint (no {MANIFEST})")
    try:
        manifest = json.loads(read_bytes(path))
        found = {key: dict(manifest[key]) for key in ("leaves", "files")}
    except (ValueError, KeyError, TypeError):
        raise _damaged(directory, MANIFEST) from None
    if not found["leaves"]:
        raise _damaged(directory, MANIFEST)
    return found


def _compare(directory: epath.Path, files: Mapping[str, int]) -> None:
    """DamagedError where one of these files is not what was written."""
    found = _checksums(directory, list(files))
    for name, checksum in files.items():
        if found[name] is None or found[name] != checksum:
            raise _damaged(directory, name)


def _damaged(directory: epath.Path, name: str) -> DamagedError:
    return DamagedError(f"checkpoint {directory} is damaged: {name} is not what was written")


def check_leaves(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], directory: epath.Path, dtypes: bool = True
) -> None:
    """CheckpointError where a state has other leaves than the checkpoint, or with `dtypes` others
    of their types."""
    problems = [f"it has no {name}" for name in wanted if name not in saved]
    problems += [f"{name} is not in the model" for name in saved if name not in wanted]
    problems += [
        f"{name} is {_shape(saved[name])}, not {_shape(spec)}"
        for name, spec in wanted.items()
        if name in saved and saved[name][not dtypes :] != spec[not dtypes :]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"checkpoint {directory} is of another state: {'; '.join(problems[:3])}{more}"
        )


def _shape(spec: Sequence[Any]) -> str:
    return f"{spec[0]}[{','.join(map(str, spec[1]))}]"
