"""The rollout engine: slots with refill, prompts prefilled once, decoding in chunks on the device.

It knows tokens, not text. A completion depends on (parameters, prompt, sampling, key, prompt index,
sample index) alone: not on the slots, the other rows, the buckets, or the number of devices.

Shape legend: S slots, P prompts of a prefill, T columns of the cache (= positions), C chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding

from r1jax.config import ConfigError
from r1jax.models.attention import LayerCache
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import (
    Transformer,
    forward,
    head_weights,
    param_axes,
    unrolled,
    unstack_layers,
)
from r1jax.rollout.sampling import SamplingConfig, row_keys, sample, uniforms
from r1jax.sharding import RULES, constrain, replicated, spec_of
from r1jax.types import Completion


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of what runs at once; none of them changes a completion."""

    slots: int = 64  # rows that decode together
    chunk: int = 32  # decode steps on the device between two looks from the host
    bucket: int = 128  # the cache grows by this many columns
    prefill_batch: int = 8  # prompts prefilled together


@struct.dataclass
class Slots:
    """The rows that decode. A row feeds `token` at `position` and samples the one after it."""

    cache: tuple[LayerCache, ...]  # per layer [S, K, T, N]
    token: jax.Array  # int32 [S]
    position: jax.Array  # int32 [S]
    keys: jax.Array  # one key per row [S]
    count: jax.Array  # int32 [S], tokens sampled so far
    limit: jax.Array  # int32 [S], tokens it may have
    done: jax.Array  # bool [S]; a row without work is done


@dataclass
class _Row:
    """What the host knows of a busy slot."""

    prompt_index: int
    sample_index: int
    tokens: list[np.ndarray]
    logprobs: list[np.ndarray]
    position: int
    count: int = 0


@dataclass
class _Prefilled:
    """Prompts whose keys and values wait for slots: row r of `cache` is prompt `indices[r]`."""

    cache: tuple[LayerCache, ...]
    rows: dict[int, int]  # prompt index -> row
    columns: int


