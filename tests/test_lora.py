"""Adapters: what they compute, that they alone are trained, runs with them, what is exported."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from helpers import MODEL, grpo_config, metrics_by_step, save_model, sft_config, write_lines
from ml_collections import ConfigDict
from test_engine import CONFIG, V3, VOCAB
from test_families import made_by_transformers, random_tokens, their_logprobs
from test_transformer import make_params

from r1jax.config import ConfigError
from r1jax.data.packing import pack, sequence_group
from r1jax.export import export
from r1jax.machines.mesh import make_mesh, to_global
from r1jax.models.config import Lora, ModelConfig
from r1jax.models.layer import Layer
from r1jax.models.layouts import Compute, unstack_layers
from r1jax.models.lora import is_adapter, merged, without_adapters
from r1jax.models.params import abstract_params
from r1jax.models.transformer import Transformer, forward
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig
from r1jax.stages import grpo, reward_model, sft
from r1jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from r1jax.training.run import Trainable
from r1jax.training.train_state import make_step, new_state, on_mesh, state_shardings
from r1jax.training.trained import moved_part
from r1jax.types import TrainState
from r1jax.weights.checkpoint import load_params
from r1jax.weights.hf import open_checkpoint, save_hf
from r1jax.weights.load import open_model

LORA = Lora(rank=3, alpha=6.0)
ATTENTION, MLP = ("query", "key", "value", "output"), ("gate", "up", "down")
LATENT = ("query_down", "query_up", "kv_down", "output")
SHARED = ("shared_gate", "shared_up", "shared_down")
assert V3.latent is not None and V3.experts is not None
PLAIN_MOE = replace(CONFIG, experts=replace(V3.experts, num_shared=0, dense_layers=()))
# config, what can have an adapter
CASES: dict[str, tuple[ModelConfig, tuple[str, ...]]] = {
    "dense": (replace(CONFIG, qkv_bias=True, tie_embeddings=False), ATTENTION + MLP),
    "v3": (replace(V3, mtp=True), LATENT + MLP + SHARED),
    "no query latent": (
        replace(V3, latent=replace(V3.latent, q_rank=0), experts=None),
        ("query", "kv_down", "output", *MLP),
    ),
    "experts alone": (PLAIN_MOE, ATTENTION),
}


def adapted(name: str) -> ModelConfig:
    """All that can have an adapter has one."""
    config, names = CASES[name]
    return replace(config, lora=replace(LORA, targets=names))


def hidden(config: ModelConfig, params: Any, compute: Compute | None = None) -> np.ndarray:
    tokens = jax.random.randint(jax.random.key(3), (2, 11), 0, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(11), tokens.shape)
    model = Transformer(config, compute=compute or Compute())
    return np.asarray(forward(model, params, tokens, positions, jnp.ones_like(tokens)).hidden)


# -- what it computes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_which_matrices(name: str) -> None:
    """What a config says can have an adapter is what layers multiply by, and the default of it."""
    config, names = CASES[name]
    assert set(config.projected) == set(names)
    for lora in (replace(LORA, targets=names), LORA):
        flat = traverse_util.flatten_dict(abstract_params(Transformer(replace(config, lora=lora))))
        found = {path[-1][: -len("_lora_a")] for path in flat if is_adapter(path[-1])}
        assert found == set(lora.targets or names) - set(() if lora.targets else SHARED)


@pytest.mark.parametrize(
    ("config", "target"),
    [(CONFIG, "qurey"), (CONFIG, "query_down"), (V3, "query"), (V3, "kv_up"), (PLAIN_MOE, "gate"),
     (V3, "expert_up"), (CONFIG, "embedding")],
)  # fmt: skip
def test_other_targets_are_refused(config: ModelConfig, target: str) -> None:
    with pytest.raises(ConfigError, match=f"lora.targets: '{target}' is no matrix .* are .*output"):
        replace(config, lora=replace(LORA, targets=("output", target)))


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (
            {"rnk": 4},
            "unknown key config.model.override.lora.rnk; did you mean config.model.override.lora",
        ),
        ({"rank": 0}, "config.model.override.lora.rank 0 must be at least 1"),
        ({"targets": ["qurey"]}, "config.model.override: lora.targets: 'qurey' is no matrix"),
        ({"targets": "query"}, "config.model.override.lora.targets"),
        (16, "config.model.override.lora"),
    ],
)
@pytest.mark.parametrize("kind", ["workdir", "hf"])
def test_what_is_wrong_is_named(tmp_path: Path, kind: str, lora: Any, said: str) -> None:
    """By the key that says it, whatever kind of MODEL."""
    if kind == "hf":
        save_hf(tmp_path, CONFIG, make_params(CONFIG), None)
    else:
        save_model(tmp_path, make_params(CONFIG), asdict(CONFIG))
    with pytest.raises(ConfigError, match=re.escape(said)):
        open_model(str(tmp_path), {"lora": lora})


def test_by_hand() -> None:
    class One(Layer):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.project(x, "query", ([2], ["embed"]), ([2, 1], ["heads", "head_dim"]))

    config = replace(CONFIG, lora=Lora(rank=1, alpha=3.0, targets=("query",)))
    params = {
        "query": jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]]),
        "query_lora_a": jnp.array([[1.0], [-1.0]]),
        "query_lora_b": jnp.array([[[0.5], [10.0]]]),
    }
    x = jnp.array([[5.0, 7.0]])
    # x W = 5 (1, 2) + 7 (3, 4) = (26, 38); x A = -2; times B alpha / rank: -6 (0.5, 10)
    found = One(config, Compute(), None).apply({"params": params}, x)
    np.testing.assert_allclose(found, [[[26 - 3.0], [38 - 60.0]]])
    np.testing.assert_allclose(
        merged({"layers_0": params}, config)["layers_0"]["query"],
        [[[1 + 1.5], [2 + 30.0]], [[3 - 1.5], [4 - 30.0]]],
    )


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_merged_is_unmerged(name: str, apart: bool) -> None:
    config = adapted(name)
    params, compute = make_params(config), Compute(scan_layers=not apart)
    if apart:
        params = unstack_layers(params, config)
    whole = merged(params, config)
    with jax.default_matmul_precision("highest"):
        found = hidden(config, params, compute)
        np.testing.assert_allclose(
            hidden(without_adapters(config), whole, compute), found, atol=1e-5
        )
        base = without_them(params)
        assert np.abs(hidden(without_adapters(config), base, compute) - found).max() > 1e-2
    assert jax.tree.structure(whole) == jax.tree.structure(base)


def without_them(params: Any) -> Any:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({k: x for k, x in flat.items() if not is_adapter(k[-1])})


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_one_changes_nothing(name: str, tmp_path: Path) -> None:
    """To the bit; it is the same with layers apart, and random where it must be."""
    config, mesh = adapted(name), make_mesh(devices=jax.devices()[:1])
    base = make_params(without_adapters(config))
    save_model(tmp_path, base, asdict(without_adapters(config)))
    override = {"lora": asdict(config.lora)}  # type: ignore[arg-type]
    opened = open_model(str(tmp_path), override)
    assert opened.config == config
    params = opened.load(mesh, 0)
    np.testing.assert_array_equal(hidden(config, params), hidden(without_adapters(config), base))
    apart = open_model(str(tmp_path), override | {"scan_layers": False}).load(mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, apart, unstack_layers(params, config))
    flat = {path[-1]: x for path, x in traverse_util.flatten_dict(params).items()}
    a, b = flat["output_lora_a"], flat["output_lora_b"]
    inner = int(np.prod(a.shape[1:-1]))
    assert float(jnp.std(a)) == pytest.approx((3 * inner) ** -0.5, rel=0.3)
    assert not np.any(b)
    other = open_model(str(tmp_path), override).load(mesh, 1)
    names = {path[-1] for path, x in differing(params, other)}
    assert names == {f"{target}_lora_a" for target in config.adapted}


def differing(first: Any, second: Any) -> list[tuple[tuple[str, ...], Any]]:
    """The paths of one tree whose values are others in the second, with how far off they are."""
    one, two = (traverse_util.flatten_dict(jax.device_get(tree)) for tree in (first, second))
    assert one.keys() == two.keys()
    return [
        (path, np.abs(x - two[path]).max()) for path, x in one.items() if (x != two[path]).any()
    ]


@pytest.mark.parametrize("name", ["dense", "v3"])
def test_the_engine_decodes_with_them(name: str) -> None:
    """Greedy completions are those of the merged model, and not those of the base."""
    config = adapted(name)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key.endswith("norm") else 3 * x, make_params(config)
    )
    prompts = [np.array([5, 9, 2], np.int32), np.array([7, 1], np.int32)]
    sampling = SamplingConfig(max_tokens=16, temperature=0.0)

    def completions(config: ModelConfig, params: Any) -> list[list[int]]:
        how = EngineConfig(bucket=32, chunk=16, compile_ahead=False)
        engine = Engine(Transformer(config, make_mesh(devices=jax.devices()[:1])), [], how)
        found = engine.generate(params, prompts, sampling, jax.random.key(0))
        return [list(c.tokens) for c in sorted(found, key=lambda c: c.prompt_index)]

    plain = without_adapters(config)
    found = completions(config, params)
    assert found == completions(plain, merged(params, config))
    assert found != completions(plain, without_them(params))


# -- an update -------------------------------------------------------------------------------------


class Update:
    """One of SFT, on a mesh."""

    def __init__(self, config: ModelConfig, axes: dict[str, int], devices: int) -> None:
        mesh = make_mesh(axes, jax.devices()[:devices])
        how = OptimizerConfig(learning_rate=0.1, eps=1e-2, weight_decay=0.1)
        schedule = make_schedule(how, 10)
        optimizer = make_optimizer(how, schedule)
        model = Transformer(config, mesh)
        shardings = state_shardings(model, optimizer)
        step = make_step(sft.make_loss(model, 16), optimizer, schedule, shardings)
        rng = np.random.default_rng(0)
        groups = [sequence_group(rng.integers(1, VOCAB, 12), [1.0] * 12) for _ in range(16)]
        batch = on_mesh(pack(groups, 16, 8), mesh)
        self.before = jax.tree.map(np.asarray, make_params(config))
        start = new_state(to_global(self.before, shardings.params), optimizer, shardings)
        self.program = step.lower(start, batch).compile()
        state, metrics = self.program(start, batch)
        self.state: TrainState = jax.device_get(state)
        self.metrics = jax.device_get(metrics)


@pytest.mark.parametrize("name", CASES)
def test_only_adapters_move(name: str) -> None:
    """Nothing else by a bit, nothing else has moments."""
    config = adapted(name)
    update = Update(config, {"fsdp": 1}, 1)
    moved = dict(differing(update.before, update.state.params))
    assert all(distance > 1e-4 for distance in moved.values())
    everything = traverse_util.flatten_dict(update.before)
    assert set(moved) == {path for path in everything if is_adapter(path[-1])}
    moments = [x for x in jax.tree.leaves(update.state.opt_state) if x.ndim]
    assert len(moments) == 2 * len(moved)


def test_no_memory_for_the_gradients_of_the_rest() -> None:
    """Of a model that is nearly all vocabulary an update takes less than one copy more."""
    wide = replace(CONFIG, vocab_size=60_000, tie_embeddings=False)
    size = 4 * 60_000 * wide.embed_dim  # bytes of the head

    def temporary(config: ModelConfig) -> int:
        memory = Update(config, {"fsdp": 1}, 1).program.memory_analysis()
        return int(memory.temp_size_in_bytes)

    spared = temporary(wide) - temporary(replace(wide, lora=LORA))
    assert spared > 1.9 * size  # gradients of embedding and head


@pytest.mark.parametrize(
    ("name", "axes"),
    [("dense", {"data": 2, "fsdp": 2, "tensor": 2}), ("v3", {"fsdp": 2, "expert": 2, "tensor": 2})],
)
def test_eight_devices_are_one(name: str, axes: dict[str, int]) -> None:
    config = adapted(name)
    eight, one = Update(config, axes, 8), Update(config, {"fsdp": 1}, 1)
    both = (eight.metrics, eight.state), (one.metrics, one.state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), *both)


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tokenizer_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A workdir after some updates of all parameters."""
    path = tmp_path_factory.mktemp("base")
    how = {"optimizer": {"learning_rate": 3e-2}, "checkpoint_every": 0}
    sft.run(sft_config(tokenizer_dir, total_steps=30, **how), str(path))
    return str(path)


