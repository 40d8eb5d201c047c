"""From rollouts to minibatches, and other parts of GRPO that a run hides."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import linen as nn
from helpers import MODEL, example, grpo_config, read_lines, rollout_row, write_lines

from r1jax.config import ConfigError, DataError, section
from r1jax.data.packing import completion_group, pack
from r1jax.losses.aggregation import AGGREGATIONS
from r1jax.models.config import ModelConfig
from r1jax.models.packed_attention import Span
from r1jax.models.params import init_params
from r1jax.models.transformer import Transformer
from r1jax.rewards.pool import GraderPool
from r1jax.rollout.files import write_rollouts
from r1jax.stages import grpo, grpo_rollouts, grpo_updates
from r1jax.stages.grpo_config import (
    GrpoConfig,
    Packing,
    check,
    chosen,
    longest_completion,
    packing_of,
    sampling_at,
)
from r1jax.stages.grpo_rollouts import rewarded
from r1jax.stages.grpo_updates import Minibatch
from r1jax.training.frozen import FrozenConfig
from r1jax.training.run import Trainable, is_due
from r1jax.training.train_state import microbatch
from r1jax.types import Batch, Completion, Rollout, TrainState


def config_of(**changes: Any) -> GrpoConfig:
    return chosen(section(GrpoConfig, grpo_config("unread", **changes)), "cpu")


@pytest.mark.parametrize(
    ("platform", "length", "given", "shares"),
    [
        ("cpu", 32_768, None, True),
        ("tpu", 1024, None, True),  # the mask of a short row may be an array
        ("tpu", 32_768, None, False),
        ("gpu", 32_768, None, False),
        ("tpu", 32_768, True, True),
        ("cpu", 8, False, False),
    ],
)
def test_who_shares_prompts(platform: str, length: int, given: bool | None, shares: bool) -> None:
    asked = grpo_config("unread", sampling={"max_tokens": length}, share_prompts=given)
    assert chosen(section(GrpoConfig, asked), platform).shares_prompts is shares


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


def test_rewards_as_pairs() -> None:
    """For packages, whose dots a ConfigDict's keys may not have."""
    mapping = config_of(rewards={"helpers:ascii_share": 0.5, "format": 1.0})
    pairs = config_of(rewards=[("helpers:ascii_share", 0.5), ("format", 1.0)])
    for config in (mapping, pairs):
        with GraderPool({"": config.rewards}, config.graders) as pool:
            batch = pool.begin("")
            batch.submit(0, example("integer", "1"), "ab是是", 2, "stop")
            (_, grade), *_ = batch.results()
        assert grade.breakdown == {"helpers:ascii_share": 0.5, "format": 0.0}
        assert grade.reward == 0.25


def test_length_caps() -> None:
    config = config_of(sampling={"max_tokens": 8}, max_tokens_at={"10": 16, "9": 12})
    assert [sampling_at(config, s).max_tokens for s in (0, 8, 9, 10, 99)] == [8, 8, 12, 16, 16]
    assert longest_completion(config) == 16


def test_long_rows_have_a_span() -> None:
    race = {
        "max_prompt_tokens": 64,
        "sampling": {"max_tokens": 128},
        "group_size": 8,
        "prompts_per_update": 8,
    }
    assert packing_of(config_of(**race)) == Packing((192,), 64, None)
    assert packing_of(config_of(**race, pack_length=193)) == Packing((193,), 64, None)
    # room for five completions
    found = packing_of(config_of(**race, pack_length=960))
    assert found == Packing((960,), 13, Span(64, 129))
    apart = config_of(**race, pack_length=960, share_prompts=False)
    assert packing_of(apart) == Packing((960,), 13, Span(0, 192))
    # a row of 768 has room for four
    choice = packing_of(config_of(**race, pack_length=960, pack_choices=5))
    assert choice == Packing((960, 912, 864, 816, 768), 16, Span(64, 129))
    few = packing_of(config_of(**race, pack_length=200, pack_choices=8))
    assert few.lengths == (200, 193)  # what is shorter has no room for a prompt and completion
    tiny = config_of(max_prompt_tokens=2, sampling={"max_tokens": 2}, pack_length=8, pack_choices=8)
    assert packing_of(tiny).lengths == (8, 7, 6)  # each once


