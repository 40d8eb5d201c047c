"""Samples of an evaluation on disk: a JSON line each.

NAME.jsonl has all of a benchmark, graded, sorted by (prompt, sample). While it is being asked they
come into NAME.partial.jsonl as they finish, without their grades; what stands there is not sampled
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Self

import jax
from etils import epath

from r1jax.config import DataError
from r1jax.files import content_of, parse_line, read_jsonl, write_jsonl_atomic
from r1jax.journal import Journal, count_lines, cut, remove
from r1jax.machines.hosts import ask_first
from r1jax.rollout.sampler import Place
from r1jax.types import Example, Sample

NAMES = frozenset(field.name for field in fields(Sample))


def file_of(directory: epath.Path, benchmark: str) -> epath.Path:
    return directory / f"{benchmark}.jsonl"


def partial_of(directory: epath.Path, benchmark: str) -> epath.Path:
    return directory / f"{benchmark}.partial.jsonl"


def verdicts_of(directory: epath.Path, benchmark: str) -> epath.Path:
    """What a judge has said of its samples."""
    return directory / f"{benchmark}.verdicts.jsonl"


def place_of(sample: Sample) -> Place:
    return sample.prompt_index, sample.sample_index


def to_row(sample: Sample, example: Example) -> dict[str, Any]:
    """With what was asked and the reference answer, to be read by people too."""
    return {"question": example.question, "answer": example.answer} | asdict(sample)


def from_row(row: Mapping[str, Any]) -> Sample:
    """The inverse of to_row; TypeError for a row of something else."""
    return Sample(**{name: value for name, value in row.items() if name in NAMES})


def write_samples(path: epath.Path, samples: Iterable[Sample], examples: Sequence[Example]) -> None:
    write_jsonl_atomic(path, (to_row(s, examples[s.prompt_index]) for s in samples))


def read_samples(path: epath.Path, examples: Sequence[Example], k: int) -> list[Sample]:
    """A finished benchmark's; DataError where they are not what was written of these problems."""
    again = "delete it, and the benchmark is run again"
    try:
        found = [from_row(row) for row in read_jsonl(path)]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is not what was written ({error!r}); {again}") from None
    places = [(p, s) for p in range(len(examples)) for s in range(k)]
    if len(found) != len(places):
        raise DataError(f"{path} has {len(found)} of {len(places)} completions; {again}")
    for sample, place in zip(found, places, strict=True):
        if place_of(sample) != place or sample.example_id != examples[place[0]].id:
            raise DataError(
                f"{path}: the completion {sample.example_id!r} {place_of(sample)} is not of this"
                f" benchmark's problem {examples[place[0]].id!r} {place}; {again}"
            )
    return found


class Kept:
    """Rows of a file that come one by one. The first process reads and writes them for all."""

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = ask_first(self._read)  # that were there
        self._journal = Journal(path) if jax.process_index() == 0 else None

    def _read(self) -> list[dict[str, Any]]:
        whole = count_lines(self._path)
        if not whole:
            remove(self._path)
            return []
        cut(self._path, whole)  # a dying process may have left a part of a line
        lines = content_of(self._path).splitlines()
        return [parse_line(line, self._path, i) for i, line in enumerate(lines, start=1)]

    def write(self, row: Mapping[str, Any]) -> None:
        if self._journal is not None:
            self._journal.write([row])

    def remove(self) -> None:
        """When all of it is elsewhere."""
        self.close()
        if self._journal is not None:
            remove(self._path)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
