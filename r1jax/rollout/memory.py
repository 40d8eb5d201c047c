"""How many rows can decode together: planned before the first one does, so that none runs out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
    pages: int = 0  # where tokens lie in pages
    note: str = ""  # for the log, where the plan was made from a budget

    def prompts(self, slots: int) -> int:
        """Prompt rows for so many slots: those of twice as many groups as fit, for stragglers."""
        return min(slots, 2 * -(-slots // self.group_size))


@dataclass(frozen=True)
class Budget:
    """What a config allows, and where: what is free there counts if it names no memory."""

    devices: Sequence[jax.Device]
    slots: int  # of a shard; 0 = any number
    memory_mib: int  # of a device; 0 = FREE_SHARE, but no limit at all where slots are given
    tensor: int  # devices that share the heads and the vocabulary of a row

    @property
    def is_open(self) -> bool:
        """Whether slots alone are given."""
        return bool(self.slots) and not self.memory_mib

    def bytes(self) -> int:
        """All processes plan the same, whatever is free on each."""
        free = int(FREE_SHARE * free_bytes(self.devices)) // MIB if not self.memory_mib else 0
        return (self.memory_mib or least_of_all(free)) * MIB


@dataclass(frozen=True)
class Demand:
    """What a shard's rows may come to need in columns, each of them."""

    prompt_columns: int
    columns: int  # of their own
    group_size: int  # rows that share a prompt
    rows: int  # that would all decode at once
    tokens: int = 1  # of a row in a step


def plan_slots(model: Transformer, demand: Demand, allowed: Budget) -> Memory:
    """As many rows, of those that are allowed, as have room in their worst case: all rows with all
    their `columns`, just after the caches have grown to that.

    Raises ConfigError where not one row fits.
    """
    if allowed.is_open:
        return Memory(allowed.slots, demand.group_size)
    budget, c = allowed.bytes(), model.config
    column = numbers_per_token(c, allowed.tensor) * jnp.dtype(model.compute.dtype).itemsize
    row = 2 * demand.columns * column + demand.tokens * _logits_bytes(model, allowed)
    most = min(allowed.slots or demand.rows, demand.rows)

    def need(count: int) -> int:
        prompts = Memory(count, demand.group_size).prompts(count)
        return count * row + 2 * prompts * demand.prompt_columns * column

    if need(1) > budget:
        raise ConfigError(
            f"one row of {demand.prompt_columns} prompt and {demand.columns} own columns needs"
            f" {-(-need(1) // MIB)} MiB, more than the {budget // MIB} MiB for the rollout"
            " (engine.memory_mib); allow more, or fewer max_tokens"
        )
    count = _most(lambda count: need(count) <= budget, most)
    note = (
        f"rollout: {count} of {most} rows a shard decode together: {-(-need(count) // MIB)} MiB of"
        f" {budget // MIB} MiB, at up to {demand.prompt_columns} + {demand.columns} columns"
    )
    return Memory(count, demand.group_size, note=note)


@dataclass(frozen=True)
class PageDemand:
    """What a shard's rows come to need in pages, each of them."""

    prompt: int  # pages that a group shares
    own: int  # at most, beside those of its prompt that it shares
    mean: int  # of these, as they decode
    group_size: int
    rows: int  # that would all decode at once
    tokens: int  # of a row in a step
    page: int  # bytes, on one device

    def worst(self, rows: int) -> int:
        """Pages with which no row ever waits for one."""
        return rows * self.own + self._prompts(rows)

    def usual(self, rows: int) -> int:
        """Pages of rows of mean length, and of one that goes to the end."""
        return rows * self.mean + self.own + self._prompts(rows)

    def _prompts(self, rows: int) -> int:
        """Of as many groups as begin together, and one that is begun."""
        return (-(-rows // self.group_size) + 1) * self.prompt


def plan_pages(model: Transformer, demand: PageDemand, allowed: Budget) -> Memory:
    """As many rows, of those that are allowed, as have room where all have their mean length, and
    all pages that there is room for beside, up to what their worst case needs.

    Raises ConfigError where not one row fits.
    """
    most = min(allowed.slots or demand.rows, demand.rows)
    if allowed.is_open:
        return Memory(most, demand.group_size, demand.worst(most))
    budget = allowed.bytes()
    row = demand.tokens * _logits_bytes(model, allowed)

    def pages(count: int) -> int:
        return min((budget - count * row) // demand.page, demand.worst(count))

    if pages(1) < demand.worst(1):
        raise ConfigError(
            f"one row with its prompt needs {demand.worst(1)} pages, or"
            f" {-(-(demand.worst(1) * demand.page + row) // MIB)} MiB, more than the"
            f" {budget // MIB} MiB for the rollout (engine.memory_mib); allow more, or fewer"
            " max_tokens"
        )
    count = _most(lambda count: pages(count) >= min(demand.usual(count), demand.worst(count)), most)
    note = (
        f"rollout: {count} of {most} rows a shard decode together, in {pages(count)} pages:"
        f" {-(-(pages(count) * demand.page + count * row) // MIB)} MiB of {budget // MIB} MiB; all"
        f" would have room in {demand.worst(count)}"
    )
    return Memory(count, demand.group_size, pages(count), note)


def _logits_bytes(model: Transformer, allowed: Budget) -> int:
    """Of a token that a step samples, on one device."""
    return LOGITS_COPIES * 4 * model.config.vocab_size // allowed.tensor


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, as every smaller one does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


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
