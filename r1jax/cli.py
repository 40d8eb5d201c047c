"""What the commands share: errors as one sentence, JAX's set-up."""

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from r1jax.config import ConfigError, UserError, check_config_file, find_key, load_config
from r1jax.processes import end_with_starter

# One heap for all threads, in pages of 2 MiB, that never shrinks.
MALLOC = ("hugetlb=1", "arena_max=1", "mmap_max=0", f"trim_threshold={2**62}")


def run_command(main: Callable[[], int | None]) -> None:
    """Parses the flags and runs `main`; what it returns is the exit code, a user's mistake is 2."""
    end_with_starter()
    _keep_memory()
    try:
        app.run(lambda argv: _run(main, argv), flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        restarts = any(arg.lstrip("-").startswith("restart_from") for arg in sys.argv)
        same = "the same command without --restart_from" if restarts else "the same command"
        print(f"interrupted; {same} goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _keep_memory() -> None:
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


def _run(main: Callable[[], int | None], argv: Sequence[str]) -> int | None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    return main()


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a sentence for a missing config file and for an unknown config key."""
    spec = _config_spec(argv)
    if spec:
        check_config_file(spec)
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        for arg in argv if spec else []:
            if match := re.match(r"--?config\.([\w.]+)(=|$)", arg):
                find_key(load_config(spec), match[1])
        raise


def _config_spec(argv: Sequence[str]) -> str:
    """The value of --config, which must be known before the flags are parsed."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", arg):
            return following if match[1] is None else match[1]
    return ""


def define_config(help_string: str) -> flags.FlagHolder[Any]:
    """The flag --config. Overrides may set keys that the file leaves at their defaults."""
    return config_flags.DEFINE_config_file(
        "config", None, help_string, lock_config=False, accept_new_attributes=True
    )


def set_up_jax() -> None:
    """Joins the other processes of a multi-host run and turns the compilation cache on.

    Several processes: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    R1JAX_DISTRIBUTED=1 where JAX finds them out itself (TPU pods, Slurm). But for errors, only the
    first process prints.
    R1JAX_COMPILATION_CACHE is the cache's directory, empty for none.
    """
    import jax

    # That there is no TPU is no news, and an error's one sentence should stand alone.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    cache = os.environ.get("R1JAX_COMPILATION_CACHE", str(Path.home() / ".cache/r1jax/xla"))
    if cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        processes, process = _env_number("JAX_NUM_PROCESSES"), _env_number("JAX_PROCESS_ID")
        jax.distributed.initialize(num_processes=processes, process_id=process)
    elif os.environ.get("R1JAX_DISTRIBUTED"):
        jax.distributed.initialize()
    else:
        return
    if jax.process_index() > 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the first process says it all


def _env_number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ConfigError(
            f"with JAX_COORDINATOR_ADDRESS set, {name} must be a number, not {text!r}"
        )
    return int(text)
