"""Preference files, pairs from a judge, chat models behind a server, and the stage."""

import contextlib
import json
import random
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import sft_config
from ml_collections import ConfigDict

from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import DataConfig
from r1jax.judges import preferences
from r1jax.judges.chat_model import ChatModelConfig, open_chat_model
from r1jax.judges.preferences import judge_messages, judge_pairs, length_matched, verdict_of
from r1jax.machines import hosts
from r1jax.stages import preferences as stage
from r1jax.stages import sft


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# -- files -----------------------------------------------------------------------------------------

START = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A joke?\n\nAssistant:"
TWICE = "\n\nHuman: 1\n\nHuman: 2\n\nAssistant: "


def test_hh(tmp_path: Path) -> None:
    rows = [
        {"chosen": START + " No.", "rejected": START + " Yes.\n\nIt is long."},
        {"chosen": START + " Same.", "rejected": START + " Same."},
        {"chosen": START + " A\n\nHuman: B\n\nAssistant: C", "rejected": START + " D"},
        {"chosen": TWICE + "3", "rejected": TWICE + "4"},
    ]  # fmt: skip
    path = write(tmp_path / "hh.jsonl", rows)
    first, second = preferences.hh(path)
    assert first == {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "A joke?"},
        ],
        "chosen": "No.",
        "rejected": "Yes.\n\nIt is long.",
    }
    assert second["messages"] == [{"role": "user", "content": "1\n\n2"}]


def test_bad_hh(tmp_path: Path) -> None:
    path = write(tmp_path / "hh.jsonl", [{"chosen": START + " A", "rejected": "\n\nHuman: only"}])
    with pytest.raises(DataError, match="hh.jsonl:1: rejected: the transcript does not end"):
        preferences.hh(path)
    with pytest.raises(DataError, match="hh.jsonl:1: chosen is NoneType, not a transcript"):
        preferences.hh(write(tmp_path / "hh.jsonl", [{"rejected": "x"}]))


def test_sharegpt(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
        ],
        "chosen": {"from": "gpt", "value": "Hi."},
        "rejected": {"from": "gpt", "value": "Hello there."},
    }
    (pair,) = preferences.sharegpt(write(tmp_path / "a.jsonl", [row]))
    assert [m["role"] for m in pair["messages"]] == ["system", "user"]
    assert (pair["chosen"], pair["rejected"]) == ("Hi.", "Hello there.")
    with pytest.raises(DataError, match="a.jsonl:1 is no ShareGPT pair"):
        preferences.sharegpt(write(tmp_path / "a.jsonl", [{"conversations": [{"from": "me"}]}]))


ANSWERS = {"chosen": "a", "rejected": "b"}


def test_fitting(tmp_path: Path, tokenizer_dir: str) -> None:
    rows = [
        {key: f"\n\nHuman: {i}\n\nAssistant: {letter * n}" for key, letter in ANSWERS.items()}
        for i, n in enumerate((5, 100, 5, 5))
    ]
    path = write(tmp_path / "hh.jsonl", rows)
    settings: Any = {"tokenizer": tokenizer_dir, "max_tokens": 40, "template": "plain"}
    hh = ("r1jax.judges.preferences:hh", {"path": path})

    def questions(start: int, count: int) -> list[str]:
        found = preferences.fitting(*hh, start=start, count=count, **settings)
        return [row["messages"][0]["content"] for row in found]

    assert questions(0, 3) == ["0", "2", "3"]
    assert questions(1, 2) == ["2", "3"]
    with pytest.raises(DataError, match="3 pairs .* have at most 40 tokens, fewer than start 2"):
        questions(2, 2)


# -- pairs from a judge ----------------------------------------------------------------------------


class FakeJudge:
    """Prefers the higher number, by how much it is higher."""

    def __init__(self, noise: float = 0.0) -> None:
        self.asked: list[tuple[int, int]] = []
        self._noise, self._rng = noise, random.Random(0)

    def __call__(self, conversations: Sequence[list[Any]]) -> list[str]:
        return [self._say(messages[0]["content"]) for messages in conversations]

    def _say(self, text: str) -> str:
        a, b = (int(text.split(f"<|assistant {x}|>\n")[1].split()[0]) for x in "AB")
        self.asked.append((a, b))
        if self._rng.random() < self._noise:
            return "I cannot say."
        names = {2: "A>>B", 1: "A>B", 0: "A=B", -1: "B>A", -2: "B>>A"}
        return f"At first [[A=B]], but no: [[{names[max(-2, min(2, a - b))]}]]"


