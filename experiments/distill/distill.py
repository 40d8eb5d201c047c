"""The six distilled models: SFT of Qwen2.5 and Llama models on R1's 800K rows, no RL (B.4).

    CONFIG=experiments/distill/distill.py
    python -m r1jax.train --config $CONFIG:model=qwen-1.5b --workdir runs/distill/qwen-1.5b
    python -m r1jax.sweep --config $CONFIG --workdir runs/distill          (all six)

Hardware, an assumption: as many v5p chips as STUDENTS says. Measured: not run. Plan (python -m
r1jax.plan, --rows 804745 --mean_completion 5355, two epochs), on v5p:2x2x2: qwen-1.5b 13.5 GiB of a
chip, 2.9 s an update, 164 chip-hours; qwen-7b 45.0, 9.7, 539; llama-8b 47.8, 11.3, 630; on
v5p:2x2x4 qwen-14b 41.2, 7.9, 880; on v5p:4x4x4 qwen-32b 28.0, 5.7, 2,563; on v5p:4x4x8 llama-70b
36.7, 6.1, 5,488.
The paper prints no hours for it: 12,574 updates an epoch. `:smoke` makes three updates of a tiny
model of the same family.

To bring: the base (`:base=PATH`) and data.jsonl of `:data=DIR`, which is the workdir of
experiments/r1/mixture.py, or rows like its (experiments/r1/README.md). To reach (Table 15;
experiments/r1/evaluate.py:dense measures it):

    model       AIME 2024   cons@64   MATH-500   GPQA Diamond   LiveCodeBench
    qwen-1.5b        28.9      52.7       83.9           33.8            16.9
    qwen-7b          55.5      83.3       92.8           49.1            37.6
    qwen-14b         69.7      80.0       93.9           59.1            53.1
    qwen-32b         72.6      83.3       94.3           62.1            57.2
    llama-8b         50.4      80.0       89.1           49.0            39.6
    llama-70b        70.0      86.7       94.5           65.2            57.5

Left open by the paper: the epochs (2 to 3; `epochs` 2), warm-up (`optimizer.warmup_steps` 0),
longer rows (`overlong`: left out), and the tokens of R1's `template`, which a student's tokenizer
may lack (then they are written out as text; `--config.model.tokenizer=PATH` takes another
tokenizer). Departure: the released Qwen-1.5B has a head of its own, here it stays tied to the
embedding as in its base.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from experiments import tiny
from r1jax.config import Overrides, check_choice, parse_args, product

MAX_LENGTH = 131_072  # of the released models; Qwen2.5-Math's own is 4,096


@dataclass(frozen=True)
class Student:
    """A model to distil into."""

    base: str
    learning_rate: float  # at the beginning; a tenth of it at the end
    fsdp: int  # fsdp x tensor chips
    tensor: int
    tiny: dict


STUDENTS = {
    "qwen-1.5b": Student("Qwen2.5-Math-1.5B", 1e-4, 4, 2, tiny.QWEN2),
    "qwen-7b": Student("Qwen2.5-Math-7B", 8e-5, 4, 2, tiny.QWEN2),
    "qwen-14b": Student("Qwen2.5-14B", 7e-5, 4, 4, tiny.QWEN2),
    "qwen-32b": Student("Qwen2.5-32B", 6e-5, 8, 8, tiny.QWEN2),
    "llama-8b": Student("Llama-3.1-8B", 5e-5, 4, 2, tiny.LLAMA),
    "llama-70b": Student("Llama-3.3-70B-Instruct", 2e-5, 16, 8, tiny.LLAMA),
}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="qwen-1.5b", base="", data="")
    check_choice("model", args.model, STUDENTS)
    student = STUDENTS[args.model]
    compute = {"dtype": "bfloat16", "remat": "full", "max_length": MAX_LENGTH}
    config = ConfigDict()
    config.stage = "sft"
    config.seed = args.seed
    config.model = {"path": args.base or f"models/{student.base}", "override": compute}
    config.data = {"path": f"{args.data or 'runs/r1/sft_set'}/data.jsonl"}
    config.template = "r1"
    config.epochs = 2.0
    config.batch_size = 64
    config.pack_length = 32_768
    config.overlong = "drop"
    config.optimizer = {
        "learning_rate": student.learning_rate,
        "schedule": "cosine",
        "final_ratio": 0.1,
    }
    config.mesh = {"fsdp": student.fsdp, "tensor": student.tensor}
    config.microbatch_rows = student.fsdp
    config.checkpoint_every = 500
    if args.smoke:
        tiny.shrink_sft(config, args.base, args.data, student.tiny)
    return config


def sweep() -> list[Overrides]:
    """The six students."""
    return product(**{":model": list(STUDENTS)})
