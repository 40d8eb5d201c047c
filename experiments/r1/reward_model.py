"""The helpful and the safety reward model: R1's architecture with a scalar head (eq 5 and 6).

    CONFIG=experiments/r1/reward_model.py
    python -m r1jax.train --config $CONFIG:kind=helpful --workdir runs/r1/helpful
    python -m r1jax.train --config $CONFIG:kind=safety --workdir runs/r1/safety

Hardware: 256 v5p chips (an assumption). Measured: not run. Plan (python -m r1jax.plan, v5p:4x8x8,
:kind=helpful,model=DeepSeek-V3-Base --rows 66000 --mean_completion 1000): 75.2 GiB of a chip, 6.2 s
an update, 113 chip-hours. `:smoke` makes three updates of a tiny model of V3's shape.

To bring: MODEL (`:model=PATH`), and of `:data=DIR` pairs.jsonl (helpful: preferences.py's workdir,
66,000 pairs) or labels.jsonl (safety: 106,000 labelled responses; README.md). An epoch is 258 and
415 updates. The paper prints no figure for the models themselves; Figure 6 shows the helpful one
being hacked in 700 steps of RL.

Left open by the paper: the losses (Bradley-Terry and binary cross-entropy), which weights they
start from (`model`: V3-Base's), the schedule (`optimizer.schedule` constant), longer rows
(`overlong`: left out), and how a conversation is written (`template` plain: the prompt and the
response behind it, which refuses no completion and has place for one question).
"""

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import parts
from r1jax.config import check_choice, parse_args

# kind: (its loss, what it reads of a response, its rows)
KINDS = {
    "helpful": ("pairwise", "summary", f"{parts.RUNS}/preferences", "pairs.jsonl"),
    "safety": ("pointwise", "response", "data", "labels.jsonl"),
}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, kind="helpful", model="", data="")
    check_choice("kind", args.kind, KINDS)
    config = ConfigDict()
    config.stage = "reward_model"
    config.seed = args.seed
    config.model = {"path": args.model or parts.BASE, "override": parts.COMPUTE}
    config.kind, config.reads, directory, file = KINDS[args.kind]
    config.data = {"path": f"{args.data or directory}/{file}"}
    config.template = "plain"
    config.epochs = 1.0
    config.batch_size = 256
    config.pack_length = 8_192
    config.overlong = "drop"
    config.optimizer = {"learning_rate": 6e-6, "schedule": "constant"}
    config.optimizer.moments = parts.MOMENTS
    config.mesh = parts.MESH
    config.microbatch_rows = parts.ROWS
    if args.smoke:
        tiny.shrink_reward_model(config, args.model, tiny.V3)
    return config
