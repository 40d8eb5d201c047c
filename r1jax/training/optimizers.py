"""The optimizer of every training stage: AdamW, Adafactor or Muon, and how its state is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.config import ConfigError, Count, Decay, NotNegative, Positive, Size, check_choice
from r1jax.models.lora import LORA_A, LORA_B
from r1jax.models.moe import ROUTER

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The paper prints learning rates only; the rest are common choices."""

    # "adafactor": factored squares and no mean of gradients (Shazeer and Stern 2018), for which b1,
    # b2 and eps are not read. "muon": the layers' matrices by orthogonalised momentum, in steps as
    # large as AdamW's (Liu et al. 2025); all else by AdamW.
    kind: Literal["adamw", "adafactor", "muon"] = "adamw"
    # How AdamW's and Muon's moments are kept; "bfloat16": DeepSeek-V3's were, in half the memory.
    moments: Literal["float32", "bfloat16"] = "float32"
    learning_rate: NotNegative = 3e-6  # at the top of the schedule
    schedule: str = "constant"  # after the warm-up: constant, cosine, linear
    final_ratio: NotNegative = 0.1  # learning rate at the end / at the top, for cosine and linear
    warmup_steps: Count = 0  # updates over which it rises linearly
    b1: Decay = 0.9  # decay of the mean of gradients
    b2: Decay = 0.95  # and of their squares
    eps: Positive = 1e-8  # added to the root of the latter
    weight_decay: NotNegative = 0.0  # on matrices only
    clip_norm: Positive = 1.0  # norm of all gradients together, at most
    # Updates whose loss or gradient is no number are skipped; so many in a row end the run.
    max_skipped: Size = 3

    def __post_init__(self) -> None:
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        if self.kind == "adafactor" and self.moments != "float32":
            raise ConfigError(
                "optimizer.moments 'bfloat16' is for kind 'adamw' or 'muon': 'adafactor' keeps none"
                " that are large; leave it at 'float32'"
            )


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the named schedule until total_steps."""
    top, warmup = config.learning_rate, config.warmup_steps
    rest = max(total_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(top),
        "cosine": optax.cosine_decay_schedule(top, rest, config.final_ratio),
        "linear": optax.linear_schedule(top, top * config.final_ratio, rest),
    }[config.schedule]
    if not warmup:
        return after
    # Step 0 already moves: (step + 1) / warmup.
    rise = optax.linear_schedule(top / warmup, top, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Of the parameters that are trained: global-norm clipping, then what the config names.

    Vectors (norms, biases) are not decayed.
    """
    kinds = {"adamw": _adamw, "adafactor": _adafactor, "muon": _muon}
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, kinds[config.kind](config, schedule))


