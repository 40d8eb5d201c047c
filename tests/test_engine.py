"""The engine against a naive loop, and what must not change a completion."""

import functools
import gc
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MODEL
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.config import ConfigError
from r1jax.data.packing import completion_group, pack, with_experts
from r1jax.losses.logprobs import _output, token_logprobs
from r1jax.machines.mesh import make_mesh
from r1jax.models.caches import LatentCache, LayerCache
from r1jax.models.config import Experts, LatentAttention, ModelConfig
from r1jax.models.lane_cache import LaneCache
from r1jax.models.params import random_params
from r1jax.models.transformer import Transformer, forward, head_weights
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampling import SamplingConfig, kept, row_keys, sample, uniforms
from r1jax.training.metrics import process_use
from r1jax.training.train_state import microbatch
from r1jax.types import Completion

VOCAB = 24
STOP = (3, 11)
CONFIG = ModelConfig(vocab_size=VOCAB, **MODEL)  # type: ignore[arg-type]
V3 = replace(  # DeepSeek-V3's shape: a dense layer and one with experts
    CONFIG, num_kv_heads=4, head_dim=12,
    latent=LatentAttention(kv_rank=8, nope_dim=8, rope_dim=4, value_dim=6, q_rank=8),
    experts=Experts(
        num_experts=8, top_k=2, ffn_dim=16, num_shared=1, dense_layers=(0,), score="sigmoid",
        bias=True, normalize=True, groups=4, top_groups=2,
    ),
)  # fmt: skip
SAMPLINGS = {
    "plain": SamplingConfig(max_tokens=20),
    "cold": SamplingConfig(max_tokens=20, temperature=0.6, top_p=0.8),
    "greedy": SamplingConfig(max_tokens=9, temperature=0),
}
EPS = 1e-4
Key = tuple[int, int]  # (prompt, sample)


@functools.cache
def params(config: ModelConfig = CONFIG) -> Any:
    """Sharp enough that a wrong cache or position changes the tokens."""
    params = jax.device_get(
        random_params(Transformer(config, make_mesh(devices=jax.devices()[:1])), 0)
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(x if path[-1].key.endswith("norm") else x * 15), params
    )


@functools.cache
def engine(
    slots: int,
    chunk: int,
    bucket: int,
    prefill_batch: int,
    mesh: str = "",
    config: ModelConfig = CONFIG,
) -> Engine:
    """One engine per setting, so that its programs are compiled once; drafts where it has any."""
    axes = dict(item.split("=") for item in mesh.split()) if mesh else {}
    devices = make_mesh({axis: int(size) for axis, size in axes.items()}) if mesh else None
    sizes = EngineConfig(slots, chunk, bucket, prefill_batch, speculative=config.mtp)
    return Engine(Transformer(config, devices), STOP, sizes)


