"""Codeforces: a rating from the verdicts of contests, and its percentile."""

from __future__ import annotations

from r1jax.benchmarks.kind import Kind

KINDS: dict[str, Kind] = {}
