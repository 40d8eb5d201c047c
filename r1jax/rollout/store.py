"""What the engine asks of a store of keys and values: Columns or Pages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from r1jax.rollout.decoding import Report
from r1jax.rollout.memory import Budget, Memory
from r1jax.rollout.programs import NewRows, Programs
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.schedule import Load, Schedule, Start


@dataclass(frozen=True)
class Request:
    """`group_size` completions of each prompt, but for those that are `done`."""

    prompts: Sequence[np.ndarray]
    limits: Sequence[int]  # tokens that a completion of each may have
    group_size: int
    done: Collection[tuple[int, int]]  # (prompt, sample)
    sampling: SamplingConfig
    key: jax.Array

    @property
    def rows(self) -> int:
        return len(self.wanted)

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """(prompt, sample), in their order."""
        places = itertools.product(range(len(self.prompts)), range(self.group_size))
        return [place for place in places if place not in self.done]

    @property
    def longest(self) -> int:
        """Tokens of a prompt."""
        return max(map(len, self.prompts))

    @property
    def limit(self) -> int:
        """Tokens of a completion."""
        return max(self.limits)

    def need(self, shards: int) -> Need:
        """Of a shard."""
        return Need(self.longest, self.limit, self.group_size, -(-self.rows // shards))


@dataclass
class Statistics:
    """What a generate call did, for the metrics."""

    slots: int = 0
    decode_steps: int = 0
    slot_steps: int = 0  # slots x steps
    row_steps: int = 0  # of rows that were busy
    tokens: int = 0  # sampled and kept
    drafts: int = 0  # checked
    right_drafts: int = 0
    prompt_tokens: int = 0  # prefilled
    suspended: int = 0  # rows that gave their pages to the host for a while
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def wasted_share(self) -> float:
        """Share of the decoded rows that were idle."""
        return 1.0 - self.row_steps / self.slot_steps if self.slot_steps else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafts that were right."""
        return self.right_drafts / self.drafts if self.drafts else 0.0


@dataclass(frozen=True)
class Need:
    """The most that a shard of the rows may come to need."""

    prompt: int  # tokens of a prompt
    limit: int  # tokens of a completion
    group_size: int
    rows: int


@dataclass(frozen=True)
class Lowered:
    """The programs of a rollout in shapes alone: for `python -m r1jax.plan`."""

    slots: int  # of a shard
    caches: Any  # arrays of all that is kept of tokens
    prefill: Callable[[], jax.stages.Lowered]
    decode: Callable[[], jax.stages.Lowered]
    said: str  # of what the sizes are
    kernels: tuple[str, ...] = ()  # of the decoding
    row_tokens: int = 0  # that the program has room for in the pages of a row
    apart: Any = ()  # of the caches, what prefills leave alone


class Store(Protocol):
    """The rows of one request on the device, with what is kept of their tokens."""

    @property
    def work(self) -> Schedule: ...

    def advance(self, params: Any) -> Report:
        """Begins rows in what is free, then a chunk of decoding; the report is on its way."""
        ...


class Keeping(Protocol):
    """How tokens are kept: columns.Columns or pages.Pages."""

    @property
    def programs(self) -> Programs: ...

    def plan(self, need: Need, budget: Budget) -> Memory:
        """How many rows decode together within the budget."""
        ...

    def open(self, request: Request, memory: Memory, statistics: Statistics) -> Store:
        """Without rows yet."""
        ...

    def lowered(self, params: Any, need: Need, memory: Memory) -> Lowered:
        """The programs at their largest."""
        ...


def batches(
    loads: Sequence[Load], prompts: Sequence[np.ndarray], shards: int, most: int
) -> Iterator[tuple[list[list[Load]], int]]:
    """What is prefilled together, of every shard, and for how many the program is: two sizes, as a
    few prompts go one by one. Prompts of like length go together.
    """
    loads = sorted(loads, key=lambda load: -len(prompts[load.prompt_index]))
    queues = [[load for load in loads if load.shard == z] for z in range(shards)]
    while left := max(len(queue) for queue in queues):
        size = most if 2 * left > most else 1
        yield [queue[:size] for queue in queues], size
        queues = [queue[size:] for queue in queues]


def prompt_arrays(
    batch: Sequence[Sequence[Load]], prompts: Sequence[np.ndarray], size: int, chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens of some prompts but the last [Z, R, L], in whole chunks; those behind each of
    them; how many there are [Z, R].
    """
    longest = max(len(prompts[load.prompt_index]) for part in batch for load in part) - 1
    lengths = np.zeros((len(batch), size), np.int32)
    tokens = np.zeros((*lengths.shape, max(-(-longest // chunk), 1) * chunk), np.int32)
    behind = np.zeros_like(tokens)
    for shard, part in enumerate(batch):
        for r, load in enumerate(part):
            prompt = prompts[load.prompt_index]
            lengths[shard, r] = len(prompt) - 1
            tokens[shard, r, : len(prompt) - 1] = prompt[:-1]
            behind[shard, r, : len(prompt) - 1] = prompt[1:]
    return tokens, behind, lengths


def new_rows(starts: Sequence[Start], request: Request, slots: int, total: int) -> NewRows:
    """Rows for the device, padded to all slots; `slots` are a shard's."""
    new = NewRows.padding(total)
    for i, start in enumerate(starts):
        row, index = start.row, start.row.prompt_index
        prompt = request.prompts[index]
        new.slot[i] = start.shard * slots + start.slot
        new.token[i] = row.last_token(prompt)
        new.position[i], new.count[i] = len(prompt) - 1 + row.count, row.count
        new.limit[i] = request.limits[index]
        new.prompt[i], new.sample[i] = index, row.sample_index
    return new


def note_loads(
    statistics: Statistics, loads: Sequence[Load], prompts: Sequence[np.ndarray], began: float
) -> None:
    """Of a prefill that began at this time."""
    statistics.prompt_tokens += sum(len(prompts[load.prompt_index]) for load in loads)
    statistics.prefill_seconds += time.perf_counter() - began
