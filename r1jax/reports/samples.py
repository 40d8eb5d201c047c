"""Completions to read: those of several models, or of a training run, to the same questions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from r1jax.files import SAMPLES, read_jsonl
from r1jax.reports.page import Question, Sample
from r1jax.reports.runs import Evaluation, RunRecord, benchmark_names

NUM_SAMPLES = 6  # completions shown in samples.md


def samples_page(run: RunRecord) -> str:
    """What base and trained model wrote for the same problems, as Markdown; "" without both."""
    evaluations = [e for e in run.evaluations if e.directory != run.workdir]
    if len(evaluations) < 2:
        return ""
    first, last = evaluations[0], evaluations[-1]
    name = benchmark_names([run])[0]
    pairs = zip(sample_rows(first, name), sample_rows(last, name), strict=False)
    parts = [f"# Completions of {run.name}, benchmark {name}\n"]
    for before, after in pairs:
        parts.append(f"## Problem {before['example_id']}\n\n{_fenced(before['question'])}")
        for title, row in ((f"Step {first.step}", before), (f"Step {last.step}", after)):
            parts.append(f"**{title}**, {_graded(row)}\n\n{_fenced(row['text'])}")
    return "\n".join(parts)


def sample_rows(evaluation: Evaluation, name: str) -> Iterator[dict[str, Any]]:
    """The first sample of a few problems, evenly spread (NAME.jsonl is sorted)."""
    path = evaluation.directory / f"{name}.jsonl"
    if not path.exists() or name not in evaluation.benchmarks:
        return
    values = evaluation.benchmarks[name]
    stride = max(1, int(values["problems"]) // NUM_SAMPLES) * int(values["samples"])
    with path.open("r") as file:
        for line in islice(file, 0, stride * NUM_SAMPLES, stride):
            yield json.loads(line)


def questions_of_models(runs: Sequence[RunRecord]) -> list[Question]:
    """The first sample of a few problems of every benchmark, by each model that was evaluated."""
    evaluations = [(run.label, run.evaluations[-1]) for run in runs]
    found = []
    for name in dict.fromkeys(name for _, e in evaluations for name in e.benchmarks):
        prompts: dict[str, str] = {}
        samples: dict[str, list[Sample]] = {}
        for label, evaluation in evaluations:
            for row in sample_rows(evaluation, name):
                problem = row["example_id"]
                prompts.setdefault(problem, row["question"])
                sample = Sample(label, row["text"], row["reward"], row["reward_breakdown"])
                samples.setdefault(problem, []).append(sample)
        found += [Question(f"{name}: {p}", prompts[p], samples[p]) for p in prompts]
    return found


def questions_of_training(run: RunRecord) -> list[Question]:
    """Completions out of samples.jsonl, from early to late."""
    path = run.workdir / SAMPLES
    rows = list(read_jsonl(path)) if path.exists() else []
    return [
        Question(
            f"step {row['step']}: {row['question'][:80]}",
            row["question"],
            [Sample("completion", row["completion"], row["reward"], row["reward_breakdown"])],
        )
        for row in rows[:: max(1, len(rows) // (2 * NUM_SAMPLES))]
    ]


def _graded(row: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {value:g}" for name, value in row["reward_breakdown"].items())
    return f"{row['length']} tokens, reward {row['reward']:g} ({parts})"


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"
