"""Rows in pages, on the host's side: page_schedule.py says which are whose."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from r1jax.models.pages import page_bytes
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.decoding import Report, Slots
from r1jax.rollout.memory import Budget, Memory, PageDemand, plan_pages
from r1jax.rollout.page_programs import MOVED_PAGES, PagePrograms
from r1jax.rollout.page_schedule import Copy, Move, PageSchedule, PageSizes
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.schedule import Load, Row, Start
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


class Pages:
    """Rows in pages of one size, and how many of them."""

    def __init__(self, config: EngineConfig, programs: PagePrograms) -> None:
        self.config, self.programs = config, programs
        width = programs.decoder.width
        self.sizes = PageSizes(config.page, config.chunk * width, width)

    def plan(self, need: Need, budget: Budget) -> Memory:
        sizes, model = self.sizes, self.programs.model
        mean = min(self.config.mean_tokens or -(-need.limit // 4), need.limit)
        demand = PageDemand(
            prompt=sizes.prompt(need.prompt),
            own=sizes.own(need.limit),
            mean=sizes.own(min(mean + sizes.step, need.limit)),
            group_size=need.group_size,
            rows=need.rows,
            tokens=sizes.width,
            page=page_bytes(model.config, model.compute, sizes.page, budget.tensor),
        )
        return plan_pages(model, demand, budget)

    def open(self, request: Request, memory: Memory, statistics: Statistics) -> PageStore:
        return PageStore(self, request, memory, statistics)

    def prompt_tokens(self, longest: int) -> int:
        """That a prefill of prompts up to this length has room for: few sizes."""
        size, chunk = self.config.page, self.config.prefill_chunk
        while size < longest - 1:
            size *= 2
        return size if size <= chunk else -(-size // chunk) * chunk

    def lowered(self, params: Any, need: Need, memory: Memory) -> Lowered:
        by, config = self.programs, self.config
        most = self.sizes.most(need.prompt, need.limit)
        slots = by.empty.eval_shape(by.shards * memory.slots, by.shards * memory.pages)

        def prefill() -> jax.stages.Lowered:
            room = self.prompt_tokens(need.prompt)
            rows = by.indices(config.prefill_batch)
            tokens = by.indices(config.prefill_batch, min(config.prefill_chunk, room))
            tables = by.indices(config.prefill_batch, self.sizes.pages(room))
            begin = jax.ShapeDtypeStruct((), np.int32)
            return by.prefill.lower(params, slots.held, tokens, tokens, tables, rows, begin)

        def decode() -> jax.stages.Lowered:
            size = memory.slots, memory.pages, most
            return by.lower_decode(params, size, SamplingConfig(max_tokens=1), config.chunk)

        said = f"in {memory.pages:,} pages a shard of {self.sizes.page} tokens"
        return Lowered(
            memory.slots,
            slots,
            prefill,
            decode,
            said,
            kernels=by.kernels,
            row_tokens=most * config.page,
        )


class PageStore:
    """The rows of one request, in pages."""

    def __init__(
        self, pages: Pages, request: Request, memory: Memory, statistics: Statistics
    ) -> None:
        self._by, self._request, self._statistics = pages.programs, request, statistics
        self._config, self._pages = pages.config, memory.pages
        self._sizes, self._prompt_tokens = pages.sizes, pages.prompt_tokens(request.longest)
        shards, slots = self._by.shards, memory.slots
        self.work = PageSchedule(request, shards, slots, memory.pages, pages.sizes)
        self._state: Slots = self._by.empty(shards * slots, shards * memory.pages)
        self._stored: dict[tuple[int, int], list[list[Any]]] = {}  # pages of suspended rows

    def advance(self, params: Any) -> Report:
        """Begins rows in what is free, then a chunk of decoding; the report is on its way."""
        work = self.work
        resumed = work.resume()
        for move in resumed:
            self._restore(move)
        loads, starts = work.refill()
        if loads:
            self._load(params, loads)
        self._copy(work.copies())
        starts += [Start(move.shard, move.slot, move.row) for move in resumed]
        if starts:
            self._start(starts)
        while kept := work.shrink():
            rows = self._by.keep(replace(self._state, held=None), kept[0])
            self._state = replace(rows, held=self._state.held)
        for move in work.grow():
            self._suspend(move)
        self._state, report = self._by.decode(
            params,
            self._state,
            work.tables(),
            work.idle(),
            sampling=self._request.sampling,
            steps=self._config.chunk,
        )
        return report

    @property
    def _layers(self) -> tuple[Any, ...]:
        layers: tuple[Any, ...] = self._state.held.layers
        return layers

    def _set_layers(self, layers: Iterable[Any]) -> None:
        held = replace(self._state.held, layers=tuple(layers))
        self._state = replace(self._state, held=held)

    def _load(self, params: Any, loads: list[Load]) -> None:
        """Prefills these prompts into their pages: a few together, a chunk of tokens at a time."""
        began = time.perf_counter()
        prompts, config = self._request.prompts, self._config
        chunk = min(config.prefill_chunk, self._prompt_tokens)
        width = self._sizes.pages(self._prompt_tokens)
        pool = self._state.held
        for batch, size in batches(loads, prompts, self._by.shards, config.prefill_batch):
            tokens, behind, lengths = prompt_arrays(batch, prompts, size, chunk)
            tables = np.zeros((*lengths.shape, width), np.int32)
            for shard, part in enumerate(batch):
                for r, load in enumerate(part):
                    pages = self.work.prompt_pages(load)
                    tables[shard, r, : len(pages)] = pages
            for begin in range(0, tokens.shape[2], chunk):
                now = np.s_[:, :, begin : begin + chunk]
                given = tokens[now], behind[now], tables, lengths, np.int32(begin)
                pool = self._by.prefill(params, pool, *given)
        self._state = replace(self._state, held=pool)
        jax.block_until_ready(pool)
        note_loads(self._statistics, loads, prompts, began)

    def _copy(self, copies: list[Copy]) -> None:
        shape = self._by.shards, self.work.first_slots  # as many as may begin: one program
        while copies:
            source, target = np.zeros(shape, np.int32), np.full(shape, self._pages, np.int32)
            for shard in range(self._by.shards):
                of_shard = [copy for copy in copies if copy.shard == shard][: shape[1]]
                source[shard, : len(of_shard)] = [copy.source for copy in of_shard]
                target[shard, : len(of_shard)] = [copy.target for copy in of_shard]
                copies = [copy for copy in copies if copy not in of_shard]
            self._set_layers(self._by.copy(layer, source, target) for layer in self._layers)

    def _start(self, starts: list[Start]) -> None:
        new = new_rows(starts, self._request, self.work.slots, len(self._state.token))
        pool = self._state.held
        light = replace(self._state, held=replace(pool, layers=()))
        self._state = replace(self._by.insert(light, self._request.key, new), held=pool)

    def _suspend(self, move: Move) -> None:
        """Takes a row's pages to the hosts, before others are given them."""
        self._statistics.suspended += 1
        self._stored[_place(move.row)] = [
            [self._by.to_hosts(self._by.read(layer, pages_ZI)) for layer in self._layers]
            for pages_ZI in self._parts(move, padding=0)
        ]

    def _restore(self, move: Move) -> None:
        """Brings them back, into other pages."""
        stored = self._stored.pop(_place(move.row))
        for pages_ZI, content in zip(self._parts(move, self._pages), stored, strict=True):
            self._set_layers(
                self._by.write(layer, self._by.to_devices(of_layer), pages_ZI)
                for layer, of_layer in zip(self._layers, content, strict=True)
            )

    def _parts(self, move: Move, padding: int) -> Iterator[np.ndarray]:
        """The pages of a move, a few at a time [Z, I]."""
        for begin in range(0, len(move.pages), MOVED_PAGES):
            part = move.pages[begin : begin + MOVED_PAGES]
            pages_ZI = np.full((self._by.shards, MOVED_PAGES), padding, np.int32)
            pages_ZI[move.shard, : len(part)] = part
            yield pages_ZI


def _place(row: Row) -> tuple[int, int]:
    return row.prompt_index, row.sample_index
