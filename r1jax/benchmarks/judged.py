"""Answers that a model judges: facts, and preferences against a baseline."""

from __future__ import annotations

from r1jax.benchmarks.kind import Kind

KINDS: dict[str, Kind] = {}
