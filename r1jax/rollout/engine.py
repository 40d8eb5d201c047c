"""The rollout engine: slots with refill, prompts shared by their group, decoding in chunks.

It knows tokens, not text. A completion depends on (parameters, prompt, sampling, key, prompt index,
sample index) alone: not on the slots, the other rows, the buckets, or the number of devices.

A prompt's keys and values (all but its last token's) are computed once and read by every row of its
group. A row's own ones, from the prompt's last token on, lie in a ring of columns: each decode step
writes the same column for all rows, which is one slice in place, and a row sees the last few
columns, as many as it has tokens there.

Shape legend: Z shards of the mesh's batch axes; B = Z S rows with S slots a shard; P prompts a
shard; T columns of a cache; C steps of a chunk; R prompts of a prefill a shard; L their tokens.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from r1jax.config import ConfigError
from r1jax.models.attention import Cache, LayerCache, SharedPrefix
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import (
    Transformer,
    forward,
    fuse_layers,
    head_weights,
    param_axes,
    unrolled,
    unstack_layers,
)
from r1jax.rollout.memory import Memory, plan_slots
from r1jax.rollout.sampling import SamplingConfig, row_keys, sample, uniforms
from r1jax.rollout.schedule import Load, Row, Schedule, Start
from r1jax.sharding import RULES, constrain, replicated, spec_of
from r1jax.types import Completion

# (a row's tokens, how many of them were seen before) -> how many it keeps; 0 = it goes on
StopCheck = Callable[[np.ndarray, int], int]


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of what runs at once; none of them changes a completion."""

    slots: int = 64  # rows that decode together, on all devices; 0 = as many as memory allows
    chunk: int = 32  # decode steps on the device between two looks from the host
    bucket: int = 128  # caches have this many columns, or 1.5, 2, 3, 4, 6, 8, ... times as many
    prefill_batch: int = 8  # prompts prefilled together, a device
    prefill_chunk: int = 512  # tokens of a prompt that are prefilled at once
    memory_mib: int = 0  # for caches and logits, a device; 0 = with slots=0, 80 % of what is free

    def __post_init__(self) -> None:
        for name in ("chunk", "bucket", "prefill_batch", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name} {getattr(self, name)} must be at least 1")
        for name in ("slots", "memory_mib"):
            if getattr(self, name) < 0:
                raise ConfigError(f"engine.{name} {getattr(self, name)} must not be negative")


@struct.dataclass
class Slots:
    """The rows that decode. A row feeds `token` at `position` and samples the one after it."""

    layers: tuple[LayerCache, ...]  # T columns
    column: jax.Array  # int32 scalar, the ring's column of the next step
    token: jax.Array  # int32 [B]
    position: jax.Array  # int32 [B]
    start: jax.Array  # int32 [B], position of the first token in the row's own columns
    keys: jax.Array  # one key per row [B]
    count: jax.Array  # int32 [B], tokens sampled so far
    limit: jax.Array  # int32 [B], tokens it may have
    done: jax.Array  # bool [B]; a row without work is done


@dataclass
class Statistics:
    """What a generate call did, for the metrics."""

    slots: int = 0
    decode_steps: int = 0
    slot_steps: int = 0  # slots x steps
    tokens: int = 0  # sampled and kept
    prompt_tokens: int = 0  # prefilled
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def wasted_share(self) -> float:
        """Share of the decoded rows that were idle."""
        return 1.0 - self.tokens / self.slot_steps if self.slot_steps else 0.0


