"""Which parameters of a model an update moves: all, or adapters and a scalar head alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import traverse_util

from r1jax.models.lora import is_adapter
from r1jax.models.moe import ROUTER_BIAS
from r1jax.models.transformer import SCALAR_PARAMS


def trained_part(params: Any) -> Any:
    """The parameters that gradients move: where there are adapters, those and a scalar head."""
    if any(is_adapter(path[-1]) for path in traverse_util.flatten_dict(params)):
        return _part(params, lambda name: is_adapter(name) or name in SCALAR_PARAMS)
    return _part(params, lambda name: name != ROUTER_BIAS)


def moved_part(params: Any) -> Any:
    """Those and the routers' biases, which the experts' load moves: all that is not frozen."""
    biases = _part(params, lambda name: name == ROUTER_BIAS)
    return joined(trained_part(params), biases)


def joined(params: Any, part: Any) -> Any:
    """The parameters with those of `part` in the place of their own."""
    flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(flat)


def _part(params: Any, is_wanted: Callable[[str], bool]) -> Any:
    flat = traverse_util.flatten_dict(params)
    found = {path: value for path, value in flat.items() if is_wanted(path[-1])}
    return traverse_util.unflatten_dict(found)
