"""The rollout engine: slots with refill, prompts shared by their group, decoding in chunks.

It knows tokens, not text. A completion depends on (parameters, prompt, sampling, key, prompt index,
sample index) alone, up to rounding: not on the slots, the other rows, the devices, or where keys
and values lie.

Keys and values lie in columns (columns.py) or in pages (pages.py). Both have the host's side there,
and the device's in column_programs.py and page_programs.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from absl import logging

from r1jax.config import ConfigError
from r1jax.machines.mesh import rollout_mesh
from r1jax.machines.preemption import stop_if_asked
from r1jax.models.caches import LayerCache, cache_kind
from r1jax.models.lane_cache import LaneCache
from r1jax.models.pages import has_kernel
from r1jax.models.transformer import Transformer
from r1jax.rollout.column_programs import ColumnPrograms
from r1jax.rollout.columns import Columns
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.decoding import Report
from r1jax.rollout.memory import Budget, Memory
from r1jax.rollout.page_programs import PagePrograms
from r1jax.rollout.pages import Pages
from r1jax.rollout.sampling import SamplingConfig
from r1jax.rollout.schedule import Row, Schedule
from r1jax.rollout.store import Keeping, Need, Request, Statistics
from r1jax.types import Completion

# (a row's tokens, how many of them were seen before) -> how many it keeps; 0 = it goes on
StopCheck = Callable[[np.ndarray, int], int]


class Engine:
    """`generate` streams completions as they finish. One engine serves any parameters."""

    def __init__(
        self,
        model: Transformer,
        stop_ids: Sequence[int],
        config: EngineConfig | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        experts = model.config.experts
        self.mesh = mesh = rollout_mesh(model.mesh, experts.num_experts if experts else 0)
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        self.model = model = model.clone(mesh=mesh, compute=model.compute.for_rollouts())
        drafts = self.config.speculative
        if drafts and not model.config.mtp:
            raise ConfigError("engine.speculative: the model has no multi-token prediction (mtp)")
        if drafts and self.config.bucket % 2:
            raise ConfigError(
                f"engine.bucket {self.config.bucket} must be even with engine.speculative"
            )
        kernel = has_kernel(model.config, platform)
        self.keeping: Keeping
        if self.config.cache == "pages" or (self.config.cache == "auto" and kernel):
            pages = PagePrograms(model, stop_ids, drafts, self.config.page, kernel)
            self.keeping = Pages(self.config, pages)
        else:
            one_cpu = platform == "cpu" and (mesh is None or mesh.size == 1)
            row_cache = cache_kind(model.config)
            if row_cache is LayerCache and self.config.lane_cache and one_cpu and not drafts:
                row_cache = LaneCache
            columns = ColumnPrograms(model, stop_ids, row_cache, drafts)
            self.keeping = Columns(self.config, columns)
        self.programs: Any = self.keeping.programs
        self.shards = self.programs.shards
        self.stop_ids = tuple(stop_ids)
        self.statistics = Statistics()
        self._note = ""  # of the last memory plan

    def generate(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        sampling: SamplingConfig,
        key: jax.Array,
        group_size: int = 1,
        done: Collection[tuple[int, int]] = (),
        stop_check: StopCheck | None = None,
    ) -> Iterator[Completion]:
        """`group_size` completions of each prompt, in the order in which they finish.

        `done` are the (prompt, sample) that are not wanted again. A row that `stop_check` ends
        keeps as many tokens as it says. Raises ConfigError for a prompt that
        leaves no room for a completion, and where not even one row fits into the memory; Stopped
        between two chunks.
        """
        self._check(prompts)
        self.statistics = Statistics()
        if len(prompts) * group_size <= len(set(done)):
            return
        request = Request(
            prompts=prompts,
            limits=[self._limit(prompt, sampling) for prompt in prompts],
            group_size=group_size,
            done=frozenset(done),
            sampling=replace(sampling, max_tokens=1, stop=()),  # those are no part of the program
            key=key,
        )
        params = self.programs.prepare(params)
        memory = self.memory(request.need(self.shards))
        store = self.keeping.open(request, memory, self.statistics)
        work = store.work
        self.statistics.slots = work.slots * self.shards
        finished: list[Completion] = []
        while work.unfinished():
            stop_if_asked()
            report = store.advance(params)
            began = time.perf_counter()
            yield from finished  # graded by whoever asked, while the device decodes
            report = jax.device_get(report)
            self.statistics.decode_seconds += time.perf_counter() - began
            finished = self._collect(report, work, stop_check)
        yield from finished

    def memory(self, need: Need) -> Memory:
        """How many rows decode together: what the config says, or what fits."""
        budget = Budget(
            devices=jax.local_devices() if self.mesh is None else self.mesh.local_devices,
            slots=-(-self.config.slots // self.shards),
            memory_mib=self.config.memory_mib,
            tensor=1 if self.mesh is None else self.mesh.shape["tensor"],
        )
        memory = self.keeping.plan(need, budget)
        if memory.note != self._note:
            self._note = memory.note
            logging.info("%s", memory.note)
        return memory

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

    def _collect(
        self, report: Report, work: Schedule, stop_check: StopCheck | None
    ) -> list[Completion]:
        """Takes the chunk's tokens to their rows; gives out those that are finished."""
        did, width = self.statistics, self.programs.decoder.width
        did.decode_steps += int(report.steps)
        did.slot_steps += int(report.steps) * len(report.done)
        finished = []
        # For all rows at once: there may be thousands.
        counts, of_steps = report.kept.sum(axis=1).tolist(), report.kept[:, ::width].sum(axis=1)
        did.row_steps += int(of_steps.sum())
        of_steps, right = of_steps.tolist(), report.right.sum(axis=1).tolist()
        for shard, slot, row in list(work.busy()):
            b = shard * work.slots + slot
            new, steps = counts[b], of_steps[b]
            kept = slice(new) if width == 1 else report.kept[b]
            row.tokens.append(report.tokens[b, kept].copy())
            row.logprobs.append(report.logprobs[b, kept].copy())
            row.experts.append(report.experts[b, kept].copy())
            row.right_drafts += right[b]
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
