"""Several processes as one."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import clusters, distributed  # what they find out is documented nowhere else
from jax.experimental import multihost_utils

from r1jax.config import ConfigError, UserError
from r1jax.machines import peers
from r1jax.machines.compiler import set_tpu_options
from r1jax.machines.cpu import make_cores_devices
from r1jax.machines.program_cache import HERE, program_cache

PART = 1 << 20  # bytes of a process that are gathered at once, so that devices have room for all
WAITING = 300  # seconds in which all processes must have come
T = TypeVar("T")


def set_up_jax() -> None:
    """Joins the other processes of a multi-host run and turns the compilation cache on.

    Several processes: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    R1JAX_DISTRIBUTED=1 where JAX finds them out itself (TPU pods, Slurm). Who has not come after
    R1JAX_START_SECONDS (300) is named. But for errors, only the first process prints.
    R1JAX_COMPILATION_CACHE is the cache's directory, here or on gs://, empty for none.
    LIBTPU_INIT_ARGS may hold options of the TPU's compiler, which go before ours.
    """
    # That there is no TPU is no news, and an error's one sentence should stand alone.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    set_tpu_options()
    cache = os.environ.get("R1JAX_COMPILATION_CACHE", str(HERE))
    if cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", program_cache(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    several = "JAX_COORDINATOR_ADDRESS" in os.environ or os.environ.get("R1JAX_DISTRIBUTED")
    if not several:
        make_cores_devices()
        return
    _join_others()
    if jax.process_index() > 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the first process says it all


def _join_others() -> None:
    address, processes, process = _place()
    if processes > 1:
        seconds = _env_number("R1JAX_START_SECONDS", str(WAITING))
        peers.meet(address, processes, process, seconds)
    jax.distributed.initialize(address, processes, process)  # its devices it finds itself


def _place() -> tuple[str, int, int]:
    """The coordinator's HOST:PORT, how many processes there are, and which of them this one is."""
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        processes, process = _env_number("JAX_NUM_PROCESSES"), _env_number("JAX_PROCESS_ID")
        if process >= processes:
            raise ConfigError(
                f"JAX_PROCESS_ID {process} must be below JAX_NUM_PROCESSES {processes}"
            )
        return address, processes, process
    detect: Any = clusters.ClusterEnv.auto_detect_unset_distributed_params
    address, processes, process, _ = detect(None, None, None, None, None, WAITING)
    if address is None or processes is None or process is None:
        raise ConfigError(
            "R1JAX_DISTRIBUTED is set, but this is no TPU pod, Slurm job or other cluster that JAX"
            " knows: set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    return address, processes, process


def _env_number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        wanted = "" if default else "with JAX_COORDINATOR_ADDRESS set, "
        raise ConfigError(f"{wanted}{name} must be a number, not {text!r}")
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


def ask_first(question: Callable[[], Any]) -> Any:
    """What the first process finds, told to all, and so is a UserError: no other one looks at its
    file system. Every process must come here, in the same order.
    """
    answer = error = None
    if jax.process_index() == 0:
        try:
            answer = question()
        except UserError as found:
            error = found
    answer, said = of_first_process([answer, None if error is None else str(error)])
    if said is not None:
        raise error or UserError(said)
    return answer


def of_all(value: Any) -> list[Any]:
    """Each process's value, made of what JSON can hold, on every process."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    longest = int(sizes.max())
    width = min(1 << (longest - 1).bit_length(), PART)  # few shapes, each of which is a program
    parts = [
        multihost_utils.process_allgather(np.resize(data[start : start + width], width))
        for start in range(0, longest, width)
    ]
    rows = np.concatenate(parts, axis=1)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def agreed(work: Callable[[], T], *kinds: type[Exception]) -> T:
    """What it gives here; where it raises one of these on any process, every process raises it.

    The more special kinds first.
    """
    error = problem = None
    try:
        value = work()
    except kinds as found:
        error = found
        problem = [next(i for i, kind in enumerate(kinds) if isinstance(found, kind)), str(found)]
    if problem := next(filter(None, of_all(problem)), None):
        kind, said = problem
        raise error or kinds[kind](said)
    return value


class Meetings:
    """Where a thread beside the main one waits for those of the other processes.

    They meet at the coordination service: a program on devices could come between those of the
    main thread, on every process another. Each meeting of a name is the next one.
    """

    SECONDS = 3600  # then a process that has not come is given up

    def __init__(self, name: str) -> None:
        """A name that no other object of this process has."""
        self._name, self._number = name, 0

    def wait(self) -> None:
        """Returns when every process has come; OSError where one has called off, or is late."""
        if jax.process_count() == 1:
            return
        self._come("")
        place, client = self._place(), _client()
        self._number += 1
        for process in range(jax.process_count()):
            try:
                said = client.blocking_key_value_get(f"{place}/{process}", 1000 * self.SECONDS)
            except jax.errors.JaxRuntimeError as error:
                raise OSError(f"process {process} was waited for in vain: {error}") from None
            if said:
                raise OSError(said)

    def call_off(self, problem: str) -> None:
        """Whoever waits at the next meeting, which cannot end without this process, is told why."""
        if jax.process_count() > 1:
            self._come(problem)

    def _come(self, problem: str) -> None:
        key = f"{self._place()}/{jax.process_index()}"
        _client().key_value_set(key, problem, allow_overwrite=True)  # calls off once more

    def _place(self) -> str:
        return f"r1jax/{self._name}/{self._number}"


def _client() -> Any:
    """Of the coordination service, which every process of several has joined."""
    return distributed.global_state.client
