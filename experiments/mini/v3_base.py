"""Pretrains a base model of DeepSeek-V3's shape in small, on the mini world's corpus."""

from ml_collections import ConfigDict

from experiments.mini import base
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0)
    config = base.get_config(arg)
    heads = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 48}
    config.model.config.update(heads)
    config.model.config.update({"tie_embeddings": False, "mtp": True})
    config.model.config.latent = {
        "kv_rank": 64,
        "q_rank": 96,
        "nope_dim": 32,
        "rope_dim": 16,
        "value_dim": 48,
    }
    config.model.config.experts = {
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
    config.total_steps = 8_000
    config.microbatch_rows = 16
    config.mtp_coef = 0.3
    config.router = {"bias_step": 0.001, "balance_coef": 0.0001}
    if args.smoke:
        config.total_steps = 40
    return config
