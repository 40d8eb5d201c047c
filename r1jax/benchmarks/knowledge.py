"""Knowledge: multiple choice and short answers."""

from __future__ import annotations

from r1jax.benchmarks.kind import Kind

KINDS: dict[str, Kind] = {}
