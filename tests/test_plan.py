"""Plans: programs in shapes alone, their memory and time. CPU devices stand in for chips here."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import MODEL, grpo_config, sft_config
from ml_collections import ConfigDict

from experiments.mini import r1
from r1jax.config import ConfigError, UserError
from r1jax.machines.mesh import make_mesh
from r1jax.machines.planned import Assumed, Iteration, Planned
from r1jax.machines.program_cost import Shape
from r1jax.machines.topology import GIB, Chip, Slices, slices_of
from r1jax.models.paged_kernels import LATENT_KERNEL, RAGGED_KERNEL, paged_costs
from r1jax.models.params import count_params
from r1jax.models.zoo import MODELS
from r1jax.reports import plan as plan_module
from r1jax.reports.plan import Plan, advice, as_json, as_text, make_plan
from r1jax.rollout.planned import decode_steps, imagined_lengths
from r1jax.stages import checked, to_plan
from r1jax.weights.load import ModelFields, ModelSource, open_shapes

ROOT = Path(__file__).parents[1]
CHIP = Chip(GIB, 1e12, 1e11, 1e10, most=8)
SHAPES = {"config": {**MODEL, "vocab_size": 512}}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1JAX_COMPILATION_CACHE", "")


def iteration_of(config: ConfigDict, assumed: Assumed | None = None, **mesh: int) -> Any:
    ((config, found),) = to_plan(config).values()
    where = make_mesh(mesh or {"fsdp": 4, "tensor": 2}, jax.devices())
    return found(checked(config), where, assumed or Assumed(prompt=20), CHIP.hbm), where


def plan_of(config: ConfigDict, chip: Chip = CHIP, **mesh: int) -> Plan:
    iteration, where = iteration_of(config, **mesh)
    return make_plan(iteration, Slices("cpu:8", 1, chip, jax.devices()), where)


def test_an_iteration_of_grpo() -> None:
    plan = plan_of(grpo_config("", model=SHAPES))
    names = [program.planned.name for program in plan.programs]
    assert names == ["prepare", "prefill", "decode", "old_logprobs", "update"]
    assert plan.fits
    assert plan.iterations == 2
    update = plan.programs[-1]
    config, _ = ModelFields.read(SHAPES["config"], "here")
    parameters = 4 * count_params(config) / 8
    # Norms are on every device.
    assert parameters <= update.held["parameters"] < 1.2 * parameters
    assert 2 * parameters <= update.held["moments"] < 2.4 * parameters
    assert update.held["reference"] == update.held["parameters"]
    compiled = update.compiled
    arguments = update.planned.held["parameters"] + update.held["moments"] + update.held["batch"]
    assert compiled.arguments == pytest.approx(arguments, abs=4096)
    assert update.hbm >= arguments + update.held["reference"] + compiled.temporaries
    # Both policies' log-probabilities by one program, before each of the two updates.
    assert plan.programs[3].planned.runs == 4
    assert plan.programs[0].planned.beside == pytest.approx(
        update.held["moments"] + update.held["reference"]
    )
    assert [program.cost.unknown_loops for program in plan.programs] == 5 * [set()]


def test_reward_models_inside_grpo() -> None:
    """Each opened one has a program; what is offloaded is on the devices in that alone."""
    path = str(ROOT / "experiments/mini/base")
    terms = {
        "one": {"path": path},
        "same": {"path": path, "weight": 2.0, "kind": "helpful"},
        "away": {"path": path, "reads": "response", "frozen": {"offload": True}},
    }
    plan = plan_of(grpo_config("", model=SHAPES, reward_models=terms), fsdp=8)
    found = {program.planned.name: program for program in plan.programs}
    assert list(found)[3:5] == ["reward away", "reward one"]
    size = 4 * count_params(open_shapes(ModelSource(path=path)).config) / 8
    one, away, update = found["reward one"], found["reward away"], found["update"]
    for program in plan.programs:
        assert size < program.held["reward models"] < 1.2 * size
    assert "reward model" not in one.held | update.held
    assert away.held["reward model"] == update.held["reward models"]
    for program in (one, away):
        arguments = program.held["batch"] + update.held["reward models"]
        assert program.compiled.arguments == pytest.approx(arguments, abs=8192)
    assert one.planned.beside == pytest.approx(
        update.held["parameters"] + update.held["moments"] + update.held["reference"]
    )
    assert one.planned.model_flops > 0 and one.cost.flops > 0


def test_flops_of_an_update_by_hand() -> None:
    """All products of the model, forward and backward, and attention to whole rows."""
    plan = plan_of(grpo_config("", model=SHAPES, share_prompts=False))
    update, model = plan.programs[-1], ModelFields.read(SHAPES["config"], "here")[0]
    (note,) = [note for note in plan.notes if note.startswith("an update has")]
    microbatches = int(note.rpartition(": ")[2].partition(" ")[0])
    rows, length = 8, 48 + 8
    weights = (
        model.num_layers
        * model.embed_dim
        * (
            2 * model.num_heads * model.head_dim
            + 2 * model.num_kv_heads * model.head_dim
            + 3 * model.ffn_dim
        )
    )
    head = model.embed_dim * model.vocab_size
    pairs = model.num_layers * model.num_heads * model.head_dim * 2 * length * length * rows
    products = 6 * rows * (weights + head) * length + 7 * pairs  # scores are computed twice
    assert update.cost.flops == products * microbatches / 8


@pytest.mark.parametrize("stage", ["sft", "pairwise", "rejection"])
def test_other_stages(stage: str) -> None:
    data = {"path": "rows.jsonl"}
    configs = {
        "sft": sft_config("", model=SHAPES),
        "pairwise": ConfigDict(
            {"stage": "reward_model", "model": SHAPES, "data": data, "batch_size": 16,
             "pack_length": 64, "total_steps": 3}
        ),
        "rejection": ConfigDict(
            {"stage": "rejection", "model": SHAPES, "data": data | {"limit": 40}, "portion": 16,
             "max_prompt_tokens": 48, "sampling": {"max_tokens": 8}, "num_samples": 4,
             "engine": {"slots": 16, "bucket": 64}}
        ),
    }  # fmt: skip
    plan = plan_of(configs[stage])
    assert plan.fits
    assert plan.iterations == {"sft": 4, "pairwise": 3, "rejection": 2.5}[stage]
    assert plan.iteration_seconds > 0
    assert json.loads(json.dumps(as_json(plan)))["chips"] == 8


BASE = str(ROOT / "experiments/mini/base")
JUDGE = {"path": BASE, "sampling": {"max_tokens": 8}, "engine": {"slots": 16, "bucket": 64}}


def test_benchmarks_one_behind_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of equal shapes are compiled once; a file that is here says how many it asks."""
    row = {"prompt": "1 + 1", "answer": "2", "task": "integer"}
    (tmp_path / "here.jsonl").write_text(12 * (json.dumps(row) + "\n"))
    benchmark = {"num_samples": 4, "max_prompt_tokens": 48, "sampling": {"max_tokens": 8}}
    preference = {"reward_models": {"liked": {"path": BASE}}}
    config = ConfigDict(
        {"stage": "evaluate", "model": BASE, "override": {"dtype": "bfloat16"},
         "engine": {"slots": 16, "bucket": 64},
         "benchmarks": {
             "one": benchmark | {"data": {"path": str(tmp_path / "here.jsonl"), "limit": 99}},
             "two": benchmark | {"data": {"path": "not/here.jsonl", "limit": 24}} | preference,
         }}
    )  # fmt: skip
    compiled = []
    compile_it = plan_module._compile
    monkeypatch.setattr(plan_module, "_compile", lambda x: compiled.append(x) or compile_it(x))
    plan = plan_of(config, fsdp=8)
    found = {program.planned.name: program for program in plan.programs}
    rollout = ["prepare", "prefill", "decode"]
    names = [f"{name} {part}" for name in ("one", "two") for part in rollout]
    assert list(found) == [*names, "two reward liked"]
    assert len(compiled) == 4 and plan.iterations == 1
    assert 1.5 < found["two decode"].planned.runs / found["one decode"].planned.runs < 2.5
    weights = count_params(open_shapes(ModelSource(path=BASE)).config)
    assert found["one decode"].held["parameters"] >= 4 * weights / 8
    assert found["one decode"].held["rollout parameters"] < 1.2 * 2 * weights  # on every device
    del config.benchmarks.two.data.limit
    with pytest.raises(ConfigError, match="benchmarks.two.data is not here and has no limit"):
        iteration_of(config, fsdp=8)
    config.model = ""
    with pytest.raises(ConfigError, match="config.model is missing"):
        iteration_of(config, fsdp=8)


