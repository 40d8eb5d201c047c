"""Trains: any stage, or a whole pipeline, from a config file, into a workdir.

    python -m r1jax.train --config experiments/FILE.py[:arg,arg=value] --workdir DIR \\
        [--config.section.key=value ...] [--dry_run]
        [--restart_from STAGE] [--only STAGE] [--parallel N]
    python -m r1jax.train --help_config STAGE

The same command again resumes; what is complete is not run again. SIGTERM ends a run with a
checkpoint of its last update and exit code 75. `--dry_run` only checks the
config and prints its numbers of steps. The last three flags are for pipelines. `--help_config` says
what the config of a stage (grpo, sft, ...) may have: every field with type, default and meaning.

Start reading at stages/grpo.py.
"""

import contextlib
import signal
import sys
from typing import Any

from absl import flags

from r1jax.cli import define_config, run_command
from r1jax.config import ConfigError, check_choice
from r1jax.config_help import help_of
from r1jax.machines.preemption import listen
from r1jax.machines.processes import lock_workdir
from r1jax.stages import STAGES, checked, stage_of

CONFIG = define_config("FILE.py[:arg,arg=value] of the run.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of all that the run writes.", required=True
)
RESTART_FROM = flags.DEFINE_string(
    "restart_from", None, "A pipeline's stage: it and all that was made from it are deleted first."
)
ONLY = flags.DEFINE_string(
    "only", None, "A pipeline's stage: it alone is run; what it reads must be complete."
)
PARALLEL = flags.DEFINE_integer(
    "parallel", 1, "A pipeline's stages at the same time, on a CPU.", lower_bound=1
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only check the config and print its step counts.")
flags.mark_flag_as_required("config")


class HelpConfig(flags.Flag):
    """Acts when it is read and ends the command, as --help does: no other flag is required."""

    def parse(self, stage: Any) -> None:
        check_choice("--help_config", stage, STAGES)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
        print(help_of(stage_of({"stage": stage}).CONFIG))
        sys.exit()


flags.DEFINE_flag(
    HelpConfig(
        parser=flags.ArgumentParser(),
        serializer=None,
        name="help_config",
        default=None,
        help_string=f"Print every field of this stage's config: {', '.join(STAGES)}.",
    )
)


def main() -> None:
    config, workdir = CONFIG.value, WORKDIR.value
    restart_from, only, parallel = RESTART_FROM.value, ONLY.value, PARALLEL.value
    stage = stage_of(config)
    found = checked(config)  # a wrong key is an error before the workdir exists
    if DRY_RUN.value:
        print(f"{config.stage}: {stage.describe(found)}")
        return
    wanted = {"restart_from": restart_from, "only": only, "parallel": parallel > 1}
    for name in (name for name, value in wanted.items() if value and config.stage != "pipeline"):
        raise ConfigError(f"--{name} is for pipelines; this is the stage {config.stage!r}")
    if only and (restart_from or parallel > 1):
        raise ConfigError("--only runs one stage, without --restart_from and --parallel")
    import jax  # late: what is wrong until here is said at once

    from r1jax.machines.hosts import set_up_jax
    from r1jax.stages import pipeline

    set_up_jax()
    listen()

    first = jax.process_index() == 0
    if only:
        pipeline.run_only(config, workdir, only)
        return
    with lock_workdir(workdir) if first else contextlib.nullcontext():
        if restart_from:
            pipeline.restart(config, workdir, restart_from)
        stage.run(config, workdir, **({"parallel": parallel} if parallel > 1 else {}))


if __name__ == "__main__":
    run_command(main)
