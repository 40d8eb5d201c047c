"""GRPO end to end on a tiny model, and the parts of it that a run hides."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import MODEL, ascii_share, grpo_config, metrics_by_step, read_lines

from r1jax import losses
from r1jax.checkpoint import final_params
from r1jax.config import ConfigError, section
from r1jax.data.packing import completion_group, pack
from r1jax.data.tokenizer import load_tokenizer
from r1jax.metrics import write_jsonl_atomic
from r1jax.models.attention import Span
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer, init_params
from r1jax.rollout.graded import from_row, open_pool, to_row
from r1jax.stages import grpo, grpo_rollouts
from r1jax.stages.grpo import Minibatch
from r1jax.stages.grpo_config import (
    GrpoConfig,
    Packing,
    is_due,
    longest_completion,
    max_tokens_of,
    packing_of,
)
from r1jax.stages.run import Run
from r1jax.train_state import microbatch
from r1jax.types import Batch, Completion, Example, Rollout

BENCHMARK = {
    "data": {
        "function": "r1jax.data.mini:problems",
        "args": {"seed": 1, "split": "test", "levels": [1], "count": 2},
    },
    "num_samples": 4,
    "template": "plain",
    "max_prompt_tokens": 48,
    "sampling": {"max_tokens": 8, "temperature": 1.0},
}


@pytest.fixture(scope="module")
def finished(
    tokenizer_dir: str, compilation_cache: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
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
    return read_lines(workdir / "rollouts" / f"{iteration:06d}.jsonl")


def test_rollouts_are_written_and_last_is_cut(finished: Path) -> None:
    files = sorted(path.name for path in (finished / "rollouts").iterdir())
    assert files == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
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
    compilation_cache: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_device: None,
) -> None:
    """They lie there before the first update on them; a resumed run trains on the file."""
    config = grpo_config(tokenizer_dir)
    log = Run.log

    def die_at_3(run: Run, step: int, *args: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log(run, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", die_at_3)
        with pytest.raises(KeyboardInterrupt):
            grpo.run(config, str(tmp_path))
    path = tmp_path / "rollouts" / "000001.jsonl"
    rows = read_lines(path)
    tampered = [replace(from_row(row), reward=float(i % 2)) for i, row in enumerate(rows)]
    write_jsonl_atomic(path, [to_row(rollout) for rollout in tampered])

    monkeypatch.setattr(grpo_rollouts, "sample_rollouts", never)
    grpo.run(config, str(tmp_path))
    steps = metrics_by_step(tmp_path)
    assert sorted(steps) == [1, 2, 3, 4]
    assert steps[3]["grpo/reward/mean"] == 0.5
    assert steps[3]["grpo/group/zero_variance"] == 0


def never(*args: Any) -> None:
    raise AssertionError("sampled again")


# -- learning --------------------------------------------------------------------------------------


def test_learns(
    tokenizer_dir: str, compilation_cache: str, tmp_path: Path, one_device: None
) -> None:
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


def test_rewards_as_pairs() -> None:
    """For packages, whose dots a ConfigDict's keys may not have."""
    mapping = config_of(rewards={"helpers:ascii_share": 0.5, "format": 1.0})
    pairs = config_of(rewards=[("helpers:ascii_share", 0.5), ("format", 1.0)])
    example = Example("e", ({"role": "user", "content": "?"},), "1", "integer")
    for config in (mapping, pairs):
        with open_pool(config.rewards, config.graders) as pool:
            pool.submit(0, example, "ab是是", 2, "stop")
            (_, grade), *_ = pool.results()
        assert grade.breakdown == {"helpers:ascii_share": 0.5, "format": 0.0}
        assert grade.reward == 0.25


# -- the parts -------------------------------------------------------------------------------------


def config_of(**changes: Any) -> GrpoConfig:
    return section(GrpoConfig, grpo_config("unread", **changes))


def rollout(prompt: int, sample: int, reward: float = 0.0, cut: bool = False) -> Rollout:
    """Tokens tell which rollout they are of: 10 x prompt + sample, `sample + 1` times."""
    tokens = np.full(sample + 1, 10 * prompt + sample, np.int32)
    completion = Completion(
        prompt, sample, tokens, -np.ones(sample + 1, np.float32), "length" if cut else "stop"
    )
    return Rollout(str(prompt), np.array([200, 201]), completion, "", reward, {"part": reward})


