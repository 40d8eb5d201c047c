"""SFT on tiny corpora: the loss falls, masks and long rows, one device or eight."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import MODEL, metrics_by_step, sft_config

from r1jax.config import ConfigError, DataError
from r1jax.stages import sft
from r1jax.weights.load import load_tokenizer

TEXTS = ["3+4=7", "比较 12 和 21", "sort: 5 1 3", "What is 10-2? It is 8."]
CHAT = [{"role": "user", "content": "6+6=?"}, {"role": "assistant", "content": " 12"}]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(tokenizer: str, directory: Path, rows: list[dict[str, Any]], **changes: Any) -> dict:
    """The metrics of a run on these rows, by step."""
    data = {"path": write(directory / "rows.jsonl", rows)}
    config = sft_config(tokenizer, data=data, **changes)
    sft.run(config, str(directory / "run"))
    return metrics_by_step(directory / "run")


def test_loss_falls(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    rows = [{"text": text} for text in TEXTS]
    steps = train(tokenizer_dir, tmp_path, rows, total_steps=30, log_every=10, checkpoint_every=30)
    assert sorted(steps) == [10, 20, 30]
    assert steps[10]["sft/loss"] > steps[20]["sft/loss"] > steps[30]["sft/loss"]
    assert steps[30]["sft/loss"] < math.log(512) / 2  # it begins at log(512)


def test_held_out_rows(
    tokenizer_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their loss is that of training on the same rows; before, now and then, and at the end."""
    rows = [{"text": text} for text in TEXTS] + [{"messages": CHAT}]
    held_out = {"data": {"path": write(tmp_path / "held.jsonl", rows)}, "every": 2}
    (tmp_path / "other").mkdir()
    same = {"optimizer": {"learning_rate": 0.0}, "batch_size": len(rows), "template": "plain"}
    train(tokenizer_dir, tmp_path, rows, held_out=held_out, total_steps=5, **same)
    assert f"model and metrics are in {tmp_path}/run" in capsys.readouterr().out
    assert (tmp_path / "run/figures/loss.png").exists()
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = {x["step"]: x["eval/held_out/nll"] for x in lines if "eval/held_out/nll" in x}
    losses = [x["sft/loss"] for x in lines if "sft/loss" in x]
    assert list(found) == [0, 2, 4, 5]
    assert list(found.values()) == pytest.approx([losses[0]] * 4, rel=1e-5)
    endless = {"data": {"function": "helpers:endless_rows"}}
    with pytest.raises(ConfigError, match="config.held_out.data.limit must be set"):
        train(tokenizer_dir, tmp_path / "other", rows, held_out=endless, total_steps=1, **same)


