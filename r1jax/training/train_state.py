"""The train state, and the one step that every stage jits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.losses.aggregation import Metrics, add_partial
from r1jax.losses.router import LOAD, read_metrics
from r1jax.machines.mesh import replicated, spec_of, to_global
from r1jax.models.config import ModelConfig
from r1jax.models.params import abstract_params, param_shardings
from r1jax.models.transformer import Transformer
from r1jax.training.balancing import (
    RouterConfig,
    balance_loss,
    tokens_of,
    with_moved_biases,
)
from r1jax.training.trained import joined, trained_part
from r1jax.types import Batch, TrainState

SKIPPED = "optimizer/skipped"  # the metric: 1 where an update was left out
MICROBATCHES = "microbatches"  # the name, in programs, of loops over a batch's microbatches


def state_shardings(model: Transformer, optimizer: optax.GradientTransformation) -> TrainState:
    """The sharding of every leaf of the train state.

    What the optimizer keeps of a parameter lies as that does, but for axes it has averaged away.
    """
    assert model.mesh is not None, "a train state is split over a mesh"
    params, mesh = param_shardings(model), model.mesh
    shapes = trained_part(abstract_params(model))
    kept = traverse_util.flatten_dict(
        jax.tree.map(lambda x, s: (x.shape, s.spec), shapes, trained_part(params))
    )

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        found = [kept[names[i:]] for i in range(len(names)) if names[i:] in kept]
        if not found or len(found[0][0]) != leaf.ndim:
            return replicated(mesh)
        parts = zip(*found[0], leaf.shape, strict=True)
        return NamedSharding(mesh, PartitionSpec(*(p if n == m else None for n, p, m in parts)))

    opt_state = jax.tree_util.tree_map_with_path(one, jax.eval_shape(optimizer.init, shapes))
    return TrainState(step=replicated(mesh), params=params, opt_state=opt_state)


def abstract_state(
    model: Transformer, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """The train state as ShapeDtypeStructs with their shardings, to restore a checkpoint into."""
    params = abstract_params(model)
    shapes = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=jax.eval_shape(optimizer.init, trained_part(params)),
    )

    def one(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(one, shapes, shardings)


def new_state(
    params: Any, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """A train state at step 0 around these parameters, which are donated to it."""

    def init(params: Any) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained_part(params)))

    return jax.jit(init, out_shardings=shardings, donate_argnums=0)(params)


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
    """[M, B, L, ...] leaves split over the batch axis, [C + 1] leaves everywhere."""

    def one(x: Any) -> NamedSharding:
        spec = spec_of((None, "batch")) if x.ndim >= 3 else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree.map(one, batch)


def on_mesh(batch: Batch, mesh: Mesh) -> Batch:
    """A batch of the host's, equal on every process, on the mesh's devices."""
    return to_global(batch, batch_shardings(batch, mesh))


def own_rows(count: int, mesh: Mesh) -> list[int]:
    """Which of a microbatch's rows this process's devices have."""
    rows = NamedSharding(mesh, spec_of(("batch",)))
    parts = rows.addressable_devices_indices_map((count,)).values()
    return sorted({int(row) for part in parts for row in np.arange(count)[part]})


def microbatch(batch: Batch, index: Any) -> Batch:
    """The [B, L, ...] leaves of one microbatch; per-completion leaves belong to all of them."""

    def one(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, index, keepdims=False) if x.ndim >= 3 else x

    return jax.tree.map(one, batch)


LossFn = Callable[..., tuple[jax.Array, Metrics]]


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    shardings: TrainState,
    balanced: tuple[ModelConfig, RouterConfig] | None = None,
) -> jax.stages.Wrapped:
    """jitted (state, batch, *frozen) -> (state, metrics); the state is donated.

    `frozen` are further arguments of loss_fn(params, microbatch, *frozen), a teacher's parameters.
    A model with experts that is `balanced` has their load evened. What is not trained has neither
    gradients nor moments.

    The gradients of the batch's microbatches in use are summed in a loop whose length is a value,
    not a shape: batches of any size share one program. Where the loss or the gradient is no number,
    parameters and moments stay as they are and the metric `optimizer/skipped` is 1.
    """

    config, router = balanced or (None, RouterConfig())

    def step(state: TrainState, batch: Batch, *frozen: Any) -> tuple[TrainState, Metrics]:
        tokens, trained = tokens_of(batch), trained_part(state.params)

        def balanced_loss(trained: Any, part: Batch) -> tuple[jax.Array, Metrics]:
            loss, metrics = loss_fn(joined(state.params, trained), part, *frozen)
            return loss + balance_loss(metrics, tokens, router), metrics

        def grads_of(index: Any) -> tuple[Any, Metrics]:
            grad_fn = jax.grad(balanced_loss, has_aux=True)
            return grad_fn(trained, microbatch(batch, index))

        def accumulate(index: Any, total: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            return add_partial(total, grads_of(index))

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(grads_of, 0))
        with jax.named_scope(MICROBATCHES):
            grads, metrics = jax.lax.fori_loop(0, batch.microbatches, accumulate, zeros)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        metrics["optimizer/grad_norm"] = optax.tree.norm(grads)
        metrics["optimizer/learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        sound = jnp.isfinite(metrics["optimizer/grad_norm"]) & jnp.isfinite(metrics["loss"])
        metrics[SKIPPED] = (~sound).astype(jnp.int32)
        params = joined(state.params, optax.apply_updates(trained, updates))
        if config is not None and router.bias_step and LOAD in metrics:
            params = with_moved_biases(params, metrics[LOAD], config, router.bias_step)
        new = params, opt_state
        kept = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), new, (state.params, state.opt_state)
        )
        return TrainState(state.step + 1, *kept), read_metrics(metrics, tokens)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
