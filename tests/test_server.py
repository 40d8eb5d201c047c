"""Models behind OpenAI's protocol: what is asked of them, and what is done where they fail."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import read_lines
from ml_collections import ConfigDict

from r1jax.benchmarks import respondents
from r1jax.benchmarks.catalog import benchmark
from r1jax.config import ConfigError
from r1jax.evaluate import read_config
from r1jax.judges import server
from r1jax.judges.chat_model import ChatModelConfig
from r1jax.judges.server import NoReply, ServerConfig, complete
from r1jax.machines.preemption import Stopped
from r1jax.rollout.sampling import SamplingConfig
from r1jax.stages import evaluate

SAMPLING = SamplingConfig(max_tokens=7, temperature=0.6, top_p=0.95, stop=("END",))
MESSAGES = [{"role": "user", "content": "1 + 1 = "}]


def chat(content: Any, finish: str = "stop", **message: Any) -> bytes:
    choice = {"message": {"content": content, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 5}}).encode()


@dataclass
class Fake:
    """Answers by `reply(body, number of the request) -> (status, headers, content)`."""

    reply: Callable[[dict[str, Any], int], tuple[int, dict[str, str], bytes]]
    url: str = ""
    asked: list[tuple[str, dict[str, Any], Any]] = field(default_factory=list)


@pytest.fixture
def fake() -> Iterator[Fake]:
    found = Fake(lambda body, number: (200, {}, chat("2")))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append((self.path, body, self.headers))
            status, headers, content = found.reply(body, len(found.asked))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{http.server_port}/v1/"
    yield found
    http.shutdown()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(server.time, "sleep", waited.append)
    return waited


def test_what_is_asked(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    config = ServerConfig(name="r1", key_variable="A_KEY")
    assert complete(fake.url, config, MESSAGES, SAMPLING, 3).text == "2"
    ((path, body, headers),) = fake.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "r1", "messages": MESSAGES, "max_tokens": 7, "temperature": 0.6, "top_p": 0.95,
        "seed": 3, "stop": ["END"],
    }  # fmt: skip


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thoughts_may_come_apart(fake: Fake, key: str) -> None:
    fake.reply = lambda body, number: (200, {}, chat("2", "length", **{key: "one and one"}))
    reply = complete(fake.url, ServerConfig(), MESSAGES, SAMPLING, 0)
    assert reply.text == "<think>one and one</think>2"
    assert (reply.tokens, reply.finish_reason) == (5, "length")


def test_a_busy_server_is_asked_again(fake: Fake, no_waiting: list[float]) -> None:
    """After as long as it says, or longer and longer."""
    said = {1: (429, {"Retry-After": "17"}), 2: (503, {}), 3: (500, {"Retry-After": "soon"})}
    fake.reply = lambda body, number: (*said.get(number, (200, {})), chat("2"))
    assert complete(fake.url, ServerConfig(), MESSAGES, SAMPLING, 0).content == "2"
    assert no_waiting == [17.0, 2.0, 4.0]
    fake.reply = lambda body, number: (503, {"Retry-After": "100000"}, b"full")
    with pytest.raises(NoReply, match="does not answer: HTTP 503: full"):
        complete(fake.url, ServerConfig(), MESSAGES, SAMPLING, 0)
    assert no_waiting[3:] == [server.LONGEST_PAUSE] * 4


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"no", b'{"choices": []}', b'{"choices": [{"message": null}]}']
)
def test_no_chat_completion(fake: Fake, content: bytes) -> None:
    fake.reply = lambda body, number: (200, {}, content)
    with pytest.raises(NoReply, match="answered with no chat completion"):
        complete(fake.url, ServerConfig(), MESSAGES, SAMPLING, 0)


def test_wrong_requests_are_not_repeated(fake: Fake, no_waiting: list[float]) -> None:
    fake.reply = lambda body, number: (400, {}, b"max_tokens is too large")
    with pytest.raises(NoReply, match="HTTP 400: max_tokens is too large"):
        complete(fake.url, ServerConfig(), MESSAGES, SAMPLING, 0)
    assert len(fake.asked) == 1
    with pytest.raises(NoReply, match="does not answer"):
        complete("http://127.0.0.1:9/v1", ServerConfig(), MESSAGES, SAMPLING, 0)


def test_a_server_that_stalls(fake: Fake, no_waiting: list[float]) -> None:
    ended = threading.Event()
    fake.reply = lambda body, number: (200, {}, b"" * ended.wait(5))
    with pytest.raises(NoReply, match="does not answer: timed out"):
        complete(fake.url, ServerConfig(timeout_s=0.05), MESSAGES, SAMPLING, 0)
    ended.set()


def config(fake: Fake, tmp_path: Path, **changes: Any) -> evaluate.EvaluateConfig:
    rows = [{"prompt": f"{i} + 1 = ", "answer": str(i + 1), "task": "integer"} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(tmp_path / "sums.jsonl")}
    one = {"data": data, "num_samples": 3, "sampling": {"max_tokens": 9}}
    values = {"benchmarks": {"sums": one}, "model": fake.url, "server": {"name": "m"}}
    return read_config(ConfigDict(values | changes))


def test_an_evaluation(fake: Fake, tmp_path: Path) -> None:
    """It fails in the middle; the same command asks for what is missing, each with its seed."""
    begun: Counter[int] = Counter()

    def reply(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], bytes]:
        begun[body["seed"]] += 1
        if number == 6:
            return 400, {}, b"no more money"
        number_asked = int(body["messages"][-1]["content"].split()[0])
        time.sleep(0.01)
        text = f"<answer>{number_asked + (body['seed'] % 2)}</answer>"
        return 200, {}, chat(text, reasoning_content="so")

    fake.reply = reply
    asked = config(fake, tmp_path)
    asked = evaluate.replace(asked, server=ServerConfig(name="m", parallel=1))
    with pytest.raises(NoReply, match=r"sums\.jsonl:2: http.*: HTTP 400: no more money"):
        evaluate.evaluate(asked, tmp_path / "w")
    assert len(read_lines(tmp_path / "w/sums.partial.jsonl")) == 5
    found = evaluate.evaluate(asked, tmp_path / "w")["sums"]
    rows = read_lines(tmp_path / "w/sums.jsonl")
    assert len(rows) == 12 and len(begun) == 12
    right = [row["text"].endswith(f"<answer>{row['answer']}</answer>") for row in rows]
    assert found["pass@1"] == pytest.approx(sum(right) / 12)
    assert found["length"] == 5
    results = json.loads((tmp_path / "w/results.json").read_text())
    assert results["model"] == f"{fake.url} m"

    again = evaluate.evaluate(evaluate.replace(asked, server=ServerConfig("m")), tmp_path / "again")
    assert again["sums"] == found  # whatever the order in which they come


def test_who_is_stopped_does_not_wait(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that run still are left alone; what has come is kept."""
    release = threading.Event()

    def reply(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], bytes]:
        if number > 3:
            release.wait(20)
        return 200, {}, chat("<answer>1</answer>")

    def stop_if_asked() -> None:
        if len(fake.asked) > 4:
            raise Stopped

    fake.reply = reply
    monkeypatch.setattr(respondents, "stop_if_asked", stop_if_asked)
    monkeypatch.setattr(respondents, "LOOK", 0.05)
    asked = evaluate.replace(config(fake, tmp_path), server=ServerConfig(parallel=2))
    began = time.monotonic()
    with pytest.raises(Stopped):
        evaluate.evaluate(asked, tmp_path / "w")
    assert time.monotonic() - began < 10
    assert len(read_lines(tmp_path / "w/sums.partial.jsonl")) == 3
    release.set()
    monkeypatch.undo()
    assert evaluate.evaluate(asked, tmp_path / "w")["sums"]["problems"] == 4


