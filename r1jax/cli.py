"""What the commands share: errors as one sentence, JAX's set-up."""

import errno
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from r1jax.config import ConfigError, UserError, find_key, load_config
from r1jax.files import of_a_bucket
from r1jax.machines import peers
from r1jax.machines.cpu import keep_memory
from r1jax.machines.preemption import STOPPED, Stopped
from r1jax.machines.processes import end_with_starter
from r1jax.machines.program_cache import end_sharing

# Of a full disk, a read-only one, somebody else's: nothing is wrong with the program.
OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)

WRONG_KIND = (IsADirectoryError, NotADirectoryError, FileExistsError)  # epath's have no errno


def run_command(main: Callable[..., int | None], arguments: bool = False) -> None:
    """Parses the flags and runs `main`; what it returns is the exit code, a user's mistake is 2,
    where a signal has ended it in good order 75. With `arguments`, `main` is given what is no flag.
    """
    end_with_starter()
    keep_memory()
    try:
        app.run(lambda argv: _run(main, argv, arguments), flags_parser=_parse_flags)
    except SystemExit as ended:
        peers.ends_with(ended.code if isinstance(ended.code, int) else int(bool(ended.code)))
        raise
    except BaseException as error:
        said, code = _ending(error)
        if not said:
            peers.hear_others()  # it may come of their end, which is then what is said
        peers.ends_with(code)
        if not said:
            raise
        print(said, file=sys.stderr)
        sys.exit(code)


def _ending(error: BaseException) -> tuple[str, int]:
    """What is said, and the exit code; of the program's own errors "", and a traceback follows."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    of_the_machine = isinstance(error, OSError) and error.errno in OF_THE_MACHINE
    if of_the_machine or isinstance(error, WRONG_KIND):
        assert isinstance(error, OSError)
        said = f"{error.filename or 'a file'}: {error.strerror}" if error.errno else error
        return f"error: {said}", 2
    if of_a_bucket(error):
        return f"error: the object store: {error}; the same command goes on", STOPPED
    if isinstance(error, KeyboardInterrupt | Stopped):
        restarts = any(arg.lstrip("-").startswith("restart_from") for arg in sys.argv)
        same = "the same command without --restart_from" if restarts else "the same command"
        stopped = isinstance(error, Stopped)
        said = "stopped by SIGTERM" if stopped else "interrupted"
        return f"{said}; {same} goes on from the last checkpoint", STOPPED if stopped else 130
    return "", 1


def _run(main: Callable[..., int | None], argv: Sequence[str], arguments: bool) -> int | None:
    if len(argv) > 1 and not arguments:
        raise ConfigError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    try:
        return main(argv[1:]) if arguments else main()
    finally:
        end_sharing()


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a sentence for a missing config file and for an unknown config key."""
    spec = _config_spec(argv)
    if spec:
        # Modules beside the config are found, behind all others.
        sys.path.append(str(Path(spec.partition(":")[0]).resolve().parent))
        load_config(spec)  # which says in a sentence what is wrong with it
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
