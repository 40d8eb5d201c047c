"""Instructions that programs can check: IFEval."""

from __future__ import annotations

from r1jax.benchmarks.kind import Kind

KINDS: dict[str, Kind] = {}
