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
from r1jax.machines.cpu import keep_memory
from r1jax.machines.processes import end_with_starter

# Of a full disk, a read-only one, somebody else's: nothing is wrong with the program.
OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)

WRONG_KIND = (IsADirectoryError, NotADirectoryError, FileExistsError)  # epath's have no errno


def run_command(main: Callable[[], int | None]) -> None:
    """Parses the flags and runs `main`; what it returns is the exit code, a user's mistake is 2."""
    end_with_starter()
    keep_memory()
    try:
        app.run(lambda argv: _run(main, argv), flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in OF_THE_MACHINE and not isinstance(error, WRONG_KIND):
            raise
        said = f"{error.filename or 'a file'}: {error.strerror}" if error.errno else error
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        restarts = any(arg.lstrip("-").startswith("restart_from") for arg in sys.argv)
        same = "the same command without --restart_from" if restarts else "the same command"
        print(f"interrupted; {same} goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _run(main: Callable[[], int | None], argv: Sequence[str]) -> int | None:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    return main()


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
