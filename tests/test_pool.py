"""The grader pool: hung, crashing and broken reward functions, and workers' lives."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1jax.config import ConfigError
from r1jax.rewards import Grade
from r1jax.rewards.pool import GraderConfig, GraderPool, _Worker
from r1jax.types import Example

EXAMPLE = Example("e", ({"role": "user", "content": "What is 2+3?"},), "5", "integer")
RIGHT = "<think>a</think> <answer>5</answer>"
USER_CODE = """
import os, pickle, signal, subprocess, sys, time
def parts(example, text, *, length, finish_reason):
    assert example.question == "What is 2+3?" and example.metadata == {}
    return length if finish_reason == "stop" else -1
def raises(example, text, *, length, finish_reason):
    raise ValueError("too bad")
def moody(example, text, *, length, finish_reason):
    if text == "hang":
        while True: time.sleep(1)
    if text == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: pass
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "exit":
        os._exit(3)
    if text == "sys.exit":
        sys.exit(3)
    if text == "raise":
        raise ValueError("moody")
    if text == "hungry":
        return len([bytearray(100_000_000) for _ in range(20)])
    if text == "nan":
        return float("nan")
    if text == "child":
        child = subprocess.Popen(["sleep", "1000"])
        open(os.environ["PID_FILE"], "w").write(str(child.pid))
        while True: time.sleep(1)
    if text == "modules":
        return float("jax" in sys.modules or "flax" in sys.modules)
    if text == "print":
        print("printed"); sys.stdout.write("written")
    if text == "forge":
        from r1jax.rewards import Grade
        reply = pickle.dumps((1, Grade(9.0, {})))
        for descriptor in os.listdir("/proc/self/fd"):
            if int(descriptor) < 3: continue
            try: os.write(int(descriptor), len(reply).to_bytes(4, "big") + reply)
            except OSError: pass
        return 0.0
    if text == "pid":
        return os.getpid()
    return 1.0
not_a_function = 3
def typo(example text): pass
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    good, bad = USER_CODE.rsplit("def typo", 1)
    (tmp_path / "pool_user.py").write_text(good)
    (tmp_path / "pool_user_broken.py").write_text("def typo" + bad)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("pool_user", None)


def pool_of(rewards: dict[str, Any], **config: Any) -> GraderPool:
    return GraderPool({"": rewards}, GraderConfig(**config))


def grade_all(pool: GraderPool, texts: list[str]) -> dict[str, Grade]:
    batch = pool.begin("")
    for text in texts:
        batch.submit(text, EXAMPLE, text, 7, "stop")
    grades = dict(batch.results())
    batch.judge(grades.values())
    return grades  # type: ignore[return-value]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def wait_until_dead(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


def test_memory_is_limited() -> None:
    with pool_of({"pool_user:moody": 1.0}, workers=1, memory_mb=1000) as pool:
        grades = grade_all(pool, ["hungry", "a"])
    assert grades["hungry"].failure is not None and grades["hungry"].failure.kind == "memory"
    assert grades["hungry"].reward == 0 and grades["a"].reward == 1
    with pool_of({"pool_user:moody": 1.0}, workers=1) as pool:
        assert grade_all(pool, ["hungry"])["hungry"].reward == 20


def test_rewards_with_arguments() -> None:
    rewards = {"overlong": {"weight": 2.0, "max_tokens": 10, "buffer": 6}}
    with pool_of(rewards, workers=1) as pool:
        assert grade_all(pool, ["a"])["a"].reward == -1.0  # 7 tokens: half of the buffer