def four_by_four() -> list[Rollout]:
    """Four prompts of four; the reward of a sample is its index, and it is cut if that is odd."""
    return [rollout(p, g, float(g), cut=g % 2 == 1) for p in range(4) for g in range(4)]


def test_length_caps() -> None:
    config = config_of(max_tokens=8, max_tokens_at={"10": 16, "9": 12})
    assert [max_tokens_of(config, s) for s in (0, 8, 9, 10, 99)] == [8, 8, 12, 16, 16]
    assert longest_completion(config) == 16


def test_long_rows_have_a_front_and_a_window() -> None:
    race = {"max_prompt_tokens": 64, "max_tokens": 128, "group_size": 8, "prompts_per_update": 8}
    assert packing_of(config_of(**race)) == Packing(192, 64, None, None)
    assert packing_of(config_of(**race, pack_length=256)) == Packing(256, 64, None, None)
    # room for five completions: of less than one group, so there are two prompts at most
    assert packing_of(config_of(**race, pack_length=960)) == Packing(960, 13, Span(128, 129), 128)
    apart = config_of(**race, pack_length=960, share_prompts=False)
    assert packing_of(apart) == Packing(960, 13, Span(0, 192), None)
    split = config_of(**race, pack_length=960, split_by="output", updates_per_rollout=2)
    assert packing_of(split) == Packing(960, 13, Span(448, 129), 448)  # seven groups, maybe


@pytest.mark.parametrize("group_size", [1, 2, 8])
def test_any_completions_fit_into_the_rows(group_size: int) -> None:
    """As many short ones behind the longest prompts, as many of any length, as the longest."""
    config = config_of(
        max_prompt_tokens=9,
        max_tokens=20,
        group_size=group_size,
        prompts_per_update=16,
        pack_length=150,
    )
    found = packing_of(config)
    assert found.span is not None
    rng = np.random.default_rng(0)
    for shortest, longest in ((1, 1), (1, 20), (1, 6), (20, 20)):
        groups = []
        for _ in range(16):
            lengths = rng.integers(shortest, longest + 1, group_size)
            completions = [np.zeros(length, np.int32) for length in lengths]
            logprobs = [np.zeros(length, np.float32) for length in lengths]
            groups.append(completion_group(np.zeros(9, np.int32), completions, logprobs))
        _, used = pack(groups, found.length, 1, found.rows, front=found.front)
        assert used <= found.rows


def numbered(name: str) -> Any:
    """Examples that say where they come from."""
    return lambda i: {"id": f"{name}{i}", "prompt": "?", "answer": "1", "task": "integer"}


def test_data_changes_with_the_rollout() -> None:
    """Two questions an update, two updates a rollout: "3" takes effect at the rollout of 4."""
    source = {"function": "test_grpo:numbered"}
    config = config_of(
        prompts_per_update=2,
        updates_per_rollout=2,
        data=source | {"args": {"name": "a"}},
        data_at={"10": source | {"args": {"name": "c"}}, "3": source | {"args": {"name": "b"}}},
    )
    example = grpo_rollouts.checked_stream(config)
    names = [example(i).id for i in range(26)]
    assert names == [f"{(8 * 'a' + 12 * 'b' + 6 * 'c')[i]}{i}" for i in range(26)]


