"""How many rows can decode together: planned before the first one does, so that none runs out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from r1jax.config import ConfigError
from r1jax.machines.hosts import least_of_all
from r1jax.models.caches import numbers_per_token
from r1jax.models.transformer import Transformer

MIB = 1 << 20
FREE_SHARE = 0.8  # of the memory that is free, where the config names no budget
LOGITS_COPIES = 3  # float32 arrays [rows, vocabulary] that live at once in a decode step


@dataclass(frozen=True)
class Memory:
    """A plan for one shard of the rows."""

    slots: int
    group_size: int
    note: str = ""  # for the log, where the plan was made from a budget

    def prompts(self, slots: int) -> int:
        """Prompt rows for so many slots: those of twice as many groups as fit, for stragglers."""
        return min(slots, 2 * -(-slots // self.group_size))


@dataclass(frozen=True)
class Demand:
    """What a shard's rows may come to need, each of them."""

    prompt_columns: int
    columns: int  # of their own
    group_size: int  # rows that share a prompt
    rows: int  # that would all decode at once
    tokens: int = 1  # of a row in a step


def plan_slots(
    model: Transformer,
    demand: Demand,
    devices: Sequence[jax.Device],
    *,
    slots: int,
    budget_mib: int,
    tensor: int = 1,
) -> Memory:
    """At most `slots` (0 = any number) of the rows whose worst case fits into the budget.

    The worst case: all rows have all their `columns`, just after the caches have grown to that. The
    budget counts for one device, which holds a `tensor`-th of the heads and of the vocabulary; 0
    is 80 % of what is free, and no limit at all where `slots` are given. Raises ConfigError where
    not one row fits.
    """
    if slots and not budget_mib:
        return Memory(slots, demand.group_size)
    # All processes plan the same, whatever is free on each.
    budget = (budget_mib or least_of_all(int(FREE_SHARE * free_bytes(devices)) // MIB)) * MIB
    c = model.config
    column = numbers_per_token(c, tensor) * jnp.dtype(model.compute.dtype).itemsize
    row = 2 * demand.columns * column + demand.tokens * LOGITS_COPIES * 4 * c.vocab_size // tensor
    most = min(slots or demand.rows, demand.rows)

    def need(count: int) -> int:
        prompts = Memory(count, demand.group_size).prompts(count)
        return count * row + 2 * prompts * demand.prompt_columns * column

    if need(1) > budget:
        raise ConfigError(
            f"one row of {demand.prompt_columns} prompt and {demand.columns} own columns needs"
            f" {-(-need(1) // MIB)} MiB, more than the {budget // MIB} MiB for the rollout"
            " (engine.memory_mib); allow more, or fewer max_tokens"
        )
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if need(middle) <= budget else (low, middle - 1)
    note = (
        f"rollout: {low} of {most} rows a shard decode together: {-(-need(low) // MIB)} MiB of"
        f" {budget // MIB} MiB, at up to {demand.prompt_columns} + {demand.columns} columns"
    )
    return Memory(low, demand.group_size, note)


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Memory that is free on the fullest of these devices; on CPUs, their share of the host's."""
    stats = [device.memory_stats() for device in devices]
    if all(s and "bytes_limit" in s for s in stats):
        return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats if s)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024 // len(devices)
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // len(devices)
