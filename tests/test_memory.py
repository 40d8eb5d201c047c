"""Rows planned by memory: arithmetic by hand; budgets that bind, do not, and are too small."""

from typing import Any

import jax
import pytest
from helpers import MODEL

from r1jax.config import ConfigError
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.rollout.memory import (
    MIB,
    Budget,
    Demand,
    Memory,
    PageDemand,
    free_bytes,
    plan_pages,
    plan_slots,
)

CONFIG = ModelConfig(vocab_size=1024, **MODEL)  # type: ignore[arg-type]
COLUMN = 2 * 2 * 2 * 8 * 4  # keys and values, layers, kv heads, head dim, bytes


DEMAND = Demand(prompt_columns=512, columns=1024, group_size=8, rows=1000)


def plan(demand: Demand = DEMAND, **changes: Any) -> Memory:
    return plan_slots(Transformer(CONFIG), demand, allowed(**changes))


def allowed(**changes: Any) -> Budget:
    given: dict[str, Any] = {"slots": 64, "memory_mib": 0, "tensor": 1} | changes
    return Budget(jax.devices()[:1], **given)


def need(slots: int) -> int:
    """Bytes: twice the caches (they grow by a copy), three float32 arrays of logits."""
    prompts = min(slots, 2 * -(-slots // 8))
    return slots * (2 * 1024 * COLUMN + 3 * 4 * 1024) + prompts * 2 * 512 * COLUMN


def test_without_a_budget_the_config_decides() -> None:
    assert plan() == Memory(64, 8)


@pytest.mark.parametrize("budget", [2, 9, 20])
def test_as_many_as_fit(budget: int) -> None:
    memory = plan(memory_mib=budget)
    assert need(memory.slots) <= budget * MIB < need(memory.slots + 1)
    assert f"{memory.slots} of 64 rows" in memory.note
    assert f"of {budget} MiB" in memory.note


def test_a_large_budget_gives_what_is_wanted() -> None:
    assert plan(memory_mib=100_000).slots == 64
    assert plan(memory_mib=100_000, slots=0).slots == 1000
    assert plan(slots=0).slots == 1000  # 80 % of this machine


def test_tensor_parallel_devices_share_a_row() -> None:
    assert plan(memory_mib=9, tensor=2).slots > 1.8 * plan(memory_mib=9).slots


def test_not_one_row_fits() -> None:
    with pytest.raises(ConfigError, match="one row of 512 prompt and 8192 own columns needs 5 MiB"):
        plan(Demand(512, 8192, 1, 8), slots=8, memory_mib=1)


def test_free_bytes_are_shared_by_the_devices() -> None:
    one, eight = free_bytes(jax.devices()[:1]), free_bytes(jax.devices())
    assert 0.8 < one / eight / 8 < 1.25
    assert one > 100 * MIB


def test_prompt_rows() -> None:
    """Those of twice as many groups as fit; never more than rows."""
    assert Memory(64, 8).prompts(64) == 16
    assert Memory(64, 1).prompts(64) == 64
    assert Memory(64, 64).prompts(2) == 2


# 4 pages a prompt, which 8 rows share; 20 at most and 5 in the mean a row
PAGES = PageDemand(prompt=4, own=20, mean=5, group_size=8, rows=1000, tokens=1, page=10_000)


def test_pages_for_the_worst_case_without_a_budget() -> None:
    assert plan_pages(Transformer(CONFIG), PAGES, allowed(slots=16)) == Memory(16, 8, 3 * 4 + 320)


@pytest.mark.parametrize("budget", [2, 9, 20])
def test_as_many_rows_as_have_their_mean_in_pages(budget: int) -> None:
    """And one of them the longest; all that is left is pages."""
    memory = plan_pages(Transformer(CONFIG), PAGES, allowed(slots=0, memory_mib=budget))
    rows, logits = memory.slots, 3 * 4 * 1024
    assert memory.pages == (budget * MIB - rows * logits) // 10_000
    assert memory.pages >= rows * 5 + 20 + 4 * (-(-rows // 8) + 1)
    more = rows + 1
    room = (budget * MIB - more * logits) // 10_000
    assert room < more * 5 + 20 + 4 * (-(-more // 8) + 1)
    assert f"{rows} of 1000 rows" in memory.note


def test_no_more_pages_than_the_worst_case() -> None:
    memory = plan_pages(Transformer(CONFIG), PAGES, allowed(slots=16, memory_mib=1000))
    assert memory.pages == 3 * 4 + 320
