"""JSONL files that grow: a line a step, a sample, a start.

On a disk a line is there when `write` returns. An object of a bucket cannot grow: there the file is
a directory of numbered segments, of which the last is written again as it grows, behind the run.
Read one after the other (`gcloud storage cat FILE/*`) they are the file.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

from etils import epath

from r1jax.config import DataError
from r1jax.files import (
    absolute,
    content_of,
    in_bucket,
    line_of,
    parse_line,
    parts_of,
    read_bytes,
    write_atomic,
)

PAUSE = 2.0  # seconds at least between two times that an object is replaced; Google wants one


class _End(Protocol):
    """Where a file grows."""

    def write(self, data: bytes) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class Journal:
    """The end of such a file, with the number of its lines."""

    def __init__(self, path: epath.PathLike) -> None:
        path = absolute(path)
        self.lines = count_lines(path)
        self._end: _End = _Segments(path) if in_bucket(path) else _File(path)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [line_of(row) for row in rows]
        if lines:
            self.lines += len(lines)
            self._end.write(b"".join(lines))

    def sync(self) -> int:
        """What was written survives whatever comes -> the number of lines."""
        self._end.sync()
        return self.lines

    def close(self) -> None:
        self._end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _File:
    def __init__(self, path: epath.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():  # copied from a bucket
            _join(path)
        self._path = path
        self._file: Any = None  # it begins with the first line

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._path.open("ab")
        self._file.write(data)
        self._file.flush()

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _join(directory: epath.Path) -> None:
    """The segments become the file that they are."""
    segments = directory.with_name(f"{directory.name}.segments")
    data = content_of(directory)
    directory.rename(segments)
    write_atomic(directory, data)
    segments.rmtree()


class _Segments:
    """A segment ends with `sync`, so that there are as many as checkpoints and starts."""

    def __init__(self, path: epath.Path) -> None:
        self._directory = path
        if parts_of(path) == [path]:  # copied from a disk
            write_atomic(path / f"{0:08d}", read_bytes(path))
            path.unlink()
        self._number = max((int(part.name) for part in parts_of(path)), default=-1) + 1
        self._data, self._saved = b"", 0  # of the segment, and how much of it the bucket has
        self._saving = threading.Lock()
        self._unsaved, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        self._data += data
        self._unsaved.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="journal", daemon=True)
            self._thread.start()

    def _follow(self) -> None:
        while not self._closing.is_set():
            self._unsaved.wait()
            self._unsaved.clear()
            try:
                with self._saving:
                    self._save()
            except Exception as error:  # whatever the network has; `sync` tries again
                logging.warning("%s cannot be written: %s", self._directory, error)
            self._closing.wait(PAUSE)

    def _save(self) -> None:
        data = self._data
        if len(data) > self._saved:
            write_atomic(self._directory / f"{self._number:08d}", data)
            self._saved = len(data)

    def sync(self) -> None:
        with self._saving:
            self._save()
            if self._data:
                self._number, self._data, self._saved = self._number + 1, b"", 0

    def close(self) -> None:
        self._closing.set()
        self._unsaved.set()
        if self._thread is not None:
            self._thread.join()
        self.sync()


def append_lines(path: epath.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    with Journal(path) as journal:
        journal.write(rows)


def remove(path: epath.PathLike) -> None:
    """The file, if there is one."""
    for part in parts_of(absolute(path)):
        part.unlink()


def count_lines(path: epath.PathLike) -> int:
    """Whole lines of a file, 0 where there is none."""
    path = absolute(path)
    return content_of(path).count(b"\n") if parts_of(path) else 0


def drop_after(path: epath.PathLike, step: int) -> None:
    """Drops the lines whose "step" is later than `step`, and a torn last line."""
    for part in reversed(parts_of(absolute(path))):  # so that a kill leaves no gap
        lines = read_bytes(part).split(b"\n")
        torn = lines.pop()  # empty after a whole line, else what a dying process left
        kept = [x for i, x in enumerate(lines, start=1) if _step_of(x, part, i) <= step]
        if torn or len(kept) < len(lines):
            _replace(part, kept)
        if kept:  # steps do not fall
            break


def _step_of(line: bytes, path: epath.PathLike, number: int) -> int:
    step = parse_line(line, path, number).get("step")
    if not isinstance(step, int):
        raise DataError(f"{path}:{number} has no step; every line of this file has one")
    return step


def cut(path: epath.PathLike, count: int) -> None:
    """Leaves the first lines, so many."""
    parts = parts_of(absolute(path))
    lines = [read_bytes(part).splitlines() for part in parts]
    before = [sum(map(len, lines[:i])) for i in range(len(parts))]
    for part, its_lines, first in reversed(list(zip(parts, lines, before, strict=True))):
        if first + len(its_lines) > count:
            _replace(part, its_lines[: max(count - first, 0)])


def _replace(part: epath.Path, lines: list[bytes]) -> None:
    """An empty segment would be nothing."""
    if lines or not in_bucket(part):
        write_atomic(part, b"".join(line + b"\n" for line in lines))
    else:
        part.unlink()