@pytest.mark.parametrize("kept", [1.0, 0.6])
@pytest.mark.parametrize("group_size", [1, 2, 8])
@pytest.mark.parametrize("choices", [1, 6])
def test_any_completions_fit_into_the_rows(choices: int, group_size: int, kept: float) -> None:
    """As many short ones behind the longest prompts, as many of any length, as the longest.

    Some may be left out, which makes groups smaller.
    """
    config = config_of(
        max_prompt_tokens=9,
        sampling={"max_tokens": 20},
        group_size=group_size,
        prompts_per_update=16,
        pack_length=150,
        pack_choices=choices,
    )
    found = packing_of(config)
    assert found.span is not None
    rng = np.random.default_rng(0)
    for shortest, longest in 5 * [(1, 1), (1, 20), (1, 6), (15, 20), (20, 20)]:
        groups = []
        for _ in range(16):
            lengths = rng.integers(shortest, longest + 1, group_size)
            lengths = lengths[rng.random(group_size) < kept]
            completions = [np.zeros(length, np.int32) for length in lengths]
            logprobs = [np.zeros(length, np.float32) for length in lengths]
            groups.append(completion_group(np.zeros(9, np.int32), completions, logprobs))
        batch = pack(groups, found.lengths, 1, found.rows)
        assert batch.microbatches <= found.rows


def numbered(name: str) -> Any:
    """Examples that say where they come from."""
    return lambda i: {"id": f"{name}{i}", "prompt": "?", "answer": "1", "task": "integer"}


def test_data_changes_with_the_rollout() -> None:
    """Two questions an update, two updates a rollout: "3" takes effect at the rollout of 4."""
    source = {"function": "test_grpo_batches:numbered"}
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


def test_is_due() -> None:
    due = [step for step in range(2, 21, 2) if is_due(5, step, 2)]
    assert due == [6, 10, 16, 20]  # 5 and 15 lie inside an iteration, whose end is 6 and 16
    assert not any(is_due(0, step, 2) for step in range(20))


def test_reference_is_a_copy() -> None:
    """The next update donates the policy's buffers: the reference must not share them."""
    config = config_of(ref_every=4, updates_per_rollout=2)
    old, new = jnp.zeros(3), jnp.ones(3)
    trained = Trainable.__new__(Trainable)
    trained.ref_params, trained.state = {"a": old}, TrainState(0, {"a": new}, None)
    trained._reference = FrozenConfig()
    stage: Any = SimpleNamespace(trained=trained)
    grpo.replace_reference(config, stage, 2)
    assert trained.ref_params["a"] is old
    grpo.replace_reference(config, stage, 4)
    jax.jit(lambda x: x + 1, donate_argnums=0)(new)
    np.testing.assert_array_equal(trained.ref_params["a"], np.ones(3))


@pytest.mark.parametrize(
    ("truncated", "expected"), [("grade", [0, 1, 2, 3]), ("zero", [0, 0, 2, 0])]
)
def test_reward_of_truncated(truncated: str, expected: list[float]) -> None:
    rewards_BG = rewarded(config_of(truncated=truncated), four_by_four()).rewards
    np.testing.assert_array_equal(rewards_BG, [expected] * 4)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing text", "0.jsonl does not exist"),
        ("missing arrays", "0.safetensors is not what was written"),
        ("short text", "for completions with"),
        ("torn text", "0.jsonl:16 is not JSON"),
        ("torn arrays", "0.safetensors is not what was written"),
        ("fewer tokens", "for completions with"),
        ("no text", "KeyError('text')"),
        ("another question", "has rollouts of other questions"),
        ("no rewards", "has rollouts of other questions, or without rewards"),
        ("a count too many", "has 16 of 17 rollouts"),
        ("no counts", "does not say how many completions there are"),
    ],
)
def test_damaged_rollouts_are_sampled_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, said: str
) -> None:
    """But not with rollouts ahead, which older parameters have sampled."""
    path = epath.Path(tmp_path / "000000")
    source: Any = grpo_rollouts.Rollouts.__new__(grpo_rollouts.Rollouts)
    source._config = config_of()
    source._questions = dict.fromkeys(r.example_id for r in four_by_four())
    assert source._written(path, 16, unfinished=False) is None  # there is none
    write_rollouts(path, four_by_four())
    found = source._written(path, 16, unfinished=False)
    assert list(map(rollout_row, found)) == list(map(rollout_row, four_by_four()))
    assert not caplog.records

    text, arrays, complete = path / "0.jsonl", path / "0.safetensors", path / "complete.json"
    lines = read_lines(Path(text))
    match damage:
        case "missing text":
            text.unlink()
        case "missing arrays":
            arrays.unlink()
        case "short text":
            write_lines(Path(text), lines[:-1])
        case "torn text":
            text.write_text(text.read_text()[:-20])
        case "torn arrays":
            arrays.write_bytes(arrays.read_bytes()[:-4])
        case "a count too many":
            complete.write_text('{"completions": [17]}')
        case "no counts":
            complete.write_text("{}")
        case "no text":
            del lines[0]["text"]
            write_lines(Path(text), lines)
        case _:
            changes = {
                "fewer tokens": {"length": 0},
                "another question": {"example_id": "another"},
                "no rewards": {"reward_breakdown": 5},
            }
            lines[0] |= changes[damage]
            write_lines(Path(text), lines)
    assert source._written(path, 16, unfinished=False) is None
    assert said in caplog.text and "sampled again" in caplog.text
    source._config = config_of(rollouts_ahead=1, loss={"importance_cap": 2.0})
    with pytest.raises(DataError, match="with rollouts_ahead they cannot be"):
        source._written(path, 16, unfinished=False)


