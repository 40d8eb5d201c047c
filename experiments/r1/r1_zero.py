"""DeepSeek-R1-Zero: GRPO straight from DeepSeek-V3-Base, accuracy + format reward, no SFT (2.1).

    python -m r1jax.train --config experiments/r1/r1_zero.py --workdir runs/r1/zero

Hardware: 256 v5p chips (an assumption). Measured: not run. Plan, up to 32,768 tokens:

    python -m r1jax.plan --config experiments/r1/r1_zero.py:model=DeepSeek-V3-Base \\
        --topology v5p:4x8x8 --mean_completion 8192 --config.max_tokens_at={}

87.3 of 95.7 GiB of a chip; a rollout and its 16 updates 3,410 s (2,331 of them decoding, 460 both
policies' log-probabilities, 38.7 an update), the run's 650 about 158,000 chip-hours. From step
8,208 on, 65,536 tokens want another mesh and smaller microbatches, which a resumed run may have:

    --config.mesh.fsdp=2 --config.mesh.tensor=16 --config.microbatch_rows=16

(an update then has 90.7 GiB and takes 61.1 s). The paper: 101K H800 hours (Table 7), of more than
twice a v5p's peak; 10,400 steps are 650 rollouts, about 31.5 billion sampled tokens (Figure 1b),
5,900 a completion. `:smoke` runs four updates of a tiny model of V3's shape.

To bring: MODEL (`:model=PATH`), and of `:data=DIR` reasoning.jsonl and aime24/ (README.md).
To reach (Table 3): AIME 2024 77.9 (cons@64 86.7), MATH-500 95.9, GPQA Diamond 75.8, LiveCodeBench
50.0; the curve's pass@1 15.6 -> 77.3 % from step 200 to 10,000 (Figure 1a), mean length 549 ->
13,648 tokens (Figure 1b).

Left open by the paper, beside experiments/README.md's table: the clipping epsilon
(`loss.clip_eps_*` 0.2; 10 is printed for the next RL stage), which questions it was trained on (1.6
epochs would be of 208,000, Table 4 has about 80,000; here 10,400 steps of whatever is in `data`),
the longest prompt (`max_prompt_tokens` 4,096; `overlong_prompts` leaves longer ones out), the
curve's temperature (`evaluation.curve.aime24.sampling`: that of the evaluation). The length changes
at the next rollout, that is behind step 8,208.
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="")
    data = args.data or "data"
    curve = parts.benchmarks(data, "r1_zero", "format", ("aime24",))["aime24"]
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.model = {"path": args.model or parts.BASE, "override": parts.COMPUTE}
    config.data = {"path": f"{data}/reasoning.jsonl"}
    config.template = "r1_zero"
    config.rewards = {"accuracy": 1.0, "format": 1.0}
    config.max_prompt_tokens, config.overlong_prompts = 4_096, "drop"
    config.sampling = {"max_tokens": 32_768, "temperature": 1.0}
    config.max_tokens_at = {"8200": 65_536}
    config.total_steps = 10_400
    config.group_size = 16
    config.prompts_per_update = 32
    config.updates_per_rollout = 16  # 8,192 outputs
    config.ref_every = 400
    config.reference = parts.FROZEN
    config.loss = {"kl_coef": 0.001, "clip_eps_low": 0.2, "clip_eps_high": 0.2}
    config.optimizer = {"learning_rate": 3e-6, "schedule": "constant"}
    config.optimizer.moments = parts.MOMENTS
    config.evaluation = {"every": 200, "curve": {"aime24": curve | {"num_samples": 16}}}
    config.graders = parts.GRADERS
    config.engine = parts.ENGINE
    config.mesh = parts.MESH
    config.microbatch_rows = parts.ROWS
    config.checkpoint_every = 80
    if args.smoke:
        tiny.shrink_grpo(config, args.model, tiny.V3)
        config.evaluation = {"every": 2, "curve": tiny.shrink_benchmarks({"aime24": curve})}
    return config
