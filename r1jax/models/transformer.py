"""The decoder: one pure-functional Flax module for every family in ModelConfig.

Shape legend: B rows, L tokens, D model, V vocabulary, H heads, K kv heads, N head dim, F ffn.
Parameters are one plain dict: `embedding` [V, D], `layers` (or `layers_0`, `layers_1`, ... without
scan_layers), `final_norm` [D], `head` [D, V] unless the embedding is tied, and `scalar_head` [D]
with `scalar_bias` [] where the config asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from r1jax.machines.mesh import constrain
from r1jax.models.caches import Cache, Continued, RowCache
from r1jax.models.config import ModelConfig
from r1jax.models.kernels import see_packed
from r1jax.models.layouts import Compute, project
from r1jax.models.packed_attention import ATTENTION, Seen, Span
from r1jax.models.rope import rope, rotary

INIT_STD = 0.02
SCALAR_PARAMS = ("scalar_head", "scalar_bias")
Axes = tuple[Sequence[int], Sequence[str]]  # of a matrix: sizes, and logical names


@struct.dataclass
class Output:
    """What a forward pass gives; the head is applied by whoever needs logits."""

    hidden: jax.Array  # [B, L, D], after the final norm
    cache: tuple[Any, ...] | None = None  # per layer a RowCache
    aux: dict[str, jax.Array] = struct.field(default_factory=dict)  # expert load, balance loss


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """RMSNorm in float32 over the last axis, back in x's type."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * scale * weight).astype(x.dtype)