def prompts_of(lengths: Sequence[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(0, VOCAB, length).astype(np.int32) for length in lengths]


@functools.partial(jax.jit, static_argnums=0)
def next_logits(
    config: ModelConfig, params: Any, tokens_L: jax.Array, count: jax.Array
) -> jax.Array:
    """Logits [1, V] after the first `count` tokens, by a whole forward pass in training's form."""
    tokens_1L = tokens_L[None]
    positions_1L = jnp.arange(tokens_L.shape[0])[None]
    segments_1L = (positions_1L < count).astype(jnp.int32)
    output = forward(Transformer(config), params, tokens_1L, positions_1L, segments_1L)
    return output.hidden[:, count - 1] @ head_weights(params)


sample_once = jax.jit(sample, static_argnums=2)
filtered = jax.jit(kept, static_argnums=1)
trained = jax.jit(token_logprobs, static_argnums=(0, 3, 4))


def naive(
    prompt: np.ndarray, sampling: SamplingConfig, place: Key, config: ModelConfig
) -> Completion:
    """The specification: no cache, no batch, one token after the other."""
    tokens = np.zeros(CONFIG.max_length, np.int32)
    tokens[: len(prompt)] = prompt
    end = len(prompt)
    logprobs = []
    while end < min(len(prompt) + sampling.max_tokens, CONFIG.max_length):
        logits = next_logits(config, params(config), tokens, end)
        token, logprob = sample_once(logits, number(place, end), sampling)
        tokens[end], end = int(token[0]), end + 1
        logprobs.append(float(logprob[0]))
        if tokens[end - 1] in STOP:
            break
    reason = "stop" if tokens[end - 1] in STOP else "length"
    new = tokens[len(prompt) : end]
    return Completion(*place, new, np.array(logprobs, np.float32), reason)  # type: ignore[arg-type]


@jax.jit
def number(place: Key, position: int) -> jax.Array:
    """The uniform number [1] of a completion's token at this position."""
    keys = row_keys(jax.random.key(5), *(jnp.asarray(index)[None] for index in place))
    return uniforms(keys, jnp.asarray(position)[None])


def generate(
    by: Engine, prompts: Sequence[np.ndarray], sampling: SamplingConfig, group_size: int = 1
) -> dict[Key, Completion]:
    found = list(
        by.generate(params(by.model.config), prompts, sampling, jax.random.key(5), group_size)
    )
    completions = {(c.prompt_index, c.sample_index): c for c in found}
    assert len(completions) == len(found) == len(prompts) * group_size
    return completions


def assert_equal(
    found: Completion, prompt: np.ndarray, sampling: SamplingConfig, config: ModelConfig = CONFIG
) -> None:
    """Equal, or parted where rounding decides between two tokens."""
    place = (found.prompt_index, found.sample_index)
    expected = naive(prompt, sampling, place, config)
    both = min(len(found.tokens), len(expected.tokens))
    parted = np.flatnonzero(found.tokens[:both] != expected.tokens[:both])
    same = int(parted[0]) if len(parted) else both
    np.testing.assert_allclose(found.logprobs[:same], expected.logprobs[:same], atol=EPS)
    if len(parted):
        context = np.concatenate([prompt, found.tokens[:same]])
        assert is_near(context, int(found.tokens[same]), sampling, place, config)
        return
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.finish_reason == expected.finish_reason


def is_near(
    context: np.ndarray, token: int, sampling: SamplingConfig, place: Key, config: ModelConfig
) -> bool:
    """Whether the uniform number lies within EPS of the interval that draws `token`."""
    tokens = np.zeros(CONFIG.max_length, np.int32)
    tokens[: len(context)] = context
    logits = next_logits(config, params(config), tokens, len(context))
    if sampling.temperature == 0:
        return float(logits.max() - logits[0, token]) < EPS
    logits = logits / sampling.temperature
    logits = jnp.where(filtered(logits, sampling), logits, -jnp.inf)
    probs = np.asarray(jax.nn.softmax(logits[0]), np.float64)
    low, high = probs[:token].sum(), probs[: token + 1].sum()
    return bool(low - EPS < float(number(place, len(context))[0]) < high + EPS)


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.sampled_from([(1, 3, 64, 1), (3, 8, 64, 3), (4, 3, 32, 2)]),
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    group_size=st.integers(1, 3),
)
def test_equals_naive_loop(
    sizes: tuple[int, int, int, int], sampling: str, lengths: list[int], group_size: int
) -> None:
    prompts = prompts_of(lengths)
    found = generate(engine(*sizes), prompts, SAMPLINGS[sampling], group_size)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS[sampling])


@pytest.mark.parametrize("mesh", ["data=4 tensor=2", "fsdp=8", "context=4 tensor=2"])
def test_eight_devices(mesh: str) -> None:
    prompts = prompts_of([5, 30, 2])
    found = generate(engine(8, 8, 64, 3, mesh), prompts, SAMPLINGS["plain"], group_size=4)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"])


@pytest.mark.parametrize("mesh", ["", "data=2 expert=2 tensor=2"])
def test_latent_attention_and_experts(mesh: str) -> None:
    """Prompts are shared, prefilled in the naive form; the cache of 12 numbers a token grows."""
    prompts = prompts_of([5, 30, 2])
    by = engine(8, 4, 8, 2, mesh, V3)
    found = generate(by, prompts, SAMPLINGS["plain"], group_size=4)
    assert by.programs.row_cache is by.programs.prompt_cache is LatentCache
    assert by.programs.empty.eval_shape(8, 16).held.layers[0].latents.shape == (8, 16, 12)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"], V3)


