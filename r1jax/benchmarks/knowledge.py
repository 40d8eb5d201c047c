"""Knowledge: multiple choice, and DROP's short answers.

MMLU, GPQA and DROP are asked as openai/simple-evals asks them, MMLU-Redux as ZeroEval, MMLU-Pro,
C-Eval and CLUEWSC by their originals' sentence without the examples.
"""

from __future__ import annotations

import csv
import io
import random
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1jax.benchmarks.kind import Kind
from r1jax.config import DataError
from r1jax.data.datasets import FileRow
from r1jax.files import absolute, numbered_jsonl, read_data

LETTERS = "ABCDEFGHIJ"
SIMPLE = (
    "Answer the following multiple choice question. The last line of your response should be of the"
    " following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step"
    " by step before answering."
)
ZERO_EVAL = """\
## Question:

{question}

## Choices:

{choices}

## Instruction

Please answer this question by first reasoning and then selecting the correct choice.
Present your reasoning and solution in the following json format.
Please show your choice in the `answer` field with only the choice letter, e.g.,`"answer": "C"`.

```json
{{
    "reasoning": "___",
    "answer": "___"
}}
```"""
PRO = (
    "The following are multiple choice questions (with answers) about {category}. Think step by"
    ' step and then output the answer in the format of "The answer is (X)" at the end.'
)
CHINESE = "以下是中国考试的单项选择题，请一步一步思考，并在最后以“答案是(X)”的格式给出正确选项。"
PRONOUN = (
    "{text}\n\n上面的文本中，第{place}个字处的“{pronoun}”指的是“{noun}”吗？请一步一步思考，"
    "并在最后以“答案是(X)”的格式给出正确选项。\n\nA. 是\nB. 否"
)
DROP = (
    "You will be asked to read a passage and answer a question. Some examples of passages and Q&A"
    " are provided below.\n\n# Examples\n{examples}\n# Your Task\n\n---\n{passage}\n\nThink step by"
    ' step, then write a line of the form "Answer: $ANSWER" at the end of your response.'
)
PASSWORD = b"deserted-untie-orchid"  # of GPQA's zip, as its authors print it
OTHER = "other"
# simple-evals' groups of MMLU's subjects; all that is in none of these is `other`.
CATEGORIES = {
    "stem": (
        "abstract_algebra astronomy college_biology college_chemistry college_computer_science"
        " college_mathematics college_physics computer_security conceptual_physics"
        " electrical_engineering elementary_mathematics high_school_biology high_school_chemistry"
        " high_school_computer_science high_school_mathematics high_school_physics"
        " high_school_statistics machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history"
        " high_school_world_history international_law jurisprudence logical_fallacies"
        " moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"
    ),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics"
        " high_school_macroeconomics high_school_microeconomics high_school_psychology"
        " human_sexuality professional_psychology public_relations security_studies sociology"
        " us_foreign_policy"
    ),
}
_CATEGORY = {subject: name for name, all_of in CATEGORIES.items() for subject in all_of.split()}


def mmlu(path: str) -> list[FileRow]:
    """Rows {subject, question, choices, answer: a letter}."""
    rows = []
    for where, row in _choices_in(path, "subject"):
        question = f"{SIMPLE}\n\n{row['question']}\n\n{_listed(row, '{}) {}')}"
        category = _CATEGORY.get(row["subject"], OTHER)
        rows.append(_choice_row(row, where, "answer_letter", question, category=category))
    return rows


def mmlu_redux(path: str, mmlu: str = "../mmlu/test.jsonl") -> list[FileRow]:
    """Rows of MMLU that were looked at again, {answer, error_type, mmlu_id}; those that are "ok".

    Their questions stand at `mmlu`, a path from this file, but for those that have them here.
    """
    originals = {str(row["id"]): row for _, row in _choices_in(_beside(path, mmlu), "id")}
    rows = []
    for number, row in numbered_jsonl(path):
        where = f"{path}:{number}"
        for key in ("answer", "error_type", "subject"):
            if row.get(key) is None:
                raise DataError(f"{where} has no key {key!r}; it has {', '.join(row)}")
        if row["error_type"] != "ok":
            continue
        if row.get("question") is None:
            if str(row.get("mmlu_id")) not in originals:
                raise DataError(f"{where}: {mmlu} has no question {row.get('mmlu_id')!r}")
            original = originals[str(row["mmlu_id"])]
            row = {**row, "question": original["question"], "choices": original["choices"]}
        question = ZERO_EVAL.format(question=row["question"], choices=_listed(row, "- ({}) {}"))
        category = _CATEGORY.get(row["subject"], OTHER)
        row = _checked(row, where)
        rows.append(_choice_row(row, where, "json_answer", question, category=category))
    return rows