def source(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "override": {"lora": {"rank": 4, "alpha": 8.0}} | more}


def moved_by(workdir: Path, path: str) -> set[str]:
    """What differs from the base by name; what the base has not got is left out."""
    params = traverse_util.flatten_dict(load_params(workdir))
    before = traverse_util.flatten_dict(load_params(path))
    return {n[-1] for n, x in params.items() if n in before and (x != before[n]).any()}


@pytest.mark.usefixtures("one_device")
def test_sft(base: str, tokenizer_dir: str, tmp_path: Path) -> None:
    """It learns, goes on with the same bits, is a MODEL, and the next stage goes on with it."""
    write_lines(tmp_path / "rows.jsonl", [{"text": f"{i}+{i}={2 * i}"} for i in range(8)])
    config = sft_config(
        tokenizer_dir,
        model=source(base),
        data={"path": str(tmp_path / "rows.jsonl")},
        total_steps=12,
        checkpoint_every=6,
    )
    sft.run(config, str(tmp_path / "run"))
    steps = metrics_by_step(tmp_path / "run")
    assert steps[12]["sft/loss"] < steps[1]["sft/loss"] - 0.3
    assert moved_by(tmp_path / "run", base) == set()
    whole, lines = load_params(tmp_path / "run"), (tmp_path / "run/metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints/12")
    sft.run(config, str(tmp_path / "run"))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == lines
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "run"), whole)
    lora = Lora(4, 8.0)
    mesh = make_mesh(devices=jax.devices()[:1])
    again = open_model(str(tmp_path / "run"))
    assert again.config.lora == lora
    jax.tree.map(np.testing.assert_array_equal, again.load(mesh, 0), whole)
    config.model = {"path": str(tmp_path / "run")}
    config.total_steps = 1
    sft.run(config, str(tmp_path / "next"))
    names = moved_by(tmp_path / "next", str(tmp_path / "run"))
    assert names and all(map(is_adapter, names))


