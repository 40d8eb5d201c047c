"""A chunk of decoding on the device, a token a step or, with drafts, up to two.

Shape legend: B rows that decode; W tokens fed in a step, 1 or 2; C tokens of
a chunk, W a step; V vocabulary; D model; S layers with experts, k experts of a token.

Speculative decoding with multi-token prediction (DeepSeek-V3, section 2.2): a step feeds the last
token and a draft of the one after it, which the model checks and, where it is right, goes on from.
The token at a position is drawn with that position's uniform number, whoever asks: a draft is what
multi-token prediction would draw with it, and right where the model draws the same. So a completion
is the same with drafts and without, up to rounding, and its distribution is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct

from r1jax.machines.mesh import constrain
from r1jax.models.block import Context
from r1jax.models.caches import Cache
from r1jax.models.moe import Routing
from r1jax.models.mtp import MTP, MultiTokenPrediction
from r1jax.models.pages import PagedCache
from r1jax.models.rope import rotary
from r1jax.models.transformer import Transformer, forward, head_weights
from r1jax.rollout.sampling import SamplingConfig, sample, uniforms

DECODE_STEPS = "decode_steps"  # the name, in programs, of the loop over a chunk's steps


class Held(Protocol):
    """What is kept of the rows' tokens: columns.Ring or pages.Pool. A pytree."""

    def begun(self, slots: jax.Array) -> Self:
        """With new rows in these slots, of which nothing is kept yet."""
        ...

    def cache(self, slots: Slots, shared: Any, width: int) -> Cache | PagedCache:
        """What a step of so many tokens a row continues; `shared` stays as it is."""
        ...

    def after(self, layers: Sequence[Any], is_own_BW: jax.Array) -> Self:
        """With the layers that a step gave, and which of its tokens are part of their row."""
        ...


@struct.dataclass
class Slots:
    """The rows that decode. A row feeds `token` at `position` and samples the one after it."""

    held: Any  # Held
    token: jax.Array  # int32 [B]
    position: jax.Array  # int32 [B]
    ahead: jax.Array  # [B, D], of which the head says the draft; [B, 0] without drafts
    keys: jax.Array  # one key per row [B]
    count: jax.Array  # int32 [B], tokens sampled so far
    limit: jax.Array  # int32 [B], tokens it may have
    done: jax.Array  # bool [B]; a row without work is done


@struct.dataclass
class Report:
    """What a chunk sampled; the same on every process."""

    tokens: Any  # int32 [B, C]
    logprobs: Any  # float32 [B, C]
    experts: Any  # int16 [B, C, S, k], taken to sample them
    kept: Any  # bool [B, C], which of all these are part of a completion
    right: Any  # bool [B, C / W], whether a step had a draft, and a right one
    done: Any = None  # bool [B]
    steps: Any = None  # int32 scalar, how many were taken


