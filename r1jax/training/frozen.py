"""How frozen parameters are kept, a KL's reference policy or a reward model: in which type, and in
whose memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.config import ConfigError
from r1jax.models.moe import ROUTER, ROUTER_BIAS

HOST = "pinned_host"


@dataclass(frozen=True)
class FrozenConfig:
    """What frozen parameters cost. The paper offloads them between their uses (B.1)."""

    # "bfloat16": half the memory, and the same numbers where the model computes in bfloat16; norms
    # and routers, which every model computes in float32, stay in that.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # They lie in the host's memory, and on the devices only while they are used.
    offload: bool = False


def check_memory(config: FrozenConfig, mesh: Mesh, key: str) -> None:
    """Raises ConfigError, which names the config's `key`, where there is no such memory."""
    device = mesh.local_mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if config.offload and HOST not in kinds:
        raise ConfigError(
            f"config.{key}.offload: devices of kind {device.platform} have no memory"
            f" {HOST!r}; leave it at False"
        )


def kept(params: Any, config: FrozenConfig) -> Any:
    """A copy of the parameters, as the config keeps them."""
    copied = _copied(params, config)
    return _moved(copied, HOST) if config.offload else copied


def kept_shapes(params: Any, config: FrozenConfig) -> Any:
    """Of what `fetched` gives, for parameters in shapes."""

    def one(path: Any, x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, _dtype(path, x, config), sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(one, params)


def fetched(params: Any, config: FrozenConfig, mesh: Mesh) -> Any:
    """What is `kept`, on the devices."""
    if not config.offload:
        return params
    return _moved(params, mesh.local_mesh.devices.flat[0].default_memory().kind)


@jax.jit(static_argnums=1)
def _copied(params: Any, config: FrozenConfig) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.array(x, _dtype(path, x, config), copy=True), params
    )


def _dtype(path: Any, x: Any, config: FrozenConfig) -> Any:
    name = path[-1].key
    exact = name.endswith("norm") or name in (ROUTER, ROUTER_BIAS)
    return x.dtype if exact else jnp.dtype(config.dtype)


def _moved(params: Any, kind: str) -> Any:
    places = jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), params)
    return jax.device_put(params, places)
