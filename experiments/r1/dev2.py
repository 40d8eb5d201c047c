"""Dev2: RL on reasoning from Dev1, rules and language consistency, clipped at 10 (3.2).

    python -m r1jax.train --config experiments/r1/dev2.py --workdir runs/r1/dev2

Hardware: 256 v5p chips (an assumption). Measured: not run. Plan: that of r1_zero.py with 32,768
tokens, whose programs it has (87.3 GiB, 3,411 s a rollout and its updates): 158 of them are 38,300
chip-hours. The paper: a part of R1's 41K H800 hours (Table 7). `:smoke` runs four updates of a tiny
model of V3's shape.

To bring: Dev1 (`:model=PATH`) and reasoning.jsonl of `:data=DIR` (README.md).
To reach (Table 3): AIME 2024 74.0, MATH-500 95.9, GPQA Diamond 70.7, LiveCodeBench 63.5; language
consistency near 0.99 (Figure 7, of a model of 7B).

Left open by the paper: the number of steps ("until convergence"; `total_steps` 2,528, 158 rollouts:
at R1-Zero's hours a step, 41K hours are 4,222 steps, of which the last stage takes 1,700), the
prompt (`template`: R1's own, which opens <think>), and whether an answer counts out of its form (it
does: `rewards` have `accuracy` and `r1_format` apart; `accuracy_in_r1_format` is the other
reading).
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="")
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.model = {"path": args.model or f"{parts.RUNS}/dev1", "override": parts.COMPUTE}
    config.data = {"path": f"{args.data or 'data'}/reasoning.jsonl"}
    config.template = "r1"
    config.rewards = {"accuracy": 1.0, "r1_format": 1.0, "language": 1.0}
    config.max_prompt_tokens, config.overlong_prompts = 4_096, "drop"
    config.sampling = {"max_tokens": 32_768, "temperature": 1.0}
    config.total_steps = 2_528
    config.group_size = 16
    config.prompts_per_update = 32
    config.updates_per_rollout = 16  # 8,192 outputs
    config.ref_every = 400
    config.reference = parts.FROZEN
    config.loss = {"kl_coef": 0.001, "clip_eps_low": 10.0, "clip_eps_high": 10.0}
    config.optimizer = {"learning_rate": 3e-6, "schedule": "constant"}
    config.optimizer.moments = parts.MOMENTS
    config.graders = parts.GRADERS
    config.engine = parts.ENGINE
    config.mesh = parts.MESH
    config.microbatch_rows = parts.ROWS
    config.checkpoint_every = 80
    if args.smoke:
        tiny.shrink_grpo(config, args.model, tiny.V3)
    return config