def test_groups_without_variance_are_replaced() -> None:
    """Groups 0 and 2 earn all the same: of five, three with variance come first."""
    rewards = [(1, 1), (0, 1), (0, 0), (1, 0), (0, 1)]
    groups = [
        [rollout(prompt, sample, reward) for sample, reward in enumerate(pair)]
        for prompt, pair in enumerate(rewards)
    ]

    def chosen(count: int) -> list[tuple[str, int, int]]:
        found = grpo_rollouts.most_varied(config_of(group_size=2), groups, count)
        return [(r.example_id, r.completion.prompt_index, r.completion.sample_index) for r in found]

    assert [name for name, *_ in chosen(3)] == ["1", "1", "3", "3", "4", "4"]
    assert [place for _, *place in chosen(3)] == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert [name for name, *_ in chosen(4)] == ["0", "0", "1", "1", "3", "3", "4", "4"]
    assert [name for name, *_ in chosen(5)[::2]] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [False, True, False]),
        ({"truncated": "zero"}, [True, False, False]),
        ({"normalise": "each", "rewards": {"accuracy": 1.0, "format": 0.5}}, [False, True, True]),
    ],
)
def test_a_group_varies_as_its_advantages_do(changes: dict[str, Any], expected: list[bool]) -> None:
    """Samples 1 and 3 of `four_by_four` are cut by length."""
    config = config_of(group_size=2, prompts_per_update=1, **changes)
    first, cut = four_by_four()[:2]
    assert [r.completion.finish_reason for r in (first, cut)] == ["stop", "length"]

    def worth(of: Rollout, accuracy: float, form: float = 0.0) -> Rollout:
        parts = {"accuracy": accuracy, "format": form}
        return replace(of, reward=accuracy + 0.5 * form, reward_breakdown=parts)

    groups = [
        [worth(first, 1.0), worth(cut, 1.0)],
        [worth(first, 0.0), worth(cut, 1.0)],
        [worth(first, 0.5), worth(first, 0.0, 1.0)],
    ]
    assert [grpo_rollouts.varied(config, group) for group in groups] == expected


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


def test_is_due() -> None:
    due = [step for step in range(2, 21, 2) if is_due(5, step, 2)]
    assert due == [6, 10, 16, 20]  # 5 and 15 lie inside an iteration, whose end is 6 and 16
    assert not any(is_due(0, step, 2) for step in range(20))


def test_reference_is_a_copy() -> None:
    """The next update donates the policy's buffers: the reference must not share them."""
    config = config_of(ref_every=4, updates_per_rollout=2)
    old, new = jnp.zeros(3), jnp.ones(3)
    stage: Any = SimpleNamespace(ref_params={"a": old}, state=SimpleNamespace(params={"a": new}))
    grpo.replace_reference(config, stage, 2)
    assert stage.ref_params["a"] is old
    grpo.replace_reference(config, stage, 4)
    jax.jit(lambda x: x + 1, donate_argnums=0)(new)
    np.testing.assert_array_equal(stage.ref_params["a"], np.ones(3))


@pytest.mark.parametrize(
    ("truncated", "expected"), [("grade", [0, 1, 2, 3]), ("zero", [0, 0, 2, 0])]
)
def test_reward_of_truncated(truncated: str, expected: list[float]) -> None:
    rewards_BG = grpo.rewards_of(config_of(truncated=truncated), four_by_four())
    np.testing.assert_array_equal(rewards_BG, [expected] * 4)


def test_truncated_are_masked() -> None:
    """Their tokens leave the loss, but they stay in its denominator."""
    rollouts = four_by_four()
    batch, _ = pack(grpo.to_groups(config_of(), rollouts), 16, 8)
    masked = grpo.mask_truncated(batch, rollouts)
    left = batch.tokens[masked.loss_mask == 1]
    assert sorted(set(left.tolist())) == [0, 2, 10, 12, 20, 22, 30, 32]
    assert masked.loss_mask.sum() == 4 * (1 + 3)
    np.testing.assert_array_equal(masked.lengths, batch.lengths)


@pytest.mark.parametrize("split_by", ["question", "output"])
def test_minibatches(split_by: str) -> None:
    """Each rollout is in one update, with its own advantage; only "output" mixes questions."""
    config = config_of(split_by=split_by)
    rollouts = four_by_four()
    first, second = minibatches = list(grpo.make_minibatches(config, rollouts, 7))
    assert len(first.rollouts) == len(second.rollouts) == 8
    places = [place_of(r) for m in minibatches for r in m.rollouts]
    assert sorted(places) == [place_of(r) for r in rollouts]
    for minibatch in minibatches:
        assert [place_of(r) for r in minibatch.rollouts] == sorted(
            map(place_of, minibatch.rollouts)
        )
        expected = [(r.reward - 1.5) / 1.25**0.5 for r in minibatch.rollouts]
        np.testing.assert_allclose(minibatch.advantages, expected, rtol=1e-5)
    whole = [p for p, _ in map(place_of, first.rollouts)] == [0] * 4 + [1] * 4
    assert whole == (split_by == "question")
    again, _ = grpo.make_minibatches(config, rollouts, 7)
    assert [*map(place_of, again.rollouts)] == [*map(place_of, first.rollouts)]
    if split_by == "output":
        other, _ = grpo.make_minibatches(config, rollouts, 8)
        assert [*map(place_of, other.rollouts)] != [*map(place_of, first.rollouts)]


