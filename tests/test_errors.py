"""A user's mistake is one sentence that names what is wrong, and nothing is left half-written."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import grpo_config, sft_config

from r1jax.config import UserError
from r1jax.files import STARTS
from r1jax.stages import grpo, sft

ROOT = Path(__file__).parents[1]
GOOD = json.dumps({"prompt": "1+1=?", "answer": "2", "task": "integer"})
STAGES = {"sft": (sft, sft_config), "grpo": (grpo, grpo_config)}


def config_of(stage: str, tokenizer: str, changes: dict[str, Any]) -> Any:
    return STAGES[stage][1](tokenizer, **changes)


def assert_no_progress(workdir: Path) -> None:
    """No rollouts, checkpoints or metrics, no temporary file, and what there is can be read."""
    for name in ("rollouts", "checkpoints", "evaluations"):
        assert not list(workdir.glob(f"{name}/**/*.*"))
    for path in workdir.glob("*.jsonl"):
        assert path.name == STARTS or path.read_text() == ""
    assert not list(workdir.glob("**/*.tmp*"))
    for path in workdir.glob("*.json"):
        json.loads(path.read_text())


def mistake(stage: str, tokenizer: str, workdir: Path, changes: dict[str, Any]) -> str:
    """What the run says."""
    with pytest.raises(UserError) as caught:
        STAGES[stage][0].run(config_of(stage, tokenizer, changes), str(workdir))
    message = str(caught.value)
    assert "\n" not in message
    assert_no_progress(workdir)
    return message


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        (
            "grpo",
            {"max_tokens": 8},
            "unknown key config.max_tokens; did you mean config.sampling.max",
        ),
        (
            "grpo",
            {"max_tokns_at": {}},
            "unknown key config.max_tokns_at; did you mean config.max_to",
        ),
        ("sft", {"loss": {}}, "unknown key config.loss"),
        ("grpo", {"total_steps": 1.5}, "config.total_steps = 1.5 is float, expected int"),
        ("grpo", {"model": {"path": "no/such"}}, "model no/such does not exist"),
        ("sft", {"model": {"path": "no.gguf"}}, "model no.gguf does not exist"),
        ("sft", {"model": {}}, "config.model needs exactly one of path and config"),
        ("grpo", {"max_prompt_tokens": 2}, "tokens, more than max_prompt_tokens 2"),
        (
            "grpo",
            {"max_prompt_tokens": 60},
            "config.max_prompt_tokens 60 + sampling.max_tokens 8 is more than the model's",
        ),
        ("grpo", {"pack_length": 50}, "config.pack_length 50 is less than 56"),
        ("grpo", {"microbatch_rows": 6}, "microbatch_rows: batch 6 is not divisible by 8 devices"),
        ("sft", {"microbatch_rows": 6}, "microbatch_rows: batch 6 is not divisible by 8 devices"),
        ("sft", {"mesh": {"data": 3}}, "needs 3 devices, there are 8"),
        ("sft", {"mesh": {"data": 2, "fsdp": 3, "tensor": -1}}, "8 devices are not divisible by 6"),
        ("sft", {"mesh": {"model": 8}}, "config.mesh has no axis 'model'"),
        (
            "sft",
            {"mesh": {"tensor": 8}},
            "kv_heads 2 is not divisible by 8 devices (mesh axes tensor)",
        ),
        (
            "grpo",
            {"sampling": {"temperature": 0.0}},
            "config.sampling.temperature 0.0 must be above 0",
        ),
        ("grpo", {"sampling": {"top_p": 0.9}}, "config.sampling draws from another distribution"),
        ("grpo", {"split_by": "prompt"}, "config.split_by 'prompt' is not one of"),
        ("grpo", {"truncated": "drop"}, "config.truncated 'drop' is not one of"),
        ("grpo", {"loss": {"loss_agg": "mean"}}, "config.loss.loss_agg 'mean' is not one of"),
        ("grpo", {"max_tokens_at": {"x": 9}}, "config.max_tokens_at: 'x' is not a number"),
        ("grpo", {"group_size": 0}, "config.group_size 0 must be at least 1"),
        ("grpo", {"dynamic_sampling": -1}, "config.dynamic_sampling -1 must be at least 0"),
        ("grpo", {"max_tokens_at": {"8": 0}}, "max_tokens 0 must be at least 1"),
        ("grpo", {"sampling": {"top_p": 2.0}}, "top_p 2.0 must be in"),
        ("grpo", {"sampling": {"stop": ("",)}}, "must be made of texts that are not empty"),
        ("grpo", {"rewards": {"acuracy": 1.0}}, "reward 'acuracy' is neither module:function nor"),
        ("grpo", {"rewards": {"nowhere:f": 1.0}}, "reward 'nowhere:f' cannot be imported"),
        ("grpo", {"template": "r2"}, "template 'r2' is not one of"),
        ("sft", {"optimizer": {"schedule": "cos"}}, "optimizer.schedule 'cos' is not one of"),
        (
            "sft",
            {"data": {"function": "experiments.mini.world.corpus:corpora"}},
            "cannot be imported",
        ),
        ("sft", {"data": {"path": "no.jsonl"}}, "file no.jsonl does not exist"),
        (
            "sft",
            {"data": {"path": "s3://b/a"}},
            "s3://b/a: of object stores only gs:// is support",
        ),
        ("sft", {"pack_length": 0}, "config.pack_length 0 must be at least 1"),
        ("sft", {"microbatch_rows": 0}, "config.microbatch_rows 0 must be at least 1"),
        ("grpo", {"microbatch_rows": -2}, "config.microbatch_rows -2 must be at least 1"),
        ("sft", {"log_every": 0}, "config.log_every 0 must be at least 1"),
        ("sft", {"checkpoint_every": -1}, "config.checkpoint_every -1 must be at least 0"),
        ("sft", {"logits_chunk": -1}, "config.logits_chunk -1 must be at least 0"),
        ("grpo", {"total_steps": -1}, "config.total_steps -1 must be at least 1"),
        ("grpo", {"group_size": 1}, "config.group_size 1 leaves every advantage at 0"),
        ("grpo", {"rewards": {"format": math.nan}}, "weight of 'format' is nan, not a number"),
        ("grpo", {"data": {"limit": -1}}, "config.data.limit -1 must be at least 1"),
        ("grpo", {"sampling": {"temperature": math.inf}}, "temperature inf must be a finite"),
        ("sft", {"optimizer": {"b1": 1.5}}, "config.optimizer.b1 1.5 must be at least 0 and below"),
        ("sft", {"optimizer": {"clip_norm": 0}}, "config.optimizer.clip_norm 0 must be above 0"),
        ("sft", {"optimizer": {"learning_rate": -1}}, "learning_rate -1 must be at least 0"),
        ("sft", {"optimizer": {"warmup_steps": -1}}, "warmup_steps -1 must be at least 0"),
        ("sft", {"data": {"function": "helpers:nothing"}}, "gives NoneType, not a list of rows"),
        ("sft", {"data": {"function": "helpers:examples"}}, "it is Example"),
        (
            "sft",
            {"data": {"function": "helpers:nothing", "args": {"a": 1}}},
            "does not take config",
        ),
    ],
)
def test_wrong_config(
    tokenizer_dir: str, tmp_path: Path, stage: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in mistake(stage, tokenizer_dir, tmp_path, changes)


@pytest.mark.parametrize(
    ("stage", "content", "expected"),
    [
        ("grpo", "", "rows.jsonl is empty"),
        ("sft", "\n\n", "rows.jsonl is empty"),
        ("grpo", GOOD + "\n\n{'a': 1}\n", "rows.jsonl:3 is not JSON"),
        ("sft", '{"text": "a"}\n{"text": "b', "rows.jsonl:2 is not JSON"),
        ("sft", '["a"]\n', "rows.jsonl, row 1 is a JSON str, expected an object"),
        ("grpo", '{"prompt": "1+1=?", "task": "integer"}\n', "rows.jsonl:1: key answer is missing"),
        (
            "grpo",
            GOOD.replace("integer", "maths"),
            "task 'maths' is neither module:NAME nor one of",
        ),
        ("grpo", GOOD.replace('"2"', '"two"'), "'two' is no integer answer"),
        ("sft", GOOD, "an SFT row needs the key messages or text"),
        ("sft", "[" * 100_000, "rows.jsonl:1 is not JSON"),
        ("grpo", GOOD.replace("1+1=?", ""), "rows.jsonl:1: prompt is empty"),
        ("grpo", f'{GOOD[:-1]}, "id": 7}}\n' * 2, "rows.jsonl:2: id 7 is that of "),
    ],
)
def test_wrong_data(
    tokenizer_dir: str, tmp_path: Path, stage: str, content: str, expected: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    changes = {"data": {"path": str(path)}}
    assert expected in mistake(stage, tokenizer_dir, tmp_path / "run", changes)


def test_changed_config_on_resume(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """Refused with the key and both values; the run is left as it was and goes on unchanged."""
    sft.run(sft_config(tokenizer_dir, total_steps=2), str(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="changed: batch_size 8 -> 16"):
        sft.run(sft_config(tokenizer_dir, total_steps=2, batch_size=16), str(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def train(directory: Path, config: str, *args: str) -> subprocess.CompletedProcess[str]:
    """The real command, on a config file with this text."""
    (directory / "config.py").write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "r1jax.train", "--config=config.py", "--workdir=run", *args],
        capture_output=True,
        text=True,
        cwd=directory,
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        },
    )


def test_command_says_one_sentence(tokenizer_dir: str, tmp_path: Path) -> None:
    """A reward that raises: after sampling, but before anything is written of it."""
    config = (
        "from helpers import grpo_config\n"
        "def get_config(arg=''):\n"
        f"    return grpo_config({tokenizer_dir!r}, rewards={{'helpers:raises': 1.0}})\n"
    )
    done = train(tmp_path, config)
    assert "a completion cannot be graded, and earns 0: reward 'helpers:raises'" in done.stderr
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: reward 'helpers:raises' raised ZeroDivisionError: no luck (16 of"
    )
    assert done.returncode == 2
    assert_no_progress(tmp_path / "run")


def test_command_names_file_and_line(tokenizer_dir: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\nb\n')
    config = (
        "from helpers import sft_config\n"
        "def get_config(arg=''):\n"
        f"    return sft_config({tokenizer_dir!r}, data={{'path': 'rows.jsonl'}})\n"
    )
    done = train(tmp_path, config)
    assert done.returncode == 2
    assert done.stderr.startswith("error: rows.jsonl:2 is not JSON: ")
    assert done.stderr.count("\n") == 1
    assert_no_progress(tmp_path / "run")
