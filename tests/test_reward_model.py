"""Reward models: losses by hand, packing, training both kinds, reading a summary or all."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import MODEL, grpo_config, metrics_by_step, read_lines, sft_config
from ml_collections import ConfigDict

from r1jax.config import ConfigError, DataError, section
from r1jax.data.packing import Group, Piece, pack, sequence_group
from r1jax.judges.reward_model import (
    Labelled,
    LearnedReward,
    LearnedRewards,
    RewardModel,
    Scorer,
    pack_labelled,
    sampled,
    to_group,
)
from r1jax.losses.scalar import pairwise_loss, pointwise_loss
from r1jax.machines.mesh import make_mesh
from r1jax.models.transformer import Transformer
from r1jax.stages import grpo, reward_model, sft
from r1jax.stages.reward_model import RewardModelConfig, with_scalar_head
from r1jax.training import run
from r1jax.training.frozen import HOST, FrozenConfig
from r1jax.types import Batch, Completion, Example, Rollout
from r1jax.weights.load import ModelSource, load_tokenizer, open_model, open_source

# -- losses by hand --------------------------------------------------------------------------------


def scalar_batch(**values: Any) -> Batch:
    """Four sequences in two rows; the targets are tokens 1 and 3 of each."""
    ids = jnp.array([[1, 1, 2, 2], [3, 3, 4, 4]])
    mask = jnp.array([[0.0, 1, 0, 1]] * 2)
    zeros = jnp.zeros((2, 4), jnp.int32)
    return Batch(
        tokens=zeros, positions=zeros, segment_ids=ids, completion_ids=ids, loss_mask=mask,
        lengths=jnp.ones(5), num_targets=jnp.float32(4), **values,
    )  # fmt: skip


SCALARS = jnp.array([[9.0, 2.0, 9.0, 0.0], [9.0, -1.0, 9.0, 1.0]])  # 2 against 0, -1 against 1


def test_pairwise_by_hand() -> None:
    # -log sigmoid(2) = 0.126928, -log sigmoid(-2) = 2.126928
    (loss, metrics), grad = jax.value_and_grad(pairwise_loss, has_aux=True)(SCALARS, scalar_batch())
    assert float(loss) == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-5)
    # d/d chosen = -(1 - sigmoid(margin)) / pairs: -0.119203 / 2 and -0.880797 / 2
    expected = [[0, -0.059601, 0, 0.059601], [0, -0.440399, 0, 0.440399]]
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    assert float(metrics["accuracy"]) == 0.5
    assert float(metrics["margin"]) == 0.0


def test_a_tie_is_half_right() -> None:
    loss, metrics = pairwise_loss(jnp.zeros((2, 4)), scalar_batch())
    assert float(loss) == pytest.approx(np.log(2))
    assert float(metrics["accuracy"]) == 0.5


def test_pointwise_by_hand() -> None:
    # labels 1 0 0 1 for logits 2 0 -1 1: 0.126928, 0.693147, 0.313262, 0.313262
    labels = jnp.array([0.0, 1, 0, 0, 1])
    grad_fn = jax.value_and_grad(pointwise_loss, has_aux=True)
    (loss, metrics), grad = grad_fn(SCALARS, scalar_batch(labels=labels))
    assert float(loss) == pytest.approx((0.126928 + 0.693147 + 2 * 0.313262) / 4, abs=1e-5)
    expected = [[0, -0.119203 / 4, 0, 0.5 / 4], [0, 0.268941 / 4, 0, -0.268941 / 4]]
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    assert float(metrics["accuracy"]) == 1.0  # a logit of 0 says unsafe


@pytest.mark.parametrize("loss", [pairwise_loss, pointwise_loss])
def test_microbatches_add_up(loss: Any) -> None:
    batch = scalar_batch(labels=jnp.array([0.0, 1, 0, 0, 1]))
    whole = loss(SCALARS, batch)[0]

    def row(i: int) -> float:
        one = jax.tree.map(lambda x: x[i : i + 1] if x.ndim == 2 else x, batch)
        return float(loss(SCALARS[i : i + 1], one)[0])

    assert row(0) + row(1) == pytest.approx(float(whole), rel=1e-6)


# -- packing ---------------------------------------------------------------------------------------


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_packed_scores_are_those_of_single_rows(tokenizer_dir: str, tmp_path: Path) -> None:
    """Shared prompts, several pairs a row and padding change nothing."""
    tokenizer = load_tokenizer(tokenizer_dir)
    source = with_scalar_head(ModelSource(config=dict(MODEL), tokenizer=tokenizer_dir))
    mesh = make_mesh(None, jax.devices()[:1])
    opened = open_source(source, epath.Path(tmp_path))
    params = opened.load(mesh, 0)
    head = jax.random.normal(jax.random.key(1), params["scalar_head"].shape)
    params = params | {"scalar_head": head, "scalar_bias": jnp.float32(0.5)}
    groups = [
        to_group(question(q), answers, tokenizer, "plain", "response")
        for q, answers in (("1+1?", ["2", "3"]), ("sort 3 1", ["1 3", "3"]), ("?", ["!", "a b c"]))
    ]
    scorer = Scorer(Transformer(opened.config, mesh), mesh, 2)
    together = scorer(params, groups)
    singles = [
        to_group(question(q), [answer], tokenizer, "plain", "response")
        for q, answers in (("1+1?", ["2", "3"]), ("sort 3 1", ["1 3", "3"]), ("?", ["!", "a b c"]))
        for answer in answers
    ]
    alone = [float(scorer(params, [single])[0]) for single in singles]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together) > 0.1


def test_pairs_stay_in_one_row() -> None:
    tokens = [np.arange(n, dtype=np.int32) for n in (5, 6, 4, 7, 3, 3, 2, 5)]
    groups = [
        Group(
            [Piece(t, np.eye(len(t), dtype=np.float32)[-1]) for t in pair],
            np.arange(2, dtype=np.int32),
        )
        for pair in zip(tokens[::2], tokens[1::2], strict=True)
    ]
    batch = pack(groups, 16, 1, whole_groups=True)
    used = int(batch.microbatches)
    places = {}
    for row in range(used):
        for completion in set(batch.completion_ids[row].ravel().tolist()) - {0}:
            places.setdefault(completion, row)
            assert places[completion] == row
    assert all(places[2 * k + 1] == places[2 * k + 2] for k in range(4))
    split = pack(groups, 16, 1)
    assert split.num_targets == batch.num_targets == 8
    with pytest.raises(DataError, match="13 tokens does not fit"):
        pack(groups, 12, 1, whole_groups=True)


# -- training --------------------------------------------------------------------------------------


def preference_rows(kind: str, count: int, offset: int = 0) -> list[dict[str, Any]]:
    """The good response says yes."""
    rows: list[dict[str, Any]] = []
    for i in range(offset, offset + count):
        messages, good, bad = question(f"{i}?"), f"yes {i % 7}", f"no {i % 5}"
        if kind == "pairwise":
            rows.append({"messages": messages, "chosen": good, "rejected": bad})
        else:
            rows += [
                {"messages": messages, "response": good, "label": 1},
                {"messages": messages, "response": bad, "label": 0},
            ]
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def reward_config(tokenizer: str, kind: str, **changes: Any) -> ConfigDict:
    config = sft_config(tokenizer).to_dict()
    del config["overlong"]
    return ConfigDict(
        config
        | {
            "stage": "reward_model",
            "kind": kind,
            "total_steps": 0,
            "pack_length": 128,
            "template": "plain",
        }
        | {"data": {}, "optimizer": {"learning_rate": 1e-2}, "checkpoint_every": 4}
        | changes
    )


def train(tokenizer: str, directory: Path, kind: str, **changes: Any) -> dict[int, dict[str, Any]]:
    data = {"path": write(directory / f"{kind}.jsonl", preference_rows(kind, 64))}
    held_out = {"path": write(directory / f"{kind}-held-out.jsonl", preference_rows(kind, 32, 64))}
    config = reward_config(tokenizer, kind, data=data, held_out={"data": held_out}, **changes)
    reward_model.run(config, str(directory / "run"))
    return metrics_by_step(directory / "run")


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_it_learns(kind: str, tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    steps = train(tokenizer_dir, tmp_path, kind, epochs=2.0)
    updates = 16 if kind == "pairwise" else 32  # 2 epochs of 64 pairs (128 labels) in eights
    assert sorted(steps) == list(range(updates + 1))
    held_out = (
        "eval/reward_model/accuracy" if kind == "pairwise" else "eval/reward_model/label_accuracy"
    )
    assert 0.1 < steps[0][held_out] < 0.9
    assert steps[updates][held_out] > 0.95
    assert steps[updates]["eval/reward_model/rows"] == (32 if kind == "pairwise" else 64)
    assert steps[updates]["reward_model/loss"] < 0.3
    model = RewardModel(str(tmp_path / "run"), "response", "plain")
    good, bad = model.scores([(question("7?"), "yes 3"), (question("7?"), "no 3")])
    assert good > bad
    if kind == "pointwise":
        assert good > 0 > bad


def test_pairs_as_labels(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """A pointwise model may learn from pairs: chosen is safe, rejected is not."""
    pairs = [preference_rows("pairwise", 32, offset) for offset in (0, 64)]
    paths = [write(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate(pairs)]
    config = reward_config(
        tokenizer_dir,
        "pointwise",
        data={"path": paths[0]},
        held_out={"data": {"path": paths[1]}},
        epochs=4.0,
    )
    reward_model.run(config, str(tmp_path / "run"))
    last = metrics_by_step(tmp_path / "run")[16]
    assert (
        last["eval/reward_model/label_accuracy"] > 0.9 and last["eval/reward_model/accuracy"] > 0.95
    )


def test_labels_of_one_pair_are_not_independent() -> None:
    """Both responses of a pair get one score: every row is half right, which has no error."""
    group = sequence_group([1, 2], [1.0, 1.0])
    rows = [Labelled(group, (1.0, 0.0)) for _ in range(4)]
    scores = np.repeat([1.0, -1.0, 2.0, -2.0], 2)
    found = reward_model.held_out_metrics(scores, rows, "pointwise")
    assert (found["label_accuracy"], found["label_accuracy_se"]) == (0.5, 0.0)
    single = [Labelled(group, (label,)) for label in (1.0, 0.0, 1.0, 1.0)]
    found = reward_model.held_out_metrics(np.array([1.0, -1.0, 1.0, -1.0]), single, "pointwise")
    assert found["label_accuracy"] == 0.75 and found["label_accuracy_se"] > 0.2


def test_attention_knows_of_shared_prompts(
    tokenizer_dir: str, tmp_path: Path, one_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both responses of a pair stand behind one prompt, which not every kernel can run."""
    asked: list[bool] = []

    def spied(config: Any, compute: Any, mesh: Any, shared_prompts: bool = False) -> str:
        asked.append(shared_prompts)
        return "xla"

    monkeypatch.setattr(run, "choose_kernel", spied)
    train(tokenizer_dir, tmp_path, "pairwise", epochs=0.25)
    assert asked == [True]


