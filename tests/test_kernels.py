"""Attention kernels: splash == XLA in an interpreter, the choice by platform, TPU programs."""

import importlib.util
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding

from r1jax.config import ConfigError
from r1jax.machines.mesh import MESH_AXES, make_mesh
from r1jax.machines.program_cost import cost_of
from r1jax.models.config import Experts, LatentAttention, ModelConfig
from r1jax.models.kernels import SeenByCudnn, SeenBySplash, choose_kernel
from r1jax.models.layouts import Compute
from r1jax.models.packed_attention import SeenByShard, Span, packed_mask, see
from r1jax.models.params import abstract_params
from r1jax.models.transformer import Transformer
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.memory import Memory
from r1jax.rollout.store import Need
from r1jax.stages import sft
from r1jax.training.train_state import abstract_state, batch_shardings, make_step, state_shardings
from r1jax.types import Batch

CONFIG = ModelConfig(
    vocab_size=512, embed_dim=128, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=64,
    ffn_dim=256, max_length=512,
)  # fmt: skip


V3 = replace(
    CONFIG, head_dim=192,
    latent=LatentAttention(kv_rank=64, nope_dim=128, rope_dim=64, value_dim=128),
    experts=Experts(8, 2, 128, num_shared=1, dense_layers=(0,), score="sigmoid", bias=True),
)  # fmt: skip
SCALE = 0.1  # of scores


def mixed_and_grads(
    attend: Any, qkv: tuple[jax.Array, ...], real: jax.Array, target: jax.Array
) -> Any:
    """((a loss, what attention mixed), its gradients for q, k, v), at the real tokens."""

    def loss(*qkv: jax.Array) -> Any:
        mixed = attend(*qkv) * real
        return jnp.sum(mixed * target), mixed

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*qkv)