def test_judges_and_writers_beside_rejection() -> None:
    """Both lie on the devices while the policy samples; a server costs them nothing."""
    config = ConfigDict(
        {"stage": "rejection", "model": SHAPES, "data": {"path": "rows.jsonl", "limit": 16},
         "max_prompt_tokens": 48, "sampling": {"max_tokens": 8}, "num_samples": 4,
         "per_prompt": 2, "engine": {"slots": 16, "bucket": 64}, "judge": JUDGE,
         "writer": {"endpoint": "http://localhost:8000/v1"}}
    )  # fmt: skip
    iteration, _ = iteration_of(config, fsdp=8)
    names = [program.name for program in iteration.programs]
    assert names == [
        f"{who}{part}" for who in ("", "judge ") for part in ("prepare", "prefill", "decode")
    ]
    for program in iteration.programs:
        assert set(program.held) >= {"parameters", "judge"}
    decode, judged = iteration.programs[2], iteration.programs[5]
    assert judged.runs == pytest.approx(decode.runs, rel=0.3)  # as often, and of 2 tokens as well
    config.writer = JUDGE
    written = iteration_of(config, fsdp=8)[0].programs[8]
    assert written.name == "writer decode" and written.runs == pytest.approx(
        judged.runs / 2, rel=0.3
    )


