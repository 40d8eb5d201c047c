"""Multiple choice and DROP: wording, where the answer is stated, and what is not one."""

import csv
import io
import json
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1jax.benchmarks import knowledge
from r1jax.benchmarks.catalog import KINDS, benchmark
from r1jax.benchmarks.protocol import BenchmarkConfig
from r1jax.config import DataError, section
from r1jax.data.datasets import finite_examples
from r1jax.rewards import REWARDS
from r1jax.tasks import check_example, finals
from r1jax.types import Example

SHARED = Path(__file__).parents[2] / "shared/data"
FORMS: dict[str, Callable[[str], str]] = {
    "answer_letter": lambda letter: f"Answer: {letter}",
    "the_answer_is": lambda letter: f"The answer is ({letter})",
    "chinese_answer": lambda letter: f"答案是({letter})",
    "json_answer": lambda letter: f'{{"reasoning": "so", "answer": "{letter}"}}',
}
OPTIONS = {"answer_letter": 4, "the_answer_is": 10, "chinese_answer": 4, "json_answer": 4}


def example(task: str, answer: str = "C", **metadata: Any) -> Example:
    message = {"role": "user", "content": "Which?"}
    return Example("e", (message,), answer, task, {"options": OPTIONS.get(task), **metadata})


def earned(found: Example, text: str, *names: str) -> list[float]:
    names = names or ("accuracy", "lenient_accuracy")
    return [REWARDS[name](found, text, length=1, finish_reason="stop") for name in names]


@pytest.mark.parametrize("task", FORMS)
def test_a_stated_option(task: str) -> None:
    """The last statement behind the thoughts, whatever stands around it."""
    say, asked = FORMS[task], example(task)
    right, wrong = say("C"), say("B")
    check_example(asked)
    for text in (
        right,
        f"<think>{wrong}</think>{right}",
        f"{wrong}. No, I was wrong.\n{right}",
        f"So:\n\n{right}\n",
        "<think>so</think> <answer> C </answer>",
        f"<answer>{right}</answer>",
        "x" * 100_000 + "\n" + right,
    ):
        assert earned(asked, text) == [1, 1], text[-60:]
    for text in (
        wrong,
        f"<think>{right}</think>{wrong}",
        f"<think>{right}",
        f"{right} No, I was wrong.\n{wrong}",
        "<answer>B</answer>",
        "",
        "I do not know.",
        "x" * 100_000,
    ):
        assert earned(asked, text)[0] == 0, text[-60:]
    assert earned(asked, "It must be C.") == [0, 1]  # said, but not as it was asked for
    assert earned(asked, "It must be B.") == [0, 0]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("answer_letter", "**Answer: C**"),
        ("answer_letter", "**Answer:** C"),
        ("answer_letter", "Answer: $C$"),
        ("answer_letter", r"Answer: \\boxed{C}".replace("\\\\", "\\")),
        ("answer_letter", "ANSWER: c"),
        ("answer_letter", "answer：Ｃ"),
        ("answer_letter", "Answer: (C) because of that"),
        ("answer_letter", "Answer: C) Paris"),
        ("answer_letter", "Answer: C, I think"),
        ("the_answer_is", "The answer is (C), I believe."),
        ("the_answer_is", "The answer is C and (I think) that is all"),
        ("the_answer_is", "The answer is C."),
        ("the_answer_is", "the answer is: (C)"),
        ("the_answer_is", "Answer: C"),
        ("the_answer_is", "The answer is $\\boxed{C}$."),
        ("chinese_answer", "所以答案是C。"),
        ("chinese_answer", "答案：C"),
        ("chinese_answer", "答案为（Ｃ）"),
        ("chinese_answer", "正确答案应该是 **C**"),
        ("chinese_answer", "The answer is (C)"),
        ("json_answer", '```json\n{"reasoning": "a "quote", broken", "answer": "C"}\n```'),
        ("json_answer", '{"answer": "B"}\n{"answer": "(C)"}'),
        ("json_answer", '{"answer": C}'),
        ("json_answer", '{"answer": "C. Paris"}'),
    ],
)
def test_ways_to_write_it(task: str, text: str) -> None:
    assert earned(example(task), text)[0] == 1


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("answer_letter", "Answer: Cats"),
        ("answer_letter", "Answer: a car"),
        ("answer_letter", "Answer: F"),
        ("answer_letter", "Answer: C2"),
        ("answer_letter", "Answer: C or B"),
        ("answer_letter", "Answer: C, B"),
        ("answer_letter", "Answer: (C) and (B)"),
        ("the_answer_is", "The answer is (C)/(B)"),
        ("the_answer_is", "The answer is C, I or J"),
        ("the_answer_is", "The answer is C or I"),
        ("chinese_answer", "答案是C或B"),
        ("the_answer_is", "The answer is Certainly B"),
        ("the_answer_is", "The answer is (I)"),
        ("chinese_answer", "答案不是C"),
        ("json_answer", '{"answer": "B or C"}'),
        ("json_answer", '{"reasoning": "C"}'),
    ],
)
def test_what_is_none(task: str, text: str) -> None:
    assert earned(example(task), text)[0] == 0