def test_what_is_read(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    train(tokenizer_dir, tmp_path, "pairwise")
    texts = ["yes 3", "<think>no no no</think>yes 3", "no 3"]
    conversations = [(question("7?"), text) for text in texts]
    summary = RewardModel(str(tmp_path / "run"), "summary", "plain").scores(conversations)
    response = RewardModel(str(tmp_path / "run"), "response", "plain").scores(conversations)
    assert summary[0] == pytest.approx(summary[1], abs=1e-5)
    assert response[0] == pytest.approx(summary[0], abs=1e-5)
    assert abs(response[0] - response[1]) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_in_the_memory_of_the_host(tokenizer_dir: str, tmp_path: Path, dtype: Any) -> None:
    train(tokenizer_dir, tmp_path, "pairwise")
    conversations = [(question("7?"), text) for text in ("yes 3", "no 3")]
    path, mesh = str(tmp_path / "run"), make_mesh({"fsdp": 8})
    here = RewardModel(path, "response", "plain", mesh)
    away = RewardModel(path, "response", "plain", mesh, frozen=FrozenConfig(dtype, offload=True))
    found = away.scores(conversations)
    np.testing.assert_allclose(
        found, here.scores(conversations), atol=0 if dtype == "float32" else 0.03
    )
    assert {x.sharding.memory_kind for x in jax.tree.leaves(away._params)} == {HOST}


def test_eight_devices(tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    for name in ("one", "eight"):
        (tmp_path / name).mkdir()
    eight = train(tokenizer_dir, tmp_path / "eight", "pairwise", mesh=mesh, total_steps=3)
    monkeypatch.setattr("r1jax.weights.load.devices_for", lambda *_: jax.devices()[:1])
    one = train(tokenizer_dir, tmp_path / "one", "pairwise", total_steps=3)
    for step in (1, 2, 3):
        for name in ("reward_model/loss", "reward_model/optimizer/grad_norm"):
            assert eight[step][name] == pytest.approx(one[step][name], rel=1e-4)


def test_resume(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """From the checkpoint in the middle: the same metrics and parameters."""
    run = tmp_path / "run"
    whole = train(tokenizer_dir, tmp_path, "pairwise", checkpoint_every=4)
    params = open_model(str(run)).load(make_mesh(None, jax.devices()[:1]), 0)
    shutil.rmtree(run / "checkpoints" / "8")
    again = train(tokenizer_dir, tmp_path, "pairwise", checkpoint_every=4)
    assert again == whole
    resumed = open_model(str(run)).load(make_mesh(None, jax.devices()[:1]), 0)
    jax.tree.map(np.testing.assert_array_equal, resumed, params)


def test_from_a_trained_model(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """Its trunk is taken over, the head is new."""
    sft.run(sft_config(tokenizer_dir, total_steps=2), str(tmp_path / "base"))
    model = {"path": str(tmp_path / "base")}
    train(tokenizer_dir, tmp_path, "pairwise", model=model, optimizer={"learning_rate": 0.0})
    mesh = make_mesh(None, jax.devices()[:1])
    base, trained = (open_model(str(tmp_path / n)).load(mesh, 0) for n in ("base", "run"))
    head, bias = trained.pop("scalar_head"), trained.pop("scalar_bias")
    assert 0.01 < float(head.std()) < 0.04 and float(bias) == 0.0
    jax.tree.map(np.testing.assert_array_equal, trained, base)


def test_in_rl(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    """The model's score, where it has a say, is a part of the reward; the rest stays as it was."""
    train(tokenizer_dir, tmp_path, "pairwise")
    term = {"path": str(tmp_path / "run"), "weight": 0.5, "reads": "response", "template": "plain"}
    data = [
        {"id": str(i), "prompt": f"{i}?", "answer": "", "task": "general", "kind": kind}
        for i, kind in enumerate(["helpful", "safety"] * 4)
    ]
    config = grpo_config(
        tokenizer_dir,
        data={"path": write(tmp_path / "rl.jsonl", data)},
        reward_models={"helpful": term | {"kind": "helpful"}},
        total_steps=1,
        updates_per_rollout=1,
        prompts_per_update=6,
    )
    grpo.run(config, str(tmp_path / "rl"))
    model = RewardModel(str(tmp_path / "run"), "response", "plain")
    rows = read_lines(tmp_path / "rl/rollouts/000000/0.jsonl")
    for row in rows:
        example = data[int(row["example_id"])]
        share = row["reward_breakdown"]["helpers:ascii_share"]
        expected = 0.0
        if example["kind"] == "helpful":
            (expected,) = model.scores([(question(str(example["prompt"])), row["text"])])
        assert row["reward_breakdown"]["helpful"] == pytest.approx(expected, abs=1e-5)
        assert row["reward"] == pytest.approx(share + 0.5 * expected, abs=1e-5)
    assert {data[int(row["example_id"])]["kind"] for row in rows} == {"helpful", "safety"}
    metrics = metrics_by_step(tmp_path / "rl")[1]
    mean = np.mean([row["reward_breakdown"]["helpful"] for row in rows])
    assert metrics["grpo/reward/helpful"] == pytest.approx(mean, abs=1e-6)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        (
            "pairwise",
            {"prompt": "?", "chosen": "a"},
            "r.jsonl:1: a pairwise row needs the key rejected",
        ),
        ("pairwise", {"chosen": "a", "rejected": "b"}, "needs the key messages"),
        ("pointwise", {"prompt": "?", "chosen": "a"}, "needs the key rejected"),
        ("pointwise", {"prompt": "?", "response": "a"}, "needs the key label"),
        ("pointwise", {"prompt": "?", "response": "a", "label": "safe"}, "label 'safe' is neither"),
    ],
)
def test_bad_rows(
    kind: str, row: dict[str, Any], said: str, tokenizer_dir: str, tmp_path: Path
) -> None:
    config = reward_config(tokenizer_dir, kind, data={"path": write(tmp_path / "r.jsonl", [row])})
    with pytest.raises(DataError, match=said):
        reward_model.run(config, str(tmp_path / "run"))


def test_sides_that_read_the_same_are_left_out(
    tokenizer_dir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only what stands behind the thoughts is read."""
    same = {"prompt": "?", "chosen": "<think>a</think>4", "rejected": "<think>b</think>4"}
    data = {"path": write(tmp_path / "r.jsonl", [same, *preference_rows("pairwise", 2)])}
    config = section(RewardModelConfig, reward_config(tokenizer_dir, "pairwise", data=data))
    rows = reward_model.checked_rows(config.data, config.kind, "config.data")
    tokenizer = load_tokenizer(tokenizer_dir)
    with caplog.at_level("WARNING", logger="absl"):
        assert len(reward_model._fitting(rows, tokenizer, config, "config.data", 128)) == 2
    assert "1 of 3 rows are left out: their two sides read the same" in caplog.text


def test_too_long_rows(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    rows = [*preference_rows("pairwise", 7), {"prompt": "?", "chosen": "a" * 300, "rejected": "b"}]
    data = {"path": write(tmp_path / "r.jsonl", rows)}
    with pytest.raises(
        ConfigError, match="r.jsonl:8 has .* tokens, more than config.pack_length 128"
    ):
        reward_model.run(reward_config(tokenizer_dir, "pairwise", data=data), str(tmp_path / "a"))
    config = reward_config(tokenizer_dir, "pairwise", data=data, overlong="drop", total_steps=1)
    reward_model.run(config, str(tmp_path / "b"))


def test_a_model_without_the_head(tokenizer_dir: str, tmp_path: Path, one_device: None) -> None:
    sft.run(sft_config(tokenizer_dir, total_steps=1), str(tmp_path / "base"))
    with pytest.raises(ConfigError, match="has no scalar head"):
        RewardModel(str(tmp_path / "base"), "summary")


def test_labels_and_shapes() -> None:
    group = Group([Piece(np.arange(3, dtype=np.int32), np.ones(3))])
    batch = pack_labelled([Labelled(group, (1.0,)), Labelled(group, (0.0,))], 4, 1)
    used = int(batch.microbatches)
    assert batch.labels.tolist() == [0, 1, 0]
    assert (used, batch.tokens.shape) == (2, (2, 1, 4))


# -- beside other rewards --------------------------------------------------------------------------


def by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward models that score a response by its length."""

    class Fake:
        def __init__(self, *args: Any) -> None:
            pass

        def scores(self, conversations: Any) -> np.ndarray:
            return np.array([len(text) for _, text in conversations], np.float32)

    monkeypatch.setattr("r1jax.judges.reward_model.RewardModel", Fake)


def answered(place: int, text: str, reward: float = 1.0) -> Rollout:
    completion = Completion(place, 0, np.zeros(1, np.int32), np.zeros(1, np.float32), "stop")
    return Rollout("same id", np.zeros(1, np.int32), completion, text, reward, {"rule": reward})


def asked(**metadata: Any) -> Example:
    return Example("same id", ({"role": "user", "content": "?"},), "", "general", metadata)


def test_scores_belong_to_their_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the prompt's place, not by an id: two files may both have a row "0"."""
    by_length(monkeypatch)
    terms = {"helpful": LearnedReward("model", weight=0.5, kind="helpful")}
    rollouts = [answered(0, "abc"), answered(1, "abcde")]
    found = LearnedRewards(terms, make_mesh()).added(
        rollouts, [asked(kind="safety"), asked(kind="helpful")]
    )
    assert [r.reward for r in found] == [1.0, 3.5]
    assert [r.reward_breakdown["helpful"] for r in found] == [0.0, 5.0]


def test_against_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    by_length(monkeypatch)
    rewards = LearnedRewards({"wins": LearnedReward("model", against="reference")}, make_mesh())
    found = rewards.added(
        [answered(0, "abc"), answered(1, "abc")], [asked(reference="ab"), asked(reference="abc")]
    )
    assert found[0].reward_breakdown["wins"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert found[1].reward_breakdown["wins"] == 0.5
    with pytest.raises(DataError, match="has no 'reference', which reward model 'wins' compares"):
        rewards.added([answered(0, "abc")], [asked()])


def test_a_summary_is_what_stands_in_the_tags(tokenizer_dir: str) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    texts = ["<think> 3 </think> <answer> 7 </answer>", "3 </think> 7", "7"]
    (pieces,) = {
        tuple(
            tuple(piece.tokens.tolist())
            for piece in to_group(question("?"), [text], tokenizer, "plain", "summary").pieces
        )
        for text in texts
    }
    assert len(pieces) == 1


@pytest.mark.parametrize("template", ["r1", "plain", "r1_zero"])
@pytest.mark.parametrize("reads", ["summary", "response"])
@pytest.mark.parametrize(
    "text",
    [
        "a</think> 5", "<think>\n<think>a</think> 5", "x <think> y </think> z", "x <think> y",
        "<think>a</think> b <think> c", "<think><think><think>", "</think></think>", "",
    ],
)  # fmt: skip
def test_whatever_a_policy_writes_is_read(
    tokenizer_dir: str, template: str, reads: str, text: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    messages = [{"role": "user", "content": "2 + 3?"}]
    group = to_group(messages, [sampled(text)], tokenizer, template, reads)
    assert group.pieces[0].loss_mask.sum() == 1