def test_preferences() -> None:
    """Two responses a prompt, four verdicts on them, one model behind the other."""
    config = ConfigDict(
        {"stage": "preferences", "data": {"path": "prompts.jsonl", "limit": 16}, "judge": JUDGE,
         "policy": JUDGE}
    )  # fmt: skip
    programs = iteration_of(config, fsdp=8)[0].programs
    assert [program.name for program in programs] == [
        f"{who} {part}" for who in ("policy", "judge") for part in ("prepare", "prefill", "decode")
    ]
    assert programs[0].runs == 2 and programs[3].runs == 1
    assert all(len({"policy", "judge"} & set(program.held)) == 1 for program in programs)
    config.judge = config.policy = {"endpoint": "http://localhost:8000/v1"}
    with pytest.raises(ConfigError, match="nothing to plan"):
        iteration_of(config)


def test_epochs_need_a_number_of_rows() -> None:
    config = sft_config("", model=SHAPES, total_steps=0, epochs=2.0)
    with pytest.raises(ConfigError, match="--rows says how many"):
        iteration_of(config)
    found, _ = iteration_of(config, Assumed(rows=100))
    assert found.count == 25


def test_what_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(grpo_config("", model=SHAPES))
    found = as_json(plan, price=2.0)
    assert {
        "topology", "chips", "fits", "hbm_bytes_peak", "programs", "iteration_seconds",
        "chip_hours",
    } <= set(found)  # fmt: skip
    for program in found["programs"]:
        assert {
            "name", "hbm_bytes", "flops", "bytes", "collective_bytes", "seconds", "kernels",
        } <= set(program)  # fmt: skip
        assert program["hbm_bytes"] == sum(program["hbm_bytes_by_kind"].values())
    seconds = sum(program["seconds"] * program["runs"] for program in found["programs"])
    assert found["iteration_seconds"] == pytest.approx(seconds)
    assert found["dollars"] == pytest.approx(found["chip_hours"] * 2.0)
    assert "fits" in as_text(plan)
    assert found["advice"] == []


def test_what_does_not_fit() -> None:
    plan = plan_of(grpo_config("", model=SHAPES), Chip(100_000, 1e12, 1e11, 1e10, most=8))
    assert not plan.fits
    said = advice(plan)
    assert "GiB more than there are" in said[0]
    assert len(said) > 1
    assert "does NOT fit" in as_text(plan)


def test_a_kernel_that_is_not_there() -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), "float32"))
    one = Planned("update", lambda: lowered, 1, {}, kernels=("splash_mha_fwd",))
    with pytest.raises(UserError, match="'update' should have the kernel 'splash_mha_fwd'"):
        make_plan(Iteration([one], 1), Slices("cpu:1", 1, CHIP, jax.devices()[:1]), mesh)


def test_plans_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1JAX_COMPILATION_CACHE", str(tmp_path))
    first = plan_of(sft_config("", model=SHAPES))
    assert len(list((tmp_path / "plans").iterdir())) == 1
    monkeypatch.setattr("r1jax.reports.plan._compile", None)
    assert as_json(plan_of(sft_config("", model=SHAPES))) == as_json(first)


def test_decode_steps() -> None:
    assert decode_steps(imagined_lengths(1000, 100, 10**6), 1) == pytest.approx(
        1000 * 100, rel=0.02
    )
    lengths = imagined_lengths(1000, 100, 400)
    many = decode_steps(lengths, 1000)
    assert many == 400
    assert decode_steps(lengths, 100) < 1.5 * 1000 * 100 / 100
    assert decode_steps(lengths, 100) > decode_steps(lengths, 200)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/DeepSeek-V3-Base", "deepseek-v3"),
        ("models/Llama-3.3-70B-Instruct", "llama-3.3-70b"),
        ("Qwen2.5-32B", "qwen2.5-32b"),
    ],
)
def test_models_that_are_not_there(path: str, name: str) -> None:
    opened = open_shapes(ModelSource(path=path, override={"max_length": 70_000}))
    assert opened.config.mtp == (name == "deepseek-v3")  # which was given away with it
    assert count_params(replace(opened.config, mtp=False)) == count_params(MODELS[name])
    assert opened.config.max_length == 70_000


def test_models_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="models/GPT-9 does not exist, and no model of models"):
        open_shapes(ModelSource(path="models/GPT-9"))