@dataclass
class Statistics:
    """What a generate call did, for the metrics."""

    decode_steps: int = 0
    slot_steps: int = 0  # slots x steps
    tokens: int = 0  # sampled and kept

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
        self.model_config = unrolled(model)
        self.mesh = mesh
        self.model = Transformer(self.model_config, mesh)
        self.stop_ids = tuple(stop_ids)
        self.statistics = Statistics()
        self._row_multiple = 1
        if mesh is not None:
            self._row_multiple = int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
        self._prepare = jax.jit(self._prepare_params, out_shardings=self._param_shardings())
        self._prefill = jax.jit(self._prefill_prompts, static_argnames="columns")
        self._decode = jax.jit(
            self._decode_chunk, static_argnames=("sampling", "steps"), donate_argnums=1
        )
        self._insert = jax.jit(self._insert_rows, donate_argnums=0)
        self._resize = jax.jit(self._resize_slots, static_argnames="columns")

    # -- the host's side --------------------------------------------------------------------

    def generate(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        sampling: SamplingConfig,
        key: jax.Array,
        group_size: int = 1,
        prompt_indices: Sequence[int] | None = None,
    ) -> Iterator[Completion]:
        """`group_size` completions of each prompt, in the order in which they finish.

        `prompt_indices` are the prompts' numbers for the random keys (default 0, 1, ...). Raises
        ConfigError for a prompt that leaves no room for a completion.
        """
        self._check(prompts)
        self.statistics = Statistics()
        if not len(prompts):
            return
        params = self._prepare(params)
        numbers = list(range(len(prompts))) if prompt_indices is None else list(prompt_indices)
        queue = deque((p, g) for p in range(len(prompts)) for g in range(group_size))
        count = min(self._round_rows(self.config.slots), self._round_rows(len(queue)))
        rows: list[_Row | None] = [None] * count
        waiting: deque[_Prefilled] = deque()
        columns = self._round_columns(1)
        slots = self._empty(count, columns)
        while queue or any(rows):
            free = [i for i, row in enumerate(rows) if row is None]
            while free and queue:
                batch = self._prefilled(params, prompts, queue, waiting)
                taken = self._take(batch, queue, free)
                needed = max(batch.columns, columns)
                if needed > columns:
                    slots, columns = self._resized(slots, rows, count, needed), needed
                slots = self._fill(slots, batch, taken, prompts, numbers, sampling, key)
                for slot, (prompt, sample_index) in taken.items():
                    rows[slot] = _Row(prompt, sample_index, [], [], len(prompts[prompt]) - 1)
            if not queue:
                waiting.clear()
                smaller = self._smaller(rows)
                if smaller < count:
                    slots, rows = self._compacted(slots, rows, smaller, columns)
                    count = smaller
            needed = self._round_columns(max(r.position for r in rows if r) + self.config.chunk + 1)
            if needed > columns:
                slots, columns = self._resized(slots, rows, count, needed), needed
            slots, report = self._decode(params, slots, sampling=sampling, steps=self.config.chunk)
            yield from self._collect(jax.device_get(report), rows, count)

    def _check(self, prompts: Sequence[np.ndarray]) -> None:
        limit = self.model_config.max_length
        for index, prompt in enumerate(prompts):
            if not 1 <= len(prompt) < limit:
                raise ConfigError(
                    f"prompt {index} has {len(prompt)} tokens; the model's max_length {limit}"
                    f" allows 1 to {limit - 1}"
                )

    def _round_rows(self, count: int) -> int:
        return -(-count // self._row_multiple) * self._row_multiple

    def _round_columns(self, columns: int) -> int:
        return -(-columns // self.config.bucket) * self.config.bucket

    def _prefilled(
        self,
        params: Any,
        prompts: Sequence[np.ndarray],
        queue: deque[tuple[int, int]],
        waiting: deque[_Prefilled],
    ) -> _Prefilled:
        """The prefill that holds the prompt at the head of the queue, made if need be."""
        first = queue[0][0]
        while waiting and first not in waiting[0].rows:
            waiting.popleft()
        if not waiting:
            indices = range(first, min(first + self.config.prefill_batch, len(prompts)))
            longest = max(len(prompts[i]) for i in indices)
            columns = self._round_columns(longest)
            tokens = np.zeros((self._round_rows(self.config.prefill_batch), columns), np.int32)
            for row, index in enumerate(indices):
                tokens[row, : len(prompts[index])] = prompts[index]
            cache = self._prefill(params, tokens, columns=columns)
            rows = {index: row for row, index in enumerate(indices)}
            waiting.append(_Prefilled(cache, rows, columns))
        return waiting[0]

    def _take(
        self, batch: _Prefilled, queue: deque[tuple[int, int]], free: list[int]
    ) -> dict[int, tuple[int, int]]:
        """Slot -> (prompt, sample) for as many of the queue's head as this prefill serves."""
        taken = {}
        while free and queue and queue[0][0] in batch.rows:
            taken[free.pop(0)] = queue.popleft()
        return taken

    def _fill(
        self,
        slots: Slots,
        batch: _Prefilled,
        taken: dict[int, tuple[int, int]],
        prompts: Sequence[np.ndarray],
        numbers: Sequence[int],
        sampling: SamplingConfig,
        key: jax.Array,
    ) -> Slots:
        """Puts new rows into slots; the arrays are padded to a power of two of rows."""
        total = 1 << (len(taken) - 1).bit_length()
        columns = [[slots.token.shape[0]] * total] + [[0] * total for _ in range(6)]
        slot_ids, source, token, position, limit, prompt_ids, sample_ids = columns
        for i, (slot, (prompt, sample_index)) in enumerate(taken.items()):
            length = len(prompts[prompt])
            slot_ids[i], source[i] = slot, batch.rows[prompt]
            token[i], position[i] = int(prompts[prompt][-1]), length - 1
            limit[i] = min(sampling.max_tokens, self.model_config.max_length - length)
            prompt_ids[i], sample_ids[i] = numbers[prompt], sample_index
        arrays = [np.asarray(values, np.int32) for values in columns]
        return self._insert(slots, batch.cache, key, *arrays)

    def _resized(self, slots: Slots, rows: list[_Row | None], count: int, columns: int) -> Slots:
        return self._resize(slots, np.arange(count, dtype=np.int32), columns=columns)

    def _smaller(self, rows: list[_Row | None]) -> int:
        """Half the slots as long as the busy rows fit."""
        count, busy = len(rows), sum(row is not None for row in rows)
        while count % 2 == 0 and (count // 2) % self._row_multiple == 0 and 0 < busy <= count // 2:
            count //= 2
        return count

    def _compacted(
        self, slots: Slots, rows: list[_Row | None], count: int, columns: int
    ) -> tuple[Slots, list[_Row | None]]:
        busy = [i for i, row in enumerate(rows) if row is not None]
        idle = [i for i, row in enumerate(rows) if row is None]
        keep = (busy + idle)[:count]
        return self._resize(slots, np.asarray(keep, np.int32), columns=columns), [
            rows[i] for i in keep
        ]

    def _collect(
        self, report: tuple[np.ndarray, ...], rows: list[_Row | None], count: int
    ) -> Iterator[Completion]:
        """Takes the chunk's tokens to their rows and gives out those that are finished."""
        tokens, logprobs, counts, done, steps = report
        self.statistics.decode_steps += int(steps)
        self.statistics.slot_steps += int(steps) * count
        for slot, row in enumerate(rows):
            if row is None:
                continue
            new = int(counts[slot]) - row.count
            row.tokens.append(tokens[slot, :new])
            row.logprobs.append(logprobs[slot, :new])
            row.count, row.position = row.count + new, row.position + new
            self.statistics.tokens += new
            if done[slot]:
                rows[slot] = None
                all_tokens = np.concatenate(row.tokens)
                yield Completion(
                    prompt_index=row.prompt_index,
                    sample_index=row.sample_index,
                    tokens=all_tokens,
                    logprobs=np.concatenate(row.logprobs),
                    finish_reason="stop" if int(all_tokens[-1]) in self.stop_ids else "length",
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
        """Training parameters -> one per layer, in the rollout's type."""
        if "layers" in params:
            params = unstack_layers(params)
        return jax.tree.map(lambda x: x.astype(self.model_config.dtype), params)

    def _pin(self, cache: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
        return jax.tree.map(
            lambda x: constrain(x, self.mesh, "batch", "kv_heads", "length", "head_dim"), cache
        )

    def _zero_cache(self, rows: int, columns: int) -> tuple[LayerCache, ...]:
        c = self.model_config
        shape = (rows, c.num_kv_heads, columns, c.head_dim)
        dtype = jnp.dtype(c.dtype)
        return self._pin(
            tuple(
                LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
                for _ in range(c.num_layers)
            )
        )

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def _empty(self, rows: int, columns: int) -> Slots:
        zeros = jnp.zeros(rows, jnp.int32)
        return Slots(
            cache=self._zero_cache(rows, columns),
            token=zeros,
            position=zeros,
            keys=jax.random.split(jax.random.key(0), rows),
            count=zeros,
            limit=zeros,
            done=jnp.ones(rows, bool),
        )

    def _prefill_prompts(self, params: Any, tokens_PT: jax.Array, columns: int) -> Any:
        """Keys and values of the prompts; what lies behind a prompt's end is overwritten later."""
        positions_PT = jnp.broadcast_to(jnp.arange(columns), tokens_PT.shape)
        cache = self._zero_cache(tokens_PT.shape[0], columns)
        output = forward(self.model, params, tokens_PT, positions_PT, cache=cache)
        return self._pin(output.cache or ())

    def _insert_rows(
        self,
        slots: Slots,
        prompts: tuple[LayerCache, ...],
        key: jax.Array,
        slot_ids: jax.Array,
        source: jax.Array,
        token: jax.Array,
        position: jax.Array,
        limit: jax.Array,
        prompt_ids: jax.Array,
        sample_ids: jax.Array,
    ) -> Slots:
        """Starts rows in slots; a slot id past the end (padding) is dropped."""

        def copy(into: jax.Array, prompt: jax.Array) -> jax.Array:
            return into.at[slot_ids, :, : prompt.shape[2]].set(prompt[source], mode="drop")

        def put(into: jax.Array, values: Any) -> jax.Array:
            return into.at[slot_ids].set(values, mode="drop")

        return Slots(
            cache=self._pin(jax.tree.map(copy, slots.cache, prompts)),
            token=put(slots.token, token),
            position=put(slots.position, position),
            keys=put(slots.keys, row_keys(key, prompt_ids, sample_ids)),
            count=put(slots.count, 0),
            limit=put(slots.limit, limit),
            done=put(slots.done, False),
        )

    def _resize_slots(self, slots: Slots, keep: jax.Array, columns: int) -> Slots:
        """The slots `keep` with a cache of `columns` columns (never fewer than it has)."""

        def one(x: jax.Array) -> jax.Array:
            return jnp.pad(x[keep], [(0, 0), (0, 0), (0, columns - x.shape[2]), (0, 0)])

        rest = jax.tree.map(lambda x: x[keep], dataclasses.replace(slots, cache=()))
        return dataclasses.replace(rest, cache=self._pin(jax.tree.map(one, slots.cache)))

    def _decode_chunk(
        self, params: Any, slots: Slots, sampling: SamplingConfig, steps: int
    ) -> tuple[Slots, tuple[jax.Array, ...]]:
        """Up to `steps` tokens for every row that is not done, until all are.

        The report is (tokens [S, C], logprobs [S, C], counts [S], done [S], steps taken).
        """
        rows = slots.token.shape[0]
        head_DV = head_weights(params)

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            i, slots, tokens_SC, logprobs_SC = carry
            output = forward(
                self.model, params, slots.token[:, None], slots.position[:, None], cache=slots.cache
            )
            logits_SV = jnp.einsum(
                "sd,dv->sv", output.hidden[:, 0], head_DV, preferred_element_type=jnp.float32
            )
            logits_SV = constrain(logits_SV, self.mesh, "batch", "vocab")
            token, logprob = sample(logits_SV, uniforms(slots.keys, slots.position + 1), sampling)
            busy = ~slots.done
            count = slots.count + busy
            stopped = functools.reduce(jnp.logical_or, [token == s for s in self.stop_ids])
            slots = Slots(
                cache=self._pin(output.cache or ()),
                token=jnp.where(busy, token, slots.token),
                position=slots.position + busy,
                keys=slots.keys,
                count=count,
                limit=slots.limit,
                done=slots.done | stopped | (count >= slots.limit),
            )
            tokens_SC = jax.lax.dynamic_update_slice(tokens_SC, token[:, None], (0, i))
            logprobs_SC = jax.lax.dynamic_update_slice(logprobs_SC, logprob[:, None], (0, i))
            return i + 1, slots, tokens_SC, logprobs_SC

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            return (carry[0] < steps) & ~jnp.all(carry[1].done)

        start = (
            jnp.int32(0),
            slots,
            jnp.zeros((rows, steps), jnp.int32),
            jnp.zeros((rows, steps), jnp.float32),
        )
        taken, slots, tokens_SC, logprobs_SC = jax.lax.while_loop(unfinished, step, start)
        report = (tokens_SC, logprobs_SC, slots.count, slots.done, taken)
        if self.mesh is not None:  # every process looks at the same report
            report = jax.lax.with_sharding_constraint(report, replicated(self.mesh))
        return slots, report