@pytest.mark.usefixtures("one_device")
def test_another_adapter_goes_on_from_the_merged_model(tmp_path: Path) -> None:
    """As none does: nothing that was trained is lost."""
    config, mesh = adapted("v3"), make_mesh(devices=jax.devices()[:1])
    params = make_params(config)
    save_model(tmp_path, params, asdict(config))
    expected = hidden(config, params)
    for lora in (None, {"rank": 2}, asdict(replace(LORA, alpha=7.0))):
        opened = open_model(str(tmp_path), {"lora": lora})
        found = hidden(opened.config, opened.load(mesh, 0))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    again = {"lora": asdict(config.lora)}  # type: ignore[arg-type]
    kept = open_model(str(tmp_path), again).load(mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, kept, params)


@pytest.mark.usefixtures("one_device")
def test_grpo(
    base: str, tokenizer_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the base and no copy of it; both are the same after a resume."""
    seen: list[tuple[Any, Any]] = []
    update = Trainable.update

    def spied(trained: Trainable, *args: Any) -> Any:
        seen.append((trained.params, trained.reference))
        assert all(is_adapter(p[-1]) for p in traverse_util.flatten_dict(trained.ref_params))
        for path, x in traverse_util.flatten_dict(trained.reference).items():
            if not is_adapter(path[-1]):  # the very same array
                assert x is traverse_util.flatten_dict(trained.params)[path]
        if len(seen) == 1:
            assert not any(
                np.any(x)
                for path, x in traverse_util.flatten_dict(trained.ref_params).items()
                if path[-1].endswith("_lora_b")
            )
        return update(trained, *args)

    monkeypatch.setattr(Trainable, "update", spied)
    config = grpo_config(tokenizer_dir, model=source(base), ref_every=0, loss={"kl_coef": 0.1})
    grpo.run(config, str(tmp_path))
    steps = metrics_by_step(tmp_path)
    assert steps[1]["grpo/kl/ref"] == pytest.approx(0.0, abs=1e-6)
    assert steps[4]["grpo/kl/ref"] > 1e-5
    assert moved_by(tmp_path, base) == set()
    lines, whole = (tmp_path / "metrics.jsonl").read_bytes(), load_params(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    grpo.run(config, str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path), whole)


@pytest.mark.usefixtures("one_device")
def test_the_reference_is_renewed(base: str, tokenizer_dir: str, tmp_path: Path) -> None:
    """After ref_every updates it is the current policy, adapters and all."""
    config = grpo_config(tokenizer_dir, model=source(base), updates_per_rollout=1, ref_every=3)
    grpo.run(config, str(tmp_path))
    kl = [metrics_by_step(tmp_path)[step]["grpo/kl/ref"] for step in (1, 2, 3, 4)]
    assert kl[0] == pytest.approx(0.0, abs=1e-6) and kl[2] > 1e-6
    assert kl[3] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.usefixtures("one_device")
def test_ppo(base: str, tokenizer_dir: str, tmp_path: Path) -> None:
    """The critic has adapters of its own, and its head is trained."""
    critic = {"kl_coef": 0.01, "optimizer": {"learning_rate": 1e-2}}
    config = grpo_config(tokenizer_dir, model=source(base), critic=critic, total_steps=2)
    grpo.run(config, str(tmp_path))
    assert moved_by(tmp_path, base) == moved_by(tmp_path / "critic", base) == set()
    params = load_params(tmp_path / "critic")
    assert params["scalar_bias"] != 0 and np.any(params["layers"]["query_lora_b"])


@pytest.mark.usefixtures("one_device")
def test_reward_model(base: str, tokenizer_dir: str, tmp_path: Path) -> None:
    """A new head and adapters learn which answers are chosen."""
    rows = [
        {"prompt": f"{i}?", "chosen": f"yes {i % 5}", "rejected": f"no {i % 5}"} for i in range(64)
    ]
    write_lines(tmp_path / "pairs.jsonl", rows)
    config = {
        "stage": "reward_model",
        "model": source(base),
        "data": {"path": str(tmp_path / "pairs.jsonl")},
        "reads": "response",
        "template": "plain",
        "epochs": 2.0,
        "batch_size": 8,
        "pack_length": 64,
        "microbatch_rows": 8,
        "optimizer": {"learning_rate": 3e-2},
    }
    reward_model.run(ConfigDict(config), str(tmp_path / "run"))
    steps = metrics_by_step(tmp_path / "run")
    assert steps[16]["reward_model/loss"] < 0.3 < steps[1]["reward_model/loss"]
    assert moved_by(tmp_path / "run", base) == set()
    assert load_params(tmp_path / "run")["scalar_bias"] is not None
    with pytest.raises(ConfigError, match="the model has a scalar head"):
        export(str(tmp_path / "run"), tmp_path / "out", file_format="peft")


def test_what_is_compared_with_the_reference() -> None:
    """All that moves is in its copy: of a model without adapters everything."""
    plain = make_params(V3)
    assert jax.tree.structure(moved_part(plain)) == jax.tree.structure(plain)
    part = moved_part(make_params(adapted("v3")))
    names = {path[-1] for path in traverse_util.flatten_dict(part)}
    assert "router_bias" in names
    assert all(is_adapter(name) for name in names - {"router_bias"})


# -- export ----------------------------------------------------------------------------------------


def test_export_merges(tokenizer_dir: str, tmp_path: Path) -> None:
    vocabulary = {"vocab_size": 512, "lora": asdict(LORA)}
    config = replace(CONFIG, vocab_size=512, lora=LORA)
    params = make_params(config)
    save_model(tmp_path / "ours", params, MODEL | vocabulary)
    shutil.copytree(tokenizer_dir, tmp_path / "ours/tokenizer")
    export(str(tmp_path / "ours"), tmp_path / "out", "float32")
    opened = open_model(str(tmp_path / "out"))
    assert opened.config.lora is None
    found = hidden(opened.config, opened.load(make_mesh(devices=jax.devices()[:1]), 0))
    np.testing.assert_allclose(found, hidden(config, params), atol=1e-5)
    with pytest.raises(ConfigError, match="the model has no adapters"):
        export(str(tmp_path / "out"), tmp_path / "peft", file_format="peft")


PEFT_CASES = [
    ("llama 3.1", ()),
    ("qwen2 tied", ("query", "down")),
    ("qwen3", ("key", "output")),
    ("qwen3-moe normed", ()),
    ("deepseek-v3", (*LATENT, *MLP, *SHARED)),
    ("deepseek-v3", MLP),  # of the dense layers, not the shared experts' beside them
    ("deepseek-v2-lite", ("query", "shared_up")),
]


@pytest.mark.parity
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(("case", "targets"), PEFT_CASES)
def test_peft_opens_them(tmp_path: Path, case: str, targets: tuple[str, ...]) -> None:
    """On the base that they were trained on, with equal log-probabilities; so does the export."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    theirs = made_by_transformers(tmp_path / "base", case)
    tokens = random_tokens(2, 40)
    before = their_logprobs(theirs, tokens)
    override = {"lora": {"rank": 5, "alpha": 8.0, "targets": targets}}
    opened = open_model(str(tmp_path / "base"), override)
    fresh = opened.load(make_mesh(devices=jax.devices()[:1]), 0)
    rng = np.random.default_rng(1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32) if is_adapter(path[-1].key) else x
        ),
        fresh,
    )
    save_model(tmp_path / "ours", params, opened.fields)
    export(str(tmp_path / "ours"), tmp_path / "adapter", "float32", "peft")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    model = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
    ours = {n for n, _ in model.named_parameters() if "lora_" in n}
    found = their_logprobs(model, tokens)
    config, whole = without_adapters(opened.config), merged(params, opened.config)
    save_hf(tmp_path / "merged", config, jax.device_get(whole), None, "float32")
    merged_ones = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    difference = np.abs(found - their_logprobs(merged_ones, tokens)).max()
    print(f"{case}: largest difference of logprobs {difference:.1e}, {len(ours)} matrices")
    assert difference < 2e-4
    assert np.abs(found - before).max() > 0.1
    assert open_checkpoint(tmp_path / "merged").config == config
    said = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"]) == (5, 8.0)
