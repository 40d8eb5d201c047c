"""Pretrains a base model of DeepSeek-V3's shape in small, on the mini world's corpus.

    python -m r1jax.train --config experiments/mini/v3_base.py --workdir runs/mini-v3-base

Multi-head latent attention, a dense layer and three of 8 routed experts (2 a token) and a shared
one, balanced by their bias (gamma 1e-3) and the sequence-wise loss (1e-4), and multi-token
prediction with lambda 0.3: V3's own numbers. Data, tokenizer, batch and schedule are those of
base.py, of which this has two thirds of the updates. `:smoke` pretrains the same shape, narrower,
for 40 updates. Hardware: two CPU cores. Not measured yet.
"""

from ml_collections import ConfigDict

from experiments.mini import base
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0)
    config = base.get_config(arg)
    model = config.model.config
    model.update({"num_heads": 4, "num_kv_heads": 4, "head_dim": 48})
    model.update({"tie_embeddings": False, "mtp": True})
    model.latent = {
        "kv_rank": 64,
        "q_rank": 96,
        "nope_dim": 32,
        "rope_dim": 16,
        "value_dim": 48,
    }
    model.experts = {
        "num_experts": 8,
        "top_k": 2,
        "ffn_dim": 96,
        "num_shared": 1,
        "dense_layers": (0,),
        "score": "sigmoid",
        "bias": True,
        "normalize": True,
        "scale": 2.5,
    }
    config.mtp_coef = 0.3
    config.router = {"bias_step": 1e-3, "balance_coef": 1e-4}
    if not args.smoke:
        config.total_steps = 8_000
        config.microbatch_rows = 16
    return config
