"""Dev3: DeepSeek-V3-Base fine-tuned on the 800K set (B.3.3, B.4).

    python -m r1jax.train --config experiments/r1/dev3.py --workdir runs/r1/dev3

Hardware: 256 v5p chips (an assumption). Measured: not run. Plan (python -m r1jax.plan, v5p:4x8x8,
:model=DeepSeek-V3-Base --rows 804745 --mean_completion 5355): 81.5 GiB of a chip, 8.6 s an update,
7,692 chip-hours. The paper prints no hours for it alone: 4.31 billion tokens an epoch, of 6,287
updates. `:smoke` makes three updates of a tiny model of V3's shape.

To bring: MODEL (`:model=PATH`) and data.jsonl of `:data=DIR`, which is mixture.py's workdir.
To reach (Table 3): AIME 2024 78.1, MATH-500 95.4, AlpacaEval 2.0 62.1, Aider 44.8.

Its schedule is the cold start's (dev1.py), and so are the choices that the paper leaves open.
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="")
    config = ConfigDict()
    config.stage = "sft"
    config.seed = args.seed
    config.model = {"path": args.model or parts.BASE, "override": parts.COMPUTE}
    config.data = {"path": f"{args.data or f'{parts.RUNS}/sft_set'}/data.jsonl"}
    config.template = "r1"
    config.epochs = 2.0
    config.batch_size = 128
    config.pack_length = 32_768
    config.overlong = "drop"
    config.optimizer = {"learning_rate": 5e-5, "schedule": "cosine", "final_ratio": 0.1}
    config.optimizer.moments = parts.MOMENTS
    config.mesh = parts.MESH
    config.microbatch_rows = parts.ROWS
    config.checkpoint_every = 500
    if args.smoke:
        tiny.shrink_sft(config, args.model, args.data, tiny.V3)
    return config
