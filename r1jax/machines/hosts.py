"""Several processes as one."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from r1jax.config import ConfigError
from r1jax.machines.compiler import set_tpu_options
from r1jax.machines.cpu import make_cores_devices


def set_up_jax() -> None:
    """Joins the other processes of a multi-host run and turns the compilation cache on.

    Several processes: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    R1JAX_DISTRIBUTED=1 where JAX finds them out itself (TPU pods, Slurm). But for errors, only the
    first process prints.
    R1JAX_COMPILATION_CACHE is the cache's directory, empty for none. LIBTPU_INIT_ARGS may hold
    options of the TPU's compiler, which go before ours.
    """
    # That there is no TPU is no news, and an error's one sentence should stand alone.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    set_tpu_options()
    cache = os.environ.get("R1JAX_COMPILATION_CACHE", str(Path.home() / ".cache/r1jax/xla"))
    if cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    several = "JAX_COORDINATOR_ADDRESS" in os.environ or os.environ.get("R1JAX_DISTRIBUTED")
    if not several:
        make_cores_devices()
        return
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        processes, process = _env_number("JAX_NUM_PROCESSES"), _env_number("JAX_PROCESS_ID")
        if process >= processes:
            raise ConfigError(
                f"JAX_PROCESS_ID {process} must be below JAX_NUM_PROCESSES {processes}"
            )
        jax.distributed.initialize(num_processes=processes, process_id=process)
    else:
        jax.distributed.initialize()
    if jax.process_index() > 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the first process says it all


def _env_number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ConfigError(
            f"with JAX_COORDINATOR_ADDRESS set, {name} must be a number, not {text!r}"
        )
    return int(text)


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def least_of_all(value: int) -> int:
    """The smallest of the processes' values (int32)."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).min())


def of_first_process(value: Any) -> Any:
    """The first process's value, made of what JSON can hold, on every process."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.resize(data, size)  # the others' bytes are not looked at
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))