def test_options_that_are_not_there() -> None:
    assert earned(example("answer_letter", "E", options=4), "Answer: E")[0] == 0
    with pytest.raises(DataError, match="'E' is no answer_letter answer"):
        check_example(example("answer_letter", "E", options=4))


def test_extraction_is_quick() -> None:
    hostile = ("answer is " * 50_000, "Answer:" * 50_000, "答案" * 100_000, '"answer": ' * 50_000)
    for task in FORMS:
        began = time.perf_counter()
        for text in hostile:
            finals(example(task), text)
        assert time.perf_counter() - began < 2


# ---- DROP ----


@pytest.mark.parametrize(
    ("said", "references", "exact", "f1"),
    [
        ("Answer: 12", ["12"], 1, 1),
        ("Answer: 12.0 yards", ["12"], 0, 2 / 3),
        ("Answer: the Red-Sox", ["red sox"], 1, 1),
        ("Answer: Sox", ["red sox"], 0, 2 / 3),
        ("Answer: red sox 3", ["red sox 4"], 0, 0),  # numbers must meet
        ("Answer: 4 sox", ["red sox 4"], 0, 0.8),
        ("Answer: Blue", ["red", "blue!"], 1, 1),
        ("Answer: blue\nAnswer: red", ["red"], 1, 1),
        ("<think>Answer: red</think>Answer: blue", ["red"], 0, 0),
        ("<answer> red </answer>", ["red"], 1, 1),
        ("**Answer: red**", ["red"], 1, 1),
        ("It was red", ["red"], 0, 0.5),  # all that is said, as simple-evals
        ("", ["red"], 0, 0),
        ("Answer: A.", ["A"], 1, 1),  # an article, if that is all there is
        ("Answer: red", ["the", "red"], 1, 1),
        ("", ["A"], 0, 0),
        ("Answer: !", ["red", "the"], 0, 0),
    ],
)
def test_drop_by_hand(said: str, references: list[str], exact: float, f1: float) -> None:
    asked = example("drop", references[0], references=references)
    check_example(asked)
    found = earned(asked, said, "accuracy", "f1")
    assert found == [exact, pytest.approx(f1, abs=1e-4)]


def test_drop_questions(tmp_path: Path) -> None:
    """Three examples before each, the same every time; all answers that are right."""

    def row(i: int) -> str:
        values = {"context": f"Passage: p{i}\nQ: q{i}\nAnswer:", "completion": f"c{i}"}
        return json.dumps(values | {"ref_text": f"c{i}|d{i}"}) + "\n"

    (tmp_path / "drop.jsonl").write_text("".join(map(row, range(2))))
    (tmp_path / "drop_train.jsonl").write_text("".join(map(row, range(10, 20))))
    first, second = knowledge.drop(str(tmp_path / "drop.jsonl"))
    assert first["prompt"].count("\n---\n") == 4
    assert first["prompt"].endswith('Answer: $ANSWER" at the end of your response.')
    assert "Passage: p0" in first["prompt"] and "c0" not in first["prompt"]
    assert first["references"] == ["c0", "d0"]
    assert first["prompt"].split("# Your Task")[0] != second["prompt"].split("# Your Task")[0]
    assert knowledge.drop(str(tmp_path / "drop.jsonl")) == [first, second]
    (bare, _) = knowledge.drop(str(tmp_path / "drop.jsonl"), shots=0)
    assert bare["prompt"].count("\n---\n") == 1
    (tmp_path / "drop_train.jsonl").unlink()
    with pytest.raises(DataError, match=r"drop_train\.jsonl does not exist"):
        knowledge.drop(str(tmp_path / "drop.jsonl"))