def test_only_a_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(
        (ROOT / "experiments/mini/base/config.json").read_bytes()
    )
    assert count_params(open_shapes(ModelSource(path=str(tmp_path))).config) > 1e6


def test_stages_of_a_pipeline() -> None:
    """Models that other stages make have the shapes of what those begin from."""
    found = to_plan(r1.get_config("smoke"))
    stages = r1.get_config("smoke").stages
    kinds = {name: stages[name].stage for name in found}
    assert set(kinds.values()) == {"grpo", "sft", "rejection", "reward_model", "evaluate"}
    for name, (config, _) in found.items():
        if kinds[name] == "evaluate":
            assert open_shapes(ModelSource(path=config.model)).config.num_layers > 0
            continue
        paths = [term.path for term in config.get("reward_models", {}).values()]
        assert not any(p.startswith("@") for p in [config.model.get("path", ""), *paths]), name
        assert open_shapes(checked(config).model).config.num_layers > 0


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v5p:4x4", "should look like v5p:2x2x1"),
        ("v9:2x2", "'v9' is not one of v5e, v5p, v6e"),
        ("v5e:2xtwo", "should look like v5e:2x4"),
        ("v6e:32x32", "has 1024 chips; a slice of v6e has 1 to 256"),
        ("v5e", "should look like v5e:2x4"),
    ],
)
def test_slices_that_are_none(topology: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        slices_of(topology)


# -- by the real TPU compiler ----------------------------------------------------------------------

tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install -e '.[tpu]'"
)


@tpu_compiler
def test_the_command(tmp_path: Path) -> None:
    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "r1jax.plan", "--config=experiments/mini/base.py:smoke"]
        return subprocess.run(
            [*command, *flags], cwd=ROOT, env=os.environ, capture_output=True, text=True
        )

    output = tmp_path / "plan.json"
    done = run("--topology=v5e:2x2", f"--output={output}", "--config.microbatch_rows=4",
               "--config.model.config.vocab_size=512")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["fits"]
    kernels = {"splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"}
    assert {name.partition("_segmented")[0] for name in found["programs"][0]["kernels"]} == kernels
    wrong = run("--topology=v5e:3")
    assert wrong.returncode == 2
    assert "should look like" in wrong.stderr


@tpu_compiler
def test_splash_counts_by_formula() -> None:
    """A TPU's program: 6 a parameter and token, and causal attention's nine products."""
    slices = slices_of("v5p:2x2x1")
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, slices.devices)
    config = {
        "vocab_size": 512, "embed_dim": 128, "num_layers": 3, "num_heads": 4, "num_kv_heads": 4,
        "head_dim": 64, "ffn_dim": 256, "max_length": 512, "dtype": "bfloat16",
        "tie_embeddings": False,
    }  # fmt: skip
    sft = sft_config("", model={"config": config}, batch_size=4, pack_length=512, microbatch_rows=4)
    ((_, found),) = to_plan(sft).values()
    iteration = found(checked(sft), mesh, Assumed(completion=512), slices.chip.hbm)
    (update,) = make_plan(iteration, slices, mesh).programs
    weights = 3 * (4 * 128 * 256 + 3 * 128 * 256) + 128 * 512
    attention = 3 * 4 * 4 * 512 * 512 / 2 * 2 * 9 * 64
    assert update.cost.flops == pytest.approx((6 * weights * 4 * 512 + attention) / 4, rel=1e-3)
    assert math.isfinite(update.seconds)


def test_costs_of_kernels_that_read_pages() -> None:
    """By hand: rows that have a quarter of the tokens that their tables have room for."""
    pages, size, table = 50, 16, (3, 8)  # 3 rows of 32 tokens
    ints = Shape("s32", table, True)
    q, kv = Shape("bf16", (6, 4, 128), True), Shape("bf16", (pages, size, 2 * 2, 128), True)
    flops, moved = paged_costs(1 / 4)[RAGGED_KERNEL]([ints, q, kv], [q])
    assert flops == 3 * 32 * 2 * 4 * 2 * 2 * 128  # scores and mixed values of 2 queries a row
    assert moved == 2 * (3 * 32 * 2 * 2 * 128 + 2 * 6 * 4 * 128)
    latents, steps = Shape("bf16", (pages, size, 640), True), Shape("s32", (6, 4), True)
    q, mixed = Shape("bf16", (3, 2 * 4, 640), True), Shape("bf16", (3, 2 * 4, 512), True)
    flops, moved = paged_costs(1 / 4)[LATENT_KERNEL]([steps, q, latents, latents], [mixed])
    assert flops == 3 * 32 * 2 * 4 * 2 * (640 + 512)
    assert moved == 2 * (3 * 32 * 640 + 3 * 2 * 4 * (640 + 512))