class Engine:
    """`generate` streams completions as they finish. One engine serves any parameters."""

    def __init__(
        self,
        model: ModelConfig,
        stop_ids: Sequence[int],
        config: EngineConfig | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        self.model_config = unrolled(model, platform)
        self.mesh = mesh
        self.model = Transformer(self.model_config, mesh)
        self.stop_ids = tuple(stop_ids)
        self.statistics = Statistics()
        self._note = ""  # of the last memory plan
        self.shards = 1
        if mesh is not None:
            self.shards = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        self._prepare = jax.jit(self._prepare_params, out_shardings=self._param_shardings())
        self._prefill = jax.jit(self._prefill_prompts, donate_argnums=1)
        self._decode = jax.jit(
            self._decode_chunk, static_argnames=("sampling", "steps"), donate_argnums=1
        )
        self._insert = jax.jit(self._insert_rows, donate_argnums=0)
        self._resize = jax.jit(self._resize_slots, static_argnames="columns")
        self._resize_prefix = jax.jit(self._resize_prompts, static_argnames="columns")

    # -- the host's side --------------------------------------------------------------------

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
        slots = min(memory.slots, -(-len(prompts) * group_size // self.shards))
        held = min(memory.prompts(slots), len(prompts))
        work = Schedule(len(prompts), group_size, self.shards, slots, held)
        self.statistics.slots = slots * self.shards
        places = min(1 << (group_size - 1).bit_length(), slots)  # readers of a prompt
        params = self._prepare(params)
        drawn = replace(sampling, max_tokens=1, stop=())  # those are no part of the program
        columns = self._columns(min(max(limits), self.config.chunk))
        state = self._empty(slots * self.shards, columns)
        prefix = self._empty_prefix(work.prompt_rows, self._columns(1))
        finished: list[Completion] = []
        while work.queue or any(True for _ in work.busy()):
            loads, starts = work.refill()
            if loads:
                prefix = self._loaded(params, prefix, prompts, loads)
            if starts:
                state = self._started(state, work, starts, prompts, numbers, limits, key)
            if not work.queue and (kept := work.shrunk()) is not None:
                state = self._resize(state, kept[0], columns=columns)
                held = prefix.layers[0].columns
                prefix = self._resize_prefix(prefix, kept[1], columns=held)
            if (needed := self._columns(self._longest(work, limits))) > columns:
                state = self._resize(state, self._all(work.slots), columns=needed)
                columns = needed
            members, place = work.readers(min(places, work.slots))
            began = time.perf_counter()
            state, report = self._decode(
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
        memory = plan_slots(
            self.model_config,
            slots=-(-self.config.slots // self.shards),
            budget_mib=self.config.memory_mib,
            prompt_columns=self._prompt_columns(max(len(prompt) for prompt in prompts)),
            columns=self._columns(max(limits)),
            group_size=group_size,
            wanted=-(-len(prompts) * group_size // self.shards),
            devices=jax.local_devices() if self.mesh is None else self.mesh.local_devices,
            tensor=1 if self.mesh is None else self.mesh.shape["tensor"],
        )
        if memory.note != self._note:
            self._note = memory.note
            logging.info("%s", memory.note)
        if jax.process_count() > 1:  # hosts may see different amounts of free memory
            fewest = int(multihost_utils.process_allgather(np.int32(memory.slots)).min())
            memory = replace(memory, slots=fewest)
        return memory

    def _check(self, prompts: Sequence[np.ndarray]) -> None:
        limit = self.model_config.max_length
        for index, prompt in enumerate(prompts):
            if not 1 <= len(prompt) < limit:
                raise ConfigError(
                    f"prompt {index} has {len(prompt)} tokens; the model's max_length {limit}"
                    f" allows 1 to {limit - 1}"
                )

    def _limit(self, prompt: np.ndarray, sampling: SamplingConfig) -> int:
        return min(sampling.max_tokens, self.model_config.max_length - len(prompt))

    def _columns(self, tokens: int) -> int:
        """The first of bucket x (1, 1.5, 2, 3, 4, 6, ...) that holds so many: few programs."""
        size = self.config.bucket
        while size < tokens:
            if size + size // 2 >= tokens:
                return size + size // 2
            size *= 2
        return size

    def _prompt_columns(self, length: int) -> int:
        """For all tokens of a prompt but the last, in whole chunks of the prefill."""
        chunk = self.config.prefill_chunk
        columns = self._columns(max(length - 1, 1))
        return columns if columns <= chunk else -(-columns // chunk) * chunk

    def _longest(self, work: Schedule, limits: Sequence[int]) -> int:
        """Own columns that some row needs by the end of the next chunk."""
        chunk = self.config.chunk
        return max(min(row.count + chunk, limits[row.prompt_index]) for _, _, row in work.busy())

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
            prefix, held = self._resize_prefix(prefix, self._all(rows), columns=needed), needed
        # Shards take turns; prompts of like length go together.
        loads = sorted(loads, key=lambda load: -len(prompts[load.prompt_index]))
        queues = [[load for load in loads if load.shard == z] for z in range(self.shards)]
        chunk, size = min(self.config.prefill_chunk, held), self.config.prefill_batch
        for first in range(0, max(len(queue) for queue in queues), size):
            batch = [queue[first : first + size] for queue in queues]
            most = max(len(part) for part in batch)
            prefix = self._loaded_batch(
                params, prefix, prompts, batch, 1 << (most - 1).bit_length(), chunk
            )
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
        rows, lengths = np.full(shape, prefix.lengths.shape[1], np.int32), np.zeros(shape, np.int32)
        for shard, part in enumerate(batch):
            for r, load in enumerate(part):
                prompt = prompts[load.prompt_index][:-1]
                tokens[shard, r, : len(prompt)] = prompt
                rows[shard, r], lengths[shard, r] = load.row, len(prompt)
        for begin in range(0, tokens.shape[2], chunk):
            part_ZRL = tokens[:, :, begin : begin + chunk]
            prefix = self._prefill(params, prefix, part_ZRL, rows, lengths, np.int32(begin))
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
        columns = [[total] * total] + [[0] * total for _ in range(5)]
        slot_ids, token, position, limit, prompt_ids, sample_ids = columns
        for i, start in enumerate(starts):
            index = start.row.prompt_index
            slot_ids[i] = start.shard * work.slots + start.slot
            token[i], position[i] = int(prompts[index][-1]), len(prompts[index]) - 1
            limit[i] = limits[index]
            prompt_ids[i], sample_ids[i] = numbers[index], start.row.sample_index
        arrays = (np.asarray(values, np.int32) for values in columns)
        rows = self._insert(replace(state, layers=()), key, *arrays)
        return replace(rows, layers=state.layers)

    def _collect(
        self, report: tuple[np.ndarray, ...], work: Schedule, stop_check: StopCheck | None
    ) -> list[Completion]:
        """Takes the chunk's tokens to their rows; gives out those that are finished."""
        tokens, logprobs, counts, done, steps = report
        self.statistics.decode_steps += int(steps)
        self.statistics.slot_steps += int(steps) * len(done)
        finished = []
        for shard, slot, row in list(work.busy()):
            b = shard * work.slots + slot
            new = int(counts[b]) - row.count
            row.tokens.append(tokens[b, :new])
            row.logprobs.append(logprobs[b, :new])
            kept = stop_check(np.concatenate(row.tokens), row.count) if stop_check and new else 0
            row.count += new
            if done[b] or kept:
                work.finish(shard, slot)
                finished.append(self._completion(row, kept or row.count, bool(kept)))
                self.statistics.tokens += len(finished[-1].tokens)
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
        )

    # -- the device's side ------------------------------------------------------------------

    def _param_shardings(self) -> Any:
        """For rollouts parameters are split over `tensor` only: every step reads all of them."""
        if self.mesh is None:
            return None
        _, axes = param_axes(self.model_config)
        mesh = self.mesh

        def one(names: tuple[str, ...]) -> NamedSharding:
            kept = (name if "fsdp" not in RULES[name] else None for name in names)
            return NamedSharding(mesh, spec_of(tuple(kept)))

        return jax.tree.map(one, axes, is_leaf=lambda x: isinstance(x, tuple))

    def _prepare_params(self, params: Any) -> Any:
        """Training parameters -> a fused set per layer, in the rollout's type."""
        if "layers" in params:
            params = unstack_layers(params)
        if self.model_config.fused:
            params = fuse_layers(params, self.model_config)
        return jax.tree.map(lambda x: x.astype(self.model_config.dtype), params)

    def _pin(self, layers: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
        def pin(x: jax.Array, *axes: str) -> jax.Array:
            return constrain(x, self.mesh, "batch", "kv_heads", *axes)

        return tuple(
            LayerCache(pin(x.keys, "head_dim", "length"), pin(x.values, "length", "head_dim"))
            for x in layers
        )

    def _zero_layers(self, rows: int, columns: int) -> tuple[LayerCache, ...]:
        c = self.model_config
        head, dtype = (rows, c.num_kv_heads), jnp.dtype(c.dtype)
        layer = LayerCache(
            jnp.zeros((*head, c.head_dim, columns), dtype),
            jnp.zeros((*head, columns, c.head_dim), dtype),
        )
        return self._pin((layer,) * c.num_layers)

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def _empty(self, rows: int, columns: int) -> Slots:
        zeros = jnp.zeros(rows, jnp.int32)
        return Slots(
            layers=self._zero_layers(rows, columns),
            column=jnp.int32(0),
            token=zeros,
            position=zeros,
            start=zeros,
            keys=jax.random.split(jax.random.key(0), rows),
            count=zeros,
            limit=zeros,
            done=jnp.ones(rows, bool),
        )

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def _empty_prefix(self, prompts: int, columns: int) -> SharedPrefix:
        return SharedPrefix(
            layers=self._zero_layers(self.shards * prompts, columns),
            lengths=jnp.zeros((self.shards, prompts), jnp.int32),
            members=jnp.zeros((self.shards, 0, 0), jnp.int32),  # every decode brings its own
            places=jnp.zeros((self.shards, 0), jnp.int32),
        )

    def _split(self, x: jax.Array) -> jax.Array:
        """[Z n, ...] -> [Z, n, ...]"""
        x = x.reshape(self.shards, -1, *x.shape[1:])
        return constrain(x, self.mesh, "batch", *(None,) * (x.ndim - 1))

    def _prefill_prompts(
        self,
        params: Any,
        prefix: SharedPrefix,
        tokens_ZRL: jax.Array,
        rows_ZR: jax.Array,
        lengths_ZR: jax.Array,
        begin: jax.Array,
    ) -> SharedPrefix:
        """A chunk of some prompts, from position `begin` on; a row past the end is padding.

        What comes to lie behind a prompt's end is masked by its length.
        """
        shards, size, length = tokens_ZRL.shape

        def rows_of(x: jax.Array) -> jax.Array:
            found = jax.vmap(lambda held, rows: held.at[rows].get(mode="clip"))(
                self._split(x), rows_ZR
            )
            return found.reshape(shards * size, *x.shape[1:])

        def put(held: jax.Array, new: jax.Array) -> jax.Array:
            whole = jax.vmap(lambda held, rows, new: held.at[rows].set(new, mode="drop"))(
                self._split(held), rows_ZR, self._split(new)
            )
            return whole.reshape(held.shape)

        layers = self._pin(jax.tree.map(rows_of, prefix.layers))
        tokens = tokens_ZRL.reshape(-1, length)
        positions = jnp.broadcast_to(begin + jnp.arange(length), tokens.shape)
        columns = layers[0].columns
        mask = jnp.arange(columns) <= positions[:, :, None]
        output = forward(self.model, params, tokens, positions, cache=Cache(layers, begin, mask))
        lengths = jax.vmap(lambda held, rows, new: held.at[rows].set(new, mode="drop"))(
            prefix.lengths, rows_ZR, lengths_ZR
        )
        layers = self._pin(jax.tree.map(put, prefix.layers, output.cache))
        return replace(prefix, layers=layers, lengths=lengths)

    def _insert_rows(
        self,
        slots: Slots,
        key: jax.Array,
        slot_ids: jax.Array,
        token: jax.Array,
        position: jax.Array,
        limit: jax.Array,
        prompt_ids: jax.Array,
        sample_ids: jax.Array,
    ) -> Slots:
        """Starts rows in slots; a slot id past the end (padding) is dropped."""

        def put(into: jax.Array, values: Any) -> jax.Array:
            return into.at[slot_ids].set(values, mode="drop")

        return replace(
            slots,
            token=put(slots.token, token),
            position=put(slots.position, position),
            start=put(slots.start, position),
            keys=put(slots.keys, row_keys(key, prompt_ids, sample_ids)),
            count=put(slots.count, 0),
            limit=put(slots.limit, limit),
            done=put(slots.done, False),
        )

    def _resize_slots(self, slots: Slots, keep_ZS: jax.Array, columns: int) -> Slots:
        """The slots `keep`, with a ring of `columns` (never fewer) that begins with its oldest."""

        def rows_of(x: jax.Array) -> jax.Array:
            kept = jax.vmap(lambda held, keep: held[keep])(self._split(x), keep_ZS)
            return kept.reshape(-1, *x.shape[1:])

        def ring(x: jax.Array, axis: int) -> jax.Array:
            x = jnp.roll(rows_of(x), -slots.column, axis)
            return _padded(x, axis, before=columns - x.shape[axis])

        layers = self._pin(_columns_changed(slots.layers, ring))
        rest = jax.tree.map(rows_of, replace(slots, layers=(), column=slots.token))
        return replace(rest, layers=layers, column=jnp.int32(0))

    def _resize_prompts(
        self, prefix: SharedPrefix, keep_ZP: jax.Array, columns: int
    ) -> SharedPrefix:
        """The prompts `keep`, with `columns` columns (never fewer than they have)."""
        take = jax.vmap(lambda held, keep: held[keep])

        def one(x: jax.Array, axis: int) -> jax.Array:
            x = take(self._split(x), keep_ZP).reshape(-1, *x.shape[1:])
            return _padded(x, axis, after=columns - x.shape[axis])

        layers = self._pin(_columns_changed(prefix.layers, one))
        return replace(prefix, layers=layers, lengths=take(prefix.lengths, keep_ZP))

    def _decode_chunk(
        self,
        params: Any,
        slots: Slots,
        prefix: SharedPrefix,
        idle: jax.Array,
        sampling: SamplingConfig,
        steps: int,
    ) -> tuple[Slots, tuple[jax.Array, ...]]:
        """Up to `steps` tokens for every row that is not done, until all are.

        `idle` [B] are rows that the host has taken the work from. The report is (tokens [B, C],
        logprobs [B, C], counts [B], done [B], steps taken).
        """
        rows = slots.token.shape[0]
        columns = slots.layers[0].columns
        head_DV = head_weights(params)

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            i, slots, tokens_BC, logprobs_BC = carry
            age_T = (slots.column - jnp.arange(columns)) % columns
            own_B = slots.position - slots.start  # columns before this step's
            cache = Cache(
                layers=slots.layers,
                column=slots.column,
                mask=(age_T <= own_B[:, None])[:, None],
                prefix=prefix,
            )
            output = forward(
                self.model, params, slots.token[:, None], slots.position[:, None], cache=cache
            )
            logits_BV = jnp.einsum(
                "bd,dv->bv", output.hidden[:, 0], head_DV, preferred_element_type=jnp.float32
            )
            logits_BV = constrain(logits_BV, self.mesh, "batch", "vocab")
            token, logprob = sample(logits_BV, uniforms(slots.keys, slots.position + 1), sampling)
            busy = ~slots.done
            count = slots.count + busy
            stopped = jnp.isin(token, jnp.asarray(self.stop_ids, jnp.int32))
            slots = replace(
                slots,
                layers=self._pin(output.cache or ()),
                column=(slots.column + 1) % columns,
                token=jnp.where(busy, token, slots.token),
                position=slots.position + busy,
                count=count,
                done=slots.done | stopped | (count >= slots.limit),
            )
            tokens_BC = jax.lax.dynamic_update_slice(tokens_BC, token[:, None], (0, i))
            logprobs_BC = jax.lax.dynamic_update_slice(logprobs_BC, logprob[:, None], (0, i))
            return i + 1, slots, tokens_BC, logprobs_BC

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            return (carry[0] < steps) & ~jnp.all(carry[1].done)

        start = (
            jnp.int32(0),
            replace(slots, done=slots.done | idle),
            jnp.zeros((rows, steps), jnp.int32),
            jnp.zeros((rows, steps), jnp.float32),
        )
        taken, slots, tokens_BC, logprobs_BC = jax.lax.while_loop(unfinished, step, start)
        report = (tokens_BC, logprobs_BC, slots.count, slots.done, taken)
        if self.mesh is not None:  # every process looks at the same report
            report = jax.lax.with_sharding_constraint(report, replicated(self.mesh))
        return slots, report


def _columns_changed(
    layers: tuple[LayerCache, ...], change: Callable[[jax.Array, int], jax.Array]
) -> tuple[LayerCache, ...]:
    """`change` is given keys or values, and which of their axes the columns are."""
    return tuple(LayerCache(change(x.keys, 3), change(x.values, 2)) for x in layers)


def _padded(x: jax.Array, axis: int, before: int = 0, after: int = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = before, after
    return jnp.pad(x, widths)