def test_a_completion_on_the_screen() -> None:
    sample = {
        "question": "1+1=?", "completion": "a\nb" + "c" * 1000, "reward": 1.5, "length": 7,
        "reward_breakdown": {"accuracy": 1.0, "format": 0.5},
    }  # fmt: skip
    lines = grpo_rollouts.shown(sample).splitlines()
    assert lines[:2] == ["  1+1=?", "  a"]
    assert len(lines[2]) < 420 and " ... " in lines[2]
    assert lines[3] == "  -> reward 1.5 (accuracy 1, format 0.5), 7 tokens"


def test_what_varies() -> None:
    """Lengths that differ are no answers that differ, where the config asks for accuracy."""
    parts = [{"accuracy": a, "format": f} for a, f in ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0))]
    group = [replace(rollout(0, g), reward=sum(x.values()), reward_breakdown=x)
             for g, x in enumerate(parts)]  # fmt: skip
    for by, expected in (("reward", [True, True]), ("accuracy", [False, True])):
        config = config_of(rewards={"accuracy": 1.0, "format": 1.0}, vary_by=by, group_size=2)
        assert [grpo_rollouts.varied(config, group[i : i + 2]) for i in (0, 1)] == expected
    with pytest.raises(ConfigError, match=r"config.vary_by 'acuracy' is not.*mean 'accuracy'"):
        check(config_of(rewards={"accuracy": 1.0}, vary_by="acuracy"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rewards": {"accuracy": 0.0, "format": 0}}, "every weight is 0, so nothing is learnt"),
        ({"rewards": [("accuracy", 1.0), ("accuracy", 2.0)]}, "rewards has 'accuracy' twice"),
        ({"reward_models": {"accuracy": {"path": "x"}}}, "models.accuracy: .* has that name alre"),
        (
            {"evaluation": {"curve": {"a": {"data": {"path": "x"}, "rewards": {"x": 1.0}}}}},
            "reward 'x' is neither",
        ),
    ],
)
def test_rewards_that_cannot_be(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(config_of(**{"rewards": {"accuracy": 1.0}} | changes))


def test_truncated_are_masked() -> None:
    """They leave the loss and its denominators, also where every one is cut."""
    rollouts = four_by_four()
    batch = pack(grpo_updates.to_groups(config_of(), rollouts), 16, 8)
    masked = grpo_updates.mask_truncated(batch, rollouts)
    left = batch.tokens[masked.loss_mask == 1]
    assert sorted(set(left.tolist())) == [0, 2, 10, 12, 20, 22, 30, 32]
    assert masked.loss_mask.sum() == masked.num_targets == 4 * (1 + 3)
    np.testing.assert_array_equal(masked.lengths, [1, *[1, 0, 3, 0] * 4])
    for name, aggregate in AGGREGATIONS.items():
        total = float(jnp.sum(aggregate(jax.tree.map(jnp.asarray, masked), 4)))
        assert total == pytest.approx({"constant": 16 / (8 * 4)}.get(name, 1.0))
    cut = [rollout(p, g, cut=True) for p in range(4) for g in range(4)]
    none = grpo_updates.mask_truncated(batch, cut)
    for aggregate in AGGREGATIONS.values():
        assert float(jnp.sum(aggregate(jax.tree.map(jnp.asarray, none), 4))) == 0
    assert none.num_targets == 1


@pytest.mark.parametrize("split_by", ["question", "output"])
def test_minibatches(split_by: str) -> None:
    """Each rollout is in one update, with its own advantage; only "output" mixes questions."""
    config = config_of(split_by=split_by)
    rollouts = four_by_four()
    first, second = minibatches = list(
        grpo_updates.make_minibatches(config, rewarded(config, rollouts), 7)
    )
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
    again, _ = grpo_updates.make_minibatches(config, rewarded(config, rollouts), 7)
    assert [*map(place_of, again.rollouts)] == [*map(place_of, first.rollouts)]
    if split_by == "output":
        other, _ = grpo_updates.make_minibatches(config, rewarded(config, rollouts), 8)
        assert [*map(place_of, other.rollouts)] != [*map(place_of, first.rollouts)]


def place_of(rollout: Rollout) -> tuple[int, int]:
    return rollout.completion.prompt_index, rollout.completion.sample_index


@pytest.mark.parametrize("loss_agg", AGGREGATIONS)
@pytest.mark.parametrize("split_by", ["question", "output"])
def test_completions_without_advantage_may_be_left_out(loss_agg: str, split_by: str) -> None:
    """Without a KL they add exact zeros: same loss, same gradient, from fewer tokens."""
    config = config_of(split_by=split_by, loss={"kl_coef": 0.0, "loss_agg": loss_agg})
    rollouts = [
        replace(r, reward=float(r.completion.prompt_index == 2) * r.reward) for r in four_by_four()
    ]  # prompts 0, 1 and 3 have no variance
    model = Transformer(ModelConfig(vocab_size=256, **MODEL))
    params = nn.unbox(init_params(model, jax.random.key(0)))
    loss = jax.jit(jax.value_and_grad(grpo_updates.make_loss(config, model), has_aux=True))

    def measured(minibatch: Minibatch) -> tuple[Any, Batch]:
        groups = grpo_updates.to_groups(config, minibatch.rollouts)
        batch = pack(groups, 24, 8, 1, advantages=minibatch.advantages)
        batch = grpo_updates.count_left_out(batch, minibatch)
        return loss(params, microbatch(jax.tree.map(jnp.asarray, batch), 0)), batch

    with_gradient = 0
    for minibatch in grpo_updates.make_minibatches(config, rewarded(config, rollouts), 3):
        (whole, all_batch), (fewer, batch) = map(
            measured, (minibatch, grpo_updates.with_gradient(minibatch))
        )
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
    np.testing.assert_allclose(rewarded(config, rollouts).advantages, expected, rtol=1e-5)


def test_a_failed_grade_earns_nothing_of_each_reward() -> None:
    config = config_of(normalise="each", rewards={"format": 1.0}, group_size=2)
    failed = replace(rollout(0, 0), reward=0.0, reward_breakdown={"format": 1.0}, failure="timeout")
    honest = replace(rollout(0, 1), reward=0.0, reward_breakdown={"format": 0.0})
    assert not rewarded(config, [failed, honest]).advantages.any()


def test_groups_of_one_reward_have_no_variance() -> None:
    rewards = [0.1] * 6 + [0.1] * 5 + [0.2]  # the mean of six 0.1 is not 0.1
    rollouts = [
        replace(rollout(i // 6, i % 6), reward=reward, reward_breakdown={"accuracy": reward})
        for i, reward in enumerate(rewards)
    ]
    summary = grpo.summarise(rewarded(config_of(group_size=6), rollouts))
    assert summary["group/zero_variance"] == 0.5


def test_one_completion_stays_where_none_has_an_advantage() -> None:
    minibatch = grpo_updates.with_gradient(
        Minibatch(four_by_four(), np.zeros(16, np.float32), np.zeros(16))
    )
    assert [place_of(r) for r in minibatch.rollouts] == [(0, 0)]
    assert len(minibatch.left_out) == 15


@pytest.mark.parametrize("split_by", ["question", "output"])
@pytest.mark.parametrize("share", [True, False])
def test_packed_advantages_belong_to_their_tokens(split_by: str, share: bool) -> None:
    config = config_of(split_by=split_by)
    for minibatch in grpo_updates.make_minibatches(config, rewarded(config, four_by_four()), 3):
        groups = grpo_updates.to_groups(config, minibatch.rollouts)
        batch = pack(groups, 24, 2, 8, share, minibatch.advantages)
        used = int(batch.microbatches)
        counted = batch.loss_mask == 1
        tokens = batch.tokens[counted]
        advantages = batch.advantages[batch.completion_ids][counted]
        lengths = batch.lengths[batch.completion_ids][counted]
        np.testing.assert_allclose(advantages, (tokens % 10 - 1.5) / 1.25**0.5, rtol=1e-5)
        np.testing.assert_array_equal(lengths, tokens % 10 + 1)
        assert len(tokens) == sum(len(r.completion.tokens) for r in minibatch.rollouts)
        assert used <= 8


def test_old_rollouts_are_forgotten(tmp_path: Path) -> None:
    for keep, left in ((0, [0, 1, 2, 3, 4]), (2, [3, 4])):
        for i in range(5):
            write_rollouts(grpo_rollouts.rollouts_of(epath.Path(tmp_path), i), four_by_four())
        grpo_rollouts.forget_rollouts(epath.Path(tmp_path), keep, 4)
        assert sorted(int(p.name) for p in (tmp_path / "rollouts").iterdir()) == left
