"""The decoder against a plain numpy one, and each way of running it against the others."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.config import ConfigError
from r1jax.losses.logprobs import token_logprobs
from r1jax.models.caches import Cache, LayerCache, RowCache, SharedPrefix
from r1jax.models.config import ModelConfig
from r1jax.models.lane_cache import LaneCache
from r1jax.models.layouts import Compute, unstack_layers
from r1jax.models.params import param_axes
from r1jax.models.transformer import Transformer, forward, head_weights
from r1jax.types import Batch

TINY = ModelConfig(
    vocab_size=31, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=24
)
L = 12


def make_params(config: ModelConfig, seed: int = 0) -> Any:
    """Larger than fresh ones and nothing left at 0 or 1, so that every parameter matters.

    Drawn by numpy: the program that draws a model's fresh parameters takes long to compile.
    """
    rng = np.random.default_rng(seed)

    def one(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        mean = 1.0 if path[-1].key.endswith("norm") else 0.0
        return jnp.asarray(rng.normal(mean, 0.2, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, param_axes(Transformer(config))[0])


def random_tokens(rows: int, length: int = L) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (rows, length), 0, TINY.vocab_size)


@partial(jax.jit, static_argnums=0)
def hidden_of(config: ModelConfig, params: Any, *args: jax.Array) -> jax.Array:
    """Tokens, positions, segment ids, completion ids [B, L] -> hidden states [B, L, D]."""
    return forward(Transformer(config), params, *args).hidden


def plain(tokens: jax.Array) -> tuple[jax.Array, ...]:
    """The arguments of a forward pass for rows of one sequence each."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return tokens, positions, jnp.ones_like(tokens), jnp.zeros_like(tokens)


@pytest.fixture(scope="module")
def params() -> Any:
    return make_params(TINY)


# -- the formula -----------------------------------------------------------------------------------


