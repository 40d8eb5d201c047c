"""DeepSeek-R1: RL for all scenarios from Dev3, at temperature 0.7 (3.2, eq 8 to 10).

    python -m r1jax.train --config experiments/r1/r1.py --workdir runs/r1/r1

1,700 steps; general prompts and the reward models' scores only in the last 400 of them, since more
of them invites reward hacking. Hardware: 256 v5p chips (an assumption). Measured: not run. Plan:

    V3=DeepSeek-V3-Base
    python -m r1jax.plan --config experiments/r1/r1.py:model=$V3,helpful=$V3,safety=$V3 \\
        --topology v5p:4x8x8 --mean_completion 8192

87.3 of 95.7 GiB of a chip; a rollout and its 16 updates 3,869 s, 458 of them for two reward models
of V3's size. `plan` counts these in all of 106 rollouts (29,232 chip-hours); as they score in the
last 25 alone, the run is about 26,500. The paper: a part of R1's 41K H800 hours (Table 7). `:smoke`
runs four updates of a tiny model of V3's shape, without reward models where none are named.

To bring: Dev3 (`:model=PATH`), the reward models (`:helpful=PATH,safety=PATH`), and of `:data=DIR`
reasoning.jsonl and general.jsonl (README.md).
To reach (Table 3): AIME 2024 79.8, MATH-500 97.3, GPQA Diamond 71.5, LiveCodeBench 65.9, AlpacaEval
2.0 87.6, ArenaHard 92.3.

What it does not name it retains from dev2.py. Left open by the paper: the mix of prompts
(`data_at`: each as often as any other of Table 4's text, 88,000 of reasoning and 78,000 general
ones), the reward models' `weight` beside the rules (1, as in the sum of eq 8; their scores have no
fixed scale). The prompts change at the next rollout, that is behind step 1,312 instead of 1,300.
`accuracy` is 0 on general prompts, which have no reference.
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="", helpful="", safety="")
    data = args.data or "data"
    reasoning = {"path": f"{data}/reasoning.jsonl"}
    general = {"path": f"{data}/general.jsonl"}
    shares = {"reasoning": reasoning | {"share": 44}, "general": general | {"share": 39}}
    judge = {"template": "plain", "microbatch_rows": parts.ROWS, "weight": 1.0}
    judge["frozen"] = parts.FROZEN
    helpful, safety = args.helpful or f"{parts.RUNS}/helpful", args.safety or f"{parts.RUNS}/safety"
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.model = {"path": args.model or f"{parts.RUNS}/dev3", "override": parts.COMPUTE}
    config.data = reasoning
    config.data_at = {
        "1300": {
            "function": "r1jax.data.datasets:mixed",
            "args": {"parts": shares, "seed": args.seed},
        }
    }
    config.template = "r1"
    config.rewards = {"accuracy": 1.0, "r1_format": 1.0, "language": 1.0}
    config.reward_models = {
        "helpful": judge | {"path": helpful, "kind": "helpful", "reads": "summary"},
        "safety": judge | {"path": safety, "kind": "safety", "reads": "response"},
    }
    config.max_prompt_tokens, config.overlong_prompts = 4_096, "drop"
    config.sampling = {"max_tokens": 32_768, "temperature": 0.7}
    config.total_steps = 1_700
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
        tiny.shrink_preference_rewards(config, args)
    return config
