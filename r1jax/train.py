"""Trains: any stage, from a config file, into a workdir. The same command again resumes.

    python -m r1jax.train --config experiments/FILE.py[:arg,arg=value] --workdir DIR \\
        [--config.section.key=value ...]

Start reading at stages/grpo.py.
"""

import contextlib
import importlib

from absl import flags

from r1jax.cli import define_config, lock_workdir, run_command, set_up_jax
from r1jax.config import ConfigError, check_choice, section

STAGES = {
    "sft": "r1jax.stages.sft",
    "grpo": "r1jax.stages.grpo",
    "preferences": "r1jax.stages.preferences",
    "reward_model": "r1jax.stages.reward_model",
}

CONFIG = define_config("FILE.py[:arg,arg=value] of the run.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of all that the run writes.", required=True
)
flags.mark_flag_as_required("config")


def main() -> None:
    config, workdir = CONFIG.value, WORKDIR.value
    if "stage" not in config:
        raise ConfigError(f"config.stage is missing, one of {', '.join(STAGES)}")
    check_choice("config.stage", config.stage, STAGES)
    set_up_jax()

    import jax

    first = jax.process_index() == 0
    stage = importlib.import_module(STAGES[config.stage])
    section(stage.CONFIG, config)  # a wrong key is an error before the workdir exists
    with lock_workdir(workdir) if first else contextlib.nullcontext():
        stage.run(config, workdir)


if __name__ == "__main__":
    run_command(main)