@pytest.mark.parametrize("workers", [0, 2])
def test_grades(workers: int) -> None:
    rewards = {"accuracy": 1.0, "format": 0.5, "pool_user:parts": 0.25}
    with pool_of(rewards, workers=workers) as pool:
        texts = {("a", 0): RIGHT, ("a", 1): r"so \boxed{5}", ("b", 0): "none"}
        batch, other = pool.begin(""), pool.begin("")
        for key, text in texts.items():
            batch.submit(key, EXAMPLE, text, 8, "stop")
        assert list(other.results()) == []  # a batch has its own items
        grades = dict(batch.results())
        assert list(batch.results()) == []
    assert {key: grade.reward for key, grade in grades.items()} == {
        ("a", 0): 1 + 0.5 + 2,
        ("a", 1): 1 + 0 + 2,
        ("b", 0): 0 + 0 + 2,
    }
    assert grades["a", 1].breakdown == {"accuracy": 1, "format": 0, "pool_user:parts": 8}
    assert all(grade.failure is None for grade in grades.values())


def test_late_and_dead_workers_become_failures_and_are_replaced() -> None:
    rewards = {"pool_user:moody": 1.0, "accuracy": 1.0}
    texts = ["a", "hang", "stubborn", "die", "exit", "sys.exit", "raise", "nan", RIGHT, "b"]
    start = time.monotonic()
    with pool_of(rewards, workers=1, timeout_s=1.0) as pool:
        grades = grade_all(pool, texts)
        again = grade_all(pool, ["c"])
    assert time.monotonic() - start < 30
    kinds = {text: grade.failure and grade.failure.kind for text, grade in grades.items()}
    assert kinds == {
        "a": None,
        "hang": "timeout",
        "stubborn": "timeout",
        "die": "crash",
        "exit": "crash",
        "sys.exit": "exception",
        "raise": "exception",
        "nan": "invalid",
        RIGHT: None,
        "b": None,
    }
    assert all(grade.reward == 0 for grade in grades.values() if grade.failure)
    assert set(grades["hang"].breakdown) == set(rewards)  # metrics keep their keys
    assert "1 s" in grades["hang"].failure.message  # type: ignore[union-attr]
    assert "pool_user:moody" in grades["raise"].failure.message  # type: ignore[union-attr]
    assert grades[RIGHT].reward == 2
    assert again["c"].reward == 1


def test_a_late_item_does_not_hold_up_the_others() -> None:
    with pool_of({"pool_user:moody": 1.0}, workers=2, timeout_s=4.0) as pool:
        assert list(grade_all(pool, ["hang", "a", "b", "c"]))[-1] == "hang"


def test_what_a_late_grader_started_dies_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    with pool_of({"pool_user:moody": 1.0}, workers=1, timeout_s=1.5) as pool:
        assert grade_all(pool, ["child"])["child"].failure.kind == "timeout"  # type: ignore[union-attr]
    assert wait_until_dead(int((tmp_path / "pid").read_text()))


