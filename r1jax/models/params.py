"""Parameters of a model: how many, of which shapes, split over a mesh how, and fresh ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding

from r1jax.machines.mesh import check_divisible, spec_of
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer


def init_params(model: Transformer, key: jax.Array) -> Any:
    """Random float32 parameters, boxed with their logical axes (see `param_axes`)."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    alone = model.clone(mesh=None, kernel="xla")  # which runs anywhere
    return alone.init(key, tokens, tokens, tokens + 1)["params"]


def param_axes(model: Transformer) -> tuple[Any, Any]:
    """(shapes as ShapeDtypeStruct, logical axis names as tuples), both in the parameters' tree."""
    boxed = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    axes = jax.tree.map(lambda box: box.names, boxed, is_leaf=_is_box)
    return nn.unbox(boxed), axes


def param_shardings(model: Transformer) -> Any:
    """A NamedSharding per parameter; raises when a dimension does not divide over the mesh."""
    assert model.mesh is not None, "parameters are split over a mesh"
    mesh = model.mesh
    shapes, axes = param_axes(model)

    def one(path: Any, shape: Any, names: tuple[str, ...]) -> NamedSharding:
        check_divisible(
            shape.shape,
            names,
            mesh,
            "parameter " + jax.tree_util.keystr(path, simple=True, separator="."),
        )
        return NamedSharding(mesh, spec_of(names))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)


def abstract_params(model: Transformer) -> Any:
    """Shapes and types of the parameters."""
    return param_axes(model)[0]


def count_params(config: ModelConfig) -> int:
    """All that the model has, scalar head and routers' biases included."""
    return sum(x.size for x in jax.tree.leaves(abstract_params(Transformer(config))))


def count_active_params(config: ModelConfig) -> int:
    """Those that one token meets: of the routed experts the k that it takes."""
    experts, total = config.experts, count_params(config)
    if experts is None:
        return total
    sparse = config.num_layers + config.mtp - len(experts.dense_layers)
    one = 3 * config.embed_dim * experts.ffn_dim
    return total - sparse * (experts.num_experts - experts.top_k) * one


def model_flops(config: ModelConfig, tokens: float, length: float, passes: int) -> float:
    """What `passes` over so many tokens in sequences of `length` ask for, nothing computed twice.

    2 a token for each parameter that it meets, but for the embedding, which is looked up, and
    causal attention's products: a pass forward is one, a pass backward two.
    """
    latent = config.latent
    wide = config.head_dim + (config.head_dim if latent is None else latent.value_dim)
    attention = config.num_layers * config.num_heads * wide * length / 2
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    return 2 * passes * tokens * (count_active_params(config) - looked_up + attention)


def random_params(model: Transformer, seed: int) -> Any:
    """Fresh parameters, made shard by shard; the same numbers on any mesh."""
    return jax.jit(
        lambda key: nn.unbox(init_params(model, key)), out_shardings=param_shardings(model)
    )(jax.random.key(seed))