def test_a_cache_in_lanes() -> None:
    """It grows from 8 columns to 24 and shrinks from 4 rows to 1 (seen by its shapes)."""
    sizes = EngineConfig(slots=4, chunk=3, bucket=8, prefill_batch=2, lane_cache=True)
    by = Engine(Transformer(CONFIG), STOP, sizes)
    prompts = prompts_of([5, 30, 2])
    found = generate(by, prompts, SAMPLINGS["plain"], group_size=3)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"])


def test_lanes_are_for_one_cpu() -> None:
    sizes = EngineConfig(lane_cache=True)
    alone, both = (make_mesh({"data": n}, devices=jax.devices()[:n]) for n in (1, 2))
    models = [Transformer(CONFIG, mesh) for mesh in (None, alone, both)]
    found = [Engine(model, STOP, sizes).programs.row_cache for model in models]
    assert found == [LaneCache, LaneCache, LayerCache]


def test_a_model_without_stop_tokens() -> None:
    by = Engine(Transformer(CONFIG), [], EngineConfig(3, 8, 64, 3))
    found = generate(by, prompts_of([5, 30]), SamplingConfig(max_tokens=11))
    assert {(len(c.tokens), c.finish_reason) for c in found.values()} == {(11, "length")}


def test_independent_of_other_rows() -> None:
    """Alone or among others, in whatever order: a completion's place alone names its key."""
    prompts = prompts_of([7, 31, 12, 3])
    by = engine(8, 8, 64, 3)
    together = generate(by, prompts, SAMPLINGS["plain"], group_size=3)
    key = jax.random.key(5)
    for wanted in ([(1, 2)], [(0, 0), (2, 1), (2, 2), (3, 0)], sorted(together)[5:]):
        done = set(together) - set(wanted)
        found = by.generate(params(), prompts, SAMPLINGS["plain"], key, 3, done)
        some = {(c.prompt_index, c.sample_index): c for c in found}
        assert sorted(some) == wanted
        for place, completion in some.items():
            assert completion.tokens.tolist() == together[place].tokens.tolist()
            np.testing.assert_allclose(completion.logprobs, together[place].logprobs, atol=EPS)
    assert not list(by.generate(params(), prompts, SAMPLINGS["plain"], key, 3, set(together)))
    assert len({tuple(completion.tokens) for completion in together.values()}) > 6


def test_stop_token_is_kept() -> None:
    """Both stop ids end a row and stay in it; a row cut by the limit has none."""
    prompts = prompts_of([5, 30, 2])
    found = generate(engine(8, 8, 64, 3), prompts, SAMPLINGS["plain"], group_size=8)
    last = [int(c.tokens[-1]) for c in found.values() if c.finish_reason == "stop"]
    assert set(last) == set(STOP)
    assert not any(set(STOP) & set(c.tokens[:-1].tolist()) for c in found.values())
    cut = [c for c in found.values() if c.finish_reason == "length"]
    assert cut and all(len(c.tokens) == 20 and c.tokens[-1] not in STOP for c in cut)


def test_model_length_is_a_limit() -> None:
    prompts = prompts_of([63, 60])
    found = generate(engine(8, 8, 64, 3), prompts, SAMPLINGS["plain"], group_size=6)
    assert max(len(found[0, g].tokens) for g in range(6)) == 1
    assert max(len(found[1, g].tokens) for g in range(6)) == 4


@pytest.mark.parametrize("length", [0, 64, 65])
def test_prompt_without_room(length: int) -> None:
    prompts = [*prompts_of([4]), np.zeros(length, np.int32)]
    with pytest.raises(ConfigError, match=f"prompt 1 has {length} tokens; the model's max_length"):
        next(engine(8, 8, 64, 3).generate(params(), prompts, SAMPLINGS["plain"], jax.random.key(0)))


