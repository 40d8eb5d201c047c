"""The rollout engine: slots with refill, prompts shared by their group, decoding in chunks.

It knows tokens, not text. A completion depends on (parameters, prompt, sampling, key, prompt index,
sample index) alone, up to rounding: not on the slots, the other rows, the buckets, the devices.

A prompt's keys and values (all but its last token's) are computed once and read by every row of its
group. A row's own ones, from the prompt's last token on, lie in a ring of columns: each decode step
writes the same column for all rows, which is one slice in place, and a row sees those that hold its
own tokens. With drafts a step writes two, of which the second may stay unseen.

This is the host's side; programs.py is the device's, and has the shape legend.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from absl import logging

from r1jax.config import ConfigError, Count, Size
from r1jax.machines.mesh import rollout_mesh
from r1jax.models.caches import LayerCache, SharedPrefix, cache_kind
from r1jax.models.lane_cache import LaneCache
from r1jax.models.transformer import Transformer
from r1jax.rollout.decoding import Report, Slots
from r1jax.rollout.memory import Demand, Memory, plan_slots
from r1jax.rollout.programs import NewRows, Programs
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.schedule import MOST_READERS, Load, Row, Schedule, Start
from r1jax.types import Completion

# (a row's tokens, how many of them were seen before) -> how many it keeps; 0 = it goes on
StopCheck = Callable[[np.ndarray, int], int]


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of what runs at once; none of them changes a completion beyond rounding.

    A run that must resume to the bit names its slots, or memory_mib: what is free may differ.
    """

    slots: Count = 64  # rows that decode together, on all devices; 0 = as many as memory allows
    chunk: Size = 32  # decode steps on the device between two looks from the host
    bucket: Size = 128  # columns of a cache: so many, 2, 4, ... times as many, or for the longest
    prefill_batch: Size = 8  # prompts prefilled together, a device
    prefill_chunk: Size = 512  # tokens of a prompt that are prefilled at once
    memory_mib: Count = 0  # for caches and logits, a device; 0 = with slots=0, 80 % of what is free
    # Decoding is a program for each number of slots and of columns: compile all that may come with
    # the first prompts, side by side, instead of stopping the first iterations for one by one.
    compile_ahead: bool = False
    # On one CPU: keys and values laid out for its vector units. SmolLM2 decodes 64 rows in a tenth
    # less time at 128 columns and in 20 to 30 % less at 512; a program compiles up to half as long
    # again.
    lane_cache: bool = False
    # With multi-token prediction, speculative decoding: a step checks a draft of the token after
    # next besides, and takes it where it is right. It costs up to twice the columns of a cache.
    speculative: bool = False


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
class Shapes:
    """Of what decodes, on one shard of the rows."""

    slots: int
    columns: int  # of their caches
    prompts: int
    prompt_columns: int
    readers: int  # of a prompt


def _compiled(lower: Callable[..., jax.stages.Lowered], *shapes: Any) -> jax.stages.Compiled:
    return lower(*shapes).compile()


def _readers(group_size: int) -> int:
    """Places for the readers of a prompt row: a power of two."""
    return min(1 << (group_size - 1).bit_length(), MOST_READERS)


