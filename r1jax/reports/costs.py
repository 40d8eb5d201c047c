"""What a pipeline's models cost, and distillation against RL at equal cost, from metrics alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean
from typing import Any

from etils import epath

from r1jax.files import CONFIG, MODEL_JSON, STATISTICS, absolute
from r1jax.models.params import count_params
from r1jax.reports.results import ROWS, Row, last_cell
from r1jax.reports.runs import RunRecord, metric_names, read_run
from r1jax.reports.table import Cell, Table
from r1jax.weights.load import open_model

Stages = Mapping[str, Mapping[str, Any]]  # pipeline.json: {name: {"stage", "reads", "complete"}}
# Tokens that a stage's updates computed, and that its rollouts generated, by the metrics' names.
TRAINED = ("sft/data/tokens", "grpo/batch/tokens")
GENERATED = "grpo/completion/tokens"
FLOP_NOTE = (
    "TFLOP: 6 x parameters x tokens trained (8 with a reference pass), 2 x tokens generated; no"
    " prefill, no attention."
)


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


COST_HEADER = ("M parameters", "Updates", "k tokens trained", "k tokens generated", "TFLOP")


def spent(run: RunRecord, step: int | None = None) -> Spent:
    """Until update `step`, or in all; updates that were not logged count as the others' mean."""
    params = params_of(run.workdir)
    seen = [line for line in run.metrics if step is None or line["step"] <= step]
    tokens = [(line["step"], line[name]) for line in seen for name in TRAINED if name in line]
    updates = max((at for at, _ in tokens), default=0)
    trained = updates * fmean([count for _, count in tokens] or [0])
    generated = sum(line.get(GENERATED, 0) for line in seen)
    passes = 8 if any("grpo/kl/ref" in line for line in seen) else 6
    flop = params * (passes * trained + 2 * generated)
    return Spent(params, updates, trained, generated, flop)


def params_of(workdir: epath.PathLike) -> int:
    """Parameters of the model that a workdir trained; 0 where it says nothing of one."""
    path = absolute(workdir)
    return count_params(open_model(str(path)).config) if (path / MODEL_JSON).exists() else 0


def cost_table(runs: Sequence[RunRecord]) -> Table:
    """What each trained model cost."""
    rows: list[Sequence[str | Cell]] = [[run.name, *spent(run).cells] for run in runs]
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


def distillation_table(workdir: epath.PathLike, stages: Stages) -> Table:
    """The student distilled, and RL on it at as many tokens, at as much compute, and at its end."""
    root = absolute(workdir)
    rows: list[Sequence[str | Cell]] = []
    for match in matches(stages):
        rl, distilled = (read_run(root / name) for name in (match.rl, match.distilled))
        accuracy = _curve_name(rl)
        if accuracy is None:
            continue
        benchmark = accuracy.split("/")[1]
        cost = spent(distilled)
        teaching = teacher_flop(root, stages, match, cost)
        measured = [line for line in rl.metrics if accuracy in line]
        points = [(line[accuracy], spent(rl, line["step"])) for line in measured]
        budgets = (
            ("as many tokens trained", cost.trained, inf),
            ("as much compute", inf, cost.flop + teaching),
            ("at its end", inf, inf),
        )
        score = _evaluated(root, stages, match.distilled, benchmark)
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


def teacher_flop(root: epath.Path, stages: Stages, match: Match, cost: Spent) -> float:
    """Of the teacher's passes: the completions that the traces were chosen from, and its logits."""
    statistics = json.loads((root / match.traces / STATISTICS).read_text())
    reads_logits = match.teacher in stages[match.distilled]["reads"]
    tokens = statistics["completion_tokens"] + (cost.trained if reads_logits else 0)
    if match.teacher is not None:
        return 2.0 * params_of(root / match.teacher) * tokens
    path = json.loads((root / match.traces / CONFIG).read_text())["model"]["path"]
    return 2.0 * count_params(open_model(path).config) * tokens


def _curve_name(run: RunRecord) -> str | None:
    return next(iter(metric_names([run], r"eval/[^/]+/pass@1")), None)


def _evaluated(root: epath.Path, stages: Stages, model: str, benchmark: str) -> Cell:
    """The model's score by the pipeline's evaluation of it, if there is a complete one."""
    for name, stage in stages.items():
        if stage["stage"] == "evaluate" and stage["complete"] and model in stage["reads"]:
            return last_cell(read_run(root / name), benchmark, Row("", "pass@1"))
    return Cell(None)