# ---- files ----


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


QUESTION = {"id": "q/0", "subject": "virology", "question": "Why?", "choices": ["a", "b {}", "c"]}


def test_mmlu(tmp_path: Path) -> None:
    (row,) = knowledge.mmlu(write(tmp_path / "t.jsonl", {**QUESTION, "answer": "B"}))
    assert row["prompt"].endswith("Why?\n\nA) a\nB) b {}\nC) c")
    assert row["prompt"].startswith("Answer the following multiple choice question.")
    assert (row["answer"], row["options"], row["category"]) == ("B", 3, "other")
    assert len({s for subjects in knowledge.CATEGORIES.values() for s in subjects.split()}) == 43
    for wrong, said in (
        (
            {**QUESTION, "answer": "D"},
            "t.jsonl:1: the answer 'D' is not the letter of one of its 3",
        ),
        ({**QUESTION, "answer": "AB"}, "the answer 'AB'"),
        ({"question": "Why?", "subject": "s"}, "has no question with a list of choices"),
        ({**QUESTION, "subject": None, "answer": "A"}, "has no key 'subject'"),
    ):
        with pytest.raises(DataError, match=said):
            knowledge.mmlu(write(tmp_path / "t.jsonl", wrong))


def test_mmlu_pro(tmp_path: Path) -> None:
    """As the original lays a question out, without its examples; up to ten options."""
    known = {**QUESTION, "category": "law", "choices": [*"abcdefghij"], "answer": "J"}
    (row,) = knowledge.mmlu_pro(write(tmp_path / "t.jsonl", known))
    assert "Question: Why?\nOptions: A. a\nB. b\n" in row["prompt"]
    assert row["prompt"].endswith("\nJ. j\nAnswer: Let's think step by step.")
    assert (row["answer"], row["options"], row["category"]) == ("J", 10, "law")


def test_mmlu_redux(tmp_path: Path) -> None:
    """Only what is ok, with its question from MMLU or its own."""
    write(tmp_path / "mmlu/test.jsonl", {**QUESTION, "answer": "A"})
    about = {"subject": "virology", "answer": "B"}
    path = write(
        tmp_path / "mmlu_redux/r.jsonl",
        {"id": "0", **about, "error_type": "ok", "mmlu_id": "q/0"},
        {"id": "1", **about, "error_type": "bad_question_clarity", "mmlu_id": "q/0"},
        {"id": "2", **about, "error_type": "ok", "question": "Own?", "choices": ["x", "y"]},
    )
    first, second = knowledge.mmlu_redux(path)
    assert "Why?" in first["prompt"] and "- (B) b {}" in first["prompt"]
    assert first["prompt"].endswith('"answer": "___"\n}\n```') and first["answer"] == "B"
    assert "Own?" in second["prompt"] and second["options"] == 2
    write(tmp_path / "mmlu_redux/r.jsonl", {"id": "0", **about, "error_type": "ok", "mmlu_id": "z"})
    with pytest.raises(DataError, match="has no question 'z'"):
        knowledge.mmlu_redux(path)


