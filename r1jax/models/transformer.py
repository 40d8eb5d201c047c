"""The decoder: one pure-functional Flax module for every family in ModelConfig.

Shape legend: B rows, L tokens, D model, V vocabulary, H heads, K kv heads, N head dim, F ffn, S
layers with experts, k experts of a token. Parameters are one plain dict: `embedding` [V, D], a dict
for every stack of the config (`layers`, where all are of one kind; or `layers_0`, `layers_1`, ...
one each without scan_layers), `final_norm` [D], `head` [D, V] unless the embedding is tied, and
`scalar_head` [D] with `scalar_bias` [] where the config asks for them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from r1jax.machines.mesh import constrain
from r1jax.models.caches import Cache, Continued, RowCache
from r1jax.models.config import ModelConfig, Stack
from r1jax.models.grouped_query import GroupedQueryAttention
from r1jax.models.kernels import see_packed
from r1jax.models.latent_attention import MultiHeadLatentAttention
from r1jax.models.layer import INIT_STD, Layer, rms_norm
from r1jax.models.layouts import Compute
from r1jax.models.moe import MixtureOfExperts, Routing
from r1jax.models.packed_attention import ATTENTION, Seen, Span
from r1jax.models.rope import SinCos, rotary

SCALAR_PARAMS = ("scalar_head", "scalar_bias")


@struct.dataclass
class Output:
    """What a forward pass gives; the head is applied by whoever needs logits."""

    hidden: jax.Array  # [B, L, D], after the final norm
    cache: tuple[Any, ...] | None = None  # per layer a RowCache
    routing: Routing | None = None  # of the layers with experts, stacked


@struct.dataclass
class Context:
    """What every layer needs to know of the tokens."""

    sin_cos: SinCos
    seen: Seen | None  # packed rows
    counts_BL: jax.Array | None  # which tokens are no padding; None = all are


class Block(Layer):
    """Attention, and a gated MLP or experts, each behind a norm and a residual connection."""

    sparse: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        before: Continued | None = None,
        replayed_BLk: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[RowCache | None, Routing | None]]:
        """x, what all layers share, and of this one what came before and the experts to take."""
        c = self.config
        kind = GroupedQueryAttention if c.latent is None else MultiHeadLatentAttention
        attention = self._part(kind)
        attended_BLD, cache = attention(
            self.norm(x_BLD, "attention_norm"), context.sin_cos, context.seen, before
        )
        x_BLD = self.constrain(x_BLD + attended_BLD, "batch", "length", "embed_act")
        h_BLD, routing = self.norm(x_BLD, "ffn_norm"), None
        if self.sparse:
            experts = self._part(MixtureOfExperts)
            h_BLD, routing = experts(h_BLD, context.counts_BL, replayed_BLk)
        else:
            h_BLD = self.mlp(h_BLD, c.ffn_dim)
        x_BLD = self.constrain(x_BLD + h_BLD, "batch", "length", "embed_act")
        return x_BLD, (cache, routing)

    def _part(self, kind: type[Layer]) -> Any:
        """One whose parameters lie among this block's own."""
        part = kind(self.config, self.compute, self.mesh)
        nn.share_scope(self, part)
        return part


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
        replayed_SBLk: jax.Array | None = None,
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
        seen = counts_BL = None
        if cache is None:
            assert segment_ids_BL is not None, "without a cache the rows are packed"
            seen = see_packed(self.kernel, segment_ids_BL, completion_ids_BL, self.mesh, self.span)
            counts_BL = segment_ids_BL > 0
        sin_cos = rotary(positions_BL, c)
        if cache is not None and cache.sin_cos is not None:
            sin_cos = cache.sin_cos
        context = Context(sin_cos, seen, counts_BL)
        x_BLD, layers, routing = self._layers(x_BLD, context, cache, replayed_SBLk)
        norm_D: Any = self.param(
            "final_norm", nn.with_partitioning(nn.initializers.ones, ("norm",)), (c.embed_dim,)
        )
        return Output(rms_norm(x_BLD, norm_D, c.norm_eps), layers, routing)

    def _layers(
        self,
        x_BLD: jax.Array,
        context: Context,
        cache: Cache | None,
        replayed_SBLk: jax.Array | None,
    ) -> tuple[jax.Array, tuple[RowCache, ...] | None, Routing | None]:
        """Through all layers: x, their caches, and the routing of those with experts."""
        caches: list[RowCache] = []
        routings: list[Routing] = []  # stacked
        for stack in self.config.stacks:
            replayed = None
            if stack.sparse and replayed_SBLk is not None:
                done = sum(len(routing.load_E) for routing in routings)
                replayed = replayed_SBLk[done : done + len(stack.layers)]
            if self.compute.scan_layers:
                assert cache is None, "with a cache scan_layers is False: it would be copied"
                x_BLD, routing = self._scanned(stack, x_BLD, context, replayed)
            else:
                x_BLD, new, routing = self._one_by_one(stack, x_BLD, context, cache, replayed)
                caches += new
            routings += [routing] if routing is not None else []
        joined = (
            jax.tree.map(lambda *parts: jnp.concatenate(parts), *routings) if routings else None
        )
        return x_BLD, None if cache is None else tuple(caches), joined

    def _scanned(
        self, stack: Stack, x_BLD: jax.Array, context: Context, replayed: jax.Array | None
    ) -> tuple[jax.Array, Routing | None]:
        scanned = nn.scan(
            _remat(Block, self.compute.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast if replayed is None else 0),
            length=len(stack.layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block = scanned(self.config, self.compute, self.mesh, stack.sparse, name=stack.name)
        x_BLD, (_, routing) = block(x_BLD, context, None, replayed)
        return x_BLD, routing

    def _one_by_one(
        self,
        stack: Stack,
        x_BLD: jax.Array,
        context: Context,
        cache: Cache | None,
        replayed: jax.Array | None,
    ) -> tuple[jax.Array, list[RowCache], Routing | None]:
        block, caches, routings = nn.jit(_remat(Block, self.compute.remat)), [], []
        given = self.config, self.compute, self.mesh, stack.sparse
        for place, i in enumerate(stack.layers):
            before = None if cache is None else cache.layer(i)
            taken = None if replayed is None else replayed[place]
            x_BLD, (new, routing) = block(*given, name=f"layers_{i}")(x_BLD, context, before, taken)
            caches.append(new)
            routings.append(routing)
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *routings)
        return x_BLD, caches, stacked


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