def _stepped(
    scale: optax.GradientTransformation, config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Scaled gradients, with weight decay, times the learning rate."""
    decay = optax.add_decayed_weights(config.weight_decay, _is_decayed)
    return optax.chain(scale, decay, optax.scale_by_learning_rate(schedule))


def _is_decayed(params: Any) -> Any:
    def one(path: Any, value: jax.Array) -> bool:
        name = path[-1].key
        return not (name.endswith("norm") or name.endswith("bias"))

    return jax.tree_util.tree_map_with_path(one, params)


# -- AdamW -----------------------------------------------------------------------------------------


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return _stepped(_halved(adam) if config.moments == "bfloat16" else adam, config, schedule)


def _halved(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam with both moments in bfloat16 between updates; an update itself is in float32.

    The mean of squares moves by at most 1 - b2 of itself where it falls. With b2 = 0.999 that is
    less than half of bfloat16's last bit: rounded to the nearest it would never fall. So it is
    rounded up or down by chance, right in the mean; the chances depend on the count of updates.
    """

    def init(params: Any) -> Any:
        state = adam.init(params)
        mu, nu = optax.tree.cast((state.mu, state.nu), jnp.bfloat16)
        return state._replace(mu=mu, nu=nu)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mu, nu = optax.tree.cast((state.mu, state.nu), jnp.float32)
        updates, new = adam.update(grads, state._replace(mu=mu, nu=nu), params)
        key = jax.random.fold_in(jax.random.key(0), new.count)
        leaves, structure = jax.tree.flatten(new.nu)
        rounded = [by_chance(x, jax.random.fold_in(key, i)) for i, x in enumerate(leaves)]
        kept = optax.tree.cast(new.mu, jnp.bfloat16), jax.tree.unflatten(structure, rounded)
        return updates, new._replace(mu=kept[0], nu=kept[1])

    return optax.GradientTransformation(init, update)


def by_chance(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16: one of the two neighbours, the nearer the likelier."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


# -- matrices --------------------------------------------------------------------------------------

# Axes of a matrix, from its end, that are contracted with its input, and those that are left; in
# front of them stand layers and experts.
TO_HEADS, FROM_HEADS, PLAIN = ((-3,), (-2, -1)), ((-3, -2), (-1,)), ((-2,), (-1,))
MATRICES = (
    dict.fromkeys(("query", "key", "value", "query_up", "kv_up"), TO_HEADS)
    | {"output": FROM_HEADS}
    | dict.fromkeys(("gate", "up", "down", "query_down", "kv_down", "combine"), PLAIN)
    | dict.fromkeys(("shared_gate", "shared_up", "shared_down"), PLAIN)
    | dict.fromkeys(("expert_gate", "expert_up", "expert_down"), PLAIN)
)
TABLES = dict.fromkeys(("embedding", "head", ROUTER), PLAIN)  # a row or column a token, or expert
Axes = tuple[tuple[int, ...], tuple[int, ...]]


def matrix_axes(name: str) -> Axes | None:
    """(contracted, left) axes of a layer's matrix or its adapter's; None of what is neither."""
    if name.endswith(LORA_A) and (base := MATRICES.get(name.removesuffix(LORA_A))):
        return tuple(range(-1 - len(base[0]), -1)), (-1,)
    if name.endswith(LORA_B) and (base := MATRICES.get(name.removesuffix(LORA_B))):
        return (-1 - len(base[1]),), base[1]
    return MATRICES.get(name)


def _by_name(function: Callable[..., Any], *trees: Any) -> Any:
    """function(name of a parameter, *leaves) for all of them."""
    return jax.tree_util.tree_map_with_path(lambda path, *xs: function(path[-1].key, *xs), *trees)


# -- Muon ------------------------------------------------------------------------------------------

MUON_DECAY = 0.95  # of its momentum, Nesterov's
MUON_RMS = 0.2  # of an update's elements at learning rate 1: AdamW's, as Liu et al. measured it


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    def axes(params: Any) -> Any:
        def one(name: str, _: Any) -> optax.contrib.MuonDimensionNumbers:
            found = matrix_axes(name)
            assert found is not None
            return optax.contrib.MuonDimensionNumbers(*found)

        return _by_name(one, params)

    def kinds(params: Any) -> Any:
        return _by_name(lambda name, _: "adamw" if matrix_axes(name) is None else "muon", params)

    muon = optax.contrib.muon(
        schedule,
        beta=MUON_DECAY,
        weight_decay=config.weight_decay,
        mu_dtype=config.moments,
        muon_weight_dimension_numbers=axes,
        consistent_rms=MUON_RMS,
    )
    return optax.partition({"muon": muon, "adamw": _adamw(config, schedule)}, kinds)


# -- Adafactor -------------------------------------------------------------------------------------

FACTORED = 128  # sides of a matrix, at least, for its squares to be kept as those of rows x columns


class Squares(NamedTuple):
    """Adafactor's state."""

    step: jax.Array  # updates
    means: Any  # of each parameter (rows, columns), with axes of size 1 for the others; or (all,)


def _adafactor(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Without momentum, and in steps of the learning rate: they are not relative to parameters."""
    return _stepped(_factored(), config, schedule)


def _factored() -> optax.GradientTransformation:
    """Gradients over the root of their mean square, which is kept factored; the result's root mean
    square is 1 at most. All of it is of a layer's, and an expert's, matrix by itself.

    optax's takes the two longest axes, which for stacked layers need not be a matrix's.
    """

    def init(params: Any) -> Squares:
        means = _by_name(lambda name, x: _means(name, jnp.zeros_like(x)), params)
        return Squares(jnp.zeros((), jnp.int32), means)

    def update(grads: Any, state: Squares, params: Any = None) -> tuple[Any, Squares]:
        step = state.step + 1
        decay = 1.0 - step.astype(jnp.float32) ** -0.8

        def moved(name: str, grad: jax.Array, old: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            new = _means(name, jnp.square(grad) + 1e-30)
            return tuple(decay * x + (1.0 - decay) * y for x, y in zip(old, new, strict=True))

        means = _by_name(moved, grads, state.means)
        return _by_name(_scaled, grads, means), Squares(step, means)

    return optax.GradientTransformation(init, update)


def _factored_axes(name: str, x: Any) -> Axes | None:
    """As matrix_axes, where there is much to be saved."""
    found = matrix_axes(name) or TABLES.get(name)
    if found is None or min(math.prod(x.shape[i] for i in side) for side in found) < FACTORED:
        return None
    return found


def _means(name: str, squares: jax.Array) -> tuple[jax.Array, ...]:
    """Of rows and of columns, or all as they are."""
    if (axes := _factored_axes(name, squares)) is None:
        return (squares,)
    return tuple(jnp.mean(squares, axis, keepdims=True) for axis in reversed(axes))


def _scaled(name: str, grad: jax.Array, means: tuple[jax.Array, ...]) -> jax.Array:
    axes = _factored_axes(name, grad)
    if axes is None:
        scaled = grad * jax.lax.rsqrt(means[0])
    else:
        rows, columns = means
        rows = rows / jnp.mean(rows, axes[0], keepdims=True)
        scaled = grad * jax.lax.rsqrt(rows) * jax.lax.rsqrt(columns)
    whole = None if axes is None else (*axes[0], *axes[1])
    size = jnp.sqrt(jnp.mean(jnp.square(scaled), whole, keepdims=True))
    return scaled / jnp.maximum(1.0, size)
