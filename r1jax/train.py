"""Trains: any stage, or a whole pipeline, from a config file, into a workdir.

    python -m r1jax.train --config experiments/FILE.py[:arg,arg=value] --workdir DIR \\
        [--config.section.key=value ...] [--restart_from STAGE] [--dry_run]

The same command again resumes; what is complete is not run again. `--dry_run` only checks the
config and prints its numbers of steps. Start reading at stages/grpo.py.
"""

import contextlib

from absl import flags

from r1jax.cli import define_config, lock_workdir, run_command, set_up_jax
from r1jax.config import ConfigError
from r1jax.stages import checked, stage_of

CONFIG = define_config("FILE.py[:arg,arg=value] of the run.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of all that the run writes.", required=True
)
RESTART_FROM = flags.DEFINE_string(
    "restart_from", None, "A pipeline's stage: it and all that was made from it are deleted first."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only check the config and print its step counts.")
flags.mark_flag_as_required("config")


def main() -> None:
    config, workdir, restart_from = CONFIG.value, WORKDIR.value, RESTART_FROM.value
    stage = stage_of(config)
    found = checked(config)  # a wrong key is an error before the workdir exists
    if DRY_RUN.value:
        print(f"{config.stage}: {stage.describe(found)}")
        return
    set_up_jax()

    import jax

    first = jax.process_index() == 0
    if restart_from and not hasattr(stage, "restart"):
        raise ConfigError(f"--restart_from is for pipelines; this is the stage {config.stage!r}")
    with lock_workdir(workdir) if first else contextlib.nullcontext():
        if restart_from:
            stage.restart(config, workdir, restart_from)
        stage.run(config, workdir)


if __name__ == "__main__":
    run_command(main)
