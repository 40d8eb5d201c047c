"""GRPO end to end on a tiny model."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from helpers import MODEL, ascii_share, grpo_config, metrics_by_step, read_lines, rollout_row

from r1jax.config import ConfigError
from r1jax.rollout.files import read_rollouts, write_rollouts
from r1jax.rollout.sampler import Sampler
from r1jax.stages import grpo
from r1jax.training.run import TrainingRun
from r1jax.weights.checkpoint import load_params
from r1jax.weights.load import load_tokenizer

BENCHMARK = {
    "data": {
        "function": "experiments.mini.world.problems:problems",
        "args": {"seed": 1, "split": "test", "levels": [1], "count": 2},
    },
    "num_samples": 4,
    "template": "plain",
    "max_prompt_tokens": 48,
    "sampling": {"max_tokens": 8, "temperature": 1.0},
}


@pytest.fixture(scope="module")
def finished(tokenizer_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five updates of two a rollout on data x fsdp x tensor = 2 x 2 x 2, with evaluation."""
    workdir = tmp_path_factory.mktemp("grpo") / "run"
    evaluation = {"every": 2, "curve": {"few": BENCHMARK}, "benchmarks": {"few": BENCHMARK}}
    config = grpo_config(
        tokenizer_dir,
        total_steps=5,
        ref_every=4,
        max_tokens_at={"3": 12},
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        evaluation=evaluation,
        keep_rollouts=0,
    )
    grpo.run(config, str(workdir))
    return workdir


def rollouts_of(workdir: Path, iteration: int) -> list[dict[str, Any]]:
    path = epath.Path(workdir) / f"rollouts/{iteration:06d}"
    return [rollout_row(rollout) for rollout in read_rollouts(path)]


def test_rollouts_are_written_and_last_is_cut(finished: Path) -> None:
    files = sorted(path.name for path in (finished / "rollouts").iterdir())
    assert files == ["000000", "000001", "000002"]
    for iteration, prompts in enumerate((4, 4, 2)):  # the last one has one update left
        rows = rollouts_of(finished, iteration)
        places = [(row["prompt_index"], row["sample_index"]) for row in rows]
        assert places == [(p, g) for p in range(prompts) for g in range(4)]
    questions = [row["example_id"] for i in range(3) for row in rollouts_of(finished, i)]
    assert len(set(questions)) == 10  # no question comes twice


def test_rollouts_hold_what_was_graded(finished: Path, tokenizer_dir: str) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    for row in rollouts_of(finished, 0):
        assert row["text"] == tokenizer.decode(row["tokens"])
        share = ascii_share(None, row["text"], length=0, finish_reason="")
        assert row["reward"] == row["reward_breakdown"]["helpers:ascii_share"] == share
        assert len(row["logprobs"]) == len(row["tokens"])
        stopped = row["tokens"][-1] in tokenizer.stop_ids
        assert row["finish_reason"] == ("stop" if stopped else "length")


def test_max_tokens_schedule(finished: Path) -> None:
    """What is due at update 3 takes effect at the next rollout, the one before update 5."""
    longest = [max(len(row["tokens"]) for row in rollouts_of(finished, i)) for i in range(3)]
    assert longest == [8, 8, 12]


def test_old_logprobs_stay_for_the_whole_rollout(finished: Path) -> None:
    """The second update's policy has moved away from the old one, which is still the sampler's."""
    steps = metrics_by_step(finished)
    for step in (1, 3, 5):
        assert steps[step]["grpo/ratio/mean"] == pytest.approx(1, abs=1e-5)
        assert steps[step]["grpo/kl/old_k1"] == pytest.approx(0, abs=1e-5)
    for step in (2, 4):
        assert abs(steps[step]["grpo/kl/old_k1"]) > 1e-4
    for step in range(1, 6):
        assert steps[step]["grpo/drift/logprob_abs_max"] < 1e-4


def test_reference_is_replaced(finished: Path) -> None:
    """The reference is the initial policy until update 4, then the policy after it."""
    kl = {step: values.get("grpo/kl/ref") for step, values in metrics_by_step(finished).items()}
    assert kl[1] == pytest.approx(0, abs=1e-6)
    assert min(kl[2], kl[3], kl[4]) > 1e-5
    assert kl[5] == pytest.approx(0, abs=1e-6)


def test_metrics_and_samples(finished: Path) -> None:
    steps = metrics_by_step(finished)
    assert sorted(steps) == [0, 1, 2, 3, 4, 5]
    assert [s for s in steps if "grpo/reward/mean" in steps[s]] == [1, 3, 5]
    assert [s for s in steps if "grpo/loss" in steps[s]] == [1, 2, 3, 4, 5]
    assert [s for s in steps if "eval/few/pass@1" in steps[s]] == [0, 2, 4]
    for step, iteration in ((1, 0), (3, 1), (5, 2)):
        rows = rollouts_of(finished, iteration)
        rewards = [row["reward"] for row in rows]
        lengths = [len(row["tokens"]) for row in rows]
        assert steps[step]["grpo/reward/mean"] == pytest.approx(np.mean(rewards), rel=1e-6)
        assert steps[step]["grpo/completion/length"] == pytest.approx(np.mean(lengths))
        assert steps[step]["grpo/completion/tokens"] == sum(lengths)
    shown = read_lines(finished / "samples.jsonl")
    assert [row["step"] for row in shown] == [1] * 4 + [3] * 4 + [5] * 4
    texts = {row["text"]: row["reward"] for row in rollouts_of(finished, 2)}
    assert all(texts[row["completion"]] == row["reward"] for row in shown[-4:])


