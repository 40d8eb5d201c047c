"""Rejection sampling, what a rewriter does, the mixed SFT set and its decontamination."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import MODEL, read_lines
from ml_collections import ConfigDict

from experiments.mini.world.rewriter import rewrite_mini
from experiments.smollm2.chain_sums import rewrite_boxed
from r1jax.config import ConfigError, DataError
from r1jax.data.decontaminate import Benchmarks
from r1jax.judges.prompts import JUDGE_PROMPT, WRITER_PROMPT, ask, is_correct
from r1jax.rewards import load_rewards, score
from r1jax.rollout.sampler import Sampler
from r1jax.stages import mixture, rejection
from r1jax.types import Example

PROBLEMS = "experiments.mini.world.problems:problems"


def reasoning(text: str, language: str = "en") -> Example:
    return Example(
        "1", ({"role": "user", "content": text},), "46", "integer", {"language": language}
    )


# -- the stage -------------------------------------------------------------------------------------


def config(tokenizer: str, **changes: Any) -> ConfigDict:
    values = {
        "stage": "rejection",
        "model": {"config": dict(MODEL), "tokenizer": tokenizer},
        "data": {
            "function": PROBLEMS,
            "args": {"seed": 0, "split": "train", "levels": [1], "count": 6},
        },
        "minimum": {"helpers:ascii_share": 0.5},
        "num_samples": 4,
        "per_prompt": 2,
        "template": "plain",
        "max_prompt_tokens": 48,
        "sampling": {"max_tokens": 8, "temperature": 1.0, "top_p": 1.0},
        "portion": 4,
        "engine": {"slots": 16, "chunk": 8, "bucket": 64, "prefill_batch": 4},
        "graders": {"workers": 0},
    }
    return ConfigDict(values | changes)


def shout(example: Example, text: str) -> str | None:
    return None if len(text) % 2 else f"A{text}"


def test_what_stays_and_what_is_counted(tokenizer_dir: str, tmp_path: Path) -> None:
    rejection.run(config(tokenizer_dir), str(tmp_path))
    rows = read_lines(tmp_path / "data.jsonl")
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    fates = statistics["completions_by_fate"]
    assert sum(fates.values()) == statistics["completions"] == 24
    assert statistics["questions"] == 6
    rollouts = [r for f in sorted(tmp_path.glob("rollouts/*/0.jsonl")) for r in read_lines(f)]
    assert statistics["completion_tokens"] == sum(r["length"] for r in rollouts) > 24
    assert len(rows) == fates["kept"] == sum(statistics["rows_by_domain"].values()) > 0
    good = {}
    for rollout in rollouts:
        if rollout["reward_breakdown"]["helpers:ascii_share"] >= 0.5:
            texts = good.setdefault(rollout["example_id"], [])
            if rollout["text"] not in texts and len(texts) < 2:
                texts.append(rollout["text"])
    assert (
        fates["helpers:ascii_share"]
        == sum(r["reward_breakdown"]["helpers:ascii_share"] < 0.5 for r in rollouts)
        > 0
    )
    found: dict[str, list[str]] = {}
    for row in rows:
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
        found.setdefault(row["id"].rpartition("/")[0], []).append(row["messages"][-1]["content"])
    assert found == good


def test_a_killed_run_goes_on_where_it_was(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejection.run(config(tokenizer_dir), str(tmp_path / "whole"))
    rejection.run(config(tokenizer_dir), str(tmp_path / "cut"))
    for name in ("statistics.json", "data.jsonl", "kept/000001.jsonl", "kept/000000.jsonl"):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut/rollouts/000001/complete.json").unlink()  # killed while the second was sampled
    sampled = []
    original = Sampler.sample
    monkeypatch.setattr(
        Sampler, "sample", lambda *args: (sampled.append(len(args[2].prompts)), original(*args))[1]
    )
    rejection.run(config(tokenizer_dir), str(tmp_path / "cut"))
    assert sampled == [2]
    for name in ("statistics.json", "data.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ConfigError, match="another config"):
        rejection.run(config(tokenizer_dir, seed=1), str(tmp_path / "cut"))
    rejection.run(config(tokenizer_dir), str(tmp_path / "cut"))
    assert sampled == [2]


def test_a_rewriter_and_a_judge(
    tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def judge(conversations: list[Any]) -> list[str]:
        asked.extend(conversations)
        return [
            json.dumps({"correctness": "correct" if i % 3 else "incorrect"})
            for i in range(len(conversations))
        ]

    monkeypatch.setattr(rejection, "open_chat_model", lambda config, mesh: judge)
    changes = {"rewriter": "test_rejection:shout", "judge": {"endpoint": "http://x"}, "portion": 6}
    rejection.run(config(tokenizer_dir, per_prompt=4, **changes), str(tmp_path))
    fates = json.loads((tmp_path / "statistics.json").read_text())["completions_by_fate"]
    assert sum(fates.values()) == 24
    assert fates["judged wrong"] == (len(asked) + 2) // 3 > 0
    assert fates["rewriting failed"] > 0
    rows = read_lines(tmp_path / "data.jsonl")
    assert rows and all(row["messages"][-1]["content"].startswith("A") for row in rows)
    assert all(len(row["messages"][-1]["content"]) % 2 and row["rewritten"] for row in rows)


def test_nothing_left_is_an_error_that_says_why(tokenizer_dir: str, tmp_path: Path) -> None:
    never = config(tokenizer_dir, minimum={"helpers:ascii_share": 0.0, "format": 1.0})
    for _ in range(2):  # the second start samples nothing and says the same
        with pytest.raises(DataError, match="none of the completions is a row; .* 24 format"):
            rejection.run(never, str(tmp_path))
    assert not (tmp_path / "data.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"minimum": {"accuracy": "high"}}, "'accuracy' must reach 'high', which is no number"),
        ({"minimum": {"acuracy": 1.0}}, "reward 'acuracy' is neither"),
        ({"rewriter": "a:b", "writer": {"endpoint": "x"}}, "at most one of them"),
        ({"data": {"function": PROBLEMS, "args": {"seed": 0, "split": "train"}}},
         "config.data.limit must be set"),
    ],
)  # fmt: skip
def test_mistakes(tokenizer_dir: str, tmp_path: Path, changes: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        rejection.run(config(tokenizer_dir, **changes), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


# -- writer and judge ------------------------------------------------------------------------------


def test_what_the_writer_is_asked_for_passes_the_minima() -> None:
    tags = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{{}}")
    assert [tag for tag in tags if tag not in WRITER_PROMPT] == []
    places = [WRITER_PROMPT.index(tag) for tag in tags]
    assert places == sorted(places)
    text = "<think> I add 3 and 4. </think> <answer> The sum is \\boxed{7}. </answer>"
    asked = Example("x", (), "7", "integer", {})
    scored = score(load_rewards({"accuracy": 1, "format": 1}), asked, text, 9, "stop")
    assert scored.breakdown == {"accuracy": 1.0, "format": 1.0}


def test_prompts_keep_braces_in_texts() -> None:
    (message,) = ask(WRITER_PROMPT, "{text} {{1}}", "{answer}", "no")
    assert message["content"].endswith("<|question|>\n{text} {{1}}\n\n<|trace|>\n{answer}")
    assert "\\boxed{}" in message["content"]
    (message,) = ask(JUDGE_PROMPT, "q", "t", "a")
    assert '{"analysis": "...", "correctness"' in message["content"]
    assert message["content"].endswith("q\n\n<|reference|>\na\n\n<|prediction|>\nt")


@pytest.mark.parametrize(
    ("said", "correct"),
    [
        ('{"analysis": "same", "correctness": "correct"}', True),
        ('```json\n{"analysis": "a {b}", "correctness": "incorrect"}\n```', False),
        ('It is { so "correctness": "correct"', True),
        ("correct", False),
        ("[1]", False),
    ],
)
def test_verdicts(said: str, correct: bool) -> None:
    assert is_correct(said) is correct


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", " <think> Step by step: 1+2=3; 3+4=7. </think> <answer> 7 </answer>",
         " <think> I go step by step: 1+2=3; 3+4=7. </think> <answer> 7 </answer>"),
        ("zh", " <think> Step by step: 1+2=3. Wait, check: 2+1=3. </think> <answer> 3</answer>",
         " <think> 我一步一步算：1+2=3. 等等，检查：2+1=3. </think> <answer> 3 </answer>"),
        ("en", " <think> 一步一步：1+2=3。等等，检查：2+1=3。</think> <answer> 3 </answer>",
         " <think> I go step by step: 1+2=3。Wait, check: 2+1=3。 </think> <answer> 3 </answer>"),
        ("en", " <think> I think it is 7. </think> <answer> 7 </answer>", None),
        ("en", " <think> Step by step: </think> <answer> 7 </answer>", None),
        ("en", "Step by step: 1+2=3 <answer> 3 </answer>", None),
    ],
)  # fmt: skip
def test_mini_rewriter(language: str, text: str, expected: str | None) -> None:
    assert rewrite_mini(reasoning("1+2?", language), text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6 + 30 = 36. 36 - 5 = 31. The answer is \\boxed{31}.",
         "<think> 6 + 30 = 36. 36 - 5 = 31. </think> <answer> 31 </answer>"),
        ("It costs 2.50 dollars! So \\boxed{2.50}",
         "<think> It costs 2.50 dollars! </think> <answer> 2.50 </answer>"),
        ("The answer is \\boxed{31}.", None),  # no steps
        ("6 + 30 = 36. The answer is 36.", None),
        ("6 + 30 = 36. It is \\boxed{36} or \\boxed{37}.", None),
        ("So \\boxed{36}. Then \\boxed{36}.", None),
        ("<think> 6 + 30 = 36. </think> \\boxed{36}", None),
    ],
)  # fmt: skip
def test_boxed_answers_become_thoughts_and_answer(text: str, expected: str | None) -> None:
    assert rewrite_boxed(reasoning("1+2?", "en"), text) == expected


# -- decontamination and the mixed set -------------------------------------------------------------

LONG = "one two three four five six seven eight nine ten eleven"


def row(question: str, answer: str = "x") -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": r, "content": c} for r, c in zip(roles, (question, answer), strict=True)
        ]
    }


def test_ten_words_in_a_row_are_a_match() -> None:
    found = Benchmarks([reasoning(LONG), reasoning("What is 1+2?")])
    assert found.meets(row("Zero. ONE two, three four five six seven eight nine (ten)!"))
    assert found.meets(row("no", "so " + LONG))
    assert found.meets({"text": LONG})
    assert not found.meets(row("two three four five six seven eight nine ten twelve"))
    assert found.meets(row("what is  1+2?"))
    assert not found.meets(row("What is 1-2?"))
    assert not found.meets(row("So: what is 1+2?"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_mixture(tokenizer_dir: str, tmp_path: Path) -> None:
    math = [row(f"What is {i}+{i}?", str(2 * i)) | {"domain": "math"} for i in range(5)]
    math[0]["messages"] = [*math[0]["messages"], *math[0]["messages"]]
    held = [{"prompt": "What is 3+3?", "answer": "6", "task": "integer"}]
    values = {
        "stage": "mixture",
        "sources": {
            "math": {"data": {"path": write(tmp_path / "math.jsonl", math)}},
            "talk": {
                "data": {
                    "path": write(tmp_path / "talk.jsonl", [row("Hello") | {"domain": "math"}])
                },
                "domain": "general",  # instead of the row's own
            },
        },
        "tokenizer": tokenizer_dir,
        "template": "plain",
        "benchmarks": {"held": {"path": write(tmp_path / "held.jsonl", held)}},
    }
    with pytest.raises(DataError, match="this template takes one user message"):
        mixture.run(ConfigDict(values), str(tmp_path / "run"))
    math[0] = row("What is 0+0?", "0") | {"domain": "math"}
    write(tmp_path / "math.jsonl", math)
    mixture.run(ConfigDict(values), str(tmp_path / "run"))
    rows = read_lines(tmp_path / "run/data.jsonl")
    statistics = json.loads((tmp_path / "run/statistics.json").read_text())
    assert statistics["sources"]["math"] == {"rows": 4, "contaminated": 1}
    assert statistics["domains"]["Total"]["samples"] == len(rows) == 5
    assert statistics["domains"]["general"]["samples"] == 1
    assert statistics["domains"]["math"]["rounds"] == 1.0
    mean = sum(r["tokens"] for r in rows) / 5
    assert statistics["domains"]["Total"]["tokens"] == pytest.approx(mean)
    questions = [r["messages"][0]["content"] for r in rows]
    assert "What is 3+3?" not in questions
    assert questions != sorted(questions)  # shuffled


def test_mixture_mistakes(tokenizer_dir: str, tmp_path: Path) -> None:
    def run(rows: list[dict[str, Any]]) -> None:
        source = {"data": {"path": write(tmp_path / "rows.jsonl", rows)}}
        values = {
            "stage": "mixture",
            "sources": {"s": source},
            "tokenizer": tokenizer_dir,
            "template": "plain",
        }
        mixture.run(ConfigDict(values), str(tmp_path / "run"))

    with pytest.raises(DataError, match=r"rows.jsonl:1: the row has no domain"):
        run([row("a")])
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: an SFT row needs the key messages or text; it has prompt"
    ):
        run([{"prompt": "a"}])
    assert not (tmp_path / "run/data.jsonl").exists()
