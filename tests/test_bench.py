"""bench: figures that fit together, and errors."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import MODEL, grpo_config

from experiments.smollm2.noise import noise
from r1jax.bench import bench, iteration_figures, matmul_peak
from r1jax.config import ConfigError
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.params import count_params, random_params
from r1jax.models.transformer import Transformer
from r1jax.types import Completion, Rollout


def test_figures_fit_together(tokenizer_dir: str, one_device: None) -> None:
    config = grpo_config(tokenizer_dir, total_steps=6)
    config.evaluation = {"every": 1}  # is not made
    figures = bench(config)
    assert len(figures["iterations"]) == 3
    assert figures["completion_tokens"] > 0
    for one in figures["iterations"]:
        assert 16 <= one["completion_tokens"] <= 16 * 8
        parts = ("rollout_seconds", "ref_seconds", "old_seconds", "update_seconds")
        assert 0 < sum(one[name] for name in parts) <= one["step_seconds"]
        assert one["prefill_seconds"] + one["decode_seconds"] <= one["rollout_seconds"]
        tokens = one["rollout_tokens_per_s"] * one["rollout_seconds"]
        np.testing.assert_allclose(tokens, one["completion_tokens"], rtol=1e-3)
        assert 0 <= one["padding_share"] < 1
        assert 0 <= one["wasted_slot_share"] < 1
        assert 0 < one["update_peak_share"] < 1
    steps = [one["step_seconds"] for one in figures["iterations"][1:]]
    assert figures["step_seconds"] == pytest.approx(sum(steps) / 2)
    assert figures["programs"] > figures["programs_after_first"] >= 0
    compiled = [one["programs_compiled"] for one in figures["iterations"]]
    assert compiled[0] > 0
    assert (sum(compiled), sum(compiled[1:])) == (
        figures["programs"],
        figures["programs_after_first"],
    )
    assert figures["matmul_peak_gflops"] > 1
    assert figures["device"] == "8 x cpu"
    json.dumps(figures)


def test_one_iteration_by_hand() -> None:
    line = {
        "grpo/seconds/total": 10.0,
        "grpo/seconds/rollout": 4.0,
        "grpo/seconds/ref_logprobs": 1.0,
        "grpo/seconds/update": 2.0,
        "grpo/rollout/prefill_seconds": 1.0,
        "grpo/rollout/decode_seconds": 2.5,
        "grpo/rollout/tokens_per_s": 5.0,
        "grpo/rollout/wasted_slot_share": 0.25,
        "grpo/batch/tokens": 60,
        "grpo/batch/padding_share": 0.5,
        "compile/programs": 8,
    }
    second = {
        "grpo/seconds/total": 3.0,
        "grpo/seconds/update": 3.0,
        "grpo/batch/tokens": 40,
        "grpo/batch/padding_share": 0.3,
        "compile/programs": 9,
    }
    rollouts = [
        Rollout("", np.ones(7), Completion(p, 0, np.ones(n), np.ones(n), "stop"), "", 0.0, {})
        for p, n in ((0, 3), (0, 5), (1, 4), (1, 8))
    ]
    figures = iteration_figures([line, second], rollouts, 4, parameters=1_000_000, peak=0.1)
    assert figures == {
        "step_seconds": 13.0,
        "rollout_seconds": 4.0,
        "prefill_seconds": 1.0,
        "decode_seconds": 2.5,
        "rollout_tokens_per_s": 5.0,
        "wasted_slot_share": 0.25,
        "ref_seconds": 1.0,
        "old_seconds": 0.0,
        "update_seconds": 5.0,
        "update_tokens_per_s": 20.0,
        "padding_share": 0.4,
        "completion_tokens": 20,
        "programs_compiled": 5,
        "update_peak_share": 6e6 * (20 + 14) / 5.0 / 1e8,
    }


def test_parameters_are_counted() -> None:
    model: dict[str, Any] = {"vocab_size": 24, **MODEL}
    params = random_params(Transformer(ModelConfig(**model), make_mesh({"data": -1})), 0)
    assert count_params(ModelConfig(**model)) == sum(x.size for x in jax.tree.leaves(params))


def test_the_peak_counts_all_devices() -> None:
    assert matmul_peak() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"total_steps": 2},
            "config.total_steps 2 leaves no iteration to time: bench needs more than 2",
        ),
        (
            {"total_steps": 4, "rollouts_ahead": 1, "loss": {"importance_cap": 2.0}},
            "config.total_steps 4 leaves no iteration to time: bench needs more than 4",
        ),
        ({"group_siz": 2}, "unknown key config.group_siz"),
    ],
)
def test_errors(tokenizer_dir: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(grpo_config(tokenizer_dir, **changes))


def test_noise_is_spread_and_repeatable() -> None:
    values = [
        noise(None, f"text {i}", length=i, finish_reason="stop")  # type: ignore[arg-type]
        for i in range(400)
    ]
    assert values[:3] == [
        noise(None, f"text {i}", length=i, finish_reason="stop")  # type: ignore[arg-type]
        for i in range(3)
    ]
    assert 0.45 < np.mean(values) < 0.55
    assert np.histogram(values, 4, (0, 1))[0].min() > 70
