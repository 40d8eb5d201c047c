"""What a benchmark is, apart from who answers it: questions, wording, setting, grader, source.

A file of this room has some of one kind in its KINDS; catalog.py has them all by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from r1jax.types import Example, Message, Sample

Scores = dict[str, float]  # of one benchmark
# What is computed from all samples, where a mean over them does not say it: ratings, for instance.
Statistic = Callable[[Sequence[Example], Sequence[Sample]], Scores]


class Judging(Protocol):
    """How a model judges an answer that no rule can."""

    def questions(self, example: Example, text: str) -> list[list[Message]]:
        """What the judge is asked of this answer: a conversation, or one for each order of two."""
        ...

    def verdict(self, example: Example, replies: Sequence[str]) -> dict[str, float] | None:
        """What it said, as parts of the reward ("accuracy" among them); None where a reply cannot
        be read, and the judge is to be asked again."""
        ...


@dataclass(frozen=True)
class Kind:
    """A benchmark as its original asks and grades it: a row of the table in README.md."""

    title: str  # as the paper's tables have it: a row of reports/paper.json where there is one
    rows: Callable[..., Sequence[Mapping[str, Any]]]  # of the file at `path`, and `args`
    file: str  # below the directory of all data: "aime24/aime24.jsonl"
    problems: int  # of the published set
    num_samples: int  # the paper's k
    source: str  # where it is from, and under which licence
    wording: str  # whose prompt and grader, and what was chosen where the paper is silent
    needs: str = ""  # what the user has to bring besides the file
    args: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "pass@1"  # of the results, what the paper's table shows
    scale: float = 100.0  # of it, in that table
    max_prompt_tokens: int = 4_096
    # As in a benchmark's config. "accuracy" is what pass@1 is the mean of.
    rewards: Mapping[str, float] = field(
        default_factory=lambda: {"accuracy": 1.0, "lenient_accuracy": 0.0}
    )
    judging: Judging | None = None  # then a judge gives the accuracy, behind the rewards
    statistic: Statistic | None = None