def candidate(first: str, second: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Q {a} {b}"}], "responses": [first, second]}


def test_only_sure_verdicts_are_kept() -> None:
    judge = FakeJudge()
    rows = [candidate("5", "1"), candidate("1", "9"), candidate("2", "1"), candidate("3", "3")]
    pairs, statistics = judge_pairs(rows, judge, seed=0)
    assert [(p["chosen"], p["rejected"], p["delta"]) for p in pairs] == [
        ("5", "1", 2),
        ("9", "1", -2),
    ]
    assert (statistics.candidates, statistics.undecided, statistics.kept) == (4, 2, 2)
    assert len(judge.asked) == 16
    assert len(set(judge.asked[:4])) == len(set(judge.asked[4:8])) == 2  # both orders were shown
    assert judge_pairs(rows, FakeJudge(), seed=0)[0] == pairs


def test_a_judge_that_says_nothing() -> None:
    pairs, statistics = judge_pairs([candidate("5", "1")] * 3, FakeJudge(noise=1.0), seed=0)
    assert pairs == [] and statistics.unparsed == 12 and statistics.undecided == 3
    pairs, statistics = judge_pairs([candidate("5", "1")] * 30, FakeJudge(noise=0.3), seed=0)
    assert len(pairs) == 30 and 20 < statistics.unparsed < 60  # the mean of those that say


def test_a_judge_that_prefers_the_first() -> None:
    """The random order makes its verdicts cancel, on the whole."""
    rows = [candidate("same", "same2") for _ in range(200)]
    _, statistics = judge_pairs(rows, lambda asked: ["[[A>>B]]"] * len(asked), seed=1)
    assert statistics.undecided > 160  # all four in one order: one in eight


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[A>>B]]", 2), ("[[A>B]]", 1), ("so [[A=B]].", 0), ("[[B>A]]", -1), ("[[B>>A]]", -2),
        ("[[A>B]] no, [[B>A]]", -1), ("A>B", None), ("[[C>A]]", None), ("", None),
    ],
)  # fmt: skip
def test_verdict_of(text: str, expected: int | None) -> None:
    assert verdict_of(text) == expected


def test_the_judge_sees_text_as_it_is() -> None:
    (message,) = judge_messages(candidate("", "")["messages"], "x {b} {question}", "y {a}")
    assert "<|assistant A|>\nx {b} {question}\n<|end of A|>" in message["content"]
    assert "<|assistant B|>\ny {a}\n<|end of B|>" in message["content"]
    assert "<|user|>\nQ {a} {b}\n" in message["content"]


def test_length_matched() -> None:
    rng = random.Random(0)
    pairs = [
        {"chosen": "c" * rng.randrange(50, 200), "rejected": "r" * rng.randrange(20, 150)}
        for _ in range(200)
    ]
    kept = length_matched(pairs)
    chosen, rejected = (sum(len(row[key]) for row in kept) for key in ("chosen", "rejected"))
    assert abs(chosen - rejected) <= 0.05 * (chosen + rejected) / 2
    assert 100 < len(kept) < 200
    assert [row for row in pairs if any(row is k for k in kept)] == kept  # the order stays
    assert length_matched(kept) == kept
    turned = [{"chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    assert len(length_matched(turned)) == len(kept)
    assert length_matched([]) == []


# -- behind a server -------------------------------------------------------------------------------


@contextlib.contextmanager
def server(*errors: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Answers with the number of the last message's characters, after these HTTP errors."""
    requests: list[dict[str, Any]] = []
    waiting = list(errors)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body | {"path": self.path, "auth": self.headers["Authorization"]})
            code = waiting.pop(0) if waiting else 200
            said = f"{len(body['messages'][-1]['content'])} [[A>>B]]"
            reply = {"choices": [{"message": {"role": "assistant", "content": said}}]}
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(reply if code == 200 else {"no": code}).encode())

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", requests
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def ask(url: str, *texts: str, **changes: Any) -> list[str]:
    config = ChatModelConfig(endpoint=url, name="judge", **changes)
    return open_chat_model(config)([[{"role": "user", "content": text}] for text in texts])


def test_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with server() as (url, requests):
        assert ask(url, "a", "bb", "ccc", seed=5) == [f"{n} [[A>>B]]" for n in (1, 2, 3)]
    assert {r["path"] for r in requests} == {"/v1/chat/completions"}
    assert {r["auth"] for r in requests} == {"Bearer secret"}
    assert sorted(r["seed"] for r in requests) == [5, 6, 7]
    assert requests[0]["model"] == "judge" and requests[0]["temperature"] == 0.6


def test_the_first_of_several_processes_asks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "of_first_process", lambda mine: [["what the first was told"], None])
    with server() as (url, requests):
        assert ask(url, "a") == ["what the first was told"]
    assert not requests