class Judge:
    """Right is who says Paris; says nonsense first, and always of Rome; dies once."""

    def __init__(self, dies_at: int = 0) -> None:
        self.asked, self.dies_at = Counter[str](), dies_at

    def __call__(self, body: dict[str, Any], number: int) -> tuple[int, dict[str, str], bytes]:
        said = body["messages"][-1]["content"]
        if body["model"] == "m":
            city = ("Paris", "Rome", "Oslo")[int(said[-2])]
            return 200, {}, chat(f"<think>Grade: A</think>It is {city}. Grade: A")
        city = next(city for city in ("Paris", "Rome", "Oslo") if f"It is {city}" in said)
        self.asked[city] += 1
        if sum(self.asked.values()) == self.dies_at:
            return 401, {}, b"the key has expired"
        if city == "Rome" or self.asked[city] == 1:
            return 200, {}, chat("Well.")
        return 200, {}, chat("A" if city == "Paris" else "B")


@pytest.mark.parametrize("dies_at", [0, 5])
def test_a_judge_decides(fake: Fake, tmp_path: Path, dies_at: int) -> None:
    """What it says is written down, asked for again where it cannot be read, and kept if it dies;
    another judge is refused, and what was said is read again without one.
    """
    fake.reply = judge = Judge(dies_at)
    (tmp_path / "simpleqa").mkdir()
    rows = [{"id": i, "problem": f"Which city is number {i}?", "answer": "Paris"} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "simpleqa/simpleqa.jsonl").write_text(lines)
    one = benchmark("simpleqa", str(tmp_path))
    asked = config(fake, tmp_path, benchmarks={"simpleqa": one})
    work = tmp_path / "w"
    alone = evaluate.evaluate(asked, work)["simpleqa"]
    assert "pass@1" not in alone and not judge.asked
    judged = evaluate.replace(
        asked, judge=ChatModelConfig(endpoint=fake.url, name="j", parallel=1, timeout_s=5)
    )
    if dies_at:
        with pytest.raises(ConfigError, match="401"):
            evaluate.evaluate(judged, work)
    found = evaluate.evaluate(judged, work)["simpleqa"]
    assert found["pass@1"] == pytest.approx(1 / 3)
    assert found["failures"] == 1
    files = {path.name: path.read_bytes() for path in work.iterdir()}
    assert len(read_lines(work / "simpleqa.verdicts.jsonl")) == 3
    before = judge.asked.copy()
    assert evaluate.evaluate(judged, work)["simpleqa"] == found
    assert evaluate.regrade(asked, work)["simpleqa"] == found
    assert judge.asked == before
    assert {path.name: path.read_bytes() for path in work.iterdir()} == files
    other = evaluate.replace(judged, judge=ChatModelConfig(endpoint=fake.url, name="k"))
    with pytest.raises(ConfigError, match=r"another judge\.name; take another"):
        evaluate.evaluate(other, work)


def test_what_servers_cannot_do(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config.override is for models of ours"):
        evaluate.evaluate(config(fake, tmp_path, override={"dtype": "bfloat16"}), tmp_path / "w")
    asked = config(fake, tmp_path)
    asked.benchmarks["sums"] = evaluate.replace(asked.benchmarks["sums"], template="r1_zero")
    with pytest.raises(ConfigError, match="a server has its own template"):
        evaluate.evaluate(asked, tmp_path / "w")
