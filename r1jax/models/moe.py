"""Mixture of experts: DeepSeekMoE (V2, V3, R1) and Qwen3-MoE.

Shape legend: transformer.py's; E routed experts, k of a token, T tokens, A = T k, R rows of
grouped.Groups, F ffn of an expert.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec

from r1jax.machines.mesh import RULES, spec_of
from r1jax.models.config import Experts
from r1jax.models.grouped import Groups, choose_grouped, group, grouped_matmul
from r1jax.models.layer import Layer

ROUTER = "router"  # the matrix of the scores
ROUTER_BIAS = "router_bias"  # what is added when experts are chosen; no gradient moves it
ROOM = 1 << 15  # rows of a device's experts that exist at once
SPARE = 4  # times as many as come in the mean have room, up to that
ROOMS = 512  # rows: rooms are multiples of it
EXPERTS_FIT = "experts_fit"  # the name, in programs, of the choice whether some have that room
Tokens = tuple[jax.Array, jax.Array, jax.Array]  # x [T, D], weights and experts [T, k]


@struct.dataclass
class Routing:
    """Which experts a layer's tokens took, and how evenly; stacked over the layers that have any.

    Tokens that do not count, padding, are in neither the load nor the balance.
    """

    experts: jax.Array  # int32 [B, L, k]
    load_E: jax.Array  # float32, tokens of each expert
    balance: jax.Array  # float32 scalar, the sequence-wise balance loss, summed over tokens
    # Of decisions that were recorded elsewhere: how many, and how many are other ones here.
    compared: jax.Array | None = None
    differing: jax.Array | None = None


class MixtureOfExperts(Layer):
    """Of the routed experts a token takes k, weighted by its scores; all shared ones see it.

    No token is dropped, however many take the same expert.
    """

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        counts_BL: jax.Array | None,
        recorded_BLk: jax.Array | None,
        replay: bool,
        length: str = "length",
    ) -> tuple[jax.Array, Routing]:
        """`counts` says which tokens are no padding (None: all are). `recorded` are the experts
        that another pass took, -1 where that is not known: here they are compared with, or taken.
        `length` is the logical axis of x's.
        """
        c = self._experts
        scores_BLE, bias_E = self._scores(x_BLD)
        own_BLk = chosen_BLk = choose(jax.lax.stop_gradient(scores_BLE) + bias_E, c)
        compared = differing = None
        if recorded_BLk is not None:
            known_BLk = recorded_BLk >= 0
            is_other_BLk = ~jnp.any(recorded_BLk[..., None] == own_BLk[..., None, :], axis=3)
            compared, differing = jnp.sum(known_BLk), jnp.sum(known_BLk & is_other_BLk)
            if replay:
                chosen_BLk = jnp.where(known_BLk, recorded_BLk, own_BLk)
        weights_BLk = jnp.take_along_axis(scores_BLE, chosen_BLk, axis=2)
        if c.normalize:
            weights_BLk /= jnp.sum(weights_BLk, axis=2, keepdims=True) + 1e-20
        counted_BL = jnp.ones(x_BLD.shape[:2], bool) if counts_BL is None else counts_BL
        taken_BLk = jnp.where(counted_BL[..., None], chosen_BLk, c.num_experts)  # padding: none
        y_BLD = self._routed(x_BLD, weights_BLk * c.scale, taken_BLk, length)
        if c.num_shared:
            x_BLD = self.constrain(x_BLD, "batch", "length", "embed_act")
            y_BLD += self.mlp(x_BLD, c.num_shared * c.ffn_dim, "shared_")
        hits_BLE = jnp.sum(jax.nn.one_hot(taken_BLk, c.num_experts, dtype=jnp.float32), axis=2)
        return y_BLD, Routing(
            experts=chosen_BLk,
            load_E=jnp.sum(hits_BLE, axis=(0, 1)),
            balance=sequence_balance(scores_BLE, hits_BLE, counted_BL, c.top_k),
            compared=compared,
            differing=differing,
        )

    @property
    def _experts(self) -> Experts:
        assert self.config.experts is not None
        return self.config.experts

    def _scores(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array | float]:
        """Of all experts [B, L, E] in float32, and the bias of the choice [E]."""
        c = self._experts
        size, axes = [self.config.embed_dim, c.num_experts], ["embed", "router"]
        logits_BLE = x_BLD.astype(jnp.float32) @ self.weight32(ROUTER, size, axes)
        softmax = c.score == "softmax"
        scores_BLE = jax.nn.softmax(logits_BLE) if softmax else jax.nn.sigmoid(logits_BLE)
        if not c.bias:
            return scores_BLE, 0.0
        return scores_BLE, self.weight32(ROUTER_BIAS, [c.num_experts], ["router"], 0.0)

    def _routed(
        self, x_BLD: jax.Array, weights_BLk: jax.Array, taken_BLk: jax.Array, length: str
    ) -> jax.Array:
        """The weighted sum of what a token's experts make of it [B, L, D]."""
        c, embed_dim = self._experts, self.config.embed_dim
        into = [c.num_experts, embed_dim, c.ffn_dim], ["expert", "expert_embed", "ffn"]
        out = [c.num_experts, c.ffn_dim, embed_dim], ["expert", "ffn", "expert_embed"]
        matrices = (
            self.weight("expert_gate", *into),
            self.weight("expert_up", *into),
            self.weight("expert_down", *out, self.residual_std),
        )
        run: Callable[..., jax.Array] = functools.partial(
            run_experts, kernel=choose_grouped(self.mesh), experts=c.num_experts
        )
        if self.mesh is not None and self.mesh.size > 1:
            rows = spec_of(("batch", length, None))
            into_spec = PartitionSpec("expert", None, "tensor")
            split, tensor = ("tensor" in RULES[length]), self.mesh.shape["tensor"]
            across = Across(
                ("expert", "tensor") if split else ("expert",),
                () if split else ("tensor",),
                self.mesh.shape["expert"] * (tensor if split else 1),
            )
            run = jax.shard_map(
                functools.partial(run, across=across),
                mesh=self.mesh,
                in_specs=(
                    rows,
                    rows,
                    rows,
                    into_spec,
                    into_spec,
                    PartitionSpec("expert", "tensor"),
                ),
                out_specs=rows,
                check_vma=False,  # Pallas has no types for it
            )
        return run(x_BLD, weights_BLk, taken_BLk, *matrices)


