"""Rows planned by memory: arithmetic by hand; budgets that bind, do not, and are too small."""

from typing import Any

import jax
import pytest
from helpers import MODEL

from r1jax.config import ConfigError
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.rollout.memory import MIB, Demand, Memory, free_bytes, plan_slots

CONFIG = ModelConfig(vocab_size=1024, **MODEL)  # type: ignore[arg-type]
COLUMN = 2 * 2 * 2 * 8 * 4  # keys and values, layers, kv heads, head dim, bytes


DEMAND = Demand(prompt_columns=512, columns=1024, group_size=8, rows=1000)


def plan(demand: Demand = DEMAND, **changes: Any) -> Memory:
    arguments: dict[str, Any] = {"slots": 64, "budget_mib": 0} | changes
    return plan_slots(Transformer(CONFIG), demand, jax.devices()[:1], **arguments)


def need(slots: int) -> int:
    """Bytes: twice the caches (they grow by a copy), three float32 arrays of logits."""
    prompts = min(slots, 2 * -(-slots // 8))
    return slots * (2 * 1024 * COLUMN + 3 * 4 * 1024) + prompts * 2 * 512 * COLUMN


def test_without_a_budget_the_config_decides() -> None:
    assert plan() == Memory(64, 8)


@pytest.mark.parametrize("budget", [2, 9, 20])
def test_as_many_as_fit(budget: int) -> None:
    memory = plan(budget_mib=budget)
    assert need(memory.slots) <= budget * MIB < need(memory.slots + 1)
    assert f"{memory.slots} of 64 rows" in memory.note
    assert f"of {budget} MiB" in memory.note


def test_a_large_budget_gives_what_is_wanted() -> None:
    assert plan(budget_mib=100_000).slots == 64
    assert plan(budget_mib=100_000, slots=0).slots == 1000
    assert plan(slots=0).slots == 1000  # 80 % of this machine


def test_tensor_parallel_devices_share_a_row() -> None:
    assert plan(budget_mib=9, tensor=2).slots > 1.8 * plan(budget_mib=9).slots


def test_not_one_row_fits() -> None:
    with pytest.raises(ConfigError, match="one row of 512 prompt and 8192 own columns needs 5 MiB"):
        plan(Demand(512, 8192, 1, 8), slots=8, budget_mib=1)


def test_free_bytes_are_shared_by_the_devices() -> None:
    one, eight = free_bytes(jax.devices()[:1]), free_bytes(jax.devices())
    assert 0.8 < one / eight / 8 < 1.25
    assert one > 100 * MIB


def test_prompt_rows() -> None:
    """Those of twice as many groups as fit; never more than rows."""
    assert Memory(64, 8).prompts(64) == 16
    assert Memory(64, 1).prompts(64) == 64
    assert Memory(64, 64).prompts(2) == 2
