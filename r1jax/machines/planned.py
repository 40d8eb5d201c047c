"""What a stage would run on its devices, in shapes alone: what `python -m r1jax.plan` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from r1jax.machines.program_cost import KernelFormula


@dataclass(frozen=True)
class Assumed:
    """What a config does not say of the work, since data and policy decide it."""

    completion: int = 0  # tokens of one, in the mean; 0 = a quarter of the most
    prompt: int = 200  # tokens of one
    rows: int = 0  # of training data; 0 = the config says its number of updates


@dataclass(frozen=True)
class Planned:
    """A program of an iteration."""

    name: str
    lower: Callable[[], Any]  # -> jax.stages.Lowered
    runs: float  # in an iteration
    held: Mapping[str, float]  # bytes on a device, by kind, while it runs; of arguments and others
    beside: float = 0.0  # those of them that are no arguments
    loops: Mapping[str, float] = field(default_factory=dict)  # trips, where they are a value
    kernels: tuple[str, ...] = ()  # whose names must be in it
    model_flops: float = 0.0  # of a run on all devices, without what is computed twice
    formulas: Mapping[str, KernelFormula] = field(default_factory=dict)  # of kernels' costs


@dataclass(frozen=True)
class Iteration:
    """What a run repeats: a rollout and its updates, or one update."""

    programs: Sequence[Planned]
    count: float  # in the run
    notes: Sequence[str] = ()  # what was assumed


def bytes_of(tree: Any) -> float:
    """On one device, of arrays in shapes with their shardings."""

    def one(x: Any) -> float:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        size: float = math.prod(shape) * x.dtype.itemsize
        return size

    return sum(map(one, jax.tree.leaves(tree)))


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes, each with its sharding."""

    def one(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, tree, shardings)
