"""Pretrains the base model of the mini world on a corpus like the web's, in small.

    python -m r1jax.train --config experiments/mini/base.py --workdir runs/mini-base

R1-Zero starts from what this leaves (`experiments/mini/base/`) as the paper's starts from
V3-Base. `:smoke` pretrains a far smaller one. Hardware: one CPU core, 12,000 updates and 33.4 M
tokens in 77 minutes on a fast one and two hours on the slow one that made the shipped base (at this
size two cores are hardly faster, `experiments/LOG.md`); an H100 took 174 seconds for the one before
(`--config.microbatch_rows=20`). Loss 5.23 -> 0.52 nats a token (the last 400 updates;
`base/metrics.jsonl`). Then, to make the files of `experiments/mini/base`:

    python -m r1jax.export --model runs/mini-base --output experiments/mini/base --dtype bfloat16
"""

from ml_collections import ConfigDict

from r1jax.config import parse_args

# Fixed before the first RL run on this base (world/corpus.py says what the shares mean).
MIX = {
    "formats": {"plain": 0.67, "lesson": 0.155, "template": 0.135, "request": 0.04},
    "plain_styles": {"direct": 0.42, "steps": 0.25, "detailed": 0.19, "check": 0.14},
    "template_styles": {"direct": 0.88, "steps": 0.05, "detailed": 0.04, "check": 0.03},
    "tags": {"proper": 0.30, "partial": 0.20, "none": 0.50},
    "languages": {"en": 0.60, "zh": 0.40},
    "families": {
        "arithmetic": 0.42,
        "countdown": 0.18,
        "compare": 0.15,
        "sort": 0.12,
        "logic": 0.13,
    },
    "mixed_language": 0.06,
    "bad_replies": 0.5,
    "warm_replies": 0.2,
    "requests_in_template": 0.25,
}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0)
    config = ConfigDict()
    config.stage = "sft"
    config.seed = args.seed
    config.model = {
        "config": {
            "embed_dim": 192,
            "num_layers": 4,
            "num_heads": 3,
            "num_kv_heads": 3,
            "head_dim": 64,
            "ffn_dim": 512,
            "max_length": 512,
        },
        "tokenizer_function": "experiments.mini.world.corpus:tokenizer",
        "tokenizer_args": {"vocab_size": 896, "count": 20_000, "seed": args.seed, "mix": MIX},
    }
    config.data = {
        "function": "experiments.mini.world.corpus:corpus",
        "args": {"seed": args.seed, "mix": MIX},
    }
    config.total_steps = 12_000
    config.batch_size = 48
    config.pack_length = 192
    config.overlong = "drop"  # one document in a thousand
    config.microbatch_rows = 2  # what a core's cache holds
    config.logits_chunk = 192
    config.optimizer = {
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "final_ratio": 0.05,
        "warmup_steps": 100,
        "b2": 0.98,  # small batches
        "weight_decay": 0.1,
    }
    config.mesh = {"data": -1}
    config.checkpoint_every = 500
    config.log_every = 20
    config.wandb_project = None
    config.profile = {"start_step": 10, "num_steps": 0}
    if args.smoke:
        config.model.config.update(
            {"embed_dim": 64, "num_layers": 2, "head_dim": 16, "ffn_dim": 128}
        )
        config.total_steps, config.batch_size, config.checkpoint_every = 40, 32, 20
    return config