def test_workers_import_no_jax_even_under_a_main_module_that_does(tmp_path: Path) -> None:
    main = tmp_path / "main_with_jax.py"
    main.write_text(
        textwrap.dedent("""
        import jax
        from r1jax.rewards.pool import GraderConfig, GraderPool
        from r1jax.types import Example
        pool = GraderPool({"": {"pool_user:moody": 1.0}}, GraderConfig(1))  # no __main__ guard
        batch = pool.begin("")
        batch.submit(0, Example("e", ({"content": "q"},), "5", "integer"), "modules", 1, "stop")
        print(list(batch.results())[0][1].reward)
        pool.close()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    out = subprocess.run(
        [sys.executable, str(main)], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "0.0"


def test_close_leaves_no_process() -> None:
    pool = pool_of({"pool_user:moody": 1.0}, workers=2)
    pids = {int(grade.reward) for grade in grade_all(pool, ["pid"]).values()}
    assert all(map(is_alive, pids))
    pool.begin("").submit("hang", EXAMPLE, "hang", 1, "stop")
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 10
    assert all(map(wait_until_dead, pids))


def test_an_item_taken_while_the_pool_closes_starts_no_process() -> None:
    worker = _Worker(({"": {"accuracy": 1.0}}, "bwrap", 0), timeout_s=30.0)
    worker.start()
    worker.close()
    with pytest.raises(RuntimeError, match="the pool is closed"):
        worker.grade(("", {}, "hang", 1, "stop"))


@pytest.mark.parametrize("last_text", ["idle", "stubborn"])
def test_workers_die_with_a_killed_parent(tmp_path: Path, last_text: str) -> None:
    parent_code = textwrap.dedent(f"""
        import sys, time
        from r1jax.rewards.pool import GraderConfig, GraderPool
        from r1jax.types import Example
        example = Example("e", ({{"content": "q"}},), "5", "integer")
        pool = GraderPool({{"": {{"pool_user:moody": 1.0}}}}, GraderConfig(1, timeout_s=1000))
        batch = pool.begin("")
        batch.submit(0, example, "pid", 1, "stop")
        print(int(list(batch.results())[0][1].reward), flush=True)
        if {last_text!r} != "idle":
            batch.submit(1, example, {last_text!r}, 1, "stop")
        time.sleep(1000)
        """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", parent_code], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_alive(worker)
        parent.send_signal(signal.SIGKILL)
    assert wait_until_dead(worker)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_always_raises_stops_the_first_batch(workers: int) -> None:
    rewards = {"accuracy": 1.0, "pool_user:raises": 1.0}
    with (
        pool_of(rewards, workers=workers) as pool,
        pytest.raises(ConfigError, match="pool_user:raises' raised ValueError: too bad"),
    ):
        assert grade_all(pool, []) == {}  # nothing submitted: not the first batch
        grade_all(pool, ["a", "b"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_raises_now_and_then(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is shown once, with its traceback; the run stops where most of a batch has none."""
    with pool_of({"pool_user:moody": 1.0}, workers=workers) as pool:
        for _ in range(2):
            grades = grade_all(pool, ["raise", "a"])
            assert grades["raise"].reward == 0
        (shown,) = [r.getMessage() for r in caplog.records if "earns 0" in r.getMessage()]
        assert "reward 'pool_user:moody' raised" in shown and "Traceback" in shown
        with pytest.raises(ConfigError, match="1 of 1 completions"):
            grade_all(pool, ["raise"])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_reward_prints_is_not_seen(workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pool_of({"pool_user:moody": 1.0}, workers=workers) as pool:
        assert grade_all(pool, ["print"])["print"].reward == 1
    assert capfd.readouterr().out == ""


def test_a_reward_that_writes_to_the_pipe_shifts_no_grades() -> None:
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]  # so the pipe's number is high
    with pool_of({"pool_user:moody": 1.0}, workers=1) as pool:
        forged = grade_all(pool, ["forge"])["forge"]
        assert forged.failure is not None and forged.failure.kind == "crash"
        for texts in (["a"], ["nan", "b", "c"]):
            rewards = {text: grade.reward for text, grade in grade_all(pool, texts).items()}
            assert rewards == {text: float(text != "nan") for text in texts}
    for descriptor in many:
        os.close(descriptor)


def test_a_first_batch_of_timeouts_does_not_stop_the_run() -> None:
    with pool_of({"pool_user:moody": 1.0}, workers=1, timeout_s=0.5) as pool:
        assert grade_all(pool, ["hang"])["hang"].failure.kind == "timeout"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({}, "empty"),
        ({"acuracy": 1.0}, "'acuracy' is neither"),
        ({"accuracy": "1"}, "weight of 'accuracy'"),
        ({"accuracy": True}, "weight of 'accuracy'"),
        ({"pool_user_missing:f": 1.0}, "pool_user_missing:f.*No module"),
        ({"pool_user:missing": 1.0}, "pool_user:missing.*no attribute"),
        ({"pool_user:not_a_function": 1.0}, "not_a_function.*of type int"),
        ({"pool_user_broken:typo": 1.0}, "pool_user_broken:typo.*SyntaxError"),
    ],
)
def test_wrong_configs_fail_at_once(rewards: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pool_of(rewards, workers=2)


def test_a_worker_that_cannot_start_is_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1jax.rewards.pool._CODE", "raise SystemExit(1)")
    with (
        pool_of({"accuracy": 1.0}, workers=1) as pool,
        pytest.raises(RuntimeError, match="no grader process starts"),
    ):
        grade_all(pool, ["a"])
