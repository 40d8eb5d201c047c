"""The reasoning half of the SFT set: Dev2's samples, right and readable ones (B.3.3).

    CONFIG=experiments/r1/rejection.py
    python -m r1jax.train --config $CONFIG --workdir runs/r1/reasoning
    python -m r1jax.train --config $CONFIG:judged --workdir runs/r1/judged

The first takes questions that rules can grade, the second those whose answers DeepSeek-V3 compares
with the reference. Hardware: 256 v5p chips (an assumption). Measured: not run. Plan of the first
(python -m r1jax.plan, v5p:4x8x8, :model=DeepSeek-V3-Base --rows 88000 --mean_completion 7168): 85.4
GiB of a chip, 2,541 s for 1,024 questions, 15,531 chip-hours, 7,200 of an H800's peak. The paper:
5K H800 hours for all of SFT data's making (Table 7). `:smoke` samples from a tiny model of V3's
shape.

To bring: Dev2 (`:model=PATH`), reasoning.jsonl or judged.jsonl of `:data=DIR` (README.md), and for
the latter DeepSeek-V3 (`:v3=PATH` or the address of a server). To reach: about 600,000 rows (Table
5: maths 395,285, code 211,129, STEM 10,124, logic 10,395).

Left open by the paper: samples a question (several; `num_samples` 16, of which `per_prompt` keeps
all that pass, since the maths questions of Table 4 must come to 15 rows each),
`sampling.temperature` (1, as in Dev2's training), and the limits in `minimum`: 0.95 of the
thoughts' words in the question's language, no paragraph of more than 1,000 characters, no code
block in the thoughts.
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, judged=False, model="", data="", v3=parts.V3)
    file = "judged.jsonl" if args.judged else "reasoning.jsonl"
    config = ConfigDict()
    config.stage = "rejection"
    config.seed = args.seed
    config.model = {"path": args.model or f"{parts.RUNS}/dev2", "override": parts.COMPUTE}
    config.data = {"path": f"{args.data or 'data'}/{file}"}
    config.template = "r1"
    config.max_prompt_tokens = 4_096
    config.num_samples = 16
    config.per_prompt = 16
    config.sampling = {"max_tokens": 28_672, "temperature": 1.0}  # with its prompt 32,768
    config.minimum = {
        "accuracy": 1.0,
        "r1_format": 1.0,
        "language": 0.95,
        "long_paragraph": {"minimum": 0.0, "max_characters": 1_000},
        "code_blocks": 0.0,
    }
    if args.judged:
        config.minimum.accuracy = 0.0
        config.judge = parts.chat_model(args.v3, max_tokens=8_192)
    config.graders = parts.GRADERS
    config.engine = parts.ENGINE
    config.mesh = parts.MESH
    if args.smoke:
        tiny.shrink_rejection(config, args.model, tiny.V3)
    return config