@pytest.mark.parametrize(
    ("length", "span"),
    [(128, None), (200, None), (300, Span(0, 70)), (900, None), (1024, Span(0, 300))],
)
def test_splash_is_xla(length: int, span: Span | None) -> None:
    """Values and gradients, for packed segments with padding behind them, grouped heads."""
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, length, 4, 64))
    k, v = (jax.random.normal(key, (2, 2, length, 64)) for key in keys[1:3])
    target = jax.random.normal(keys[3], q.shape)
    borders = jnp.array([[50, 90, 120], [1, 60, 128]]) * (6 if length == 900 else 1)
    segments = 1 + jnp.sum(jnp.arange(length)[None, :, None] >= borders[:, None], axis=-1)
    segments = jnp.where(segments == 4, 0, segments)  # padding
    real = (segments > 0)[:, :, None, None]
    mask = packed_mask(segments, None)

    def total(attend: Any) -> Any:
        return mixed_and_grads(attend, (q, k, v), real, target)

    (_, expected), expected_grads = total(lambda *a: see(mask).attend(*a, SCALE))
    (_, found), grads = total(lambda *a: SeenBySplash(segments, None, span, True).attend(*a, SCALE))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize(
    ("kernel", "length", "axes"),
    [
        ("xla", 1280, {"fsdp": 2, "context": 2}),  # 640 queries each, in turns of 320
        ("xla", 96, {"context": 4, "tensor": 2}),
        ("splash", 300, {"context": 2}),
        ("splash", 1000, {"context": 4}),
    ],
)
def test_devices_have_a_part_of_the_queries(kernel: str, length: int, axes: dict[str, int]) -> None:
    """Values and gradients are those of one device that has whole rows."""
    mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, length, 4, 64))
    k, v = (jax.random.normal(key, (2, 2, length, 64)) for key in keys[1:3])
    target = jax.random.normal(keys[3], q.shape)
    place = jnp.arange(length) + jnp.array([[0], [77]])
    segments = jnp.where(place < length - 20, 1 + place // 60, 0)
    mask = packed_mask(segments, None)

    def total(seen: Any) -> Any:
        def attend(*qkv: jax.Array) -> jax.Array:
            return seen.attend(*qkv, SCALE)

        real = (segments > 0)[:, :, None, None]
        return jax.jit(lambda *qkv: mixed_and_grads(attend, qkv, real, target))(q, k, v)

    seen = (
        SeenByShard(mask, mesh)
        if kernel == "xla"
        else SeenBySplash(segments, mesh, Span(0, 70), True)
    )
    (_, found), grads = total(seen)
    (_, expected), expected_grads = total(see(mask))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU and JAX_PLATFORMS=cuda")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_cudnn_is_xla(head_dim: int) -> None:
    """Values and gradients in bfloat16, completions that share a prompt, padding behind them."""
    keys = jax.random.split(jax.random.key(0), 4)
    length = 192
    q = jax.random.normal(keys[0], (2, length, 4, head_dim), jnp.bfloat16)
    k, v = (jax.random.normal(key, (2, 2, length, head_dim), jnp.bfloat16) for key in keys[1:3])
    target = jax.random.normal(keys[3], q.shape)
    place = jnp.arange(length)[None] + jnp.array([[0], [7]])
    segments = jnp.where(place < 170, 1 + place // 100, 0)
    samples = jnp.where(segments > 0, place % 100 // 30, 0)  # 0 is the prompt
    mask = packed_mask(segments, samples)
    real = (segments > 0)[:, :, None, None]

    def total(attend: Any) -> Any:
        return mixed_and_grads(attend, (q, k, v), real, target)

    (_, expected), expected_grads = total(lambda *a: see(mask).attend(*a, SCALE))
    (_, found), grads = total(lambda *a: SeenByCudnn(mask).attend(*a, SCALE))
    np.testing.assert_allclose(*map(np.float32, (found, expected)), atol=0.03)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(*map(np.float32, (one, other)), atol=0.1)


class FakeDevice:
    def __init__(self, platform: str) -> None:
        self.platform = platform


def fake_mesh(platform: str, context: int = 1) -> Any:
    class FakeMesh:
        devices = np.array([FakeDevice(platform)])
        shape = Counter(context=context) | Counter(MESH_AXES)

    return FakeMesh()


@pytest.mark.parametrize(
    ("platform", "dtype", "shared", "chosen"),
    [
        ("cpu", "float32", True, "xla"),
        ("cpu", "bfloat16", False, "xla"),
        ("tpu", "bfloat16", False, "splash"),
        ("tpu", "bfloat16", True, "xla"),
        ("gpu", "bfloat16", True, "cudnn"),
        ("gpu", "float32", False, "xla"),
    ],
)
def test_the_mesh_chooses(platform: str, dtype: str, shared: bool, chosen: str) -> None:
    mesh = fake_mesh(platform)
    assert choose_kernel(CONFIG, Compute(dtype), mesh, shared) == chosen
    assert choose_kernel(CONFIG, Compute(dtype, attention=chosen), mesh, shared) == chosen


@pytest.mark.parametrize(
    ("kernel", "platform", "shared", "message"),
    [
        ("splash", "cpu", False, "attention 'splash' runs on TPUs; the mesh is of cpus"),
        ("cudnn", "tpu", False, "attention 'cudnn' runs on GPUs; the mesh is of tpus"),
        ("splash", "tpu", True, "set config.share_prompts to False"),
    ],
)
def test_a_kernel_that_cannot_run(kernel: str, platform: str, shared: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_kernel(CONFIG, Compute(attention=kernel), fake_mesh(platform), shared)


def test_split_rows_are_not_for_cudnn() -> None:
    mesh = fake_mesh("gpu", context=2)
    assert choose_kernel(CONFIG, Compute("bfloat16"), mesh) == "xla"
    with pytest.raises(ConfigError, match=r"'cudnn' cannot run .* set config\.mesh\.context to 1"):
        choose_kernel(CONFIG, Compute("bfloat16", attention="cudnn"), mesh)
    assert choose_kernel(CONFIG, Compute("bfloat16"), fake_mesh("tpu", context=2)) == "splash"


def test_latent_attention_is_not_for_cudnn() -> None:
    mesh = fake_mesh("gpu")
    assert choose_kernel(V3, Compute("bfloat16"), mesh) == "xla"
    with pytest.raises(ConfigError, match="cannot run latent attention"):
        choose_kernel(V3, Compute("bfloat16", attention="cudnn"), mesh)


@pytest.mark.parametrize("kernel", ["xla", "splash", "cudnn"])
def test_parameters_are_made_anywhere(kernel: str) -> None:
    """What the mesh chose does not run on the one device where shapes are asked for."""
    assert abstract_params(Transformer(CONFIG, kernel=kernel)) == abstract_params(
        Transformer(CONFIG)
    )


# -- the real TPU compiler, without a TPU ----------------------------------------------------------

tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs pip install -e '.[tpu]'"
)
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


def tpu_mesh(topology: str, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Mesh:
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    return make_mesh(sizes, topologies.get_topology_desc(topology, "tpu").devices)


def abstract_batch(mesh: Mesh, rows: int, length: int) -> Batch:
    whole = jax.ShapeDtypeStruct((1, rows, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, rows, length), jnp.float32)
    lengths = jax.ShapeDtypeStruct((9,), jnp.float32)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    batch = Batch(whole, whole, whole, whole, mask, lengths=lengths, microbatches=count)
    return jax.tree.map(with_sharding, batch, batch_shardings(batch, mesh))


def with_sharding(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@tpu_compiler
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("config", [CONFIG, V3], ids=["llama", "v3"])
def test_a_training_step_uses_splash(
    topology: str, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of latent attention are wider than its values."""
    axis = "fsdp" if config.experts is None else "expert"
    mesh = tpu_mesh(topology, {axis: 2, "tensor": 2}, monkeypatch)
    compute = Compute("bfloat16")
    kernel = choose_kernel(config, compute, mesh)
    model = Transformer(config, mesh, Span(prefix=0, window=200), compute, kernel)
    optimizer = optax.adamw(1e-3)
    shardings = state_shardings(model, optimizer)
    state = abstract_state(model, optimizer, shardings)

    step = make_step(sft.make_loss(model, 128), optimizer, optax.constant_schedule(1e-3), shardings)
    program = step.lower(state, abstract_batch(mesh, 4, 512)).compile()  # type: ignore[attr-defined]
    text = program.as_text()
    assert "tpu_custom_call" in text, "no Mosaic kernel"
    assert "splash" in text
    assert "all-gather" in text
    kernels = cost_of(text, mesh).kernels
    grouped = {"gmm": 6.0, "tgmm": 3.0} if config.experts is not None else {}
    assert {name: count for name, count in kernels.items() if "gmm" in name} == grouped
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= state_bytes / 4  # donated


@tpu_compiler
def test_a_long_row_on_several_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    """32,768 tokens on four, and on two of them each of their heads."""
    length, mesh = 32_768, tpu_mesh("v5p:2x2x2", {"context": 4, "tensor": 2}, monkeypatch)
    compute = Compute("bfloat16", remat="full")
    config = replace(CONFIG, max_length=length)
    model = Transformer(config, mesh, None, compute, choose_kernel(config, compute, mesh))
    optimizer = optax.adamw(1e-3)
    shardings = state_shardings(model, optimizer)
    state = abstract_state(model, optimizer, shardings)
    step = make_step(sft.make_loss(model, 128), optimizer, optax.constant_schedule(1e-3), shardings)
    text = step.lower(state, abstract_batch(mesh, 1, length)).compile().as_text()  # type: ignore[attr-defined]
    cost = cost_of(text, mesh)
    # Forward and again, gradients: of 2 layers, on a chip's two heads and fourth of the queries.
    assert {name.partition("_seg")[0]: count for name, count in cost.kernels.items()} == {
        "splash_mha_fwd": 4.0, "splash_mha_dq": 2.0, "splash_mha_dkv": 2.0,
    }  # fmt: skip
    assert f"bf16[1,2,{length // 4},64]" in text
    assert ("all-gather", "context") in cost.collectives  # keys and values
    assert ("reduce-scatter", "tensor") in cost.collectives  # what blocks hand on
    assert f"[2,1,{length // 8},128]" in text  # which is kept of each layer
    assert not re.search(rf"\[2,1,{length}(,|\])", text)


@tpu_compiler
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("kind", ["plain", "drafts", "latent"])
@pytest.mark.parametrize("cache", ["columns", "pages"])
def test_decoding_keeps_its_cache_in_place(
    topology: str, cache: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = tpu_mesh(topology, {"data": 2, "tensor": 2}, monkeypatch)
    # With one head a kv head XLA copies the caches; 134 MB a device do not fit beside the cores.
    config = replace(CONFIG, head_dim=128, num_heads=8, mtp=kind == "drafts")
    if kind == "latent":
        latent = LatentAttention(kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
        config = replace(config, num_kv_heads=8, head_dim=192, latent=latent)
    model = Transformer(config, mesh, compute=Compute("bfloat16"))
    how = EngineConfig(slots=64, chunk=8, speculative=config.mtp, cache=cache)  # type: ignore[arg-type]
    engine = Engine(model, [0], how)
    params = jax.eval_shape(engine.programs.prepare, abstract_params(model))
    params = jax.tree.map(with_sharding, params, engine.programs.param_shardings())
    need = Need(prompt=129, limit=2048, group_size=8, rows=32)
    memory = Memory(32, 8, pages=512)
    lowered = engine.keeping.lowered(params, need, memory)
    lowered.prefill().compile()
    program = lowered.decode().compile()
    assert all(kernel in program.as_text() for kernel in lowered.kernels)
    assert bool(lowered.kernels) == (cache == "pages")
    slots: Any = lowered.caches if cache == "pages" else lowered.caches[0]
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(slots.held.layers))
    held /= 2 if kind == "latent" else 4  # of which a chip along `tensor` has all
    analysis = program.memory_analysis()
    assert analysis.alias_size_in_bytes >= held
    assert analysis.temp_size_in_bytes < held / 8, "copies of the cache"