def choose(scores_BLE: jax.Array, c: Experts) -> jax.Array:
    """The k experts with the best scores, int32 [B, L, k], of the best groups where there are any.

    A group is as good as its best two together where scores are sigmoids (V3), else as its best
    (V2).
    """
    if c.top_groups < c.groups:
        by_group = scores_BLE.reshape(*scores_BLE.shape[:2], c.groups, -1)
        best = 2 if c.score == "sigmoid" else 1
        group_BLG = jnp.sum(jax.lax.top_k(by_group, min(best, by_group.shape[3]))[0], axis=3)
        kept_BLg = jax.lax.top_k(group_BLG, c.top_groups)[1]
        is_kept_BLG = jnp.any(jax.nn.one_hot(kept_BLg, c.groups, dtype=bool), axis=2)
        by_group = jnp.where(is_kept_BLG[..., None], by_group, -jnp.inf)
        scores_BLE = by_group.reshape(scores_BLE.shape)
    return jax.lax.top_k(scores_BLE, c.top_k)[1]


@dataclass(frozen=True)
class Across:
    """The devices whose tokens come together, and those that hold parts of the same experts.

    Every device has its share of the experts for all of those tokens, and each token's sums go back
    to where it came from: two collectives, which exist on every platform (ragged all-to-all does
    not). Of rows [T, D], since the TPU's compiler makes a sum of more axes whole on each device.
    """

    tokens: tuple[str, ...] = ()  # axes of the mesh along which devices have other tokens
    same: tuple[str, ...] = ()  # and along which they have the same ones
    parts: int = 1  # devices along `tokens`

    def gathered(self, given: Tokens, held: int) -> Tokens:
        """Of all of them; the experts counted from this device's first one."""
        if not self.tokens:
            return given
        x, weights, taken = (jax.lax.all_gather(x, self.tokens, axis=0, tiled=True) for x in given)
        return x, weights, taken - jax.lax.axis_index("expert") * held

    def summed(self, y_TD: jax.Array) -> jax.Array:
        """The sums of a device's own tokens."""
        if self.tokens:
            y_TD = jax.lax.psum_scatter(y_TD, self.tokens, scatter_dimension=0, tiled=True)
        return jax.lax.psum(y_TD, self.same) if self.same else y_TD


ALONE = Across()