def test_cluewsc(tmp_path: Path) -> None:
    target = {"span1_text": "猫", "span1_index": 0, "span2_text": "它", "span2_index": 4}
    path = write(
        tmp_path / "c.jsonl",
        {"id": 1, "text": "猫来了，它饿了。", "target": target, "label": "true"},
        {"id": 2, "text": "猫来了，它饿了。", "target": target, "label": "false"},
    )
    yes, no = knowledge.cluewsc(path)
    assert "第5个字处的“它”指的是“猫”" in yes["prompt"]
    assert (yes["answer"], no["answer"]) == ("A", "B")
    with pytest.raises(DataError, match='with a "label" of true or false'):
        knowledge.cluewsc(write(tmp_path / "c.jsonl", {"text": "x", "target": {}, "label": "?"}))


@pytest.mark.skipif(shutil.which("zip") is None, reason="zip makes the encrypted archive")
def test_gpqa_encrypted(tmp_path: Path) -> None:
    """The authors' password opens it in memory; another says so; nothing is unpacked."""
    (tmp_path / "in").mkdir()
    keys = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3"
    (tmp_path / "in/gpqa_diamond.csv").write_text(f"{keys}\nWhy?,right,w1,w2,w3\n")
    for name, password in (("good", knowledge.PASSWORD.decode()), ("bad", "other")):
        command = ["zip", "-qr", "-P", password, f"{name}.zip", "in"]
        subprocess.run(command, cwd=tmp_path, check=True)
    before = sorted(tmp_path.rglob("*"))
    (row,) = knowledge.gpqa(str(tmp_path / "good.zip"))
    assert f"{row['answer']}) right" in row["prompt"]
    with pytest.raises(DataError, match="cannot be read: Bad password"):
        knowledge.gpqa(str(tmp_path / "bad.zip"))
    assert sorted(tmp_path.rglob("*")) == before


def test_gpqa(tmp_path: Path) -> None:
    """From the csv, and from a zip that holds it; the options are shuffled, the same each time."""
    keys = [
        "Record ID",
        "Question",
        "Correct Answer",
        *(f"Incorrect Answer {i}" for i in (1, 2, 3)),
    ]
    keys.append("High-level domain")
    text = io.StringIO()
    writer = csv.DictWriter(text, keys)
    writer.writeheader()
    for i in range(20):
        values = [f"r{i}", f"Question\n{i}?", "right", "w1", "w2", "w3", "Physics"]
        writer.writerow(dict(zip(keys, values, strict=True)))
    (tmp_path / "gpqa_diamond.csv").write_text(text.getvalue())
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("dataset/gpqa_diamond.csv", text.getvalue())
    rows = knowledge.gpqa(str(tmp_path / "gpqa_diamond.csv"))
    assert knowledge.gpqa(str(tmp_path / "d.zip")) == rows
    assert len({row["answer"] for row in rows}) == 4
    for row in rows:
        assert f"{row['answer']}) right" in row["prompt"]
        assert (row["id"][0], row["category"]) == ("r", "Physics")
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("other.csv", "")
    with pytest.raises(DataError, match=r"has no gpqa_diamond\.csv; it has \['other\.csv'\]"):
        knowledge.gpqa(str(tmp_path / "e.zip"))
    (tmp_path / "gpqa_diamond.csv").write_text("Question\nWhy?\n")
    with pytest.raises(DataError, match="question 1 has no column 'Correct Answer'"):
        knowledge.gpqa(str(tmp_path / "gpqa_diamond.csv"))


@pytest.mark.parametrize("name", ["mmlu", "mmlu_redux", "mmlu_pro", "ceval", "cluewsc"])
def test_gold_and_wrong_answers(name: str) -> None:
    """Of every row that is here: the reference in the form asked for, and the next letter."""
    if not (SHARED / KINDS[name].file).exists():
        pytest.skip("its file is not here")
    config = section(BenchmarkConfig, benchmark(name, str(SHARED)), name)
    found = finite_examples(config.data, name)
    assert len(found) == KINDS[name].problems
    for one in found[:: 1 + len(found) // 2_000]:
        say, options = FORMS[one.task], int(one.metadata["options"])
        wrong = chr(65 + (ord(one.answer) - 65 + 1) % options)
        assert earned(one, f"<think>{say(wrong)}</think> {say(one.answer)}") == [1, 1]
        assert earned(one, f"<think>{say(one.answer)}</think> {say(wrong)}") == [0, 0]
