"""Tiny configs and reward functions that several test files share. Imports no jax."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from r1jax.tasks import task_of

if TYPE_CHECKING:
    from r1jax.types import Example, Rollout

ONE_DEVICE = "--xla_cpu_parallel_codegen_split_count=4"  # XLA_FLAGS of commands
MODEL = {
    "embed_dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "ffn_dim": 32,
    "max_length": 64,
}

# `python -c RUN_FAKE`, where there is a fake.py: the train command with one more stage.
RUN_FAKE = """
import r1jax.stages, r1jax.train
r1jax.stages.STAGES["fake"] = "fake"
r1jax.train.run_command(r1jax.train.main)
"""


def save_model(workdir: Path, params: Any, config: Mapping[str, Any]) -> None:
    """A workdir that is a model, without a tokenizer."""
    from r1jax.weights.checkpoint import Checkpoints, write_model_json

    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, {"params": params})
    write_model_json(workdir, config)


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def example(
    task: str, answer: str, question: str = "?", metadata: Mapping[str, Any] | None = None
) -> Example:
    from r1jax.types import Example

    return Example("e", ({"role": "user", "content": question},), answer, task, metadata or {})


def ascii_share(example: Any, text: str, *, length: int, finish_reason: str) -> float:
    """A reward that anybody can learn: the share of the completion's characters that are ASCII."""
    return sum(character.isascii() for character in text) / max(len(text), 1)


def sleeps(example: Any, text: str, *, length: int, finish_reason: str) -> float:
    """For ever, on one completion in three; the others earn 1."""
    while len(text) % 3 == 0:
        time.sleep(1)
    return 1.0


def process(example: Any, text: str, *, length: int, finish_reason: str) -> float:
    """Another reward on every process of a run, as where graders run out of time on one of them."""
    return 0.1 * int(os.environ.get("JAX_PROCESS_ID", 0)) * (length % 3)


def raises(example: Any, text: str, *, length: int, finish_reason: str) -> float:
    raise ZeroDivisionError("no luck")


def nothing() -> None:
    """A source of rows that forgot to return them."""


def endless_rows() -> Any:
    return lambda index: {"text": str(index)}


def examples() -> list[Any]:
    """Questions, which are no rows to learn."""
    return [example("integer", "1")]


def sft_config(tokenizer: str, **changes: Any) -> ConfigDict:
    """A few updates on the mini world's corpus."""
    config = {
        "stage": "sft",
        "model": {"config": dict(MODEL), "tokenizer": tokenizer},
        "data": {
            "function": "experiments.mini.world.corpus:corpus",
            "args": {"seed": 0, "mix": {}},
        },
        "total_steps": 4,
        "batch_size": 8,
        "pack_length": 64,
        "microbatch_rows": 8,
        "overlong": "truncate",
        "optimizer": {"learning_rate": 1e-2},
        "mesh": {"data": -1},
        "checkpoint_every": 2,
    }
    return ConfigDict(config | changes)


def grpo_config(tokenizer: str, **changes: Any) -> ConfigDict:
    """Two iterations of two updates from a random model, on the easiest problems."""
    config = {
        "stage": "grpo",
        "model": {"config": dict(MODEL), "tokenizer": tokenizer},
        "data": {
            "function": "experiments.mini.world.problems:problems",
            "args": {"seed": 0, "split": "train", "levels": [1]},
        },
        "template": "plain",
        "rewards": {"helpers:ascii_share": 1.0},
        "total_steps": 4,
        "max_prompt_tokens": 48,
        "sampling": {"max_tokens": 8},
        "group_size": 4,
        "prompts_per_update": 2,
        "updates_per_rollout": 2,
        "ref_every": 2,
        "loss": {"kl_coef": 0.01},
        "optimizer": {"learning_rate": 1e-2},
        "engine": {"slots": 16, "chunk": 8, "bucket": 64, "prefill_batch": 4},
        "microbatch_rows": 8,
        "mesh": {"data": -1},
        "checkpoint_every": 2,
    }
    return ConfigDict(config | changes)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics_by_step(workdir: Path) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl, those of one step together."""
    steps: dict[int, dict[str, Any]] = {}
    for line in read_lines(workdir / "metrics.jsonl"):
        steps.setdefault(line["step"], {}).update(line)
    return steps


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """All that it holds in one dict, arrays as lists."""
    values = asdict(rollout)
    values |= values.pop("completion")
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in values.items()}


def final_answer(text: str, task: str = "math") -> str | None:
    """The final answer if there is exactly one."""
    answers = task_of(task).final(text)
    return answers[0] if len(answers) == 1 else None
