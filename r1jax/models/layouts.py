"""How a model is computed, and the same parameters laid out for that in other ways."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.config import ConfigError
from r1jax.models.config import ModelConfig

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("auto", "none", "full", "dots")
KERNELS = ("auto", "xla", "splash", "cudnn")


@dataclass(frozen=True)
class Compute:
    """How a model is computed. None of it changes a result beyond rounding."""

    dtype: str = "float32"  # of activations; parameters are float32 masters
    # What the backward pass computes again: none, full (all but the layers' inputs), dots (all but
    # products); auto: none, but full for long rows on accelerators.
    remat: str = "auto"
    attention: str = "auto"  # kernel for packed rows: auto (by platform), xla, splash, cudnn
    scan_layers: bool = True  # one stacked parameter per kind, or one per layer (engine)

    def __post_init__(self) -> None:
        for name, choices in (
            ("dtype", DTYPES),
            ("remat", REMAT_POLICIES),
            ("attention", KERNELS),
        ):
            if (value := getattr(self, name)) not in choices:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(choices)}")

    def for_rollouts(self) -> Compute:
        """As the engine wants it: parameters per layer."""
        return replace(self, scan_layers=False, remat="none")


def project(x: jax.Array, weight: jax.Array, contracted: int = 1, apart: bool = False) -> jax.Array:
    """x's last axes times the weight's first, `contracted` of them.

    As one matmul of two plain matrices: XLA on CPUs takes half as long again for the gradients of
    dots with several batch or contracted axes. Where more than one of x's first axes is split over
    a mesh they stay `apart`, since what is one axis cannot be split so.
    """
    lead, last = x.shape[: x.ndim - contracted], weight.shape[contracted:]
    width = math.prod(weight.shape[:contracted])
    rows = x.reshape(*(lead if apart else (math.prod(lead),)), width)
    return (rows @ weight.reshape(width, -1)).reshape(*lead, *last)


def places_of_layers(config: ModelConfig) -> dict[str, tuple[str, int]]:
    """Of every layer's own name, with scan_layers=False: its stack, and its index there."""
    return {
        f"layers_{i}": (stack.name, place)
        for stack in config.stacks
        for place, i in enumerate(stack.layers)
    }


def unstack_layers(params: Any, config: ModelConfig) -> Any:
    """Parameters of a scanned model -> those of the same model with scan_layers=False."""
    stacks = {stack.name for stack in config.stacks}
    layers = {
        name: jax.tree.map(lambda x, place=place: x[place], params[stack])
        for name, (stack, place) in places_of_layers(config).items()
    }
    return {name: value for name, value in params.items() if name not in stacks} | layers


def stack_layers(params: Any, config: ModelConfig) -> Any:
    """The inverse of `unstack_layers`; stacked parameters are left as they are."""
    if "layers_0" not in params:
        return params
    stacks = {}
    for stack in config.stacks:
        layers = [params[f"layers_{i}"] for i in stack.layers]
        stacks[stack.name] = jax.tree.map(_stacked, *layers)
    apart = places_of_layers(config)
    return {name: value for name, value in params.items() if name not in apart} | stacks


def _stacked(*of_layers: Any) -> Any:
    on_host = isinstance(of_layers[0], np.ndarray)
    return np.stack(of_layers) if on_host else jnp.stack(of_layers)
