"""Cold-start data: R1-Zero's traces, filtered and refined by DeepSeek-V3 (B.3.2).

    python -m r1jax.train --config experiments/r1/cold_start.py --workdir runs/r1/cold_start

Hardware: 256 v5p chips (an assumption). Measured: not run. Plan: not made; it samples as
rejection.py does, a fourth as much of a question. The paper: 5K H800 hours for all of SFT data's
making (Table 7). `:smoke` samples from a tiny model of V3's shape.

To bring: R1-Zero (`:model=PATH`), DeepSeek-V3 (`:v3=PATH` or the address of a server, which leaves
all memory to R1-Zero), and of `:data=DIR` cold_start.jsonl: thousands of diverse questions
(README.md). To reach: "thousands" of long chains of thought.

Left open by the paper: how many questions and samples (`num_samples` 4, `per_prompt` 1), what
counts as repetition (`minimum.repetition` -0.2: at most a fifth of the runs of 8 words came before)
and as mixed languages (`minimum.language` 0.95 of the thoughts' words in the question's), the
writer's temperature (`writer.sampling`: 0.6). Departures: the summary stands in <answer> tags,
where stage rejection's writer puts it; people's rewriting and verification have no place here.
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="", v3=parts.V3)
    config = ConfigDict()
    config.stage = "rejection"
    config.seed = args.seed
    config.model = {"path": args.model or f"{parts.RUNS}/zero", "override": parts.COMPUTE}
    config.data = {"path": f"{args.data or 'data'}/cold_start.jsonl"}
    config.template = "r1_zero"
    config.max_prompt_tokens = 4_096
    config.num_samples = 4
    config.per_prompt = 1
    config.sampling = {"max_tokens": 28_672, "temperature": 1.0}  # with its prompt 32,768
    config.minimum = {"accuracy": 1.0, "format": 1.0, "language": 0.95, "repetition": -0.2}
    config.writer = parts.chat_model(args.v3, max_tokens=28_672)
    config.graders = parts.GRADERS
    config.engine = parts.ENGINE
    config.mesh = parts.MESH
    if args.smoke:
        tiny.shrink_rejection(config, args.model, tiny.V3)
    return config
