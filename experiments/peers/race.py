"""What the peers share in the race against `../smollm2/bench.py`: prompts, reward, clock.

Standard library alone, since each peer runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from typing import Any

PROMPTS, GROUP = 8, 8  # a step's prompts, and the completions of each
KL, CLIP, LEARNING_RATE = 0.001, 0.2, 1e-6


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a Hugging Face directory in float32")
    parser.add_argument("--max_tokens", type=int, default=128, help="of a completion")
    parser.add_argument("--steps", type=int, default=3, help="the first compiles")
    return parser


def conversations(steps: int) -> list[list[dict[str, str]]]:
    """A chat of one question for every prompt of so many steps, of about 56 tokens each."""
    drawn = random.Random(0)
    sums = [(drawn.randint(10, 99), drawn.randint(10, 99)) for _ in range(steps * PROMPTS)]
    question = "What is {} + {}? Think step by step, then give the final answer as \\boxed{{}}."
    return [[{"role": "user", "content": question.format(*pair)}] for pair in sums]


def noise(completions: Sequence[Any]) -> list[float]:
    """Rewards that differ within every group, so that every completion has an advantage."""
    drawn = random.Random(len(completions))
    return [drawn.random() for _ in completions]


class Clock:
    """Prints a line of JSON for each step: its seconds, and whatever was noted in it."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.notes: dict[str, Any] = {}

    def begin(self) -> None:
        self.began, self.notes = time.perf_counter(), {}

    @property
    def seconds(self) -> float:
        """Since the step began."""
        return time.perf_counter() - self.began

    def end(self) -> None:
        print(json.dumps({"step_seconds": round(self.seconds, 1)} | self.notes), flush=True)
