"""Dev1: DeepSeek-V3-Base fine-tuned on the cold-start data (B.3.2, B.4).

    python -m r1jax.train --config experiments/r1/dev1.py --workdir runs/r1/dev1

Hardware: 256 v5p chips (an assumption). Measured: not run. Plan (python -m r1jax.plan, v5p:4x8x8,
:model=DeepSeek-V3-Base --rows 5000 --mean_completion 5000): 81.5 GiB of a chip, 8.6 s an update, 48
chip-hours. The paper prints no hours for it alone. `:smoke` makes three updates of a tiny model of
V3's shape.

To bring: MODEL (`:model=PATH`) and data.jsonl of `:data=DIR`, which is cold_start.py's workdir or
thousands of rows like its (README.md).
To reach (Table 3): AIME 2024 59.0, MATH-500 94.2, IF-Eval 71.7, below R1-Zero's in reasoning.

Left open by the paper: the epochs (2 to 3; `epochs` 2, as its version 1 has them), how many rows
there are, warm-up (`optimizer.warmup_steps` 0), longer rows (`overlong`: they are left out), the
prompt (`template`: R1's own, which opens <think>), multi-token prediction (`mtp_coef` 0) and the
router's balance (`router.*` 0).
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
    config.data = {"path": f"{args.data or f'{parts.RUNS}/cold_start'}/data.jsonl"}
    config.template = "r1"
    config.epochs = 2.0
    config.batch_size = 128
    config.pack_length = 32_768
    config.overlong = "drop"
    config.optimizer = {"learning_rate": 5e-5, "schedule": "cosine", "final_ratio": 0.1}
    config.optimizer.moments = parts.MOMENTS
    config.mesh = parts.MESH
    config.microbatch_rows = parts.ROWS
    if args.smoke:
        tiny.shrink_sft(config, args.model, args.data, tiny.V3)
    return config
