"""What a pipeline's models cost, and distillation against RL at equal cost, from metrics alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean
from typing import Any

from r1jax.config import DataError
from r1jax.files import STARTS, read_jsonl
from r1jax.models.params import count_active_params
from r1jax.reports.results import ROWS, Row, last_cell
from r1jax.reports.runs import RunRecord, Stages, metric_names
from r1jax.reports.table import Cell, Table
from r1jax.weights.load import open_model

# Tokens that a stage's updates computed, and that its rollouts generated, by the metrics' names.
TRAINED, GENERATED, REFERENCE = ("/data/tokens", "/batch/tokens"), "/completion/tokens", "/kl/ref"
FLOP_NOTE = (
    "TFLOP: 6 x parameters x tokens trained (8 with a reference pass), 2 x tokens generated; no"
    " prefill, no attention."
)


HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Spent:
    """What training has cost by some update."""

    params: int
    updates: int
    trained: float  # tokens
    generated: float  # tokens
    flop: float

    @property
    def cells(self) -> list[Cell]:
        numbers = (self.params / 1e6, self.updates, self.trained / 1e3, self.generated / 1e3)
        digits = (2, 0, 0, 0)
        cells = [Cell(n, None, d) for n, d in zip(numbers, digits, strict=True)]
        return [*cells, Cell(self.flop / 1e12, None, 2)]


def chip_hours(run: RunRecord) -> float:
    """Of all its iterations, by their timings, times JAX's devices."""
    try:
        devices = int(read_jsonl(run.workdir / STARTS)[-1]["devices"].partition(" ")[0])
    except (DataError, LookupError):  # it has not begun, or only just
        return 0.0
    seconds = [
        value for line in run.timings for name, value in line.items() if name.endswith("/total")
    ]
    return devices * sum(seconds) / HOUR


COST_HEADER = ("M parameters", "Updates", "k tokens trained", "k tokens generated", "TFLOP")


def spent(run: RunRecord, step: int | None = None) -> Spent:
    """Until update `step`, or in all; updates that were not logged count as the others' mean."""
    seen = [line for line in run.metrics if step is None or line["step"] <= step]
    tokens = _found(seen, TRAINED)
    updates = max((at for at, _ in tokens), default=0)
    trained = updates * fmean([count for _, count in tokens] or [0])
    generated = sum(count for _, count in _found(seen, GENERATED))
    passes = 8 if _found(seen, REFERENCE) else 6
    flop = run.active_params * (passes * trained + 2 * generated)
    return Spent(run.params, updates, trained, generated, flop)


def _found(
    lines: Sequence[Mapping[str, Any]], ends: str | tuple[str, ...]
) -> list[tuple[int, float]]:
    """(step, value) of the metrics whose names end so, whatever the stage's name before it."""
    return [(line["step"], line[n]) for line in lines for n in line if n.endswith(ends)]


def cost_table(runs: Sequence[RunRecord]) -> Table:
    """What each trained model cost."""
    costs = {run.name: spent(run) for run in runs}
    rows: list[Sequence[str | Cell]] = [
        [name, *cost.cells] for name, cost in costs.items() if cost.updates
    ]
    return Table("cost", "What the models cost", ["Stage", *COST_HEADER], rows, FLOP_NOTE)


# -- distillation against RL (the paper's Table 16) ------------------------------------------------


@dataclass(frozen=True)
class Match:
    """An SFT on sampled traces and an RL run that start from the same small model."""

    student: str
    rl: str
    distilled: str
    traces: str  # the rejection sampling whose teacher wrote them
    teacher: str | None  # the stage that trained that teacher; None = a model from outside


def matches(stages: Stages) -> list[Match]:
    """Of the complete stages: every distillation with every RL run on its student."""

    def are(names: Sequence[str], kind: str) -> list[str]:
        return [n for n in names if stages[n]["stage"] == kind and stages[n]["complete"]]

    found = []
    for distilled in are(list(stages), "sft"):
        traces, students = (are(stages[distilled]["reads"], k) for k in ("rejection", "sft"))
        for rl in are(list(stages), "grpo"):
            shared = [name for name in students if name in stages[rl]["reads"]]
            if traces and shared:
                read = stages[traces[0]]["reads"]
                teacher = next(iter(are(read, "grpo") + are(read, "sft")), None)
                found.append(Match(shared[0], rl, distilled, traces[0], teacher))
    return found


def distillation_table(pipeline: RunRecord) -> Table:
    """The student distilled, and RL on it at as many tokens, at as much compute, and at its end."""
    rows: list[Sequence[str | Cell]] = []
    for match in matches(pipeline.stages):
        rl, distilled = (pipeline.runs[name] for name in (match.rl, match.distilled))
        accuracy = _curve_name(rl)
        if accuracy is None:
            continue
        benchmark = accuracy.split("/")[1]
        cost = spent(distilled)
        teaching = teacher_flop(pipeline, match, cost)
        measured = [line for line in rl.metrics if accuracy in line]
        points = [(line[accuracy], spent(rl, line["step"])) for line in measured]
        budgets = (
            ("as many tokens trained", cost.trained, inf),
            ("as much compute", inf, cost.flop + teaching),
            ("at its end", inf, inf),
        )
        score = _evaluated(pipeline, match.distilled, benchmark)
        whole = replace(cost, flop=cost.flop + teaching)
        rows.append([match.distilled, benchmark, score, *whole.cells])
        for label, tokens, flop in budgets:
            value, at = [p for p in points if p[1].trained <= tokens and p[1].flop <= flop][-1]
            rows.append([f"{match.rl}, {label}", benchmark, Cell(100 * value), *at.cells])
    header = ["Model", "Benchmark", ROWS[0].label, *COST_HEADER]
    note = (
        "RL: the last point of its curve within the distillation's tokens or operations. To the"
        " operations of a distillation belongs the sampling of its traces, not the training of its"
        f" teacher. {FLOP_NOTE}"
    )
    title = "Distillation against RL on the small model (the paper's Table 16)"
    return Table("distillation", title, header, rows, note)


def teacher_flop(pipeline: RunRecord, match: Match, cost: Spent) -> float:
    """Of the teacher's passes: the completions that the traces were chosen from, and its logits."""
    traces = pipeline.runs[match.traces]
    reads_logits = match.teacher in pipeline.stages[match.distilled]["reads"]
    tokens = traces.statistics["completion_tokens"] + (cost.trained if reads_logits else 0)
    if match.teacher is not None:
        return 2.0 * pipeline.runs[match.teacher].active_params * tokens
    return 2.0 * count_active_params(open_model(traces.config["model"]["path"]).config) * tokens


def _curve_name(run: RunRecord) -> str | None:
    return next(iter(metric_names([run], r"eval/[^/]+/pass@1")), None)


def _evaluated(pipeline: RunRecord, model: str, benchmark: str) -> Cell:
    """The model's score by the pipeline's evaluation of it, if there is a complete one."""
    for run in pipeline.of_kind("evaluate"):
        if model in pipeline.stages[run.name]["reads"]:
            return last_cell(run, benchmark, Row("", "pass@1"))
    return Cell(None)