def test_long_prompts_in_chunks() -> None:
    """Prefilled 16 tokens at a time, beside short ones, into fewer prompt rows than there are."""
    sizes = EngineConfig(slots=4, chunk=5, bucket=16, prefill_batch=2, prefill_chunk=16)
    by = Engine(Transformer(CONFIG), STOP, sizes)
    prompts = prompts_of([1, 40, 17, 2, 33, 16, 18])
    found = generate(by, prompts, SAMPLINGS["plain"], group_size=2)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"])
    assert by.statistics.prompt_tokens == 1 + 40 + 17 + 2 + 33 + 16 + 18


def test_groups_larger_than_the_slots_of_a_shard() -> None:
    prompts = prompts_of([9, 20])
    found = generate(engine(8, 8, 64, 3, "fsdp=8"), prompts, SAMPLINGS["plain"], group_size=12)
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"])


def test_memory_decides_the_slots() -> None:
    """A budget gives fewer rows, the same completions, and a word in the log."""
    prompts = prompts_of([5, 30, 2])
    by = Engine(Transformer(CONFIG), STOP, EngineConfig(slots=0, chunk=8, bucket=64, memory_mib=1))
    found = generate(by, prompts, SAMPLINGS["plain"], group_size=16)
    assert 1 < by.statistics.slots < 48
    others = generate(engine(8, 8, 64, 3), prompts, SAMPLINGS["plain"], group_size=16)
    assert {k: c.tokens.tolist() for k, c in found.items()} == {
        k: c.tokens.tolist() for k, c in others.items()
    }


