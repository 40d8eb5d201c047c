"""The decoder: one pure-functional Flax module for every family in ModelConfig.

Shape legend: B rows, L tokens, D model, V vocabulary, H heads, K kv heads, N head dim, F ffn, S
layers with experts, k experts of a token. Parameters are one plain dict: `embedding` [V, D], a dict
for every stack of the config (`layers`, where all are of one kind; or `layers_0`, `layers_1`, ...
one each without scan_layers), `final_norm` [D], `head` [D, V] unless the embedding is tied, and
`scalar_head` [D] with `scalar_bias` [] and a dict `mtp` where the config asks for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from r1jax.machines.mesh import constrain, gathered, parts_of
from r1jax.models.block import Block, Context
from r1jax.models.caches import Cache, RowCache
from r1jax.models.config import ModelConfig, Stack
from r1jax.models.kernels import see_packed
from r1jax.models.layer import INIT_STD, rms_norm
from r1jax.models.layouts import Compute
from r1jax.models.moe import Routing
from r1jax.models.mtp import MTP, MultiTokenPrediction
from r1jax.models.packed_attention import ATTENTION, Span
from r1jax.models.pages import PagedCache
from r1jax.models.rope import rotary

SCALAR_PARAMS = ("scalar_head", "scalar_bias")
KEPT_LENGTH = 2048  # tokens of rows of which the backward pass keeps all, where it may choose


@struct.dataclass
class Output:
    """What a forward pass gives; the head is applied by whoever needs logits."""

    hidden: jax.Array  # [B, L, D], after the final norm
    cache: tuple[Any, ...] | None = None  # per layer a RowCache or LayerPages
    routing: Routing | None = None  # of the layers with experts, stacked; that of `ahead` last
    ahead: jax.Array | None = None  # [B, L, D], of which the head says the token after the next


class Transformer(nn.Module):
    """`apply({"params": params}, tokens, positions, segment_ids)` -> Output.

    Without a cache, rows are packed sequences (types.Batch). With a cache (caches.Cache or
    pages.PagedCache), row b continues the one of its row b, and `segment_ids` is not read. Rows
    packed so that no token sees more than a `span` need less work where the kernel can use it.
    `ahead` runs multi-token prediction too; `alone` no gradient goes from there to the rest of the
    model.
    """

    config: ModelConfig
    mesh: Mesh | None = None
    span: Span | None = None
    compute: Compute = Compute()
    kernel: str = "xla"  # attention over packed rows: what choose_kernel gives
    # Experts that a batch says the sampler took: not looked at, compared with (False), or taken.
    replay: bool | None = None

    @nn.compact
    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array,
        segment_ids_BL: jax.Array | None = None,
        completion_ids_BL: jax.Array | None = None,
        cache: Cache | PagedCache | None = None,
        recorded_SBLk: jax.Array | None = None,
        ahead: bool = False,
        alone: bool = False,
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
        table_VD = gathered(embedding_VD, self.mesh, "vocab", "embed")
        x_BLD = jnp.take(table_VD, tokens_BL, axis=0).astype(self.compute.dtype)
        seen, counts_BL, stream = None, None, "length"
        if cache is None:
            assert segment_ids_BL is not None, "without a cache the rows are packed"
            if tokens_BL.shape[1] % parts_of("stream", self.mesh) == 0:
                stream = "stream"
            seen = see_packed(self.kernel, segment_ids_BL, completion_ids_BL, self.mesh, self.span)
            counts_BL = segment_ids_BL > 0
        x_BLD = constrain(x_BLD, self.mesh, "batch", stream, "embed_act")
        sin_cos = rotary(positions_BL, c)
        if cache is not None and cache.sin_cos is not None:
            sin_cos = cache.sin_cos
        context = Context(sin_cos, seen, counts_BL, bool(self.replay), stream)
        x_BLD, layers, routing = self._layers(x_BLD, context, cache, recorded_SBLk)
        norm_D: Any = self.param(
            "final_norm", nn.with_partitioning(nn.initializers.ones, ("norm",)), (c.embed_dim,)
        )
        hidden_BLD = rms_norm(x_BLD, norm_D, c.norm_eps)
        if not c.mtp or not (ahead or self.is_initializing()):
            return Output(hidden_BLD, layers, routing)
        next_BL = jnp.roll(tokens_BL, -1, axis=1)  # behind a sequence's end nobody sees it
        embedded_BLD = jnp.take(table_VD, next_BL, axis=0).astype(self.compute.dtype)
        given = hidden_BLD, embedded_BLD
        mtp = self._remat(MultiTokenPrediction, tokens_BL.shape[1])
        mtp = mtp(c, self.compute, self.mesh, name=MTP)
        ahead_BLD, (_, own) = mtp(*(jax.lax.stop_gradient(given) if alone else given), context)
        return Output(hidden_BLD, layers, _joined(routing, own), ahead_BLD)

    def _layers(
        self,
        x_BLD: jax.Array,
        context: Context,
        cache: Cache | PagedCache | None,
        recorded_SBLk: jax.Array | None,
    ) -> tuple[jax.Array, tuple[RowCache, ...] | None, Routing | None]:
        """Through all layers: x, their caches, and the routing of those with experts."""
        caches: list[RowCache] = []
        routings: list[Routing] = []  # stacked
        for stack in self.config.stacks:
            recorded = None
            if stack.sparse and recorded_SBLk is not None:
                done = sum(len(routing.load_E) for routing in routings)
                recorded = recorded_SBLk[done : done + len(stack.layers)]
            if self.compute.scan_layers:
                assert cache is None, "with a cache scan_layers is False: it would be copied"
                x_BLD, routing = self._scanned(stack, x_BLD, context, recorded)
            else:
                x_BLD, new, routing = self._one_by_one(stack, x_BLD, context, cache, recorded)
                caches += new
            routings += [routing] if routing is not None else []
        joined = (
            jax.tree.map(lambda *parts: jnp.concatenate(parts), *routings) if routings else None
        )
        return x_BLD, None if cache is None else tuple(caches), joined

    def _scanned(
        self, stack: Stack, x_BLD: jax.Array, context: Context, recorded: jax.Array | None
    ) -> tuple[jax.Array, Routing | None]:
        scanned = nn.scan(
            self._remat(Block, x_BLD.shape[1]),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast if recorded is None else 0),
            length=len(stack.layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block = scanned(self.config, self.compute, self.mesh, stack.sparse, name=stack.name)
        x_BLD, (_, routing) = block(x_BLD, context, None, recorded)
        return x_BLD, routing

    def _one_by_one(
        self,
        stack: Stack,
        x_BLD: jax.Array,
        context: Context,
        cache: Cache | PagedCache | None,
        recorded: jax.Array | None,
    ) -> tuple[jax.Array, list[RowCache], Routing | None]:
        block, caches, routings = nn.jit(self._remat(Block, x_BLD.shape[1])), [], []
        given = self.config, self.compute, self.mesh, stack.sparse
        for place, i in enumerate(stack.layers):
            before = None if cache is None else cache.layer(i)
            taken = None if recorded is None else recorded[place]
            x_BLD, (new, routing) = block(*given, name=f"layers_{i}")(x_BLD, context, before, taken)
            caches.append(new)
            routings.append(routing)
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *routings)
        return x_BLD, caches, stacked

    def _remat(self, block: type[nn.Module], length: int) -> Any:
        """The block, what its backward pass does not keep computed again."""
        policy = self.compute.remat
        if policy == "auto":
            on_cpu = self.mesh is None or self.mesh.devices.flat[0].platform == "cpu"
            policy = "none" if on_cpu or length <= KEPT_LENGTH else "full"
        if policy == "none":
            return block
        policies = jax.checkpoint_policies
        dots = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(ATTENTION)
        )
        return nn.remat(block, policy=dots if policy == "dots" else None, prevent_cse=False)


def _joined(routing: Routing | None, last: Routing | None) -> Routing | None:
    """With one layer's behind those of many, of which no choices were recorded."""
    if routing is None or last is None:
        return routing
    if routing.compared is not None:
        none = jnp.zeros_like(routing.compared[0])
        last = replace(last, compared=none, differing=none)
    return jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), routing, last)


def forward(model: Transformer, params: Any, *args: Any, **kwargs: Any) -> Output:
    """The model as a pure function of its parameters; arguments as in Transformer.__call__."""
    output: Any = model.apply({"params": params}, *args, **kwargs)
    return output


def head_weights(params: Any) -> jax.Array:
    """The output head [D, V]: the transposed embedding where they are tied."""
    return params["head"] if "head" in params else params["embedding"].T
