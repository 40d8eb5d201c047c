"""Open questions, for which a judge prefers the model's answer or a baseline's.

AlpacaEval 2: https://github.com/tatsu-lab/alpaca_eval; Arena-Hard v0.1:
https://github.com/lmarena/arena-hard-auto. A judge that likes the answer it sees first shows in
`first_preferred`, the share of games that the first one won.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from r1jax.benchmarks import length_control
from r1jax.benchmarks.estimators import mean_and_standard_error
from r1jax.benchmarks.judge_prompts import (
    ALPACA_EVAL,
    ALPACA_EVAL_SYSTEM,
    ARENA_HARD,
    ARENA_HARD_SYSTEM,
)
from r1jax.benchmarks.judging import asked, filled, lines_of, only, plain, shown
from r1jax.benchmarks.kind import Kind, Scores
from r1jax.config import DataError
from r1jax.data.datasets import FileRow
from r1jax.data.files import rows_of_file
from r1jax.files import absolute
from r1jax.types import Example, Message, Sample

ROUNDS = 1_000  # of the bootstrap
# A label of Arena-Hard -> (the share that A wins, how many games it counts).
GAMES = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
_MIRRORED = {"B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A"}
_SIGN = r"(?:>>|>|=|<|<<)"
_LABEL = rf"\s*([AB])\s*({_SIGN})\s*([AB])\s*"
_LABELS = [re.compile(rf"\[\[{_LABEL}\]\]"), re.compile(rf"\[{_LABEL}\]")]
# "m", "Model M", "**Best Model Identifier:** M": the identifier with what announces it, no more.
_IDENTIFIER = re.compile(
    r"(?:(?i:the|my|best|better|final|model|identifier|answer|output|verdict|is"
    r"|最佳|更好的|模型|标识符|答案|输出|是|为) ?)*?([mM])"
)


def label_of(reply: str) -> str | None:
    """Arena-Hard's label in a judge's reply, a key of GAMES; None where there is none, or several.

    As the original's v0.1, and in any case, width, emphasis or spacing; in single brackets where
    none stands in double ones.
    """
    text = plain(reply).upper()
    for pattern in _LABELS:
        found = ["".join(parts) for parts in pattern.findall(text)]
        labels = [_MIRRORED.get(label, label) for label in found]
        if labels:
            label = only(labels)
            return label if label in GAMES else None
    return None


def identifier_of(reply: str) -> str | None:
    """AlpacaEval's "m" or "M" in a judge's reply: a line that says one alone; None: unreadable."""
    matches = (_IDENTIFIER.fullmatch(line) for line in lines_of(reply))
    return only([match[1] for match in matches if match is not None])


class ArenaHard:
    """Two games, the baseline's answer first in one and second in the other.

    Parts of a verdict: the weighted `wins` among `games`, which is 2 to 6, and their quotient, the
    accuracy; `first_preferred` and `ties`, shares of the two games.
    """

    def questions(self, example: Example, text: str) -> list[list[Message]]:
        baseline, answer = str(example.metadata["baseline"]), shown(text)
        return [
            asked(filled(ARENA_HARD, question=example.question, a=a, b=b), ARENA_HARD_SYSTEM)
            for a, b in ((baseline, answer), (answer, baseline))
        ]

    def verdict(self, example: Example, replies: Sequence[str]) -> dict[str, float] | None:
        labels = [label for reply in replies if (label := label_of(reply)) is not None]
        if len(labels) < 2:
            return None
        (first, weight), (second, other) = (GAMES[label] for label in labels)
        wins, games = (1 - first) * weight + second * other, weight + other
        return {
            "accuracy": wins / games,
            "wins": wins,
            "games": float(games),
            "first_preferred": ((first == 1) + (second == 1)) / 2,
            "ties": sum(label == "A=B" for label in labels) / 2,
        }


@dataclass(frozen=True)
class AlpacaEval:
    """One game, in an order that `seed` and the instruction's id decide.

    The original weighs a preference by the probabilities of the tokens m and M; a chat model of
    ours gives text, so the letter that it says counts 1 or 0, which is an unbiased sample of that
    weight at temperature 1.
    """

    seed: int = 0

    def questions(self, example: Example, text: str) -> list[list[Message]]:
        answers = [str(example.metadata["baseline"]), shown(text)]
        a, b = answers[::-1] if self._model_first(example) else answers
        question = filled(ALPACA_EVAL, question=example.question, a=a, b=b)
        return [asked(question, ALPACA_EVAL_SYSTEM)]

    def verdict(self, example: Example, replies: Sequence[str]) -> dict[str, float] | None:
        said = identifier_of(replies[0])
        if said is None:
            return None
        won = (said == "m") == self._model_first(example)
        return {"accuracy": float(won), "first_preferred": float(said == "m")}

    def _model_first(self, example: Example) -> bool:
        return hashlib.sha256(f"{self.seed}/{example.id}".encode()).digest()[0] % 2 == 0


def arena_scores(examples: Sequence[Example], samples: Sequence[Sample]) -> Scores:
    """The win rate over all games, a tie half a win and a clear win three games, with the 95 %
    interval of a bootstrap over problems.

    The original's leaderboard (v0.1) fits a Bradley-Terry model to the games of all models against
    the baseline, weighted so, and turns its score into a win rate: as nobody meets anybody but the
    baseline, that is this share exactly. Its interval draws games, as if those of a problem were
    independent; ours draws problems. Samples without a verdict are left out, as there.
    """
    judged = [s for s in samples if "games" in s.reward_breakdown]
    scores = {"unjudged": float(len(samples) - len(judged))}
    if not judged:
        return scores
    table = np.zeros((len(examples), 2))
    for sample in judged:
        parts = sample.reward_breakdown
        table[sample.prompt_index] += parts["wins"], parts["games"]
    table = table[table[:, 1] > 0]
    drawn = np.random.default_rng(0).integers(len(table), size=(ROUNDS, len(table)))
    wins, games = table[drawn].sum(axis=1).T
    low, high = np.percentile(wins / games, [2.5, 97.5])
    return scores | {
        "win_rate": float(table[:, 0].sum() / table[:, 1].sum()),
        "win_rate_se": float(np.std(wins / games, ddof=1)),
        "win_rate_low": float(low),
        "win_rate_high": float(high),
        "first_preferred": _mean(judged, "first_preferred"),
        "ties": _mean(judged, "ties"),
    }


def alpaca_scores(examples: Sequence[Example], samples: Sequence[Sample]) -> Scores:
    """The win rate and the length-controlled one (length_control.py).

    `lc_win_rate` is the published definition, which needs df_gamed.csv; without it the fit has no
    term for the instruction's difficulty and is called `lc_win_rate_minimal`. Lengths are those of
    what the judge was shown.
    """
    judged = [s for s in samples if "first_preferred" in s.reward_breakdown]
    scores = {"unjudged": float(len(samples) - len(judged))}
    if not judged:
        return scores
    groups: dict[int, list[float]] = {}
    for sample in judged:
        groups.setdefault(sample.prompt_index, []).append(sample.reward_breakdown["accuracy"])
    mean, error = mean_and_standard_error([float(np.mean(group)) for group in groups.values()])
    scores |= {"win_rate": mean, "win_rate_se": error}
    scores["first_preferred"] = _mean(judged, "first_preferred")
    if len(judged) >= length_control.FOLDS:
        about = [examples[sample.prompt_index].metadata for sample in judged]
        gamed = length_control.gamed_rows([examples[i].metadata for i in groups])
        found = length_control.Rows(
            np.array([sample.reward_breakdown["accuracy"] for sample in judged]),
            np.array(
                [
                    float(len(row["baseline"]) - len(shown(sample.text)))
                    for row, sample in zip(about, judged, strict=True)
                ]
            ),
            None if gamed is None else np.array([row["instruction_difficulty"] for row in about]),
            gamed,
        )
        name = "lc_win_rate_minimal" if gamed is None else "lc_win_rate"
        scores[name], scores[f"{name}_se"] = length_control.win_rate(found)
    return scores


def _mean(samples: Sequence[Sample], part: str) -> float:
    return float(np.mean([sample.reward_breakdown[part] for sample in samples]))


def arena_hard(path: str, baseline: str = "gpt-4-0314.jsonl") -> list[FileRow]:
    """Arena-Hard's questions; `baseline` lies beside them and has the baseline's answers.

    Both as in the original's repository, data/arena-hard-v0.1/question.jsonl and
    model_answer/gpt-4-0314.jsonl, of its first form (question_id, turns, choices) or its later one
    (uid, prompt, messages).
    """
    answers_path = _beside(path, baseline)
    answers = {_id(row, where): _answer(row, where) for where, row in rows_of_file(answers_path)}
    rows = []
    for where, row in rows_of_file(path):
        uid = _id(row, where)
        if uid not in answers:
            raise DataError(f"{where}: {answers_path} has no answer to {uid}")
        prompt = row.get("prompt") or _found(lambda row: row["turns"][0]["content"], row, where)
        about = {"id": uid, "prompt": prompt, "answer": "", "task": "general"}
        about |= {"cluster": str(row.get("cluster", "")), "baseline": answers[uid]}
        rows.append(FileRow(about, where))
    return rows


def _id(row: Mapping[str, Any], where: str) -> str:
    if (found := row.get("uid", row.get("question_id"))) is None:
        raise DataError(f"{where} has no key 'uid' or 'question_id'; it has {', '.join(row)}")
    return str(found)


def _answer(row: Mapping[str, Any], where: str) -> str:
    """The text of a row of model_answer."""
    if "messages" in row:
        content = _found(lambda row: row["messages"][-1]["content"], row, where)
    else:
        content = _found(lambda row: row["choices"][0]["turns"][0]["content"], row, where)
    content = content.get("answer") if isinstance(content, Mapping) else content
    if not isinstance(content, str):
        raise DataError(f"{where}: the baseline's answer {content!r} is not a text")
    return content


def _found(look: Callable[[Any], Any], row: Mapping[str, Any], where: str) -> Any:
    try:
        return look(row)
    except (LookupError, TypeError):
        raise DataError(f"{where} is not as in arena-hard-auto; it has {', '.join(row)}") from None


def alpaca_eval(path: str, gamed: str = "df_gamed.csv") -> list[FileRow]:
    """AlpacaEval's instructions with the baseline's outputs: objects {instruction, output}.

    `gamed` may lie beside them: the published table of the baseline's verbose and concise answers
    (index, preference, std_delta_len, instruction_difficulty), by the instruction's place. With it
    the length-controlled win rate is the published one.
    """
    rows = []
    for place, (where, row) in enumerate(rows_of_file(path)):
        for key in ("instruction", "output"):
            if not isinstance(row.get(key), str):
                raise DataError(f"{where} has no text {key!r}; it has {', '.join(row)}")
        about = {"id": str(place), "prompt": row["instruction"], "answer": "", "task": "general"}
        about |= {"dataset": str(row.get("dataset", "")), "baseline": row["output"]}
        rows.append(FileRow(about, where))
    table = _beside(path, gamed)
    if absolute(table).exists():
        _add_gamed(rows, table)
    return rows


def _add_gamed(rows: Sequence[FileRow], table: str) -> None:
    for where, row in rows_of_file(table):
        try:
            place = int(float(row["index"]))
            values = [float(row[key]) for key in ("std_delta_len", "preference")]
            hard = float(row["instruction_difficulty"])
            if place < 0 or not all(map(math.isfinite, [*values, hard])):
                raise ValueError("a number is out of its range")
            instruction = rows[place]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{where}: {error!r}; expected numbers index (below {len(rows)}), std_delta_len,"
                " preference and instruction_difficulty"
            ) from None
        instruction.setdefault("gamed", []).append(values)
        instruction["instruction_difficulty"] = hard
    if missing := [row.where for row in rows if "gamed" not in row]:
        raise DataError(f"{table} has no row of the instruction {missing[0]}")


def _beside(path: str, name: str) -> str:
    return os.fspath(epath.Path(path).parent / name)


KINDS = {
    "alpaca_eval": Kind(
        "AlpacaEval2",
        alpaca_eval,
        "alpaca_eval/alpaca_eval_gpt4_baseline.json",
        805,
        1,
        "tatsu-lab/alpaca_eval; CC BY-NC 4.0",
        "the instruction alone; the judge's prompt of weighted_alpaca_eval_gpt4_turbo, whose letter"
        " counts 1 or 0 in the place of its probability; one sample",
        needs="a judge (the paper's is GPT-4-Turbo-1106); the hub's tatsu-lab/alpaca_eval"
        " alpaca_eval_gpt4_baseline.json and df_gamed.csv: without the latter the metric is"
        " lc_win_rate_minimal, which is no row of the paper",
        metric="lc_win_rate",
        rewards={"format": 0.0},
        judging=AlpacaEval(),
        statistic=alpaca_scores,
    ),
    "arena_hard": Kind(
        "ArenaHard",
        arena_hard,
        "arena_hard/question.jsonl",
        500,
        1,
        "lmarena/arena-hard-auto v0.1; Apache-2.0",
        "the question alone; the original's judge prompt and labels, two games; one sample",
        needs="a judge (the paper's is GPT-4-Turbo-1106; the original's max_tokens is 4096, its"
        " temperature 0); arena-hard-auto's question.jsonl and, beside it,"
        " model_answer/gpt-4-0314.jsonl, the baseline's answers",
        metric="win_rate",
        max_prompt_tokens=8_192,
        rewards={"format": 0.0},
        judging=ArenaHard(),
        statistic=arena_scores,
    ),
}
