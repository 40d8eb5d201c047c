"""One mesh, one table from logical axes to mesh axes, and the way from host arrays to global ones.

Mesh axes: `data` (replicas), `fsdp` (parameters and batch sharded), `context` (parameters, and the
length of packed rows; rollouts have it as more of `fsdp`), `expert` (routed experts; for all else
as `fsdp`), `tensor` (heads, ffn, vocab; between blocks, and for the head, the length too).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r1jax.config import ConfigError
from r1jax.machines.cpu import devices_for

MESH_AXES = ("data", "fsdp", "context", "expert", "tensor")

# logical axis -> mesh axes. A name that is not here is an error, never "replicated".
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "length": ("context",),  # of packed rows
    "stream": ("context", "tensor"),  # the same between blocks, where it divides, and for the head
    "keys": (),  # the same, of what attention looks at
    "layers": (),
    "embed": ("fsdp", "context", "expert"),
    "embed_act": (),
    "expert": ("expert",),
    "expert_embed": ("fsdp", "context"),  # of matrices that are split over `expert` already
    "latent": ("fsdp", "context", "expert"),
    "latent_act": (),
    "router": (),
    "lora": (),
    "both_embeds": (),  # of multi-token prediction
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "ffn": ("tensor",),
    "norm": (),
}


def make_mesh(
    axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over these devices, or all; at most one axis may be -1, which takes what is left."""
    devices = devices_for() if devices is None else devices
    sizes = dict.fromkeys(MESH_AXES, 1) | dict(axes or {"fsdp": -1})
    unknown = set(sizes) - set(MESH_AXES)
    if unknown:
        raise ConfigError(
            f"config.mesh has no axis {sorted(unknown)[0]!r}; axes are {', '.join(MESH_AXES)}"
        )
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"config.mesh: only one axis may be -1, not {' and '.join(free)}")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if fixed < 1 or len(devices) % fixed:
            raise ConfigError(
                f"config.mesh: {len(devices)} devices are not divisible by {fixed}"
                " (the product of the fixed axes)"
            )
        sizes[free[0]] = len(devices) // fixed
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"config.mesh {dict(sizes)} needs {math.prod(shape)} devices, there are {len(devices)}"
        )
    return Mesh(_laid_out(shape, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def _laid_out(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of a mesh, neighbours along its axes neighbours in the machine.

    Of several slices the first axis that is divisible by their number lies across them.
    """
    slices = len({_slice_of(device) for device in devices})
    if slices == 1:
        split = devices[0].platform == "tpu"  # an axis may take a part of one of the torus
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
    across = next((i for i, size in enumerate(shape) if size % slices == 0), None)
    if across is None:
        raise ConfigError(
            f"config.mesh: no axis of {'x'.join(map(str, shape))} is divisible by the {slices}"
            " slices that one must lie across"
        )
    inside = [size // slices if i == across else size for i, size in enumerate(shape)]
    outside = [slices if i == across else 1 for i in range(len(shape))]
    return mesh_utils.create_hybrid_device_mesh(
        inside, outside, devices, allow_split_physical_axes=True
    )


def rollout_mesh(mesh: Mesh | None, experts: int = 0) -> Mesh | None:
    """The same devices for rows that decode: a token has no length to split, but rows are many.

    There parameters are split over `tensor` alone, and `experts` over all that is not `data`, where
    they can be: each device has few of them, and reads few in a step.
    """
    if mesh is None:
        return None
    sizes = dict(mesh.shape)
    several = sizes["fsdp"] * sizes["context"]
    spread = experts > 0 and experts % (several * sizes["expert"]) == 0
    goal = "expert" if spread else "fsdp"
    sizes |= {"fsdp": 1, "context": 1, goal: several * (sizes["expert"] if spread else 1)}
    if sizes == dict(mesh.shape):
        return mesh
    devices = mesh.devices.reshape(tuple(sizes.values()))
    return Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", 0)


def axes_across_slices(mesh: Mesh) -> set[str]:
    """The axes along which devices of several slices lie."""
    slices = np.vectorize(_slice_of, otypes=[int])(mesh.devices)
    return {
        axis
        for place, axis in enumerate(mesh.axis_names)
        if (np.take(slices, [0], axis=place) != slices).any()
    }


def spec_of(names: Sequence[str | None]) -> PartitionSpec:
    """Logical axis names of an array -> PartitionSpec; unknown or colliding axes raise."""
    used: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(f"no sharding rule for logical axis {name!r} in {tuple(names)}")
        axes = RULES[name] if name is not None else ()
        if used & set(axes):
            raise ValueError(f"two axes of {tuple(names)} map to mesh axis {used & set(axes)}")
        used |= set(axes)
        parts.append(axes or None)
    return PartitionSpec(*parts)


def parts_of(name: str, mesh: Mesh | None) -> int:
    """Into how many a logical axis is split."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES[name])


def check_divisible(
    shape: Sequence[int], names: Sequence[str | None], mesh: Mesh, what: str
) -> None:
    """Raises with both numbers when an array cannot be split evenly over the mesh."""
    for size, name in zip(shape, names, strict=True):
        devices = 1 if name is None else parts_of(name, mesh)
        if name is not None and size % devices:
            raise ConfigError(
                f"{what}: {name} {size} is not divisible by {devices} devices"
                f" (mesh axes {' x '.join(RULES[name])})"
            )


def check_split(rows: int, lengths: Sequence[int], mesh: Mesh) -> None:
    """That a stage's microbatches of packed rows can be split, and rows of each length."""
    check_divisible((rows,), ("batch",), mesh, "config.microbatch_rows")
    for length in lengths:
        check_divisible((length,), ("length",), mesh, "config.pack_length")


def constrain(x: jax.Array, mesh: Mesh | None, *names: str | None) -> jax.Array:
    """Pins an activation's sharding by its logical axes; without a mesh only checks the names."""
    spec = spec_of(names)
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def gathered(x: jax.Array, mesh: Mesh | None, *names: str) -> jax.Array:
    """A parameter as products take it: whole where it lies split over `fsdp`.

    Its gradient is split as it is itself, so that it is summed and scattered at once. Left alone,
    XLA sums gradients whole, or sends sums of products instead of weights.
    """
    if mesh is None or mesh.size == 1:
        return x
    split = NamedSharding(mesh, spec_of(names))
    kept = [None if "fsdp" in RULES[name] else name for name in names]
    whole = NamedSharding(mesh, spec_of(kept))

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, whole)

    def scatter(_: None, grad: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(grad, split),)

    gather.defvjp(lambda x: (gather(x), None), scatter)
    found: jax.Array = gather(x)
    return found


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def to_global(tree: Any, shardings: Any) -> Any:
    """Host arrays, equal on every process, -> global arrays with these shardings."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


# -- several processes -----------------------------------------------------------------------------