def mmlu_pro(path: str) -> list[FileRow]:
    """Rows {category, question, choices, answer: a letter of up to ten}."""
    rows = []
    for where, row in _choices_in(path, "category"):
        listed = _listed(row, "{}. {}")
        asked = f"Question: {row['question']}\nOptions: {listed}\nAnswer: Let's think step by step."
        question = f"{PRO.format(category=row['category'])}\n\n{asked}"
        rows.append(_choice_row(row, where, "the_answer_is", question, category=row["category"]))
    return rows


def ceval(path: str) -> list[FileRow]:
    """Rows {subject, question, choices, answer: a letter}."""
    rows = []
    for where, row in _choices_in(path, "subject"):
        question = f"{CHINESE}\n\n{row['question']}\n{_listed(row, '{}. {}')}"
        about = {"category": row["subject"], "language": "zh"}
        rows.append(_choice_row(row, where, "chinese_answer", question, **about))
    return rows


def cluewsc(path: str) -> list[FileRow]:
    """Rows {text, target: {span1_text, span2_text, span2_index}, label: "true" or "false"}."""
    rows = []
    for number, row in numbered_jsonl(path):
        where = f"{path}:{number}"
        target, label = row.get("target"), str(row.get("label")).lower()
        if not isinstance(target, Mapping) or label not in ("true", "false"):
            raise DataError(f'{where} has no "target" with a "label" of true or false')
        try:
            question = PRONOUN.format(
                text=row["text"],
                place=int(target["span2_index"]) + 1,
                pronoun=target["span2_text"],
                noun=target["span1_text"],
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{where}: {error!r} of a text and its two spans") from None
        answer = "A" if label == "true" else "B"
        asked = {"id": row.get("id", number), "choices": ["是", "否"], "answer": answer}
        rows.append(_choice_row(asked, where, "chinese_answer", question, language="zh"))
    return rows


def gpqa(path: str, seed: int = 0) -> list[FileRow]:
    """GPQA's gpqa_diamond.csv, or the authors' zip that has it, which is never unpacked to a disk.

    The options of each question are shuffled by the seed, as in simple-evals. Questions are not to
    be published: keep what an evaluation writes to yourself.
    """
    keys = ("Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    order = random.Random(seed)
    rows: list[FileRow] = []
    for number, row in enumerate(csv.DictReader(io.StringIO(_gpqa_text(path))), start=1):
        where = f"{path}, question {number}"
        if missing := [key for key in keys if not (row.get(key) or "").strip()]:
            raise DataError(f"{where} has no column {missing[0]!r}; it has {', '.join(row)}")
        options = [row[key].strip() for key in keys[1:]]
        places = order.sample(range(4), 4)
        asked = {"choices": [options[i] for i in places], "answer": LETTERS[places.index(0)]}
        asked |= {"id": row.get("Record ID") or str(number), "question": row["Question"].strip()}
        question = f"{SIMPLE}\n\n{asked['question']}\n\n{_listed(asked, '{}) {}')}"
        domain = {"category": row["High-level domain"]} if row.get("High-level domain") else {}
        rows.append(_choice_row(asked, where, "answer_letter", question, **domain))
    return rows


def _gpqa_text(path: str) -> str:
    data = read_data(path)
    if not data.startswith(b"PK"):
        return data.decode("utf-8-sig")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if name.endswith("gpqa_diamond.csv")]
        if not names:
            raise DataError(f"{path} has no gpqa_diamond.csv; it has {archive.namelist()[:5]}")
        try:
            return archive.read(names[0], PASSWORD).decode("utf-8-sig")
        except (RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{path}: {names[0]} cannot be read: {error}") from None


def drop(path: str, examples: str = "drop_train.jsonl", shots: int = 3) -> list[FileRow]:
    """simple-evals' files, {context, completion, ref_text: answers with | between}: three examples
    before each, drawn from `examples` beside it by a fixed seed. Without it none are shown.
    """
    shown: Sequence[Mapping[str, Any]] = []
    if shots:
        shown = [row for _, row in _drop_rows(_beside(path, examples))]
    rng = random.Random(42)
    rows: list[FileRow] = []
    for where, row in _drop_rows(path):
        drawn = rng.sample(shown, shots) if shots else []
        texts = [f"\n---\n{each['context']} {each['completion']}\n" for each in drawn]
        passage = str(row["context"])
        right = [each for each in str(row["ref_text"]).split("|") if each.strip()]
        if not right:
            raise DataError(f"{where}: ref_text {row['ref_text']!r} has no answer")
        about = {"id": str(row.get("id", len(rows))), "answer": right[0], "task": "drop"}
        about["prompt"] = DROP.replace("{examples}", "".join(texts)).replace("{passage}", passage)
        rows.append(FileRow(about | {"references": right}, where))
    return rows


def _drop_rows(path: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for number, row in numbered_jsonl(path):
        for key in ("context", "completion", "ref_text"):
            if row.get(key) is None:
                raise DataError(f"{path}:{number} has no key {key!r}; it has {', '.join(row)}")
        yield f"{path}:{number}", row


def _beside(path: str, other: str) -> str:
    """A path from a file's own directory."""
    return str(absolute(path).parent / other)


def _choices_in(path: str, *keys: str) -> list[tuple[str, dict[str, Any]]]:
    """(place, row) of a file of questions with choices; each has these keys, too."""
    rows = []
    for number, row in numbered_jsonl(path):
        where = f"{path}:{number}"
        if missing := [key for key in keys if row.get(key) is None]:
            raise DataError(f"{where} has no key {missing[0]!r}; it has {', '.join(row)}")
        rows.append((where, _checked(row, where)))
    return rows


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """DataError where it is no question with choices and the letter of one."""
    choices = row.get("choices")
    if not isinstance(row.get("question"), str) or not isinstance(choices, list):
        raise DataError(f"{where} has no question with a list of choices; it has {', '.join(row)}")
    known = LETTERS[: len(choices)]
    if len(choices) < 2 or len(choices) > len(LETTERS) or str(row.get("answer")) not in [*known]:
        raise DataError(
            f"{where}: the answer {row.get('answer')!r} is not the letter of one of its"
            f" {len(choices)} choices"
        )
    return row


def _listed(row: Mapping[str, Any], form: str) -> str:
    """Its choices, a line each: the letter and the text in the two places of the form."""
    before, between, behind = form.split("{}")
    lettered = zip(LETTERS, row["choices"], strict=False)
    return "\n".join(f"{before}{letter}{between}{text}{behind}" for letter, text in lettered)


def _choice_row(row: Mapping[str, Any], where: str, task: str, prompt: str, **more: Any) -> FileRow:
    """A question as our row; the task says how its answer is to be stated."""
    about = {"id": str(row.get("id", where)), "prompt": prompt, "answer": str(row["answer"])}
    known = {"subject": row["subject"]} if row.get("subject") else {}
    options = {"task": task, "options": len(row["choices"])}
    return FileRow({**about, **options, **known, **more}, where)


_MMLU = "hendrycks/test; MIT"
_SIMPLE_EVALS = "simple-evals: 'Answer: $LETTER'; the last one behind the thoughts counts"
KINDS: dict[str, Kind] = {
    "mmlu": Kind("MMLU", mmlu, "mmlu/test.jsonl", 14_042, 1, _MMLU, _SIMPLE_EVALS),
    "mmlu_redux": Kind(
        "MMLU-Redux",
        mmlu_redux,
        "mmlu_redux/mmlu_redux.jsonl",
        5_330,
        1,
        "MMLU-Redux 2.0 (Gema et al. 2024), the questions without errors; CC BY 4.0",
        'ZeroEval: JSON with "reasoning" and "answer"; of 5,700 questions those that are "ok"',
        needs="mmlu/test.jsonl beside it",
    ),
    "mmlu_pro": Kind(
        "MMLU-Pro",
        mmlu_pro,
        "mmlu_pro/mmlu_pro.jsonl",
        12_032,
        1,
        "TIGER-AI-Lab/MMLU-Pro; MIT",
        'the original\'s without examples: "The answer is (X)"',
    ),
    "drop": Kind(
        "DROP",
        drop,
        "drop/drop.jsonl",
        9_536,
        1,
        "Dua et al. 2019, as simple-evals has it; CC BY-SA 4.0",
        "simple-evals: 3 examples of its training file, 'Answer: $ANSWER'; F1 of the words",
        needs="drop/drop_train.jsonl beside it, for three examples a question, drawn with seed 42",
        metric="f1",
        rewards={"accuracy": 1.0, "lenient_accuracy": 0.0, "f1": 0.0},
        max_prompt_tokens=16_384,
    ),
    "gpqa_diamond": Kind(
        "GPQA-D",
        gpqa,
        "gpqa_diamond/dataset.zip",
        198,
        64,
        "Rein et al. 2023; CC BY 4.0, not to be published in plain text",
        f"{_SIMPLE_EVALS}; options shuffled by a fixed seed",
        needs="gpqa_diamond/dataset.zip, the authors' (idavidrein/gpqa), or its gpqa_diamond.csv",
    ),
    "ceval": Kind(
        "C-Eval",
        ceval,
        "ceval/val.jsonl",
        1_346,
        1,
        "hkust-nlp/ceval, its validation split: the test's answers are not published; CC BY-NC-SA",
        "the original's sentence without the subject's name; 答案是(X)",
    ),
    "cluewsc": Kind(
        "CLUEWSC",
        cluewsc,
        "cluewsc/test_public.jsonl",
        976,
        1,
        "FewCLUE's public test, which splits CLUEWSC2020's pool anew; no licence stated",
        "ours, as a choice of yes and no; 答案是(X)",
    ),
}