def place_of(rollout: Rollout) -> tuple[int, int]:
    return rollout.completion.prompt_index, rollout.completion.sample_index


@pytest.mark.parametrize("loss_agg", losses.AGGREGATIONS)
@pytest.mark.parametrize("split_by", ["question", "output"])
def test_completions_without_advantage_may_be_left_out(loss_agg: str, split_by: str) -> None:
    """Without a KL they add exact zeros: same loss, same gradient, from fewer tokens."""
    config = config_of(split_by=split_by, loss={"kl_coef": 0.0, "loss_agg": loss_agg})
    rollouts = [
        replace(r, reward=float(r.completion.prompt_index == 2) * r.reward) for r in four_by_four()
    ]  # prompts 0, 1 and 3 have no variance
    model = Transformer(ModelConfig(vocab_size=256, **MODEL))
    params = nn.unbox(init_params(model, jax.random.key(0)))
    loss = jax.jit(jax.value_and_grad(grpo.make_loss(config, model), has_aux=True))

    def measured(minibatch: Minibatch) -> tuple[Any, Batch]:
        groups = grpo.to_groups(config, minibatch.rollouts)
        batch, _ = pack(groups, 24, 8, 1, advantages=minibatch.advantages)
        batch = grpo.count_left_out(batch, minibatch)
        return loss(params, microbatch(jax.tree.map(jnp.asarray, batch), 0)), batch

    with_gradient = 0
    for minibatch in grpo.make_minibatches(config, rollouts, 3):
        (whole, all_batch), (fewer, batch) = map(measured, (minibatch, grpo.moving(minibatch)))
        assert batch.num_targets < all_batch.num_targets
        assert batch.lengths.shape == all_batch.lengths.shape == (9,)
        assert sorted(batch.lengths) == sorted(all_batch.lengths)
        (value, metrics), grads = fewer
        assert value == pytest.approx(float(whole[0][0]), abs=1e-7)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, whole[1])
        assert metrics["ratio/mean"] == pytest.approx(1.0)  # a mean over what is packed
        with_gradient += float(optax.tree.norm(grads)) > 1e-3
    assert with_gradient == (1 if split_by == "question" else 2)