def test_eight_devices(tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """data x fsdp x tensor gives what one device gives."""
    rows = [{"text": text} for text in TEXTS]
    for name in ("one", "eight"):
        (tmp_path / name).mkdir()
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    eight = train(tokenizer_dir, tmp_path / "eight", rows, mesh=mesh, total_steps=2)
    monkeypatch.setattr("r1jax.weights.load.devices_for", lambda *_: jax.devices()[:1])
    one = train(tokenizer_dir, tmp_path / "one", rows, total_steps=2)
    for step in (1, 2):
        for name in ("sft/loss", "sft/optimizer/grad_norm"):
            assert eight[step][name] == pytest.approx(one[step][name], rel=1e-4)


def test_only_the_assistant_counts(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    tokens, mask = sft.tokenize({"messages": CHAT}, tokenizer, "plain")
    learned = [token for token, counts in zip(tokens, mask, strict=True) if counts]
    assert learned == [*tokenizer.encode(" 12"), tokenizer.eos_id]
    text, all_ones = sft.tokenize({"text": "6+6=?"}, tokenizer, "plain")
    assert all_ones == [1.0] * len(text)
    steps = train(
        tokenizer_dir, tmp_path, [{"messages": CHAT}], template="plain", total_steps=1, batch_size=3
    )
    assert steps[1]["sft/data/targets"] == 3 * len(learned)
    assert steps[1]["sft/data/tokens"] == 3 * len(tokens)


def long_rows(tokenizer_dir: str) -> tuple[list[dict[str, Any]], int]:
    """A row that fits and one that does not, and the length of the first."""
    tokenizer = load_tokenizer(tokenizer_dir)
    rows = [{"text": "1+2=3"}, {"text": "7" * 80}]
    assert len(tokenizer.document(rows[1]["text"])) > 64
    return rows, len(tokenizer.document(rows[0]["text"]))


@pytest.mark.parametrize(("overlong", "extra"), [("truncate", 64), ("drop", 0)])
def test_overlong(
    tokenizer_dir: str, tmp_path: Path, one_device: None, overlong: str, extra: int
) -> None:
    rows, short = long_rows(tokenizer_dir)
    steps = train(
        tokenizer_dir, tmp_path, rows, overlong=overlong, total_steps=1, batch_size=len(rows)
    )
    assert steps[1]["sft/data/tokens"] == short + extra
    assert steps[1]["sft/data/targets"] == short - 1 + max(extra - 1, 0)


def test_overlong_is_an_error(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    rows, _ = long_rows(tokenizer_dir)
    with pytest.raises(ConfigError, match=r"a row has \d+ tokens, more than config.pack_length 64"):
        train(tokenizer_dir, tmp_path, rows, overlong="error", batch_size=len(rows))


def test_every_row_once_an_epoch(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """Two updates of two of four rows: together all four, in an order of the seed's."""
    rows = [{"text": "1" * length} for length in (3, 5, 9, 17)]
    tokenizer = load_tokenizer(tokenizer_dir)
    total = sum(len(tokenizer.document(row["text"])) for row in rows)
    steps = train(tokenizer_dir, tmp_path, rows, total_steps=4, batch_size=2, checkpoint_every=4)
    tokens = [steps[step]["sft/data/tokens"] for step in (1, 2, 3, 4)]
    assert tokens[0] + tokens[1] == tokens[2] + tokens[3] == total


def test_row_without_text(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    with pytest.raises(DataError, match="needs the key messages or text; it has prompt"):
        train(tokenizer_dir, tmp_path, [{"prompt": "a"}])


def own_tokenizer(vocab_size: int) -> dict[str, Any]:
    """A model whose tokenizer the run trains itself."""
    args = {"vocab_size": vocab_size, "count": 400, "seed": 0, "mix": {}}
    function = "experiments.mini.world.corpus:tokenizer"
    return {"config": dict(MODEL), "tokenizer_function": function, "tokenizer_args": args}


def test_what_makes_a_workdir_a_model_is_put_back(
    tokenizer_dir: str, tmp_path: Path, one_device: None
) -> None:
    sft.run(sft_config(tokenizer_dir, total_steps=1), str(tmp_path))
    before = (tmp_path / "model.json").read_bytes()
    (tmp_path / "model.json").unlink()
    shutil.rmtree(tmp_path / "tokenizer")
    sft.run(sft_config(tokenizer_dir, total_steps=1), str(tmp_path))
    assert (tmp_path / "model.json").read_bytes() == before
    assert list((tmp_path / "tokenizer").iterdir())


def test_torn_tokenizer_is_trained_again(tmp_path: Path, one_device: None) -> None:
    """What a kill between the directory and the end of its file leaves is no tokenizer."""
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "tokenizer.model").write_bytes(b"\n\x0e")
    train("unused", tmp_path, [{"text": "1"}], model=own_tokenizer(512), total_steps=1)
    assert load_tokenizer(str(tmp_path / "run" / "tokenizer")).vocab_size == 512


def test_failed_start_does_not_bind_the_tokenizer(tmp_path: Path) -> None:
    """The first start fails for another reason; the second asks for another tokenizer."""
    rows = [{"text": "1"}]
    with pytest.raises(ConfigError, match="not divisible by 8 devices"):
        train("unused", tmp_path, rows, model=own_tokenizer(512), microbatch_rows=6)
    train("unused", tmp_path, rows, model=own_tokenizer(500), total_steps=1)
    assert load_tokenizer(str(tmp_path / "run" / "tokenizer")).vocab_size == 500


def test_epochs(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """7 rows, 4 an update, 1.5 epochs: 10.5 rows are 3 updates. Without an end there are none."""
    rows = [{"text": text} for text in (TEXTS * 2)[:7]]
    steps = train(tokenizer_dir, tmp_path, rows, total_steps=0, epochs=1.5, batch_size=4)
    assert sorted(steps) == [1, 2, 3]
    with pytest.raises(ConfigError, match="config.total_steps must be set: .*corpus has no end"):
        sft.run(sft_config(tokenizer_dir, total_steps=0), str(tmp_path / "endless"))


def test_distillation_on_logits(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """A student of other weights comes closer to its teacher; one of other tokens is refused."""
    rows = [{"text": text} for text in TEXTS]
    train(tokenizer_dir, tmp_path, rows, total_steps=20, checkpoint_every=20)
    (tmp_path / "run").rename(tmp_path / "teacher")
    teacher = {"model": {"path": str(tmp_path / "teacher")}, "weight": 0.75}
    steps = train(tokenizer_dir, tmp_path, rows, total_steps=20, teacher=teacher, seed=1)
    first, last = steps[1], steps[20]
    for line in (first, last):
        mixed = 0.75 * line["sft/teacher_kl"] + 0.25 * line["sft/nll"]
        assert line["sft/loss"] == pytest.approx(mixed, rel=1e-5)
    assert last["sft/teacher_kl"] < 0.5 * first["sft/teacher_kl"]
    other = {"model": {"config": MODEL | {"vocab_size": 600}, "tokenizer": tokenizer_dir}}
    (tmp_path / "run").rename(tmp_path / "student")
    with pytest.raises(ConfigError, match="has a vocabulary of 600 tokens, the student one of 512"):
        train(tokenizer_dir, tmp_path, rows, total_steps=1, teacher=other)