@dataclass(frozen=True)
class Decoder:
    """Decodes with a model, whose config has `mtp` where that is to make drafts."""

    model: Transformer
    stop_ids: tuple[int, ...]

    @property
    def width(self) -> int:
        """W"""
        return 2 if self.model.config.mtp else 1

    def decode(
        self,
        params: Any,
        slots: Slots,
        shared: Any,
        sampling: SamplingConfig,
        steps: int,
    ) -> tuple[Slots, Report]:
        """Up to `steps` steps for every row that is not done, until all are."""

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            i, slots, sin_cos, report = carry
            slots, taken = self._step(params, slots, shared, sampling, sin_cos)
            report = jax.tree.map(
                lambda all_BC, new_BW: jax.lax.dynamic_update_slice_in_dim(
                    all_BC, new_BW, i * new_BW.shape[1], 1
                ),
                report,
                taken,
            )
            return i + 1, slots, self._angles(slots), report

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            return (carry[0] < steps) & ~jnp.all(carry[1].done)

        # Angles are carried: where a step makes them, XLA makes them in every layer.
        start = jnp.int32(0), slots, self._angles(slots), self._empty_report(slots, steps)
        with jax.named_scope(DECODE_STEPS):
            taken, slots, _, report = jax.lax.while_loop(unfinished, step, start)
        return slots, replace(report, done=slots.done, steps=taken)

    def ahead(
        self,
        params: Any,
        hidden_BLD: jax.Array,
        next_BL: jax.Array,
        positions_BL: jax.Array,
        cache: Cache | PagedCache,
    ) -> tuple[jax.Array, Any]:
        """What multi-token prediction makes of tokens and those behind them [B, L, D], and what is
        kept of them, as the last layer.
        """
        c, compute = self.model.config, self.model.compute
        mtp = MultiTokenPrediction(c, compute, self.model.mesh)
        table_VD = constrain(params["embedding"], self.model.mesh, "vocab", "embed_act")
        embedded_BLD = jnp.take(table_VD, next_BL, axis=0).astype(compute.dtype)
        context = Context(cache.sin_cos or rotary(positions_BL, c), seen=None, counts_BL=None)
        before = cache.layer(c.num_layers)
        found: Any = mtp.apply({"params": params[MTP]}, hidden_BLD, embedded_BLD, context, before)
        ahead_BLD, (new, _) = found
        return ahead_BLD, new

    def _step(
        self,
        params: Any,
        slots: Slots,
        shared: Any,
        sampling: SamplingConfig,
        sin_cos: tuple[jax.Array, jax.Array],
    ) -> tuple[Slots, Report]:
        """The slots after a step, and what it adds to the report, W tokens a row."""
        width = self.width
        fed_BW, positions_BW = self._fed(params, slots, sampling), self._positions(slots)
        cache = replace(slots.held.cache(slots, shared, width), sin_cos=sin_cos)
        output = forward(self.model, params, fed_BW, positions_BW, cache=cache)
        layers: Any = output.cache
        tokens_BW, logprobs_BW = self._draw(
            params, output.hidden, slots.keys, positions_BW + 1, sampling
        )
        ends_BW = jnp.isin(tokens_BW, jnp.asarray(self.stop_ids, jnp.int32))
        ends_BW |= slots.count[:, None] + 1 + jnp.arange(width) >= slots.limit[:, None]
        right_BW = fed_BW[:, 1:] == tokens_BW[:, :-1]  # [B, W - 1]
        right_BW &= slots.count[:, None] > 0  # a row's first step has no draft
        busy_B1 = ~slots.done[:, None]
        kept_BW = jnp.concatenate([busy_B1, busy_B1 & right_BW & ~ends_BW[:, :-1]], axis=1)
        new_B = jnp.sum(kept_BW, axis=1)
        last_B1 = jnp.maximum(new_B - 1, 0)[:, None]
        ahead_BD = slots.ahead
        if width > 1:
            ahead_BWD, own = self.ahead(params, output.hidden, tokens_BW, positions_BW, cache)
            ahead_BD = jnp.take_along_axis(ahead_BWD, last_B1[..., None], axis=1)[:, 0]
            layers = (*layers, own)
        is_own_BW = jnp.concatenate([jnp.ones_like(busy_B1), right_BW], axis=1)
        last_B = jnp.take_along_axis(tokens_BW, last_B1, axis=1)[:, 0]
        after = replace(
            slots,
            held=slots.held.after(layers, is_own_BW),
            token=jnp.where(slots.done, slots.token, last_B),
            position=slots.position + new_B,
            ahead=ahead_BD,
            count=slots.count + new_B,
            done=slots.done | jnp.any(kept_BW & ends_BW, axis=1),
        )
        experts = self._experts(output.routing, tokens_BW)
        return after, Report(tokens_BW, logprobs_BW, experts, kept_BW, busy_B1 & right_BW)

    def _fed(self, params: Any, slots: Slots, sampling: SamplingConfig) -> jax.Array:
        """The last token of each row, and the draft of the one behind it [B, W]."""
        if self.width == 1:
            return slots.token[:, None]
        next_B1 = slots.position[:, None] + 1
        drafts_B1, _ = self._draw(params, slots.ahead[:, None], slots.keys, next_B1, sampling)
        return jnp.concatenate([slots.token[:, None], drafts_B1], axis=1)

    def _draw(
        self,
        params: Any,
        hidden_BWD: jax.Array,
        keys_B: jax.Array,
        positions_BW: jax.Array,
        sampling: SamplingConfig,
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens at these positions and their log-probabilities, [B, W] each."""
        rows, width, size = hidden_BWD.shape
        logits = jnp.einsum(
            "bd,dv->bv",
            hidden_BWD.reshape(rows * width, size),
            head_weights(params),
            preferred_element_type=jnp.float32,
        )
        logits = constrain(logits, self.model.mesh, "batch", "vocab")
        uniforms_BW = jax.vmap(uniforms, in_axes=(None, 1), out_axes=1)(keys_B, positions_BW)
        drawn = sample(logits, uniforms_BW.reshape(-1), sampling)
        tokens, logprobs = (x.reshape(rows, width) for x in drawn)
        return tokens, logprobs

    def _positions(self, slots: Slots) -> jax.Array:
        """Of the tokens that a step feeds [B, W]."""
        return slots.position[:, None] + jnp.arange(self.width)

    def _angles(self, slots: Slots) -> tuple[jax.Array, jax.Array]:
        return rotary(self._positions(slots), self.model.config)

    def _experts(self, routing: Routing | None, tokens_BW: jax.Array) -> jax.Array:
        """The experts that were taken to sample these tokens, int16 [B, W, S, k]."""
        if routing is None:
            return jnp.zeros((*tokens_BW.shape, 0, 0), jnp.int16)
        return routing.experts.transpose(1, 2, 0, 3).astype(jnp.int16)

    def _empty_report(self, slots: Slots, steps: int) -> Report:
        config = self.model.config
        experts, rows = config.experts, len(slots.token)
        sparse = sum(len(stack.layers) for stack in config.stacks if stack.sparse)
        choices = (sparse, experts.top_k) if experts and sparse else (0, 0)
        shape = rows, steps * self.width
        return Report(
            tokens=jnp.zeros(shape, jnp.int32),
            logprobs=jnp.zeros(shape, jnp.float32),
            experts=jnp.zeros((*shape, *choices), jnp.int16),
            kept=jnp.zeros(shape, bool),
            right=jnp.zeros((rows, steps * (self.width - 1)), bool),
        )
