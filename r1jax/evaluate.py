"""Benchmarks of one model: pass@1 with its standard error, pass@k and cons@k.

    python -m r1jax.evaluate --model MODEL --benchmarks aime24,math500 --data DIR --workdir DIR
    python -m r1jax.evaluate --model MODEL --config FILE.py[:arg,arg=value] --workdir DIR \\
        [--benchmarks NAME,...] [--config.section.key=value ...]
    python -m r1jax.evaluate --regrade --config FILE.py --workdir DIR

MODEL is a workdir or checkpoint of r1jax, a Hugging Face directory, a .gguf file, or the address of
a server that speaks OpenAI's protocol, "http://HOST:PORT/v1": --served_name is the model's name
there, and OPENAI_API_KEY its key, if it wants one.

The first form asks benchmarks of r1jax/benchmarks/README.md by the paper's protocol; DIR of --data
has their files (python -m r1jax.fetch_data). --limit N asks N problems of each, evenly spread,
--num_samples other than the paper's k, --max_tokens other than 32,768 at most, --template in
another template than the model's own ("r1_zero", for instance). Where a judge decides, --judge is a
MODEL or a server (--judge_name is its model there), asked at temperature 0.

In the second form the config has

    benchmarks  {NAME: benchmark(NAME, DIR) of r1jax.benchmarks.catalog, or {"data": {"path":
                FILE.jsonl} or {"function": "module:function", "args"}, "num_samples", "template",
                "max_prompt_tokens", "sampling": {"max_tokens", "temperature", "top_p", "top_k",
                "min_p"}, "truncated", "prefix", "rewards", "reward_models"}}
    server      how a server is asked: {"name", "key_variable", "parallel", "timeout_s"}
    judge       who judges: {"endpoint", "name"} or {"path"}, as judges/chat_model.py has it
    seed, mesh, engine, graders    as in training; all have defaults

The config of a GRPO run will do too: its section `evaluation` is taken. --benchmarks takes some of
them.

Every completion is written down as it finishes: the same command again samples none twice. DIR gets
NAME.jsonl, a line per completion, and results.json, to which other benchmarks of the same model may
be added later. --regrade grades the completions that are there anew, without the model: with other
rewards, or mended reference answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from r1jax.benchmarks.catalog import benchmark
from r1jax.benchmarks.protocol import BenchmarkConfig
from r1jax.cli import define_config, run_command
from r1jax.config import ConfigError, section
from r1jax.data.chat import TEMPLATES
from r1jax.files import absolute
from r1jax.judges.chat_model import ChatModelConfig
from r1jax.judges.server import is_server
from r1jax.machines.hosts import set_up_jax
from r1jax.machines.preemption import listen
from r1jax.machines.processes import lock_workdir
from r1jax.reports.write import print_evaluation
from r1jax.rewards.pool import GraderConfig
from r1jax.rollout.sampling import SamplingConfig
from r1jax.stages.evaluate import EvaluateConfig, evaluate, regrade

JUDGE = SamplingConfig(max_tokens=4_096, temperature=0.0)  # as Arena-Hard's
WORKERS = 4  # that grade, where no config says how many


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


def asked_for(
    config: ConfigDict | None, names: Sequence[str], data: str | None, changes: dict[str, Any]
) -> EvaluateConfig:
    """The config, or one that has the benchmarks of these names; `changes` to each of them.

    ConfigError where the flags do not say what is asked.
    """
    if config is None:
        if not names or not data:
            raise ConfigError("evaluate wants --config, or --benchmarks and --data")
        found = EvaluateConfig(
            {name: section(BenchmarkConfig, benchmark(name, data), name) for name in names},
            graders=GraderConfig(workers=WORKERS),
        )
    else:
        if data:
            raise ConfigError("--data is for --benchmarks without --config")
        found = read_config(config)
        if unknown := [name for name in names if name not in found.benchmarks]:
            known = ", ".join(found.benchmarks)
            raise ConfigError(f"--benchmarks: the config has no {unknown[0]!r}; it has {known}")
    chosen = {name: found.benchmarks[name] for name in names or found.benchmarks}
    tokens = changes.pop("max_tokens", None)
    for name, each in chosen.items():
        sampling = each.sampling
        if tokens is not None:
            sampling = replace(sampling, max_tokens=tokens)
        chosen[name] = replace(each, sampling=sampling, **changes)
    return replace(found, benchmarks=chosen)


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Model to evaluate.")
    define_config("FILE.py[:arg] with the benchmarks.")
    flags.DEFINE_list("benchmarks", [], "Names, separated by commas.")
    flags.DEFINE_string("data", None, "Directory of the benchmarks' files.")
    flags.DEFINE_integer("limit", None, "Problems of each benchmark.", 1)
    flags.DEFINE_integer("num_samples", None, "Completions of a problem.", 1)
    flags.DEFINE_integer("max_tokens", None, "Tokens of a completion.", 1)
    flags.DEFINE_enum("template", None, sorted(TEMPLATES), "How it is asked.")
    flags.DEFINE_string("served_name", None, "Name of the model, where MODEL is a server.")
    flags.DEFINE_string("judge", None, "MODEL or server that judges.")
    flags.DEFINE_string("judge_name", "", "Name of the judge, where it is a server.")
    flags.DEFINE_boolean("regrade", False, "Grades what is written down anew.")
    flags.DEFINE_string("workdir", None, "Directory of the results.", required=True)


def main() -> None:
    args = flags.FLAGS
    workdir = args.workdir
    changes = {
        "problems": args.limit,
        "num_samples": args.num_samples,
        "max_tokens": args.max_tokens,
        "template": args.template,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    config = asked_for(args.config, args.benchmarks, args.data, changes)
    if args.regrade == bool(args.model):
        raise ConfigError("evaluate wants either --model, or --regrade, which needs none")
    if args.served_name is not None:
        config = replace(config, server=replace(config.server, name=args.served_name))
    if args.judge is not None:
        where = {"endpoint" if is_server(args.judge) else "path": args.judge}
        judge = ChatModelConfig(**where, name=args.judge_name, sampling=JUDGE)
        config = replace(config, judge=judge)
    set_up_jax()
    listen()
    with lock_workdir(workdir):
        if args.regrade:
            regrade(config, workdir)
        else:
            evaluate(replace(config, model=args.model), workdir)
    print_evaluation(workdir)
    print(f"completions and results.json are in {absolute(workdir)}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