def test_prompt_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the slots read, whether there are so many prompts or not."""
    by = engine(8, 4, 8, 2)
    held: list[int] = []
    empty = by.programs.empty_prefix

    def spied(rows: int, columns: int) -> Any:
        held.append(rows)
        return empty(rows, columns)

    monkeypatch.setattr(by.programs, "empty_prefix", spied)
    generate(by, prompts_of([3, 5]), SAMPLINGS["greedy"], group_size=3)
    generate(by, prompts_of([4] * 12), SAMPLINGS["greedy"])
    assert held == [4, 8]


def test_a_check_ends_rows() -> None:
    """At whatever chunk size, a row ends where the check says, and its slot goes on."""

    def pairs(tokens: np.ndarray, checked: int) -> int:
        """A completion ends with two tokens in a row that add up to more than 30."""
        for end in range(max(checked, 1) + 1, len(tokens) + 1):
            if tokens[end - 2] + tokens[end - 1] > 30:
                return end
        return 0

    prompts = prompts_of([5, 30, 2])
    whole = generate(engine(8, 8, 64, 3), prompts, SAMPLINGS["plain"], group_size=4)
    for sizes in ((3, 8, 64, 3), (4, 3, 32, 2)):
        stream = engine(*sizes).generate(
            params(), prompts, SAMPLINGS["plain"], jax.random.key(5), 4, stop_check=pairs
        )
        found = {(c.prompt_index, c.sample_index): c for c in stream}
        ended = 0
        for place, c in found.items():
            end = pairs(whole[place].tokens, 0)
            ended += bool(end)
            assert c.tokens.tolist() == whole[place].tokens[: end or None].tolist()
            assert c.finish_reason == ("stop" if end else whole[place].finish_reason)
            assert len(c.logprobs) == len(c.tokens)
        assert 0 < ended < len(found) == 12


def test_max_tokens_is_no_new_program() -> None:
    by = engine(3, 8, 64, 3)
    generate(by, prompts_of([9]), SamplingConfig(max_tokens=5))
    before = by.programs.decode._cache_size()  # type: ignore[attr-defined]
    generate(by, prompts_of([9]), SamplingConfig(max_tokens=8, stop=("x",)))
    assert by.programs.decode._cache_size() == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("mesh", ["data=1", "data=2 fsdp=2 tensor=2"])
def test_each_shape_is_compiled_once(mesh: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever the state comes from: empty, freshly filled, resized or of the chunk before."""
    sizes = {axis: int(size) for axis, size in (item.split("=") for item in mesh.split())}
    devices = jax.devices()[: math.prod(sizes.values())]
    model = Transformer(CONFIG, make_mesh(sizes, devices=devices))
    by = Engine(model, STOP, EngineConfig(8, 4, 8, 1))
    shapes: Counter[str] = Counter()
    seen = set()

    def spied(name: str, program: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            kinds = ((type(x), x.shape) for x in jax.tree.leaves(args))
            shape = (name, *kinds, *named.values())
            shapes[name] += shape not in seen
            seen.add(shape)
            return program(*args, **named)

        return call

    names = ("prefill", "insert", "keep", "keep_prefix", "resize_layer", "decode")
    for name in names:
        setattr(by.programs, name, spied(name, getattr(by.programs, name)))
    with jax.log_compiles():
        generate(by, prompts_of([5, 20, 9, 3, 7, 2]), SAMPLINGS["plain"], group_size=4)
    compiled = {name: compilations(name, caplog) for name in names}
    assert min(shapes[name] for name in names) > 0 and compiled == shapes


def compilations(name: str, caplog: pytest.LogCaptureFixture) -> int:
    """How often a program was compiled under jax.log_compiles."""
    return sum(f"Finished XLA compilation of jit(_{name})" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("mesh", "slots", "sizes"), [("data=1", 8, 3 * 2), ("data=2 fsdp=2 tensor=2", 8, 2 * 2)]
)
def test_compiled_ahead(
    mesh: str,
    slots: int,
    sizes: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoding compiles all numbers of slots and columns with the first prompts, later nothing,
    nor do the ways from one to another.
    """
    axes = {axis: int(size) for axis, size in (item.split("=") for item in mesh.split())}
    devices = make_mesh(axes, devices=jax.devices()[: math.prod(axes.values())])
    config = EngineConfig(slots, chunk=8, bucket=16, compile_ahead=True)
    by = Engine(Transformer(CONFIG, devices), STOP, config)
    ahead = []
    lower_decode = by.programs.lower_decode
    monkeypatch.setattr(
        by.programs, "lower_decode", lambda *args: ahead.append(args) or lower_decode(*args)
    )
    prompts = prompts_of([5, 9, 3])
    with jax.log_compiles():  # of this thread
        found = generate(by, prompts, SAMPLINGS["plain"], 3)
        generate(by, [(prompt + 1) % VOCAB for prompt in prompts], SAMPLINGS["plain"], 3)
    assert len(ahead) == sizes
    for name in ("decode", "keep", "keep_seen", "keep_prefix", "resize_layer"):
        assert compilations(name, caplog) == 0, name
    for (p, _), completion in found.items():
        assert_equal(completion, prompts[p], SAMPLINGS["plain"])


@pytest.mark.slow
def test_thousands_of_completions_need_no_more_memory() -> None:
    """Nor more programs, whatever the lengths: 12 calls of 500, with one prompt of 60 tokens."""
    by = Engine(
        Transformer(CONFIG), STOP, EngineConfig(slots=64, chunk=8, bucket=16, prefill_batch=4)
    )
    rng = np.random.default_rng(0)
    programs, memory = [], []
    for call in range(12):
        lengths = [60, *rng.integers(1, 40, 124)]
        prompts = [rng.integers(0, VOCAB, n).astype(np.int32) for n in lengths]
        found = by.generate(
            params(), prompts, SamplingConfig(max_tokens=40), jax.random.key(call), group_size=4
        )
        assert sum(1 for _ in found) == 500
        gc.collect()
        programs.append(process_use()["compile/programs"])
        memory.append(sum(x.nbytes for x in jax.live_arrays()))
    assert memory[-1] <= memory[4] * 1.01
    assert by.programs.decode._cache_size() <= 24  # type: ignore[attr-defined]
    assert programs[-1] - programs[0] <= 40  # most of them resize, from one size to the next
    assert programs[-1] - programs[7] <= 6  # sizes that come up late
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * 4096
    assert resident < 6 << 30


def test_no_prompts() -> None:
    assert not generate(engine(8, 8, 64, 3), [], SAMPLINGS["plain"])


def test_all_rows_end_at_once() -> None:
    prompts = prompts_of([4] * 9)
    found = generate(engine(3, 3, 64, 3), prompts, SamplingConfig(max_tokens=1), group_size=2)
    assert [len(completion.tokens) for completion in found.values()] == [1] * 18


def test_one_long_row_among_short_ones() -> None:
    """Slots are refilled, then given up while the long row goes on: little is decoded in vain."""
    prompts = prompts_of([4] + [60] * 15)  # 60 tokens leave room for 4
    never = (VOCAB,)
    by = Engine(
        Transformer(CONFIG), never, EngineConfig(slots=8, chunk=4, bucket=64, prefill_batch=3)
    )
    sampling = SamplingConfig(max_tokens=40)
    finished = list(by.generate(params(by.model.config), prompts, sampling, jax.random.key(0)))
    assert [len(c.tokens) for c in finished] == [4] * 15 + [40]
    assert [c.prompt_index for c in finished] == [*range(1, 16), 0]
    assert by.statistics.decode_steps == 40
    assert by.statistics.slot_steps == 8 * 8 + 4 * 4 + 1 * 28
    assert by.statistics.tokens == 100
    assert by.statistics.wasted_share == 8 / 108


def test_logprobs_are_those_of_training() -> None:
    """Sampler and trainer see the same numbers, at any temperature and behind any filter."""
    prompts = prompts_of([5, 30, 2])
    for sampling in (SAMPLINGS["plain"], SAMPLINGS["cold"]):
        found = generate(engine(8, 8, 64, 3), prompts, sampling, group_size=3)
        groups = [
            completion_group(
                prompt,
                [found[p, g].tokens for g in range(3)],
                [found[p, g].logprobs for g in range(3)],
            )
            for p, prompt in enumerate(prompts)
        ]
        batch = pack(groups, 64, 3)
        used = int(batch.microbatches)
        for index in range(used):
            rows = microbatch(jax.tree.map(jnp.asarray, batch), index)
            logprobs, _ = trained(Transformer(CONFIG), params(), rows, sampling.temperature, 64)
            gap = np.abs(logprobs - rows.sampler_logprobs) * rows.loss_mask
            assert float(gap.max()) < EPS
        assert float(batch.loss_mask[:used].sum()) == sum(len(c.tokens) for c in found.values())


@pytest.mark.parametrize("share_prompts", [True, False])
def test_experts_are_those_of_training(share_prompts: bool) -> None:
    """What the sampler took, token by token, is what the update's pass would take."""
    prompts = prompts_of([5, 30, 2])
    by = engine(8, 4, 8, 2, "", V3)
    found = generate(by, prompts, SAMPLINGS["plain"], group_size=3)
    rows = [[found[p, g] for g in range(3)] for p in range(len(prompts))]
    groups = [
        completion_group(prompt, [c.tokens for c in row], [c.logprobs for c in row])
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    batch = pack(groups, 64, 6, share_prompts=share_prompts)
    batch = with_experts(batch, [c.experts for row in rows for c in row], range(6))
    total = sum(len(c.tokens) for c in found.values())
    assert batch.experts.shape == (*batch.tokens.shape, 1, 2)
    assert (batch.experts >= 0).sum() == 2 * total
    rows_of = jax.tree.map(jnp.asarray, microbatch(jax.tree.map(jnp.asarray, batch), 0))
    wrong = replace(rows_of, experts=jnp.where(rows_of.experts < 0, -1, 7 - rows_of.experts))
    for rows_given, share in ((rows_of, 0.0), (wrong, 0.5)):
        model = Transformer(V3, replay=False)
        output = _output(model, params(V3), rows_given)
        assert output.routing is not None
        compared, differing = int(output.routing.compared[0]), int(output.routing.differing[0])
        assert compared == (batch.experts[0] >= 0).sum() and compared
        assert differing <= 0.01 * compared if share == 0 else differing > share * compared


@pytest.mark.parametrize("limit", [60, 1000, 32_768, 65_536])
def test_few_programs_at_any_length(limit: int) -> None:
    """At most twelve decode, of four sizes and three numbers of slots, and none is too small."""
    columns: Any = Engine(Transformer(CONFIG), STOP, EngineConfig(slots=8)).keeping
    sizes = {steps: columns.own(steps, limit) for steps in range(1, limit + 1, 59)}
    assert len(set(sizes.values())) <= 4
    assert all(steps <= size < max(4 * steps, limit / 4, 256) for steps, size in sizes.items())
    assert columns.own(limit, limit) - limit < 128
