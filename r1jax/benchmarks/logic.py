"""Puzzles: files and generators of others as our rows."""

from __future__ import annotations

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
}
