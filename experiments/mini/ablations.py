"""Variants of the objective, PPO and off-policy rollouts against GRPO, on the mini R1-Zero.

    python -m r1jax.sweep --config experiments/mini/ablations.py --workdir runs/arms --parallel 2

Ten arms x three seeds; one alone: `train --config experiments/mini/ablations.py:arm=gspo,seed=1`.
All start from the mini base with accuracy + format reward, as r1_zero.py does, but make four
updates a rollout (as the paper makes 16), so that ratios leave 1 and clipping matters; the last two
arms make one. 60 updates each: 3 to 5 minutes of one slow CPU core. Paper: Figure 4 (PPO against
GRPO) for `ppo` and `ppo_095`; the other variants are not in it.

Measured (held-out pass@1 in %, seeds 0 to 2): grpo 76.0 +- 1.9, token_mean 77.7 +- 2.6, dr_grpo
78.4 +- 1.4, dapo 77.5 +- 2.7, cispo 77.4 +- 1.5, gspo 42.5 +- 2.7, ppo 72.6 +- 9.3, ppo_095 36.9 +-
9.5, on_policy 77.1 +- 1.9, one_ahead 77.6 +- 0.4. experiments/mini/README.md has the table.
"""

from pathlib import Path

from ml_collections import ConfigDict

from r1jax.config import ConfigError, Overrides, load_config, parse_args, product

HERE = Path(__file__).parent
CRITIC = {"optimizer": {"learning_rate": 3e-4, "warmup_steps": 5}}
ARMS: dict[str, dict] = {
    "grpo": {},
    "token_mean": {"loss": {"loss_agg": "token_mean"}},
    "dr_grpo": {"loss": {"loss_agg": "constant"}, "advantage_scale": False},
    "dapo": {
        "loss": {"loss_agg": "token_mean", "clip_eps_high": 0.28, "kl_coef": 0.0},
        "dynamic_sampling": 2,
    },
    "gspo": {"loss": {"ratio": "sequence", "clip_eps_low": 3e-4, "clip_eps_high": 4e-4}},
    "cispo": {"loss": {"surrogate": "cispo", "clip_eps_low": 1.0, "clip_eps_high": 0.28}},
    "ppo": {"critic": {"gae_lambda": 1.0, **CRITIC}},
    "ppo_095": {"critic": {"gae_lambda": 0.95, **CRITIC}},
    "on_policy": {"updates_per_rollout": 1},
    "one_ahead": {
        "updates_per_rollout": 1,
        "rollouts_ahead": 1,
        "loss": {"importance_cap": 2.0},
    },
}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, arm="grpo")
    if args.arm not in ARMS:
        raise ConfigError(f"arm {args.arm!r} is not one of {', '.join(ARMS)}")
    suffix = ",smoke" if args.smoke else ""
    config = load_config(f"{HERE}/r1_zero.py:seed={args.seed}{suffix}")
    config.updates_per_rollout = 4
    if not args.smoke:
        config.total_steps = 60
        config.evaluation.every = 20
    config.evaluation.benchmarks = {"heldout": config.evaluation.benchmarks.heldout}
    config.update(ARMS[args.arm])
    return config


def sweep() -> list[Overrides]:
    """Every arm with three seeds: of the questions, of the samples."""
    return product(**{":arm": list(ARMS), ":seed": [0, 1, 2]})
