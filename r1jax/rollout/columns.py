"""Rows in columns: prompts that their group reads, and a ring for each row, on the host's side.

A prompt's keys and values (all but its last token's) are computed once and read by every row of its
group. A row's own ones, from the prompt's last token on, lie in a ring of columns: each decode step
writes the same column for all rows, which is one slice in place, and a row sees those that hold its
own tokens. With drafts a step writes two, of which the second may stay unseen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from r1jax.models.caches import SharedPrefix
from r1jax.rollout.column_programs import ColumnPrograms
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.decoding import Report, Slots
from r1jax.rollout.memory import Budget, Demand, Memory, plan_slots
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.schedule import MOST_READERS, Load, Schedule, Start
from r1jax.rollout.store import (
    Lowered,
    Need,
    Request,
    Statistics,
    batches,
    new_rows,
    note_loads,
    prompt_arrays,
)

LARGEST_SHARE = 8  # the smallest ring is such a part of the largest, or a bucket: four sizes


@dataclass(frozen=True)
class Shapes:
    """Of what decodes, on one shard of the rows."""

    slots: int
    columns: int  # of their caches
    prompts: int
    prompt_columns: int
    readers: int  # of a prompt


class Columns:
    """Rows in columns, of few sizes: each is a program of its own."""

    def __init__(self, config: EngineConfig, programs: ColumnPrograms) -> None:
        self.config, self.programs = config, programs
        self.compiled: set[Any] = set()  # what was compiled ahead
        self._width = programs.decoder.width  # tokens of a row in a step

    def own(self, steps: int, limit: int) -> int:
        """For so many steps of rows that may have `limit` tokens."""
        most = self._width * limit
        return self._size(self._width * min(steps, limit), most, max(most // LARGEST_SHARE, 1))

    def prompt(self, length: int) -> int:
        """For all tokens of a prompt but the last, in whole chunks of the prefill."""
        chunk = self.config.prefill_chunk
        columns = self._size(max(length - 1, 1), self.programs.model.config.max_length)
        return columns if columns <= chunk else -(-columns // chunk) * chunk

    def _size(self, tokens: int, most: int, least: int = 1) -> int:
        """The first of few sizes that holds so many tokens: what `least` need, 2, 4, ... times as
        much, and the largest, which `most` need, as soon as that is less than four times as large.
        """
        size, largest = (-(-n // self.config.bucket) * self.config.bucket for n in (least, most))
        while size < tokens:
            size = 2 * size if 4 * size <= largest else largest
        return size

    def plan(self, need: Need, budget: Budget) -> Memory:
        demand = Demand(
            prompt_columns=self.prompt(need.prompt),
            columns=self.own(need.limit, need.limit),
            tokens=self._width,
            group_size=min(need.group_size, MOST_READERS),
            rows=need.rows,
        )
        return plan_slots(self.programs.model, demand, budget)

    def open(self, request: Request, memory: Memory, statistics: Statistics) -> ColumnStore:
        most = self.shapes(request.need(self.programs.shards), memory)
        return ColumnStore(self, request, most, statistics)

    def shapes(self, need: Need, memory: Memory) -> Shapes:
        """The most that such rows come to, within the plan for the memory."""
        slots = min(memory.slots, need.rows)
        readers = min(1 << (need.group_size - 1).bit_length(), MOST_READERS)
        return Shapes(
            slots=slots,
            columns=self.own(need.limit, need.limit),
            prompts=memory.prompts(slots),  # if fewer prompts come too: the same programs
            prompt_columns=self.prompt(need.prompt),
            readers=min(readers, slots),
        )

    def lowered(self, params: Any, need: Need, memory: Memory) -> Lowered:
        by, config, most = self.programs, self.config, self.shapes(need, memory)
        prefix = by.empty_prefix.eval_shape(most.prompts, most.prompt_columns)

        def prefill() -> jax.stages.Lowered:
            size, chunk = config.prefill_batch, min(config.prefill_chunk, most.prompt_columns)
            tokens, row = by.indices(size, chunk), by.indices(size)
            begin = jax.ShapeDtypeStruct((), np.int32)
            return by.prefill.lower(params, prefix, tokens, tokens, (row, row), begin)

        def decode() -> jax.stages.Lowered:
            rows, prompts = (most.slots, most.columns), (most.prompts, most.prompt_columns)
            sampling = SamplingConfig(max_tokens=1)
            return by.lower_decode(params, rows, (*prompts, most.readers), sampling, config.chunk)

        slots = by.empty.eval_shape(by.shards * most.slots, most.columns)
        said = f"each at the cost of the largest caches, {most.columns:,} columns"
        return Lowered(most.slots, (slots, prefix), prefill, decode, said, apart=slots)


class ColumnStore:
    """The rows of one request, in columns."""

    def __init__(
        self,
        columns: Columns,
        request: Request,
        most: Shapes,
        statistics: Statistics,
    ) -> None:
        self._sizes, self._request, self._statistics = columns, request, statistics
        self._by = programs = columns.programs
        self._config, self._places = columns.config, most.readers
        self.work = Schedule(
            request.wanted,
            programs.shards,
            most.slots,
            most.prompts,
            most.readers,
        )
        self._columns = columns.own(self._config.chunk, request.limit)
        self._state: Slots = programs.empty(most.slots * programs.shards, self._columns)
        self._prefix: SharedPrefix = programs.empty_prefix(most.prompts, self._config.bucket)

    def advance(self, params: Any) -> Report:
        """Begins rows in what is free, then a chunk of decoding; the report is on its way."""
        work, request = self.work, self._request
        loads, starts = work.refill()
        if loads:
            self._load(params, loads)
            if self._config.compile_ahead:
                self._compile_ahead(params)
        if starts:
            self._start(starts)
        while kept := work.shrink():
            self._shrink(*kept)
        needed = self._sizes.own(self._longest(), request.limit)
        if needed > self._columns:
            keep_ZS = self._all(work.slots)
            self._state = self._by.resize(self._state, keep_ZS, columns=needed)
            self._columns = needed
        members, places = work.readers(min(self._places, work.slots))
        self._state, report = self._by.decode(
            params,
            self._state,
            self._prefix.replace(members=members, places=places),  # type: ignore[attr-defined]
            work.idle(),
            sampling=request.sampling,
            steps=self._config.chunk,
        )
        return report

    def _longest(self) -> int:
        """Steps that some row may have taken by the end of the next chunk."""
        chunk, limits = self._config.chunk, self._request.limits
        busy = self.work.busy()
        return max(min(row.steps + chunk, limits[row.prompt_index]) for _, _, row in busy)

    def _compile_ahead(self, params: Any) -> None:
        """Compiles what decodes and resizes at all slots and columns that these prompts may come
        to, side by side. Else the first iterations stop for it, one size after the other.
        """
        work, limit, chunk = self.work, self._request.limit, self._config.chunk
        held = self._prefix.layers[0].columns
        sizes = sorted(work.sizes(), reverse=True)
        lengths = range(chunk, limit + chunk, chunk)
        own = sorted({self._sizes.own(n, limit) for n in lengths})
        prompts = [min(work.prompt_rows, slots) for slots in sizes]
        ways = [((a, n), (b, n)) for a, b in pairwise(sizes) for n in own]
        ways += [((n, a), (n, b)) for n in sizes for a, b in pairwise(own)]
        fewer = [((a, held), (b, held)) for a, b in pairwise(prompts) if b < a]
        by = self._by
        jobs: dict[Any, Callable[[], Any]] = {}
        for way in ways:
            jobs["rows", way] = partial(by.compile_resize, *way)
        for way in fewer:
            jobs["prompts", way] = partial(by.compile_resize_prefix, *way)
        for columns in own:
            for slots, read in zip(sizes, prompts, strict=True):
                shape = (slots, columns), (read, held, min(self._places, slots))
                given = *shape, self._request.sampling, chunk
                jobs["decode", given] = partial(_compiled, by.lower_decode, params, *given)
        new = [key for key in jobs if key not in self._sizes.compiled]
        self._sizes.compiled.update(new)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda key: jobs[key](), new))

    def _all(self, count: int) -> np.ndarray:
        """The indices of all rows of every shard [Z, count]."""
        return np.tile(np.arange(count, dtype=np.int32), (self._by.shards, 1))

    def _load(self, params: Any, loads: list[Load]) -> None:
        """Prefills these prompts into their rows: a few together, a chunk of tokens at a time."""
        began = time.perf_counter()
        prompts, config = self._request.prompts, self._config
        longest = max(len(prompts[load.prompt_index]) for load in loads)
        if (needed := self._sizes.prompt(longest)) > self._prefix.layers[0].columns:
            keep_ZP = self._all(self._prefix.lengths.shape[1])
            self._prefix = self._by.resize_prefix(self._prefix, keep_ZP, columns=needed)
        chunk = min(config.prefill_chunk, self._prefix.layers[0].columns)
        for batch, size in batches(loads, prompts, self._by.shards, config.prefill_batch):
            self._load_batch(params, batch, size, chunk)
        jax.block_until_ready(self._prefix.lengths)
        note_loads(self._statistics, loads, prompts, began)

    def _load_batch(self, params: Any, batch: list[list[Load]], size: int, chunk: int) -> None:
        tokens, behind, lengths = prompt_arrays(batch, self._request.prompts, size, chunk)
        rows = np.full(lengths.shape, self._prefix.lengths.shape[1], np.int32)
        for shard, part in enumerate(batch):
            rows[shard, : len(part)] = [load.row for load in part]
        for begin in range(0, tokens.shape[2], chunk):
            now = np.s_[:, :, begin : begin + chunk]
            self._prefix = self._by.prefill(
                params, self._prefix, tokens[now], behind[now], (rows, lengths), np.int32(begin)
            )

    def _start(self, starts: list[Start]) -> None:
        new = new_rows(starts, self._request, self.work.slots, len(self._state.token))
        ring = self._state.held
        light = replace(self._state, held=replace(ring, layers=()))
        rows = self._by.insert(light, self._request.key, new)
        self._state = replace(rows, held=replace(rows.held, layers=ring.layers))

    def _shrink(self, slots_ZS: np.ndarray, prompts_ZP: np.ndarray) -> None:
        """These slots and prompts of a shard alone."""
        if slots_ZS.size < len(self._state.token):
            self._state = self._by.resize(self._state, slots_ZS, columns=self._columns)
        if prompts_ZP.size < self._prefix.lengths.size:
            held = self._prefix.layers[0].columns
            self._prefix = self._by.resize_prefix(self._prefix, prompts_ZP, columns=held)


def _compiled(lower: Callable[..., jax.stages.Lowered], *shapes: Any) -> jax.stages.Compiled:
    return lower(*shapes).compile()