def run_experts(
    x_BLD: jax.Array,
    weights_BLk: jax.Array,
    taken_BLk: jax.Array,
    *matrices: jax.Array,
    kernel: str,
    experts: int,
    room: int = ROOM,
    across: Across = ALONE,
) -> jax.Array:
    """[B, L, D] of experts 0 .. E - 1 of so many; what is taken of any others counts nothing.

    No token is dropped, and all may be these experts': of more rows than there is room for, some
    tokens are computed at a time, so many that their rows have room in twice the mean at least; if
    they have not, in smaller parts, which always do. `across` are the devices whose tokens come
    together, a piece at a time.
    """
    shape, top_k = x_BLD.shape, taken_BLk.shape[2]
    x_TD, weights_Tk, taken_Tk = (
        x.reshape(-1, x.shape[2]) for x in (x_BLD, weights_BLk, taken_BLk)
    )
    local = x_TD, weights_Tk, taken_Tk
    held, tokens = matrices[0].shape[0], shape[0] * shape[1]
    rows = tokens * across.parts * top_k
    room = min(room, -(-SPARE * rows * held // (experts * ROOMS)) * ROOMS)
    fits = rows <= room  # whatever they take
    size = tokens if fits else max(room * experts // (2 * held * top_k * across.parts), 1)
    gate_EDF, up_EDF, down_EFD = matrices
    dtype, wide = gate_EDF.dtype, (jnp.concatenate((gate_EDF, up_EDF), axis=2), down_EFD)
    if size < tokens:  # over many pieces the matrices' gradients are summed in float32
        wide = wide[0].astype(jnp.float32), wide[1].astype(jnp.float32)

    def piece(local: Tokens) -> jax.Array:
        given = across.gathered(local, held)
        narrow = [matrix.astype(dtype) for matrix in wide]
        groups = _grouped(given, held, kernel, experts)

        if fits:
            return across.summed(_of_groups(given, narrow, groups))

        def small(given: Tokens) -> jax.Array:
            return _of_groups(given, narrow, _grouped(given, held, kernel, experts))

        # For its gradient each keeps what it is given alone: else there is room for what both keep.
        at_once = jax.checkpoint(
            lambda given: _of_groups(given, narrow, replace(groups, rows=room))
        )
        in_parts = jax.checkpoint(lambda given: _in_turn(small, given, max(room // top_k, 1)))
        with jax.named_scope(EXPERTS_FIT):
            y_TD = jax.lax.cond(jnp.sum(groups.sizes_E) <= room, at_once, in_parts, given)
        return across.summed(y_TD)

    return _in_turn(piece if fits else jax.checkpoint(piece), local, size).reshape(shape)


def _grouped(given: Tokens, held: int, kernel: str, experts: int) -> Groups:
    return group(given[2].reshape(-1), held, kernel, given[2].size // experts)


def _of_groups(given: Tokens, matrices: Sequence[jax.Array], groups: Groups) -> jax.Array:
    """[T, D] of tokens in groups; gate and up are one matrix."""
    x_TD, weights_Tk, _ = given
    into_EDG, down_EFD = matrices
    gate_RF, up_RF = jnp.split(grouped_matmul(groups.spread(x_TD), into_EDG, groups), 2, axis=1)
    # Weighted where rows are short: what follows is linear.
    hidden_RF = jax.nn.silu(gate_RF) * up_RF * groups.weights(weights_Tk)[:, None]
    out_RD = grouped_matmul(hidden_RF.astype(x_TD.dtype), down_EFD, groups)
    return groups.combine(out_RD, len(x_TD))


def _in_turn(function: Callable[[Tokens], jax.Array], given: Tokens, size: int) -> jax.Array:
    """The function of so many tokens at a time [T, D]."""
    tokens = len(given[0])
    if tokens <= size:
        return function(given)
    padded = -tokens % size

    def parts(x: jax.Array, value: int) -> jax.Array:
        x = jnp.pad(x, ((0, padded), (0, 0)), constant_values=value)
        return x.reshape(-1, size, x.shape[1])

    x_TD, weights_Tk, taken_Tk = given
    found = jax.lax.map(function, (parts(x_TD, 0), parts(weights_Tk, 0), parts(taken_Tk, -1)))
    return found.reshape(-1, found.shape[-1])[:tokens]


def sequence_balance(
    scores_BLE: jax.Array, hits_BLE: jax.Array, counted_BL: jax.Array, top_k: int
) -> jax.Array:
    """V3 eq 17 to 20 without alpha: sum_i f_i P_i of each row, times its tokens, summed.

    f_i is E / (k T) times the row's tokens that take expert i, P_i the mean of its share of their
    scores. It is 1 a token for an even load.
    """
    tokens_B1 = jnp.maximum(jnp.sum(counted_BL, axis=1, keepdims=True), 1).astype(jnp.float32)
    share_BLE = scores_BLE / jnp.sum(scores_BLE, axis=2, keepdims=True)
    mean_BE = jnp.sum(share_BLE * counted_BL[..., None], axis=1) / tokens_B1
    load_BE = jnp.sum(hits_BLE, axis=1) * (scores_BLE.shape[2] / top_k) / tokens_B1
    return jnp.sum(load_BE * mean_BE * tokens_B1)
