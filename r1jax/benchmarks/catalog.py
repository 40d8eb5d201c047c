"""All benchmarks by name, and what a config says of one."""

from __future__ import annotations

from typing import Any

from r1jax.benchmarks import (
    code,
    facts,
    instruction,
    knowledge,
    logic,
    math,
    preference,
    ratings,
)
from r1jax.benchmarks.kind import Kind
from r1jax.config import ConfigError

KINDS: dict[str, Kind] = (
    math.KINDS
    | knowledge.KINDS
    | instruction.KINDS
    | facts.KINDS
    | preference.KINDS
    | code.KINDS
    | ratings.KINDS
    | logic.KINDS
)


def kind_of(name: str) -> Kind:
    """A benchmark by its name; ConfigError where there is none."""
    if name not in KINDS:
        raise ConfigError(f"{name!r} is no benchmark; there are {', '.join(KINDS)}")
    return KINDS[name]


def benchmark(name: str, data: str, **changes: Any) -> dict[str, Any]:
    """The section of a config that asks it by the paper's protocol; DATA has a directory a
    benchmark. `changes` go over its fields: `num_samples=4`.
    """
    kind = kind_of(name)
    function = f"{kind.rows.__module__}:{kind.rows.__qualname__}"
    found = {
        "kind": name,
        "data": {
            "function": function,
            "args": {"path": f"{data}/{kind.file}", **kind.args},
        },
        "num_samples": kind.num_samples,
        "max_prompt_tokens": kind.max_prompt_tokens,
        "sampling": {"max_tokens": 32_768, "temperature": 0.6, "top_p": 0.95},
        "truncated": "wrong",
        "rewards": dict(kind.rewards),
    }
    return found | changes