class Block(nn.Module):
    """Attention and gated MLP, each behind a norm and a residual connection."""

    config: ModelConfig
    compute: Compute
    mesh: Mesh | None

    def _param(
        self, name: str, shape: Sequence[int], axes: Sequence[str], std: float | None = INIT_STD
    ) -> jax.Array:
        init = nn.initializers.ones if std is None else nn.initializers.normal(std)
        value: Any = self.param(name, nn.with_partitioning(init, tuple(axes)), tuple(shape))
        return value if std is None else value.astype(self.compute.dtype)  # norms stay float32

    def _residual_std(self) -> float:
        """Initial spread of what a residual connection adds."""
        return INIT_STD / (2 * self.config.num_layers) ** 0.5

    def _project(
        self, x: jax.Array, name: str, inner: Axes, outer: Axes, std: float = INIT_STD
    ) -> jax.Array:
        """x's last axes, `inner`, times the matrix of this name -> [..., outer]."""
        (into, into_names), (out, out_names) = inner, outer
        weight = self._param(name, [*into, *out], [*into_names, *out_names], std)
        return project(x, weight, len(into))

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        sin_cos: tuple[jax.Array, jax.Array],
        seen: Seen | None,
        before: Continued | None = None,
    ) -> tuple[jax.Array, RowCache | None]:
        """What packed rows see, or what came before rows that continue -> x, and that with them."""
        q_BLHN, k_BLKN, v_BLKN = self._queries_keys_values(x_BLD, sin_cos)
        cache = None
        if before is not None:
            mixed_BLHN, cache = before.attend(q_BLHN, k_BLKN, v_BLKN)
        else:
            assert seen is not None
            mixed_BLHN = seen.attend(q_BLHN, k_BLKN.swapaxes(1, 2), v_BLKN.swapaxes(1, 2))
        attention_BLD = self._output(mixed_BLHN)
        x_BLD = constrain(x_BLD + attention_BLD, self.mesh, "batch", "length", "embed_act")
        x_BLD = constrain(x_BLD + self._mlp(x_BLD), self.mesh, "batch", "length", "embed_act")
        return x_BLD, cache

    def _queries_keys_values(
        self, x_BLD: jax.Array, sin_cos: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, L, H, N], [B, L, K, N] and [B, L, K, N], queries and keys rotated."""
        c = self.config
        norm_D = self._param("attention_norm", [c.embed_dim], ["norm"], None)
        x_BLD = rms_norm(x_BLD, norm_D, c.norm_eps)
        q_BLHN = rope(self._heads(x_BLD, "query", c.num_heads, "heads"), sin_cos)
        k_BLKN = rope(self._heads(x_BLD, "key", c.num_kv_heads, "kv_heads"), sin_cos)
        return q_BLHN, k_BLKN, self._heads(x_BLD, "value", c.num_kv_heads, "kv_heads")

    def _output(self, mixed_BLHN: jax.Array) -> jax.Array:
        c = self.config
        mixed_BLHN = constrain(mixed_BLHN, self.mesh, "batch", "length", "heads", "head_dim")
        heads = [c.num_heads, c.head_dim], ["heads", "head_dim"]
        return self._project(
            mixed_BLHN, "output", heads, ([c.embed_dim], ["embed"]), self._residual_std()
        )

    def _normed(self, x_BLHN: jax.Array, name: str) -> jax.Array:
        """Queries or keys behind their norm (Qwen3)."""
        c = self.config
        if not c.qk_norm:
            return x_BLHN
        return rms_norm(
            x_BLHN, self._param(f"{name}_norm", [c.head_dim], ["norm"], None), c.norm_eps
        )

    def _heads(self, x_BLD: jax.Array, name: str, heads: int, axis: str) -> jax.Array:
        """Query, key or value heads [B, L, heads, N], with bias (Qwen2) and norm (Qwen3)."""
        c = self.config
        y = self._project(
            x_BLD, name, ([c.embed_dim], ["embed"]), ([heads, c.head_dim], [axis, "head_dim"])
        )
        if c.qkv_bias:
            y += self._param(f"{name}_bias", [heads, c.head_dim], [axis, "head_dim"], 0.0)
        if name != "value":
            y = self._normed(y, name)
        return constrain(y, self.mesh, "batch", "length", axis, "head_dim")

    def _mlp(self, x_BLD: jax.Array) -> jax.Array:
        c = self.config
        x_BLD = rms_norm(x_BLD, self._param("ffn_norm", [c.embed_dim], ["norm"], None), c.norm_eps)
        embed, ffn = ([c.embed_dim], ["embed"]), ([c.ffn_dim], ["ffn"])
        gate_BLF, up_BLF = (self._project(x_BLD, name, embed, ffn) for name in ("gate", "up"))
        h_BLF = jax.nn.silu(gate_BLF) * up_BLF
        h_BLF = constrain(h_BLF, self.mesh, "batch", "length", "ffn")
        return self._project(h_BLF, "down", ffn, embed, self._residual_std())


class Transformer(nn.Module):
    """`apply({"params": params}, tokens, positions, segment_ids)` -> Output.

    Without a cache, rows are packed sequences (types.Batch). With a cache, row b continues the one
    sequence of the cache's row b (see caches.Cache), and `segment_ids` is not read. Rows packed
    so that no token sees more than a `span` need less work where the kernel can use it.
    """

    config: ModelConfig
    mesh: Mesh | None = None
    span: Span | None = None
    compute: Compute = Compute()
    kernel: str = "xla"  # attention over packed rows: what choose_kernel gives

    @nn.compact
    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array,
        segment_ids_BL: jax.Array | None = None,
        completion_ids_BL: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> Output:
        c = self.config
        embedding_VD: Any = self.param(
            "embedding", nn.with_partitioning(nn.initializers.normal(INIT_STD), ("vocab", "embed")),
            (c.vocab_size, c.embed_dim),
        )  # fmt: skip
        if not c.tie_embeddings:
            head_init = nn.with_partitioning(nn.initializers.normal(INIT_STD), ("embed", "vocab"))
            self.param("head", head_init, (c.embed_dim, c.vocab_size))
        if c.scalar_head:
            normal, zeros = nn.initializers.normal(INIT_STD), nn.initializers.zeros
            self.param("scalar_head", nn.with_partitioning(normal, ("norm",)), (c.embed_dim,))
            self.param("scalar_bias", nn.with_partitioning(zeros, ()), ())
        table_VD = constrain(embedding_VD, self.mesh, "vocab", "embed_act")  # gathered over fsdp
        x_BLD = jnp.take(table_VD, tokens_BL, axis=0).astype(self.compute.dtype)
        x_BLD = constrain(x_BLD, self.mesh, "batch", "length", "embed_act")
        seen = None
        if cache is None:
            assert segment_ids_BL is not None, "without a cache the rows are packed"
            seen = see_packed(self.kernel, segment_ids_BL, completion_ids_BL, self.mesh, self.span)
        sin_cos = rotary(positions_BL, c.head_dim, c.rope_theta)
        if cache is not None and cache.sin_cos is not None:
            sin_cos = cache.sin_cos
        x_BLD, layers = self._layers(x_BLD, sin_cos, seen, cache)
        norm_D: Any = self.param(
            "final_norm", nn.with_partitioning(nn.initializers.ones, ("norm",)), (c.embed_dim,)
        )
        return Output(hidden=rms_norm(x_BLD, norm_D, c.norm_eps), cache=layers)

    def _layers(
        self,
        x_BLD: jax.Array,
        sin_cos: tuple[jax.Array, jax.Array],
        seen: Seen | None,
        cache: Cache | None,
    ) -> tuple[jax.Array, tuple[RowCache | None, ...] | None]:
        block, count = _remat(Block, self.compute.remat), self.config.num_layers
        given = self.config, self.compute, self.mesh
        if self.compute.scan_layers:
            assert cache is None, "a cache needs scan_layers=False: a scan would copy it every step"
            scanned = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True},
                in_axes=nn.broadcast, length=count, metadata_params={nn.PARTITION_NAME: "layers"},
            )  # fmt: skip
            x_BLD, _ = scanned(*given, name="layers")(x_BLD, sin_cos, seen)
            return x_BLD, None
        block, new = nn.jit(block), []
        for i in range(count):
            before = None if cache is None else cache.layer(i)
            x_BLD, layer = block(*given, name=f"layers_{i}")(x_BLD, sin_cos, seen, before)
            new.append(layer)
        return x_BLD, None if cache is None else tuple(new)


def _remat(block: type[Block], policy: str) -> Any:
    if policy == "none":
        return block
    policies = jax.checkpoint_policies
    dots = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(ATTENTION)
    )
    return nn.remat(block, policy=dots if policy == "dots" else None, prevent_cse=False)


def forward(model: Transformer, params: Any, *args: Any, **kwargs: Any) -> Output:
    """The model as a pure function of its parameters; arguments as in Transformer.__call__."""
    output: Any = model.apply({"params": params}, *args, **kwargs)
    return output


def head_weights(params: Any) -> jax.Array:
    """The output head [D, V]: the transposed embedding where they are tied."""
    return params["head"] if "head" in params else params["embedding"].T