def test_a_busy_endpoint_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("r1jax.judges.server.time.sleep", waits.append)
    with server(429, 503) as (url, requests):
        assert ask(url, "a") == ["1 [[A>>B]]"]
    assert len(requests) == 3 and waits == [1.0, 2.0]
    with server(400) as (url, requests), pytest.raises(ConfigError, match="HTTP 400"):
        ask(url, "a")
    assert len(requests) == 1
    with pytest.raises(ConfigError, match="does not answer"):
        ask("http://127.0.0.1:9/v1", "a")


def test_one_of_two() -> None:
    with pytest.raises(ConfigError, match="exactly one of path and endpoint"):
        open_chat_model(ChatModelConfig())
    with pytest.raises(ConfigError, match="exactly one of path and endpoint"):
        open_chat_model(ChatModelConfig(path="a", endpoint="b"))


# -- the stage -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_device")
def test_stage(tokenizer_dir: str, tmp_path: Path) -> None:
    """A local model answers twice, a server judges; the second start does nothing."""
    sft.run(sft_config(tokenizer_dir, total_steps=1), str(tmp_path / "model"))
    prompts = [{"prompt": f"{i} + 1 ="} for i in range(4)]
    sampling = {"max_tokens": 6, "temperature": 1.0, "top_p": 1.0}
    policy = {"path": str(tmp_path / "model"), "template": "plain", "sampling": sampling}
    with server() as (url, requests):
        config = ConfigDict(
            {
                "stage": "preferences",
                "data": {"path": write(tmp_path / "prompts.jsonl", prompts)},
                "policy": policy,
                "judge": {"endpoint": url, "name": "j"},
            }
        )
        stage.run(config, str(tmp_path / "run"))
        assert len(requests) == 16
        stage.run(config, str(tmp_path / "run"))
        assert len(requests) == 16
    candidates = [
        json.loads(x) for x in (tmp_path / "run/candidates.jsonl").read_text().splitlines()
    ]
    assert [row["messages"][0]["content"] for row in candidates] == [p["prompt"] for p in prompts]
    assert all(len(row["responses"]) == 2 for row in candidates)
    assert any(row["responses"][0] != row["responses"][1] for row in candidates)
    statistics = json.loads((tmp_path / "run/statistics.json").read_text())
    assert (
        statistics["candidates"]
        == 4
        == statistics["undecided"] + statistics["kept"] + statistics["length"]
    )
    with pytest.raises(ConfigError, match="another config"):
        stage.run(ConfigDict(config.to_dict() | {"seed": 1}), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "?", "responses": "ab"}, "responses 'ab' are not two texts"),
        ({"prompt": "?", "responses": ["a"]}, "are not two texts"),
        ({"prompt": "?", "responses": ["a", None]}, "are not two texts"),
        ({"prompt": "?", "responses": ["a", "b", "c"]}, "are not two texts"),
        ({"prompt": "?", "system": "Be brief."}, "'system' would not be asked"),
        ({"messages": [], "responses": ["a", "b"]}, "no messages and no prompt"),
        (5, "the row is int, expected an object"),
    ],
)
def test_rows_that_cannot_be_judged(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stage._candidate(row, DataConfig(path="p.jsonl"))


def test_stage_without_responses(tmp_path: Path) -> None:
    data = {"path": write(tmp_path / "p.jsonl", [{"prompt": "?"}])}
    config = ConfigDict({"stage": "preferences", "data": data, "judge": {"endpoint": "http://x"}})
    with pytest.raises(ConfigError, match="config.policy must be set"):
        stage.run(config, str(tmp_path / "run"))