class Engine:
    """`generate` streams completions as they finish. One engine serves any parameters."""

    def __init__(
        self,
        model: Transformer,
        stop_ids: Sequence[int],
        config: EngineConfig | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        self.mesh = mesh = rollout_mesh(model.mesh)
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        self.model = model.clone(mesh=mesh, compute=model.compute.for_rollouts())
        one_cpu = platform == "cpu" and (mesh is None or mesh.size == 1)
        row_cache, drafts = cache_kind(model.config), self.config.speculative
        if row_cache is LayerCache and self.config.lane_cache and one_cpu and not drafts:
            row_cache = LaneCache
        if drafts and not model.config.mtp:
            raise ConfigError("engine.speculative: the model has no multi-token prediction (mtp)")
        if drafts and self.config.bucket % 2:
            raise ConfigError(
                f"engine.bucket {self.config.bucket} must be even with engine.speculative"
            )
        self.programs = Programs(self.model, stop_ids, row_cache, drafts)
        self.shards = self.programs.shards
        self.stop_ids = tuple(stop_ids)
        self.statistics = Statistics()
        self._note = ""  # of the last memory plan
        self._compiled: set[Any] = set()  # what was compiled ahead

    def generate(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        sampling: SamplingConfig,
        key: jax.Array,
        group_size: int = 1,
        prompt_indices: Sequence[int] | None = None,
        stop_check: StopCheck | None = None,
    ) -> Iterator[Completion]:
        """`group_size` completions of each prompt, in the order in which they finish.

        `prompt_indices` are the prompts' numbers for the random keys (default 0, 1, ...). A row
        that `stop_check` ends keeps as many tokens as it says. Raises ConfigError for a prompt that
        leaves no room for a completion, and where not even one row fits into the memory.
        """
        self._check(prompts)
        self.statistics = Statistics()
        if not len(prompts):
            return
        numbers = list(range(len(prompts))) if prompt_indices is None else list(prompt_indices)
        limits = [self._limit(prompt, sampling) for prompt in prompts]
        memory = self.memory(prompts, limits, group_size)
        longest = max(map(len, prompts))
        most = self.shapes(memory, longest, max(limits), group_size, len(prompts) * group_size)
        slots, places = most.slots, most.readers
        work = Schedule(len(prompts), group_size, self.shards, slots, most.prompts, places)
        self.statistics.slots = slots * self.shards
        params = self.programs.prepare(params)
        drawn = replace(sampling, max_tokens=1, stop=())  # those are no part of the program
        columns = self._own_columns(self.config.chunk, max(limits))
        state = self.programs.empty(slots * self.shards, columns)
        prefix = self.programs.empty_prefix(work.prompt_rows, self.config.bucket)
        finished: list[Completion] = []
        while work.queue or any(True for _ in work.busy()):
            loads, starts = work.refill()
            if loads:
                prefix = self._loaded(params, prefix, prompts, loads)
                if self.config.compile_ahead:
                    self._compile_ahead(params, work, max(limits), prefix, places, drawn)
            if starts:
                state = self._started(state, work, starts, prompts, numbers, limits, key)
            while kept := work.shrink():
                state, prefix = self._shrunk(state, prefix, *kept)
            needed = max(columns, self._own_columns(self._longest(work, limits), max(limits)))
            if needed > columns:
                state = self.programs.resize(state, self._all(work.slots), columns=needed)
                columns = needed
            members, place = work.readers(min(places, work.slots))
            began = time.perf_counter()
            state, report = self.programs.decode(
                params,
                state,
                replace(prefix, members=members, places=place),
                work.idle(),
                sampling=drawn,
                steps=self.config.chunk,
            )
            yield from finished  # graded by whoever asked, while the device decodes
            report = jax.device_get(report)
            self.statistics.decode_seconds += time.perf_counter() - began
            finished = self._collect(report, work, stop_check)
        yield from finished

    def memory(
        self, prompts: Sequence[np.ndarray], limits: Sequence[int], group_size: int
    ) -> Memory:
        """How many rows decode together: what the config says, or what fits."""
        demand = Demand(
            prompt_columns=self._prompt_columns(max(map(len, prompts))),
            columns=self._own_columns(max(limits), max(limits)),
            tokens=self.programs.decoder.width,
            group_size=min(group_size, MOST_READERS),
            rows=-(-len(prompts) * group_size // self.shards),
        )
        memory = plan_slots(
            self.programs.model,
            demand,
            jax.local_devices() if self.mesh is None else self.mesh.local_devices,
            slots=-(-self.config.slots // self.shards),
            budget_mib=self.config.memory_mib,
            tensor=1 if self.mesh is None else self.mesh.shape["tensor"],
        )
        if memory.note != self._note:
            self._note = memory.note
            logging.info("%s", memory.note)
        return memory

    def shapes(self, memory: Memory, prompt: int, limit: int, group_size: int, rows: int) -> Shapes:
        """The most that `rows` completions of up to `limit` tokens, behind prompts of up to
        `prompt` tokens, come to.
        """
        slots = min(memory.slots, -(-rows // self.shards))
        return Shapes(
            slots=slots,
            columns=self._own_columns(limit, limit),
            prompts=memory.prompts(slots),  # if fewer prompts come too: the same programs
            prompt_columns=self._prompt_columns(prompt),
            readers=min(_readers(group_size), slots),
        )

    def _check(self, prompts: Sequence[np.ndarray]) -> None:
        limit = self.model.config.max_length
        for index, prompt in enumerate(prompts):
            if not 1 <= len(prompt) < limit:
                raise ConfigError(
                    f"prompt {index} has {len(prompt)} tokens; the model's max_length {limit}"
                    f" allows 1 to {limit - 1}"
                )

    def _limit(self, prompt: np.ndarray, sampling: SamplingConfig) -> int:
        return min(sampling.max_tokens, self.model.config.max_length - len(prompt))

    def _columns(self, tokens: int, most: int) -> int:
        """The first of few sizes that holds so many tokens: bucket x (1, 2, 4, ...), and the
        largest, which `most` tokens need, as soon as that is less than four times as large.
        """
        size, largest = self.config.bucket, -(-most // self.config.bucket) * self.config.bucket
        while size < tokens:
            size = 2 * size if 4 * size <= largest else largest
        return size

    def _own_columns(self, steps: int, limit: int) -> int:
        """For so many steps of rows that may have `limit` tokens."""
        width = self.programs.decoder.width
        return self._columns(width * min(steps, limit), width * limit)

    def _prompt_columns(self, length: int) -> int:
        """For all tokens of a prompt but the last, in whole chunks of the prefill."""
        chunk = self.config.prefill_chunk
        columns = self._columns(max(length - 1, 1), self.model.config.max_length)
        return columns if columns <= chunk else -(-columns // chunk) * chunk

    def _longest(self, work: Schedule, limits: Sequence[int]) -> int:
        """Steps that some row may have taken by the end of the next chunk."""
        chunk = self.config.chunk
        return max(min(row.steps + chunk, limits[row.prompt_index]) for _, _, row in work.busy())

    def _compile_ahead(
        self,
        params: Any,
        work: Schedule,
        limit: int,
        prefix: SharedPrefix,
        places: int,
        sampling: SamplingConfig,
    ) -> None:
        """Compiles what decodes and resizes at all slots and columns that these prompts may come
        to, side by side. Else the first iterations stop for it, one size after the other.
        """
        chunk, held = self.config.chunk, prefix.layers[0].columns
        sizes = sorted(work.sizes(), reverse=True)
        lengths = range(chunk, limit + chunk, chunk)
        own = sorted({self._own_columns(n, limit) for n in lengths})
        prompts = [min(work.prompt_rows, slots) for slots in sizes]
        ways = [((a, n), (b, n)) for a, b in pairwise(sizes) for n in own]
        ways += [((n, a), (n, b)) for n in sizes for a, b in pairwise(own)]
        fewer = [((a, held), (b, held)) for a, b in pairwise(prompts) if b < a]
        by = self.programs
        jobs: dict[Any, Callable[[], Any]] = {}
        for way in ways:
            jobs["rows", way] = partial(by.compile_resize, *way)
        for way in fewer:
            jobs["prompts", way] = partial(by.compile_resize_prefix, *way)
        for columns in own:
            for slots, read in zip(sizes, prompts, strict=True):
                shape = (slots, columns), (read, held, min(places, slots)), sampling, chunk
                jobs["decode", shape] = partial(_compiled, by.lower_decode, params, *shape)
        new = [key for key in jobs if key not in self._compiled]
        self._compiled.update(new)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda key: jobs[key](), new))

    def _all(self, count: int) -> np.ndarray:
        """The indices of all rows of every shard [Z, count]."""
        return np.tile(np.arange(count, dtype=np.int32), (self.shards, 1))

    def _loaded(
        self, params: Any, prefix: SharedPrefix, prompts: Sequence[np.ndarray], loads: list[Load]
    ) -> SharedPrefix:
        """Prefills these prompts into their rows: a few together, a chunk of tokens at a time."""
        began = time.perf_counter()
        longest = max(len(prompts[load.prompt_index]) for load in loads)
        held = prefix.layers[0].columns
        if (needed := self._prompt_columns(longest)) > held:
            rows = prefix.lengths.shape[1]
            prefix, held = (
                self.programs.resize_prefix(prefix, self._all(rows), columns=needed),
                needed,
            )
        # Shards take turns; prompts of like length go together.
        loads = sorted(loads, key=lambda load: -len(prompts[load.prompt_index]))
        queues = [[load for load in loads if load.shard == z] for z in range(self.shards)]
        chunk, most = min(self.config.prefill_chunk, held), self.config.prefill_batch
        while left := max(len(queue) for queue in queues):
            size = most if 2 * left > most else 1  # two programs: a few prompts go one by one
            batch = [queue[:size] for queue in queues]
            queues = [queue[size:] for queue in queues]
            prefix = self._loaded_batch(params, prefix, prompts, batch, size, chunk)
        jax.block_until_ready(prefix.lengths)
        self.statistics.prompt_tokens += sum(len(prompts[load.prompt_index]) for load in loads)
        self.statistics.prefill_seconds += time.perf_counter() - began
        return prefix

    def _loaded_batch(
        self,
        params: Any,
        prefix: SharedPrefix,
        prompts: Sequence[np.ndarray],
        batch: list[list[Load]],
        size: int,
        chunk: int,
    ) -> SharedPrefix:
        longest = max(len(prompts[load.prompt_index]) for part in batch for load in part) - 1
        shape = (self.shards, size)
        tokens = np.zeros((*shape, max(-(-longest // chunk), 1) * chunk), np.int32)
        behind = np.zeros_like(tokens)  # each of them
        rows, lengths = np.full(shape, prefix.lengths.shape[1], np.int32), np.zeros(shape, np.int32)
        for shard, part in enumerate(batch):
            for r, load in enumerate(part):
                prompt = prompts[load.prompt_index]
                rows[shard, r], lengths[shard, r] = load.row, len(prompt) - 1
                tokens[shard, r, : len(prompt) - 1] = prompt[:-1]
                behind[shard, r, : len(prompt) - 1] = prompt[1:]
        for begin in range(0, tokens.shape[2], chunk):
            now = np.s_[:, :, begin : begin + chunk]
            prefix = self.programs.prefill(
                params, prefix, tokens[now], behind[now], (rows, lengths), np.int32(begin)
            )
        return prefix

    def _started(
        self,
        state: Slots,
        work: Schedule,
        starts: list[Start],
        prompts: Sequence[np.ndarray],
        numbers: Sequence[int],
        limits: Sequence[int],
        key: jax.Array,
    ) -> Slots:
        """Puts new rows into slots; the arrays are padded to the number of slots."""
        total = state.token.shape[0]
        new = NewRows(np.full(total, total, np.int32), *np.zeros((5, total), np.int32))
        for i, start in enumerate(starts):
            index = start.row.prompt_index
            new.slot[i] = start.shard * work.slots + start.slot
            new.token[i], new.position[i] = prompts[index][-1], len(prompts[index]) - 1
            new.limit[i] = limits[index]
            new.prompt[i], new.sample[i] = numbers[index], start.row.sample_index
        rows = self.programs.insert(replace(state, layers=()), key, new)
        return replace(rows, layers=state.layers)

    def _shrunk(
        self, state: Slots, prefix: SharedPrefix, slots_ZS: np.ndarray, prompts_ZP: np.ndarray
    ) -> tuple[Slots, SharedPrefix]:
        """These slots and prompts of a shard alone."""
        if slots_ZS.size < len(state.token):
            state = self.programs.resize(state, slots_ZS, columns=state.layers[0].columns)
        if prompts_ZP.size < prefix.lengths.size:
            held = prefix.layers[0].columns
            prefix = self.programs.resize_prefix(prefix, prompts_ZP, columns=held)
        return state, prefix

    def _collect(
        self, report: Report, work: Schedule, stop_check: StopCheck | None
    ) -> list[Completion]:
        """Takes the chunk's tokens to their rows; gives out those that are finished."""
        did, width = self.statistics, self.programs.decoder.width
        did.decode_steps += int(report.steps)
        did.slot_steps += int(report.steps) * len(report.done)
        finished = []
        for shard, slot, row in list(work.busy()):
            b = shard * work.slots + slot
            kept = report.kept[b]
            row.tokens.append(report.tokens[b, kept])
            row.logprobs.append(report.logprobs[b, kept])
            row.experts.append(report.experts[b, kept])
            new, steps = int(kept.sum()), int(kept[::width].sum())
            did.row_steps += steps
            row.right_drafts += int(report.right[b].sum())
            length = stop_check(np.concatenate(row.tokens), row.count) if stop_check and new else 0
            row.count, row.steps = row.count + new, row.steps + steps
            if report.done[b] or length:
                work.finish(shard, slot)
                finished.append(self._completion(row, length or row.count, bool(length)))
                did.tokens += len(finished[-1].tokens)
                did.drafts += finished[-1].drafts
                did.right_drafts += finished[-1].right_drafts
        return finished

    def _completion(self, row: Row, length: int, stopped: bool) -> Completion:
        tokens = np.concatenate(row.tokens)[:length]
        stopped |= int(tokens[-1]) in self.stop_ids
        return Completion(
            prompt_index=row.prompt_index,
            sample_index=row.sample_index,
            tokens=tokens,
            logprobs=np.concatenate(row.logprobs)[:length],
            finish_reason="stop" if stopped else "length",
            experts=np.concatenate(row.experts)[:length] if self.programs.has_experts else None,
            drafts=row.steps - 1 if self.config.speculative else 0,
            right_drafts=row.right_drafts,
        )