def numpy_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def numpy_rope(x_LN: np.ndarray, theta: float) -> np.ndarray:
    """Position l turns the pair (i, i + N/2) by l theta^(-2i/N)."""
    length, dim = x_LN.shape
    angles = np.arange(length)[:, None] * theta ** (-2 * np.arange(dim // 2) / dim)
    pairs = (x_LN[:, : dim // 2] + 1j * x_LN[:, dim // 2 :]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def numpy_attention(c: ModelConfig, p: dict[str, np.ndarray], x_LD: np.ndarray) -> np.ndarray:
    def project(name: str, head: int) -> np.ndarray:
        y_LN = x_LD @ p[name][:, head]
        if c.qkv_bias:
            y_LN = y_LN + p[f"{name}_bias"][head]
        if name == "value":
            return y_LN
        if c.qk_norm:
            y_LN = numpy_norm(y_LN, p[f"{name}_norm"], c.norm_eps)
        return numpy_rope(y_LN, c.rope_theta)

    out_LD = np.zeros_like(x_LD)
    for head in range(c.num_heads):
        kv_head = head // (c.num_heads // c.num_kv_heads)
        scores = project("query", head) @ project("key", kv_head).T / np.sqrt(c.head_dim)
        scores[np.triu_indices(len(scores), 1)] = -np.inf
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        out_LD += probs @ project("value", kv_head) @ p["output"][head]
    return out_LD


def numpy_hidden(c: ModelConfig, params: Any, tokens: np.ndarray) -> np.ndarray:
    """One sequence [L] -> hidden states [L, D], head by head, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x_LD = params["embedding"][tokens]
    for layer in range(c.num_layers):
        p = {name: value[layer] for name, value in params["layers"].items()}
        x_LD = x_LD + numpy_attention(c, p, numpy_norm(x_LD, p["attention_norm"], c.norm_eps))
        y_LD = numpy_norm(x_LD, p["ffn_norm"], c.norm_eps)
        gate_LF = y_LD @ p["gate"]
        x_LD = x_LD + (gate_LF / (1 + np.exp(-gate_LF)) * (y_LD @ p["up"])) @ p["down"]
    return numpy_norm(x_LD, params["final_norm"], c.norm_eps)


FAMILIES = {
    "llama": TINY,
    "qwen2": replace(TINY, qkv_bias=True, tie_embeddings=False, rope_theta=1e6),
    "qwen3": replace(TINY, qk_norm=True, norm_eps=1e-3),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_formula(family: str) -> None:
    config = FAMILIES[family]
    params, tokens_BL = make_params(config), random_tokens(2)
    hidden_BLD = hidden_of(config, params, *plain(tokens_BL))
    for tokens_L, hidden_LD in zip(tokens_BL, hidden_BLD, strict=True):
        expected = numpy_hidden(config, params, np.asarray(tokens_L))
        np.testing.assert_allclose(hidden_LD, expected, atol=2e-5)


# -- parameters ------------------------------------------------------------------------------------


def test_shapes_of_the_parameters() -> None:
    config = replace(TINY, qkv_bias=True, qk_norm=True, tie_embeddings=False)
    shapes, axes = param_axes(Transformer(config))
    assert {name: shapes[name].shape for name in ("embedding", "head", "final_norm")} == {
        "embedding": (31, 16),
        "head": (16, 31),
        "final_norm": (16,),
    }
    assert {name: shape.shape for name, shape in shapes["layers"].items()} == {
        "attention_norm": (2, 16),
        "query": (2, 16, 4, 8),
        "key": (2, 16, 2, 8),
        "value": (2, 16, 2, 8),
        "query_bias": (2, 4, 8),
        "key_bias": (2, 2, 8),
        "value_bias": (2, 2, 8),
        "query_norm": (2, 8),
        "key_norm": (2, 8),
        "output": (2, 4, 8, 16),
        "ffn_norm": (2, 16),
        "gate": (2, 16, 24),
        "up": (2, 16, 24),
        "down": (2, 24, 16),
    }
    assert axes["layers"]["query"] == ("layers", "embed", "heads", "head_dim")
    assert axes["layers"]["key_bias"] == ("layers", "kv_heads", "head_dim")
    assert axes["head"] == ("embed", "vocab")


def test_what_a_plain_model_does_not_have() -> None:
    shapes, _ = param_axes(Transformer(TINY))
    assert set(shapes) == {"embedding", "layers", "final_norm"}
    assert not [name for name in shapes["layers"] if name.endswith(("_bias", "key_norm"))]


def test_the_head_is_the_embedding_or_its_own(params: Any) -> None:
    np.testing.assert_array_equal(head_weights(params), params["embedding"].T)
    untied = make_params(replace(TINY, tie_embeddings=False))
    assert head_weights(untied) is untied["head"]


# -- who sees whom ---------------------------------------------------------------------------------


def test_causality(params: Any) -> None:
    tokens = random_tokens(1)
    before = hidden_of(TINY, params, *plain(tokens))[0]
    for place in (0, 5, L - 1):
        changed = tokens.at[0, place].add(1) % TINY.vocab_size
        after = hidden_of(TINY, params, *plain(changed))[0]
        np.testing.assert_array_equal(after[:place], before[:place])
        assert (jnp.abs(after[place:] - before[place:]).max(axis=-1) > 1e-4).all()


PACKED = {
    "positions": [0, 1, 2, 3, 0, 1, 2, 3, 2, 3, 0, 0],
    "segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0],
    "completion_ids": [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 0, 0],
}
# A sequence; a prompt of two with two completions of two; padding: token -> who else depends on it
SEEN_BY = {0: {0, 1, 2, 3}, 3: {3}, 4: {4, 5, 6, 7, 8, 9}, 6: {6, 7}, 7: {7}, 8: {8, 9}, 9: {9}}


def test_segments_and_completions_do_not_see_each_other(params: Any) -> None:
    ids = [jnp.array([PACKED[name]]) for name in ("positions", "segment_ids", "completion_ids")]
    tokens = random_tokens(1)
    before = hidden_of(TINY, params, tokens, *ids)[0]
    for place, seen_by in SEEN_BY.items():
        changed = tokens.at[0, place].add(1) % TINY.vocab_size
        after = hidden_of(TINY, params, changed, *ids)[0]
        moved = np.flatnonzero(jnp.abs(after - before).max(axis=-1) > 0)
        assert set(moved.tolist()) == seen_by, place
    assert jnp.isfinite(before).all()


def test_packed_is_one_by_one(params: Any) -> None:
    ids = [jnp.array([PACKED[name]]) for name in ("positions", "segment_ids", "completion_ids")]
    tokens = random_tokens(1)
    packed = hidden_of(TINY, params, tokens, *ids)[0]
    for places in ([0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 8, 9]):
        alone = jnp.zeros((1, L), jnp.int32).at[0, :4].set(tokens[0, jnp.array(places)])
        expected = hidden_of(TINY, params, *plain(alone))[0, :4]
        np.testing.assert_allclose(packed[jnp.array(places)], expected, atol=1e-5)


def test_only_distances_between_positions_matter(params: Any) -> None:
    tokens, positions, *ids = plain(random_tokens(1))
    near = hidden_of(TINY, params, tokens, positions, *ids)
    np.testing.assert_allclose(
        hidden_of(TINY, params, tokens, positions + 100, *ids), near, atol=1e-4
    )
    stretched = hidden_of(TINY, params, tokens, 2 * positions, *ids)
    assert float(jnp.abs(stretched - near).max()) > 1e-2


# -- ways to run it --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LayerCache, LaneCache])
@pytest.mark.parametrize("family", [{}, {"qkv_bias": True}, {"qk_norm": True}])
def test_cached_is_uncached(family: dict[str, Any], kind: type[RowCache]) -> None:
    """Two prompts in chunks of 3, then rows that read them, out of order, and their own ring."""
    trained = replace(TINY, **family)
    params = make_params(trained)
    compute = Compute(remat="full").for_rollouts()
    assert compute == Compute(remat="none", scan_layers=False)
    model = Transformer(trained, compute=compute)
    layers = unstack_layers(params, TINY)
    tokens = random_tokens(2)
    expected = hidden_of(trained, params, *plain(tokens))

    @jax.jit
    def extend(cache: Cache, tokens: jax.Array, positions: jax.Array) -> Any:
        output = forward(model, layers, tokens, positions, cache=cache)
        return output.hidden, output.cache

    def unread(kind: type[RowCache], rows: int, columns: int) -> tuple[RowCache, ...]:
        zeros = kind.zeros(trained, compute, rows, columns)
        return (jax.tree.map(lambda x: x + 1e3, zeros),) * trained.num_layers

    prompts = unread(LayerCache, 2, 6)
    for begin in (0, 3):
        positions = jnp.broadcast_to(begin + jnp.arange(3), (2, 3))
        seen = jnp.arange(6) <= positions[:, :, None]
        cache = Cache(prompts, jnp.int32(begin), seen)
        hidden, prompts = extend(cache, tokens[:, begin : begin + 3], positions)
        np.testing.assert_allclose(hidden, expected[:, begin : begin + 3], atol=1e-5)

    lengths = np.array([6, 4])
    reads = np.array([1, 0, 1])  # row -> prompt
    prefix = SharedPrefix(
        layers=prompts,
        lengths=jnp.asarray(lengths)[None],
        members=jnp.array([[[1, 3], [0, 2]]]),  # 3 = nobody
        places=jnp.array([[2, 0, 3]]),
    )
    columns = 5
    ring = unread(kind, 3, columns)
    for step in range(5):
        column = (step + 3) % columns
        age = (column - jnp.arange(columns)) % columns
        places = jnp.asarray(lengths[reads] + step)
        seen = jnp.broadcast_to(age <= step, (3, 1, columns))
        cache = Cache(ring, jnp.int32(column), seen, prefix)
        hidden, ring = extend(cache, tokens[reads, places][:, None], places[:, None])
        np.testing.assert_allclose(hidden[:, 0], expected[reads, places], atol=1e-5)
    assert len(ring) == trained.num_layers


def loss_and_grads(compute: Compute, params: Any) -> Any:
    """A loss that every hidden state takes part in, with gradients, compiled."""
    tokens = random_tokens(2)
    target = jax.random.normal(jax.random.key(3), (2, L, TINY.embed_dim))
    model = Transformer(TINY, compute=compute)

    def loss(params: Any) -> jax.Array:
        hidden = forward(model, params, *plain(tokens)).hidden
        return jnp.sum(hidden.astype(jnp.float32) * target)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def scanned(params: Any) -> Any:
    return loss_and_grads(Compute(), params)


def assert_close(first: Any, second: Any, atol: float) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), first, second)


def test_unrolled_is_scanned(params: Any, scanned: Any) -> None:
    loss, grads = loss_and_grads(Compute(scan_layers=False), unstack_layers(params, TINY))
    assert_close((loss, grads), (scanned[0], unstack_layers(scanned[1], TINY)), atol=1e-4)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_number(params: Any, scanned: Any, remat: str) -> None:
    assert_close(loss_and_grads(Compute(remat=remat), params), scanned, atol=1e-4)


def test_remat_keeps_less(params: Any) -> None:
    def kept(remat: str) -> int:
        """Numbers that the forward pass leaves for the backward pass."""
        model = Transformer(TINY, compute=Compute(remat=remat))
        tokens = random_tokens(2)
        _, pull_back = jax.eval_shape(
            lambda p: jax.vjp(lambda p: forward(model, p, *plain(tokens)).hidden, p), params
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

    assert kept("full") < kept("dots") < kept("none")


def test_remat_of_dots_runs_attention_once(params: Any) -> None:
    def maxima(remat: str) -> int:
        """Softmaxes of attention in both passes: the backward pass takes their maxima as given."""
        model, tokens = Transformer(TINY, compute=Compute(remat=remat)), random_tokens(2)
        grad = jax.grad(lambda p: jnp.sum(forward(model, p, *plain(tokens)).hidden))
        return str(jax.make_jaxpr(grad)(params)).count("reduce_max")

    assert maxima("full") > maxima("dots") == maxima("none") > 0


def test_bfloat16_computes_on_float32_masters(params: Any, scanned: Any) -> None:
    compute = Compute("bfloat16")
    model = Transformer(TINY, compute=compute)
    fresh, _ = param_axes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    loss, grads = loss_and_grads(compute, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert float(loss) != float(scanned[0])
    assert float(loss) == pytest.approx(float(scanned[0]), abs=3.0)
    for grad, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(scanned[1]), strict=True):
        assert float(jnp.linalg.norm(grad - exact)) < 0.1 * float(jnp.linalg.norm(exact))
    tokens, positions, segment_ids, _ = plain(random_tokens(1))
    batch = Batch(tokens, positions, segment_ids, segment_ids, segment_ids.astype(jnp.float32))
    hidden = jax.eval_shape(lambda: forward(model, params, tokens, positions, segment_ids).hidden)
    logprobs, entropy = jax.eval_shape(lambda: token_logprobs(model, params, batch))
    assert [x.dtype.name for x in (hidden, logprobs, entropy)] == ["bfloat16", "float32", "float32"]


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads 4 is not divisible by num_kv_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd; RoPE needs an even one"),
    ],
)
def test_a_bad_config_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"remat": "some"}, "remat 'some' is not one of auto, none, full, dots"),
        ({"dtype": "float16"}, "dtype 'float16' is not one of float32, bfloat16"),
        ({"attention": "x"}, "attention 'x' is not one of auto, xla, splash, cudnn"),
    ],
)
def test_a_bad_way_to_compute_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Compute(**change)
