"""Benchmarks of Table 3, by the paper's protocol (its section on evaluation).

    python -m r1jax.fetch_data aime24,math500 --data data
    python -m r1jax.evaluate --model runs/r1/r1 --config experiments/r1/evaluate.py --workdir DIR
    python -m r1jax.tables --workdirs DIR --output DIR/report

At most 32,768 tokens, temperature 0.6, top-p 0.95; k = 64 samples of AIME 2024 and GPQA Diamond, 16
of MATH-500, 8 of LiveCodeBench; pass@1 is their mean, cons@k their majority. Without an argument
these four; `:benchmarks=mmlu+ifeval` asks others of r1jax/benchmarks/README.md,
`:benchmarks=all,judge=URL` all of Table 3 but SWE-bench and Aider (`judge_name=` is the judge's
model there). `:template=r1_zero` is for R1-Zero, whose prompt is its own; `:dense` for the models
of ../distill, on whatever devices there are. `:smoke` asks the mini world's problems of its base.

Hardware: 256 v5p chips for a model of V3's size (an assumption). Plan: not made yet; it decodes as
rejection.py. Measured: not run. To bring: what r1jax/benchmarks/README.md names, below `:data=DIR`.
To reach: Table 3 (r1jax/reports/paper.json, "stages").
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(
        arg,
        smoke=False,
        seed=0,
        model="",
        data="data",
        benchmarks="",
        judge="",
        judge_name="",
        template="r1",
        label="",
        dense=False,
    )
    form = "format" if args.template == "r1_zero" else "r1_format"
    config = ConfigDict()
    config.stage = "evaluate"
    config.seed = args.seed
    config.model = args.model or f"{parts.RUNS}/r1"
    config.override = {"dtype": "bfloat16"}
    config.label = args.label
    names = parts.chosen(args.benchmarks)
    config.benchmarks = parts.benchmarks(args.data, args.template, form, names)
    if args.judge:
        config.judge = {**parts.chat_model(args.judge, 4_096), "name": args.judge_name}
    config.graders = parts.GRADERS
    config.engine = parts.ENGINE
    config.mesh = parts.MESH
    if args.dense:
        config.engine, config.mesh = {"slots": 0}, {"fsdp": -1}
    if args.smoke:
        tiny.shrink_evaluate(config, args.model)
    return config
