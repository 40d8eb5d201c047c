"""What serves only CPUs: cores as devices, memory that is kept, quick compilation, mappings.

Imports JAX late: a command may start itself anew before it does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from etils import epath

if TYPE_CHECKING:
    import jax

# One heap for all threads, in pages of 2 MiB, that never shrinks.
MALLOC = ("hugetlb=1", "arena_max=1", "mmap_max=0", f"trim_threshold={2**62}")
MOST_MAPPED = 0.2  # of the mappings a process may have, at the beginning of a stage
# A model of so many parameters is computed by several devices, a core each, a larger one by all
# cores as one device, whose matmuls are large enough for them (measured: experiments/LOG.md).
SMALL_MODEL = 20_000_000
COUNTED = "xla_force_host_platform_device_count"  # in XLA_FLAGS: how many devices a CPU is


def keep_memory() -> None:
    """Starts this command once more, with a memory allocator that gives nothing back.

    XLA on CPUs allocates and frees gigabytes a step. What malloc gives back must be cleared again,
    and on a virtual machine may have gone back to its host: touching such pages takes up to 30
    times as long as touching pages that were kept. glibc reads these settings only when a process
    starts. A GLIBC_TUNABLES that is set already, if only to nothing, is left as it is.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    ours = spec is not None and spec.name.startswith("r1jax.")  # python -m r1jax.NAME
    if ours and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{item}" for item in MALLOC)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def make_cores_devices() -> None:
    """Before JAX begins: makes a CPU a device for each core, for `devices_for` to choose from.

    Nothing where XLA_FLAGS or JAX_NUM_CPU_DEVICES say how many devices there are.
    """
    import jax

    if not _are_counted():
        affinity = getattr(os, "sched_getaffinity", None)  # Linux
        cores = len(affinity(0)) if affinity else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)


def _are_counted() -> bool:
    return COUNTED in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ


def devices_for(parameters: int = SMALL_MODEL, rows: int = 0) -> list[jax.Device]:
    """All devices; of a CPU's cores one, or for a small model as many as `rows` can be split over.

    Two cores take a sixth less time a step for the mini world's model as two devices than as one.
    """
    import jax

    devices = jax.devices()
    if devices[0].platform != "cpu" or _are_counted() or jax.process_count() > 1:
        return devices
    if parameters >= SMALL_MODEL:
        return devices[:1]
    return devices[: max(n for n in range(1, len(devices) + 1) if rows % n == 0)]


@contextmanager
def quick_compile(wanted: bool) -> Iterator[None]:
    """Within it XLA optimizes little, where that is wanted."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", wanted or before)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def mapped_share() -> float:
    """Mappings of this process over the most that Linux allows (0 where it is not Linux).

    A program compiled for a CPU needs hundreds of them, JAX keeps the programs of all stages, and
    XLA ends in a segmentation fault where it gets no more.
    """
    limit, mapped = epath.Path("/proc/sys/vm/max_map_count"), epath.Path("/proc/self/maps")
    if not limit.exists() or not mapped.exists():
        return 0.0
    return mapped.read_text().count("\n") / int(limit.read_text())
