"""Preference pairs for the helpful reward model, judged by DeepSeek-V3 (B.2, B.3.1).

    python -m r1jax.train --config experiments/r1/preferences.py --workdir runs/r1/preferences

Each pair is judged four times in random order and kept where the mean verdict is further than 1
from a tie (`MIN_DELTA` of r1jax/judges/preferences.py); then the set's chosen and rejected
responses are made equally long. Hardware: 256 v5p chips (an assumption), or none with a server.
Plan: not made yet. Measured: not run. `:smoke` asks the mini world's base, whose verdicts nobody
can read, so no pair is left.

To bring: DeepSeek-V3 (`:v3=PATH` or the address of a server) and prompts.jsonl of `:data=DIR`, on
anything but reasoning (README.md). To reach: 66,000 pairs.

Left open by the paper: the scale of verdicts (2, 1, 0, -1, -2), who writes the responses (`policy`:
V3 too; rows may bring their own two), temperatures (`judge.sampling`, `policy.sampling`: 0.6, top-p
0.95).
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import parse_args


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, data="", v3=parts.V3)
    config = ConfigDict()
    config.stage = "preferences"
    config.seed = args.seed
    config.data = {"path": f"{args.data or 'data'}/prompts.jsonl"}
    config.judge = parts.chat_model(args.v3, max_tokens=8_192)
    config.policy = parts.chat_model(args.v3, max_tokens=8_192)
    config.queries = 4
    config.mesh = parts.MESH
    if args.smoke:
        tiny.shrink_preferences(config)
    return config