def test_benchmarks_before_and_after(finished: Path) -> None:
    for step in (0, 5):
        directory = finished / "evaluations" / f"{step:06d}"
        assert len(read_lines(directory / "few.jsonl")) == 8
        assert (directory / "results.json").exists()
    assert list((finished / "tables").glob("*.md"))


# -- reuse of rollouts ----------------------------------------------------------------------------


def test_written_rollouts_are_reused(
    tokenizer_dir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_device: None,
) -> None:
    """They lie there before the first update on them; a resumed run trains on the file."""
    config = grpo_config(tokenizer_dir)
    log = TrainingRun.log

    def die_at_3(run: TrainingRun, step: int, *args: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log(run, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "log", die_at_3)
        with pytest.raises(KeyboardInterrupt):
            grpo.run(config, str(tmp_path))
    path = epath.Path(tmp_path / "rollouts/000001")
    rollouts = read_rollouts(path)
    write_rollouts(path, [replace(r, reward=float(i % 2)) for i, r in enumerate(rollouts)])

    monkeypatch.setattr(Sampler, "sample", never)
    grpo.run(config, str(tmp_path))
    steps = metrics_by_step(tmp_path)
    assert sorted(steps) == [1, 2, 3, 4]
    assert steps[3]["grpo/reward/mean"] == 0.5
    assert steps[3]["grpo/group/zero_variance"] == 0


def never(*args: Any) -> None:
    raise AssertionError("sampled again")


# -- compilation ----------------------------------------------------------------------------------


def test_row_lengths_are_compiled_ahead(
    tokenizer_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The programs for both lengths, in threads of their own: updates find them."""
    config = grpo_config(
        tokenizer_dir,
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        pack_length=256,
        pack_choices=2,
        total_steps=2,
    )
    with jax.log_compiles():  # of this thread
        grpo.train(config, str(tmp_path))
    compiled = [line for line in caplog.messages if "Finished XLA compilation" in line]
    assert any("jit(_prefill)" in line for line in compiled)
    assert not any("jit(step)" in line or "jit(_all_logprobs)" in line for line in compiled)


# -- learning --------------------------------------------------------------------------------------


def test_learns(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """The user's own reward goes up; no reference policy, one update a rollout."""
    config = grpo_config(
        tokenizer_dir,
        total_steps=20,
        updates_per_rollout=1,
        group_size=16,
        loss={"kl_coef": 0.0},
        optimizer={"learning_rate": 2e-2},
        engine={"slots": 32, "chunk": 8, "bucket": 64, "prefill_batch": 2},
        checkpoint_every=100,
    )
    grpo.run(config, str(tmp_path))
    steps = metrics_by_step(tmp_path)
    rewards = [steps[step]["grpo/reward/mean"] for step in range(1, 21)]
    assert rewards[0] < 0.7 and np.mean(rewards[-3:]) > 0.9, rewards
    assert "grpo/kl/ref" not in steps[1]


def test_a_grader_that_sleeps_for_ever(
    tokenizer_dir: str, tmp_path: Path, one_device: None
) -> None:
    """Its completions get 0 and are counted; the run goes on."""
    config = grpo_config(
        tokenizer_dir,
        rewards={"helpers:sleeps": 1.0},
        graders={"workers": 4, "timeout_s": 0.5},
        total_steps=2,
    )
    grpo.run(config, str(tmp_path))
    rows = rollouts_of(tmp_path, 0)
    slept = [len(row["text"]) % 3 == 0 for row in rows]
    assert 0 < sum(slept) < len(rows)
    assert [row["failure"] for row in rows] == ["timeout" if late else None for late in slept]
    assert [row["reward"] for row in rows] == [0.0 if late else 1.0 for late in slept]
    assert metrics_by_step(tmp_path)[1]["grpo/reward/failures"] == sum(slept)


# -- other rollouts -------------------------------------------------------------------------------


def test_drafts_are_checked_and_trained(tokenizer_dir: str, tmp_path: Path) -> None:
    """With drafts a run samples what it samples without, and its log says how many were right."""
    model = {"config": dict(MODEL) | {"mtp": True}, "tokenizer": tokenizer_dir}
    for drafts in (False, True):
        config = grpo_config(tokenizer_dir, model=model, mtp_coef=1.0)
        config.engine.speculative = drafts
        grpo.run(config, str(tmp_path / str(drafts)))
    first, second = tmp_path / "False", tmp_path / "True"
    for iteration in range(2):
        pairs = zip(rollouts_of(first, iteration), rollouts_of(second, iteration), strict=True)
        assert all(one["tokens"] == two["tokens"] for one, two in pairs)
    losses = [line["grpo/mtp_loss"] for line in read_lines(second / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    name = "grpo/rollout/acceptance_rate"
    rates = [line.get(name) for line in read_lines(second / "metrics.jsonl")]
    assert all(0 <= rate < 0.5 for rate in rates[::2]) and rates[1::2] == [None, None]
    assert all(name not in line for line in read_lines(first / "metrics.jsonl"))
    rows = [row for iteration in range(2) for row in rollouts_of(second, iteration)]
    for row in rows:
        steps = 1 + row.get("drafts", 0)
        assert steps <= len(row["tokens"]) <= steps + row.get("right_drafts", 0)
    assert sum(row.get("right_drafts", 0) for row in rows) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mtp_coef": 1.0}, "config.mtp_coef 1: the model has no multi-token prediction"),
        ({"mtp_coef": 1.0, "loss": {"ratio": "sequence"}}, "config.mtp_coef is not for loss.ratio"),
        ({"router_replay": True}, "config.router_replay is for a model with experts"),
        ({"engine": {"speculative": True}}, "engine.speculative: the model has no multi-token"),
    ],
)
def test_what_the_model_has_not(
    tokenizer_dir: str, tmp_path: Path, changes: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        grpo.run(grpo_config(tokenizer_dir, **changes), str(tmp_path))


def test_dynamic_sampling(tokenizer_dir: str, tmp_path: Path) -> None:
    """Rewards that are hardly ever different: more is sampled, up to what is allowed."""
    config = grpo_config(
        tokenizer_dir, total_steps=2, dynamic_sampling=2, rewards={"format": 1.0}, group_size=2
    )
    grpo.run(config, str(tmp_path / "three"))
    timings = read_lines(tmp_path / "three/timings.jsonl")
    assert timings[0]["grpo/rollout/attempts"] == 3
    rows = rollouts_of(tmp_path / "three", 0)
    assert [row["prompt_index"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    varied = grpo_config(tokenizer_dir, total_steps=2, dynamic_sampling=2)
    grpo.run(varied, str(tmp_path / "one"))
    timings = read_lines(tmp_path / "one/timings.jsonl")
    assert timings[0]["grpo/rollout/attempts"] == 1


def test_rollouts_of_the_policy_before(
    tokenizer_dir: str, tmp_path: Path, one_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iteration k + 1 is sampled with the parameters that iteration k began with, then resumed."""
    seen: list[Any] = []
    original = Sampler.sample
    monkeypatch.setattr(
        Sampler,
        "sample",
        lambda sampler, params, *rest: (
            seen.append(np.asarray(params["embedding"]).copy()),
            original(sampler, params, *rest),
        )[1],
    )
    config = grpo_config(
        tokenizer_dir,
        rollouts_ahead=1,
        total_steps=5,
        loss={"kl_coef": 0.0, "importance_cap": 2.0},
    )
    grpo.run(config, str(tmp_path))
    assert len(seen) == 3  # an iteration each
    end = np.asarray(load_params(tmp_path)["embedding"])
    assert np.array_equal(seen[0], seen[1])  # of the initial policy
    assert not np.array_equal(seen[1], seen[2]) and not np.array_equal(seen[2], end)
    lines = metrics_by_step(tmp_path)
    first, *later = [lines[step]["grpo/drift/logprob_mean_abs"] for step in (1, 3, 5)]
    assert first < 1e-4 < min(later)  # the first is of the policy itself
    assert lines[1]["grpo/importance/mean"] == pytest.approx(1.0, abs=1e-4)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints/5")
    (tmp_path / "rollouts/000002").rename(tmp_path / "kept")
    grpo.run(config, str(tmp_path))  # from update 4, whose checkpoint came after rollout 2
    assert len(seen) == 4
    different = (tmp_path / "metrics.jsonl").read_bytes() != whole
    assert different  # a lost rollout is sampled by another policy: hence the order of writing
    shutil.rmtree(tmp_path / "checkpoints/5")
    shutil.rmtree(tmp_path / "rollouts/000002")
    (tmp_path / "kept").rename(tmp_path / "rollouts/000002")
    grpo.run(config, str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_rollouts_ahead_want_weights(tokenizer_dir: str, tmp_path: Path) -> None:
    for changes, said in (
        ({}, "set config.loss.importance_cap"),
        ({"loss": {"importance_cap": 2.0}, "dynamic_sampling": 1}, "at most one of them"),
        ({"rollouts_ahead": 2}, "config.rollouts_ahead 2 must be at least 0 and at most 1"),
    ):
        config = grpo_config(tokenizer_dir, **({"rollouts_ahead": 1} | changes))
        with pytest.raises(ConfigError, match=said):
            grpo.run(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
