"""TPU slices that are not here: their numbers, and devices that the TPU's compiler compiles for."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from r1jax.config import ConfigError
from r1jax.machines.compiler import set_tpu_options

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """One chip, as its maker has it; the memory is what the compiler lets a program have."""

    hbm: int  # bytes
    flops: float  # a second, of matrix products in bfloat16
    hbm_bandwidth: float  # bytes a second
    links: float  # bytes a second to the other chips of the slice, all links at once
    most: int  # chips of a slice
    network: float = 25e9 / 4  # and to other slices: a host's 200 Gbit/s, for 4 chips


CHIPS = {
    "v5e": Chip(int(15.75 * GIB), 197e12, 819e9, 200e9, 256),
    "v5p": Chip(int(95.74 * GIB), 459e12, 2765e9, 600e9, 6144),
    "v6e": Chip(int(31.25 * GIB), 918e12, 1640e9, 448e9, 256),
}


@dataclass(frozen=True)
class Slices:
    """One slice, or several of a kind."""

    name: str  # v5p:4x4x8
    count: int
    chip: Chip
    devices: Sequence[object]  # of all slices; a program can be compiled for them, not run


def slices_of(topology: str, count: int = 1) -> Slices:
    """`topology` is KIND:AxBxC (v5p) or KIND:AxB (v5e, v6e), in chips.

    Raises ConfigError for what is no such slice, and where libtpu is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        raise ConfigError(f"--topology {topology}: {kind!r} is not one of {', '.join(CHIPS)}")
    example = "v5p:2x2x1" if kind == "v5p" else f"{kind}:2x4"
    sides = shape.split("x")
    if len(sides) != example.count("x") + 1 or not all(side.isdecimal() for side in sides):
        raise ConfigError(
            f"--topology {topology} should look like {example}: chips along each axis"
        )
    if not 1 <= (chips := math.prod(map(int, sides))) <= CHIPS[kind].most:
        raise ConfigError(
            f"--topology {topology} has {chips} chips; a slice of {kind} has 1 to"
            f" {CHIPS[kind].most}"
        )
    if count < 1:
        raise ConfigError(f"--slices {count} must be at least 1")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU's compiler is not installed: pip install -e '.[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nobody is asked for a TPU's metadata
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several plans may be made at a time
    set_tpu_options()
    from jax.experimental import topologies

    more = {"num_slices": count} if count > 1 else {}
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **more).devices
    except Exception as error:
        raise ConfigError(f"--topology {topology}: the TPU's compiler says {error}") from error
    return Slices(topology, count, CHIPS[kind], devices)
