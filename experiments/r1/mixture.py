"""The 800K SFT set: Dev2's reasoning and general conversations, decontaminated (B.3.3, Table 5).

    python -m r1jax.train --config experiments/r1/mixture.py --workdir runs/r1/sft_set

Hardware: one host's CPUs. Measured: not run. `:smoke` mixes the mini world's rows.

To bring: rejection.py's two workdirs (`:reasoning=DIR,judged=DIR`), a MODEL whose tokenizer counts
(`:model=PATH`), and of `:data=DIR` general_sft.jsonl and the benchmarks (README.md); `:benchmarks=`
as in evaluate.py.
To reach, as statistics.json prints it (Table 5):

    domain    samples   rounds   tokens
    math      395,285      1.0  6,094.2
    code      211,129      1.1  7,435.7
    stem       10,124      1.0  4,928.8
    logic      10,395      1.0  2,739.0
    general   177,812      1.1  1,419.8
    Total     804,745      1.0  5,355.3

Rows that share ten words in a row with a benchmark's question or solution are left out. Left open
by the paper: its data (the general half is of DeepSeek-V3's SFT set) and what a word of a 10-gram
is.
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(
        arg, smoke=False, seed=0, model="", data="data", reasoning="", judged="", benchmarks=""
    )
    made = {name: args[name] or f"{parts.RUNS}/{name}" for name in ("reasoning", "judged")}
    config = ConfigDict()
    config.stage = "mixture"
    config.seed = args.seed
    config.sources = {
        "reasoning": {"data": {"path": f"{made['reasoning']}/data.jsonl"}},
        "judged": {"data": {"path": f"{made['judged']}/data.jsonl"}},
        "general": {"data": {"path": f"{args.data}/general_sft.jsonl"}, "domain": "general"},
    }
    config.tokenizer = args.model or parts.BASE
    config.template = "r1"
    config.benchmarks = parts.benchmark_data(args.data, parts.chosen(args.benchmarks))
    config.ngram = 10
    if args.smoke:
        tiny.shrink_mixture(config, args)
    return config
