"""Puzzles: files and generators of others as our rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r1jax.benchmarks.kind import Kind
from r1jax.config import ConfigError
from r1jax.files import read_rows
from r1jax.tasks.gym_task import gym as gym_library


def knights(path: str) -> list[dict[str, Any]]:
    """Knights-and-knaves JSONL (problem, names, solution: whether each is a knight)."""
    rows = []
    for number, row in enumerate(read_rows(path, "problem", "names", "solution"), start=1):
        kinds = ("knight" if knight else "knave" for knight in row["solution"])
        stated = [f"{name} is a {kind}" for name, kind in zip(row["names"], kinds, strict=True)]
        rows.append(
            {
                "id": str(row.get("id", number)),
                "prompt": row["problem"],
                "answer": ", ".join(stated),
                "task": "knights",
            }
        )
    return rows


# TinyZero's, without its sentence on <think>: that is what templates are for.
COUNTDOWN = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic"
    " arithmetic operations (+, -, *, /) and each number can only be used once. And return the"
    " final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)
TAGGED = "Put the final answer in <answer> </answer> tags."


def countdown(path: str, question: str = COUNTDOWN) -> list[dict[str, Any]]:
    """Countdown JSONL (nums, target): every number is to be used exactly once."""
    return [
        {
            "id": str(row.get("id", number)),
            "prompt": question.format(numbers=row["nums"], target=row["target"]),
            "answer": row.get("example", ""),
            "task": "countdown",
            "numbers": row["nums"],
            "target": row["target"],
        }
        for number, row in enumerate(read_rows(path, "nums", "target"), start=1)
    ]


def gym(dataset: str, seed: int, size: int, **settings: Any) -> list[dict[str, Any]]:
    """`size` problems of a reasoning-gym dataset; `settings` go to its configuration."""
    library = gym_library()
    if dataset not in library.factory.DATASETS:
        raise ConfigError(f"{dataset!r} is no dataset of reasoning-gym")
    entries = library.create_dataset(dataset, seed=seed, size=size, **settings)
    return [
        {
            "id": f"{dataset}/{seed}/{i}",
            "prompt": entry["question"],
            "answer": str(entry["answer"]),
            "task": "gym",
            "dataset": dataset,
            "entry": entry,
        }
        for i, entry in enumerate(entries)
    ]


def gym_mix(path: str, datasets: Sequence[str], seed: int, size: int) -> list[dict[str, Any]]:
    """`size` problems of each of some datasets of reasoning-gym. Nothing is read from `path`."""
    return [
        row | {"prompt": f"{row['prompt']}\n\n{TAGGED}", "family": dataset}
        for dataset in datasets
        for row in gym(dataset, seed, size)
    ]


GYM = ("basic_arithmetic", "leg_counting", "number_sorting", "syllogism", "spell_backward")
KINDS: dict[str, Kind] = {
    "knights": Kind(
        "Knights and knaves",
        knights,
        "knights_knaves/test.jsonl",
        500,
        4,
        "Xie et al. 2024 as Logic-RL has it; Apache 2.0",
        "Logic-RL's: who is a knight and who a knave",
    ),
    "countdown": Kind(
        "Countdown",
        countdown,
        "countdown/test.jsonl",
        256,
        4,
        "made by reasoning-gym 0.1.25; Apache 2.0",
        "TinyZero's question, without its sentence on <think>; each number exactly once",
    ),
    "reasoning_gym": Kind(
        "reasoning-gym",
        gym_mix,
        "",
        500,
        4,
        "made anew by reasoning-gym 0.1.25, 100 problems of each of five datasets; Apache 2.0",
        "its questions and our sentence on tags; its own scorers, of which only a 1 counts",
        needs='reasoning-gym: pip install "r1jax[gym]"',
        args={"datasets": GYM, "seed": 0, "size": 100},
    ),
}
