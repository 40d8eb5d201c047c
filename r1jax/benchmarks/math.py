"""Questions with a formula or a number as the answer: files of others as our rows."""

from __future__ import annotations

import re
from typing import Any

from r1jax.benchmarks.kind import Kind
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import FileRow, answer_text, errors_at
from r1jax.files import numbered_jsonl, read_jsonl


def from_jsonl(path: str, task: str, question: str, answer: str = "answer") -> list[FileRow]:
    """Rows of a JSONL file as `{prompt, answer, task}`.

    `question` is the wording with the file's keys in braces, for instance "{problem} Think step by
    step."; doubled braces stay braces. `answer` is the key of the reference answer. What else a row
    says (level, subject) stays as metadata.
    """
    rows = []
    for number, row in numbered_jsonl(path):
        where = f"{path}:{number}"
        if nulls := [key for key, value in row.items() if value is None and f"{{{key}" in question]:
            raise DataError(f"{where}: the key {nulls[0]!r} that the question asks for is null")
        try:
            prompt = question.format_map(row)
        except KeyError as error:
            raise ConfigError(
                f"{path}:{number} has no key {error} that the question asks for; it has"
                f" {', '.join(row)}"
            ) from None
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"question {question!r}: {error}; braces that are to stay are doubled"
            ) from None
        if row.get(answer) is None:
            raise DataError(f"{path}:{number} has no key {answer!r}; it has {', '.join(row)}")
        with errors_at(where):
            reference = answer_text(row[answer])
        about = {
            "id": str(number if row.get("id") is None else row["id"]),
            "prompt": prompt,
            "answer": reference,
            "task": task,
        }
        rest = {key: row[key] for key in row if key not in ("messages", answer)}
        rows.append(FileRow(rest | about, where))
    return rows


def gsm8k_solutions(path: str, question: str) -> list[dict[str, Any]]:
    """GSM8K's own solutions as SFT rows {"messages"}: <think> steps </think> <answer> 72 </answer>.

    `path` is a JSONL file with `problem`, `answer` and `solution`, `question` as in `from_jsonl`.
    The calculator's annotations ("<<48/2=24>>") and the last line ("#### 72") are left out.
    """
    rows = []
    for asked, row in zip(from_jsonl(path, "integer", question), read_jsonl(path), strict=True):
        if "solution" not in row:
            raise DataError(
                f"{path}: {row.get('id')} has no key 'solution'; it has {', '.join(row)}"
            )
        steps = re.sub(r"<<.*?>>", "", row["solution"]).partition("####")[0].split("\n")
        thoughts = "\n".join(step.strip() for step in steps if step.strip())
        reply = f"<think> {thoughts} </think> <answer> {asked['answer']} </answer>"
        turns = [("user", asked["prompt"]), ("assistant", reply)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return rows


BOXED = "Please reason step by step, and put your final answer within \\boxed{{}}."
DIRECTIVE = "the directive of DeepSeek-R1's README behind the problem; our rules for formulas"
CHINESE = "请逐步推理，并将最终答案放在 \\boxed{{}} 中。"
MAA = "problems (c) MAA"


def _kind(title: str, file: str, problems: int, num_samples: int, source: str, **more: Any) -> Kind:
    """Problems whose answer is boxed."""
    args = {
        "task": more.pop("task", "math"),
        "question": more.pop("question", f"{{problem}}\n{BOXED}"),
    }
    return Kind(
        title,
        from_jsonl,
        file,
        problems,
        num_samples,
        source,
        more.pop("wording", DIRECTIVE),
        args=args,
        **more,
    )


KINDS = {
    "aime24": _kind("AIME 2024", "aime24/aime24.jsonl", 30, 64, f"AIME I and II 2024; {MAA}"),
    "aime25": _kind("AIME 2025", "aime25/aime25.jsonl", 30, 64, f"AIME I and II 2025; {MAA}"),
    "math500": _kind(
        "MATH-500",
        "math500/math500.jsonl",
        500,
        16,
        "openai/prm800k's split of hendrycks/math; MIT",
    ),
    "cnmo24": _kind(
        "CNMO 2024",
        "cnmo24/cnmo24.jsonl",
        18,
        16,
        "Chinese National Mathematical Olympiad 2024; the paper's file is not published",
        needs="cnmo24/cnmo24.jsonl (id, problem, answer); cn_league24 is the nearest open set",
    ),
    "cn_league24": _kind(
        "China league 2024",
        "cn_math_league_2024/cn_math_league_2024.jsonl",
        30,
        16,
        "LIMO's translation of the high-school league of 2024, in the place of CNMO; MIT",
    ),
    "gsm8k": _kind("GSM8K", "gsm8k/test.jsonl", 1_319, 4, "openai/grade-school-math; MIT"),
    "cmath": _kind(
        "CMATH",
        "cmath/cmath.jsonl",
        600,
        4,
        "Wei et al. 2023; CC BY 4.0",
        question=f"{{problem}}\n{CHINESE}",
        wording="the same directive in Chinese; our rules for formulas",
    ),
    "mgsm_en": _kind(
        "MGSM en",
        "mgsm_en_zh/mgsm_en_zh.jsonl",
        250,
        4,
        "google-research/url-nlp; CC BY-SA 4.0",
        question=f"{{problem_en}}\n{BOXED}",
    ),
    "mgsm_zh": _kind(
        "MGSM zh",
        "mgsm_en_zh/mgsm_en_zh.jsonl",
        250,
        4,
        "google-research/url-nlp; CC BY-SA 4.0",
        question=f"{{problem_zh}}\n{CHINESE}",
        wording="the same directive in Chinese; our rules for formulas",
    ),
}
