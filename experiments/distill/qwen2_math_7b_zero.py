"""Qwen2-Math-7B-Zero: R1-Zero's RL on a base that is older than o1 (Table 17).

    CONFIG=experiments/distill/qwen2_math_7b_zero.py
    python -m r1jax.train --config $CONFIG --workdir runs/distill/qwen2-math-7b-zero

The question it answers: whether a base that cannot have read o1's traces learns to reason by RL
too. Hardware: 8 v5p chips (an assumption). Measured: not run. Plan (python -m r1jax.plan,
v5p:2x2x2, --mean_completion 8192, :model=Qwen2.5-Math-7B, whose shape it has): 81.4 GiB of a chip,
3,757 s for a rollout and its 16 updates, 5,218 chip-hours. The paper prints no hours for it.
`:smoke` runs four updates of a tiny model of Qwen2's shape.

To bring: Qwen2-Math-7B (`:model=PATH`) and reasoning.jsonl of `:data=DIR`
(experiments/r1/README.md). To reach (Table 17): AIME 2024 22.3 and AIME 2025 18.1, where
Qwen2-Math-7B-Instruct has 7.9 and 4.6 and GPT-4o 9.3 on AIME 2024.

Published is the number of updates alone, about 10,000. Everything else is Qwen2.5-32B-Zero's
(qwen25_32b_zero.py), the nearest model of which the paper prints numbers: learning rate, KL, batch,
lengths, temperature, the reference's resets, and the choices that are left open there.
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.distill import qwen25_32b_zero
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="")
    config = qwen25_32b_zero.get_config(f"seed={args.seed},data={args.data}")
    config.model.path = args.model or "models/Qwen2-Math-7B"
    config.total_steps = 10_000
    config.mesh = {"fsdp": 4, "tensor": 2}
    config.microbatch_rows = 4
    if args.smoke:
        tiny.shrink_grpo(config, args.model, tiny.QWEN2)
    return config
