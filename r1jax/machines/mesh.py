"""One mesh, one table from logical axes to mesh axes, and the way from host arrays to global ones.

Mesh axes: `data` (replicas), `fsdp` (parameters and batch sharded), `expert` (routed experts; for
all else as `fsdp`), `tensor` (heads, ffn, vocab).
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

MESH_AXES = ("data", "fsdp", "expert", "tensor")

# logical axis -> mesh axes. A name that is not here is an error, never "replicated".
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "length": (),
    "chunk": ("tensor",),  # of columns that the head is applied to
    "layers": (),
    "embed": ("fsdp", "expert"),
    "embed_act": (),
    "expert": ("expert",),
    "expert_embed": ("fsdp",),  # of matrices that are split over `expert` already
    "latent": ("fsdp", "expert"),
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


def check_divisible(
    shape: Sequence[int], names: Sequence[str | None], mesh: Mesh, what: str
) -> None:
    """Raises with both numbers when an array cannot be split evenly over the mesh."""
    for size, name in zip(shape, names, strict=True):
        axes = RULES[name] if name is not None else ()
        devices = math.prod(mesh.shape[axis] for axis in axes)
        if size % devices:
            raise ConfigError(
                f"{what}: {name} {size} is not divisible by {devices} devices"
                f" (mesh axes {' x '.join(axes)})"
            )


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
