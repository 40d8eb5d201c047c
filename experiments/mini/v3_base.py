"""Pretrains a base model of DeepSeek-V3's shape in small, on the mini world's corpus.

    python -m r1jax.train --config experiments/mini/v3_base.py --workdir runs/mini-v3-base

Multi-head latent attention, a dense layer and three of 8 routed experts (2 a token) and a shared
one, balanced by their bias (gamma 1e-3) and the sequence-wise loss (1e-4), and multi-token
prediction with lambda 0.3: V3's own numbers. Data, tokenizer, batch and schedule are those of
base.py, of which this has two thirds of the updates. `:smoke` pretrains the same shape, narrower,
for 40 updates. Hardware: two CPU cores, 73 minutes (0.55 s an update with nothing beside it).

Measured: 3.3 M parameters, of which a token meets 1.6 M; loss 0.68 in the last tenth of the updates
(the dense base 0.52 behind 12,000), that of the token after next 0.49; the busiest expert has 1.1
times the mean (`v3_base/metrics.jsonl`). Made into files by

    python -m r1jax.export --model runs/mini-v3-base --output experiments/mini/v3_base \
        --dtype bfloat16

R1-Zero on it, three seeds of r1_zero.py:base=experiments/mini/v3_base with engine.speculative:
lenient pass@1 13.6 -> 68.5 +- 1.4 %, strict 4.4 -> 68.2 +- 1.3 %, length 18.3 -> 51.5 +- 0.7
tokens, 8 minutes on a core with nothing beside it (`measured/v3-zero.jsonl`). In all three the
update takes the very experts that the sampler took (float32), 90 % of the drafts are right from the
first update to the last, and the busiest expert of a batch has 1.3 to 1.5 times the mean.
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
