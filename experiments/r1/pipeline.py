"""All of DeepSeek-R1 from one command: the stages of this folder, each handing on what it makes.

    python -m r1jax.train --config experiments/r1/pipeline.py --workdir runs/r1

    V3-Base -> R1-Zero                                     zero
    R1-Zero -> cold-start data -> Dev1 (SFT from V3-Base)  cold_start, dev1
    Dev1 -> Dev2 (RL: rules + language consistency)        dev2
    V3 -> pairs; V3-Base -> reward models                  preferences, helpful, safety
    Dev2 -> rejection sampling -> the 800K set             reasoning, judged, sft_set
    V3-Base -> Dev3 (SFT on the 800K set)                  dev3
    Dev3 -> R1 (RL for all scenarios)                      r1
    their benchmarks (Table 3)                             eval_*

Each stage's numbers and choices stand in its own file, what it reads in README.md. Every stage's
config can be changed as `--config.stages.NAME.key=value`. Hardware: 256 v5p chips (an assumption).
Measured: not run. Plan: that of each stage in its file; of those that have one it is 246,000
chip-hours of v5p, 158,000 of them R1-Zero's. The paper: 147K H800 hours (Table 7). `:smoke` runs
every stage at a few steps, from a tiny base of V3's shape.

To bring: V3-Base (`:model=PATH`), V3 (`:v3=PATH` or a server's address) and all of `:data=DIR`.
"""

from types import ModuleType

from ml_collections import ConfigDict

from experiments import tiny
from experiments.r1 import (
    cold_start,
    dev1,
    dev2,
    dev3,
    evaluate,
    mixture,
    parts,
    preferences,
    r1,
    r1_zero,
    rejection,
    reward_model,
)
from r1jax.config import parse_args

MODELS = {"zero": "R1-Zero", "dev1": "Dev1", "dev2": "Dev2", "dev3": "Dev3", "r1": "R1"}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", data="data", v3=parts.V3)
    base, data = args.model or ("@base" if args.smoke else parts.BASE), args.data
    made: dict[str, object] = {"seed": args.seed, "smoke": args.smoke}

    def stage(file: ModuleType, **more: object) -> ConfigDict:
        return file.get_config(",".join(f"{k}={v}" for k, v in (made | more).items()))

    stages: dict = {"base": tiny.base_model()} if base == "@base" else {}
    stages |= {
        "zero": stage(r1_zero, model=base, data=data),
        "cold_start": stage(cold_start, model="@zero", data=data, v3=args.v3),
        "dev1": stage(dev1, model=base, data="@cold_start"),
        "dev2": stage(dev2, model="@dev1", data=data),
        "preferences": stage(preferences, data=data, v3=args.v3),
        "helpful": stage(reward_model, kind="helpful", model=base, data="@preferences"),
        "safety": stage(reward_model, kind="safety", model=base, data=data),
        "reasoning": stage(rejection, model="@dev2", data=data),
        "judged": stage(rejection, judged=True, model="@dev2", data=data, v3=args.v3),
        "sft_set": stage(mixture, model=base, data=data, reasoning="@reasoning", judged="@judged"),
        "dev3": stage(dev3, model=base, data="@sft_set"),
        "r1": stage(r1, model="@dev3", data=data, helpful="@helpful", safety="@safety"),
    }
    for name in ("zero", "r1") if args.smoke else MODELS:
        template = "r1_zero" if name == "zero" else "r1"
        stages[f"eval_{name}"] = stage(
            evaluate, model=f"@{name}", data=data, template=template, label=MODELS[name]
        )
    config = ConfigDict()
    config.stage = "pipeline"
    config.stages = ConfigDict(stages, sort_keys=False)
    config.quick_compile = args.smoke
    return config