def test_each_reward_normalised() -> None:
    """The parts' advantages, weighted, over the batch's deviation."""
    rewards = {"accuracy": 1.0, "format": 0.5}
    config = config_of(normalise="each", rewards=rewards, group_size=2, prompts_per_update=1)
    parts = [(1, 0), (0, 1), (1, 1), (0, 1)]
    rollouts = [
        replace(
            rollout(i // 2, i % 2), reward=9.0, reward_breakdown={"accuracy": a, "format": float(f)}
        )
        for i, (a, f) in enumerate(parts)
    ]
    # accuracy: +1 -1, +1 -1; format: -1 +1, 0 0 -> 0.5 -0.5, 1 -1; their std is sqrt(0.625)
    expected = np.array([[0.5, -0.5], [1, -1]]) / 0.625**0.5
    np.testing.assert_allclose(grpo.advantages_of(config, rollouts), expected, rtol=1e-5)


def test_a_failed_grade_earns_nothing_of_each_reward() -> None:
    config = config_of(normalise="each", rewards={"format": 1.0}, group_size=2)
    failed = replace(rollout(0, 0), reward=0.0, reward_breakdown={"format": 1.0}, failure="timeout")
    honest = replace(rollout(0, 1), reward=0.0, reward_breakdown={"format": 0.0})
    assert not grpo.advantages_of(config, [failed, honest]).any()


def test_groups_of_one_reward_have_no_variance() -> None:
    rewards = [0.1] * 6 + [0.1] * 5 + [0.2]  # the mean of six 0.1 is not 0.1
    rollouts = [
        replace(rollout(i // 6, i % 6), reward=reward, reward_breakdown={"accuracy": reward})
        for i, reward in enumerate(rewards)
    ]
    summary = grpo.summarise(config_of(group_size=6), rollouts)
    assert summary["group/zero_variance"] == 0.5


def test_one_completion_stays_where_none_has_an_advantage() -> None:
    minibatch = grpo.moving(Minibatch(four_by_four(), np.zeros(16, np.float32), np.zeros(16)))
    assert [place_of(r) for r in minibatch.rollouts] == [(0, 0)]
    assert len(minibatch.left_out) == 15


@pytest.mark.parametrize("split_by", ["question", "output"])
@pytest.mark.parametrize("share", [True, False])
def test_packed_advantages_belong_to_their_tokens(split_by: str, share: bool) -> None:
    config = config_of(split_by=split_by)
    for minibatch in grpo.make_minibatches(config, four_by_four(), 3):
        groups = grpo.to_groups(config, minibatch.rollouts)
        batch, used = pack(groups, 24, 2, 8, share, minibatch.advantages)
        counted = batch.loss_mask == 1
        tokens = batch.tokens[counted]
        advantages = batch.advantages[batch.completion_ids][counted]
        lengths = batch.lengths[batch.completion_ids][counted]
        np.testing.assert_allclose(advantages, (tokens % 10 - 1.5) / 1.25**0.5, rtol=1e-5)
        np.testing.assert_array_equal(lengths, tokens % 10 + 1)
        assert len(tokens) == sum(len(r.completion.tokens) for r in minibatch.rollouts)
        assert used <= 8


def test_old_rollouts_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for keep, left in ((0, [0, 1, 2, 3, 4]), (2, [3, 4])):
        for i in range(5):
            (tmp_path / "rollouts" / f"{i:06d}.jsonl").touch()
        grpo_rollouts.forget_rollouts(tmp_path, keep, 4)
        assert sorted(int(p.stem) for p in (tmp_path / "rollouts").iterdir()) == left


# -- one rollout ahead -----------------------------------------------------------------------------


def test_rollouts_of_the_policy_before(
    tokenizer_dir: str, tmp_path: Path, one_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iteration k + 1 is sampled with the parameters that iteration k began with, then resumed."""
    seen: list[Any] = []
    original = grpo_rollouts.sample_rollouts
    monkeypatch.setattr(
        grpo_rollouts,
        "sample_rollouts",
        lambda engine, params, *rest: (
            seen.append(np.asarray(params["embedding"]).copy()),
            original(engine, params, *rest),
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
    end = np.asarray(final_params(tmp_path)["embedding"])
    assert np.array_equal(seen[0], seen[1])  # of the initial policy
    assert not np.array_equal(seen[1], seen[2]) and not np.array_equal(seen[2], end)
    lines = metrics_by_step(tmp_path)
    first, *later = [lines[step]["grpo/drift/logprob_mean_abs"] for step in (1, 3, 5)]
    assert first < 1e-4 < min(later)  # the first is of the policy itself
    assert lines[1]["grpo/importance/mean"] == pytest.approx(1.0, abs=1e-4)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints/5")
    (tmp_path / "rollouts/000002.jsonl").rename(tmp_path / "kept.jsonl")
    grpo.run(config, str(tmp_path))  # from update 4, whose checkpoint came after rollout 2
    assert len(seen) == 4
    different = (tmp_path / "metrics.jsonl").read_bytes() != whole
    assert different  # a lost rollout is sampled by another policy: hence the order of writing
    shutil.rmtree(tmp_path / "checkpoints/5")
    (tmp_path / "kept.jsonl").rename(tmp_path / "rollouts/000002.jsonl")
    grpo.run(config, str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_rollouts_ahead_want_weights(tokenizer_dir: str, tmp_path: Path) -> None:
    for changes, said in (
        ({}, "set config.loss.importance_cap"),
        ({"loss": {"importance_cap": 2.0}, "dynamic_sampling": 1}, "at most one of them"),
        ({"rollouts_ahead": 2}, "config.rollouts_ahead 2 must be 0 or 1"),
    ):
        config = grpo_config(tokenizer_dir, **({"rollouts_ahead": 1} | changes))
        with pytest.raises(ConfigError, match=said):
            grpo.run(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
