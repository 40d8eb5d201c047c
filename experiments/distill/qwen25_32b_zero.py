"""Qwen2.5-32B-Zero: the RL of R1-Zero on a dense model, to compare with distillation (B.4.1).

    CONFIG=experiments/distill/qwen25_32b_zero.py
    python -m r1jax.train --config $CONFIG --workdir runs/distill/qwen25-32b-zero

Hardware: 64 v5p chips (an assumption). Measured: not run. Plan (python -m r1jax.plan, v5p:4x4x4,
--mean_completion 8192, model=Qwen2.5-32B): 82.3 of 95.7 GiB of a chip; a rollout of 8,192
completions and its 16 updates 2,360 s (1,103 of them decoding, 51.7 an update), 26,220 chip-hours.
The paper prints no hours for it. `:smoke` runs four updates of a tiny model of Qwen2's shape.

To bring: Qwen2.5-32B (`:model=PATH`) and reasoning.jsonl of `:data=DIR`: mathematics, code and STEM
(experiments/r1/README.md). To reach (Table 16): AIME 2024 47.0 (cons@64 60.0), MATH-500 91.6, GPQA
Diamond 55.0, LiveCodeBench 40.2; the distilled Qwen-32B has 72.6 (83.3), 94.3, 62.1 and 57.2.

Left open by the paper: the number of steps ("over 10K"; `total_steps` 10,000), the clipping epsilon
(`loss.clip_eps_*` 0.2), `template` and the format's part in `rewards` (both R1-Zero's).
"""

from ml_collections import ConfigDict

from experiments import tiny
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="")
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.model = {
        "path": args.model or "models/Qwen2.5-32B",
        "override": {"dtype": "bfloat16", "remat": "full", "max_length": 131_072},
    }
    config.data = {"path": f"{args.data or 'data'}/reasoning.jsonl"}
    config.template = "r1_zero"
    config.rewards = {"accuracy": 1.0, "format": 1.0}
    config.max_prompt_tokens, config.overlong_prompts = 4_096, "drop"
    config.sampling = {"max_tokens": 32_768, "temperature": 1.0}
    config.total_steps = 10_000
    config.group_size = 16
    config.prompts_per_update = 32
    config.updates_per_rollout = 16  # 8,192 outputs
    config.ref_every = 400
    config.loss = {"kl_coef": 0.001, "clip_eps_low": 0.2, "clip_eps_high": 0.2}
    config.optimizer = {"learning_rate": 2e-6, "schedule": "constant"}
    config.graders = {"workers": 16}
    config.engine = {"slots": 0}
    config.mesh = {"fsdp": 16, "tensor": 4}
    config.microbatch_rows = 16
    config.checkpoint_every = 80
    if args.smoke:
        tiny.shrink_grpo(config, args.model, tiny.QWEN2)
    return config
