"""Benchmarks of one model: pass@1 with its standard error, pass@k and cons@k.

    python -m r1jax.evaluate --model MODEL --config FILE.py[:arg,arg=value] --workdir DIR \\
        [--config.section.key=value ...]

MODEL is a workdir or checkpoint of r1jax, a Hugging Face directory or a .gguf file. The config has

    benchmarks  {NAME: {"data": {"path": FILE.jsonl} or {"function": "module:function", "args"},
                "num_samples", "template", "max_prompt_tokens", "sampling": {"max_tokens",
                "temperature", "top_p", "top_k", "min_p"}, "prefix", "rewards", "reward_models"}}
    seed, mesh, engine, graders    as in training; all have defaults

The config of a GRPO run will do too: its section `evaluation` is taken. Writes DIR/NAME.jsonl, a
line per completion, as each benchmark ends, and last DIR/results.json. The same command again
repeats only the benchmarks that were not finished.
"""

from __future__ import annotations

import dataclasses

from absl import flags
from ml_collections import ConfigDict

from r1jax.cli import define_config, run_command
from r1jax.config import ConfigError, section
from r1jax.files import absolute
from r1jax.machines.hosts import set_up_jax
from r1jax.machines.preemption import listen
from r1jax.machines.processes import lock_workdir
from r1jax.reports.write import print_evaluation
from r1jax.stages.evaluate import EvaluateConfig, evaluate


def read_config(config: ConfigDict) -> EvaluateConfig:
    """An evaluation's config, or the section `evaluation` of a training run's."""
    if "evaluation" not in config:
        found = section(EvaluateConfig, config)
    else:
        beside = {key: config[key] for key in ("mesh", "engine", "graders") if key in config}
        inside = {
            key: config.evaluation[key]
            for key in ("benchmarks", "seed")
            if key in config.evaluation
        }
        found = section(EvaluateConfig, beside | inside, "config.evaluation")
    if not found.benchmarks:
        raise ConfigError("the config has no benchmarks")
    return found


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Model to evaluate.", required=True)
    define_config("FILE.py[:arg] with the benchmarks.")
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("workdir", None, "Directory of the results.", required=True)


def main() -> None:
    workdir = flags.FLAGS.workdir
    config = dataclasses.replace(read_config(flags.FLAGS.config), model=flags.FLAGS.model)
    set_up_jax()
    listen()
    with lock_workdir(workdir):
        evaluate(config, workdir)
    print_evaluation(workdir)
    print(f"completions and results.json are in {absolute(workdir)}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
