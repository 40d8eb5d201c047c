"""Packing: every token once and in its place; a packed batch is as good as one by one."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transformer import make_params

from r1jax.config import ConfigError, DataError
from r1jax.data.packing import (
    Group,
    completion_group,
    fullest,
    pack,
    padding_share,
    sequence_group,
    with_experts,
)
from r1jax.losses.logprobs import token_logprobs
from r1jax.models import packed_attention
from r1jax.models.config import ModelConfig
from r1jax.models.packed_attention import Span
from r1jax.models.transformer import Transformer
from r1jax.types import Batch


def sequences(*lengths: int) -> list[Group]:
    """Sequences of these lengths; the tokens of the n-th are 100 n, 100 n + 1, ..."""
    return [
        sequence_group(range(100 * n, 100 * n + length), [1.0] * length)
        for n, length in enumerate(lengths, start=1)
    ]


def prompt_group(prompt: Sequence[int], *completions: Sequence[int]) -> Group:
    """A prompt with its completions; each token's log-probability is minus the token."""
    arrays = [np.array(tokens, np.int32) for tokens in completions]
    logprobs = [-tokens.astype(np.float32) for tokens in arrays]
    return completion_group(np.array(prompt, np.int32), arrays, logprobs)


# -- by hand -------------------------------------------------------------------------------------


def test_a_row_takes_the_longest_that_fits() -> None:
    # behind 13 neither 11 nor 8 has room, 1 has; they fill the second row
    batch = pack(sequences(13, 11, 8, 1), row_lengths=20, rows=1)
    assert batch.microbatches == 2
    starts = [sorted(set((row[0][row[0] > 0] // 100).tolist())) for row in batch.tokens]
    assert starts == [[2, 3], [1, 4]]  # full rows first
    assert padding_share(batch) == pytest.approx(7 / 40)


def test_the_row_length_with_the_fewest_tokens_to_compute() -> None:
    # rows of 24: [13, 10], [10, 7]; of 20: [13, 7], [10, 10]; of 18: three
    batch = pack(sequences(13, 7, 10, 10), row_lengths=(24, 20, 18), rows=1)
    assert (batch.microbatches, batch.tokens.shape) == (2, (2, 1, 20))
    # two rows a microbatch: one microbatch of either length, and nothing is won by 24
    batch = pack(sequences(13, 7, 10, 10), row_lengths=(20, 24), rows=2, max_microbatches=3)
    assert batch.tokens.shape == (3, 2, 20)
    batch = pack(sequences(9), row_lengths=(12, 12, 10, 11), rows=1)
    assert batch.tokens.shape == (1, 1, 10)


def test_longest_first_whatever_the_order() -> None:
    # in the order given, 3 and 3 would fill a row that 5 and 3 fill exactly
    batch = pack(sequences(3, 3, 5, 4, 1), row_lengths=8, rows=2)
    assert batch.microbatches == 1
    assert padding_share(batch) == 0
    by_hand = [[300, 301, 302, 303, 304, 100, 101, 102], [400, 401, 402, 403, 200, 201, 202, 500]]
    assert batch.tokens[0].tolist() == by_hand
    assert batch.segment_ids[0].tolist() == [[1] * 5 + [2] * 3, [1] * 4 + [2] * 3 + [3]]
    assert batch.positions[0].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch.completion_ids[0].tolist() == [[3] * 5 + [1] * 3, [4] * 4 + [2] * 3 + [5]]
    assert batch.loss_mask[0].tolist() == [[0, 1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 1, 1, 0]]
    assert batch.lengths.tolist() == [1, 2, 2, 4, 3, 0]  # targets, not tokens
    assert batch.sampler_logprobs is None
    assert batch.advantages is None


def test_a_shared_prompt_stands_once() -> None:
    group = prompt_group([10, 11, 12], [20, 21], [30])
    batch = pack([group], row_lengths=10, rows=1, advantages=np.array([0.5, -0.5]))
    # the prompt's last token stands in each completion: it predicts the first token of each
    assert batch.tokens[0, 0].tolist() == [10, 11, 12, 20, 21, 12, 30, 0, 0, 0]
    assert batch.positions[0, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 0, 0]
    assert batch.segment_ids[0, 0].tolist() == [1] * 7 + [0] * 3
    assert batch.completion_ids[0, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 0, 0, 0]
    assert batch.loss_mask[0, 0].tolist() == [0, 0, 0, 1, 1, 0, 1, 0, 0, 0]
    assert batch.sampler_logprobs[0, 0].tolist() == [0, 0, 0, -20, -21, 0, -30, 0, 0, 0]
    assert batch.lengths.tolist() == [1, 2, 1]
    assert batch.advantages.tolist() == [0, 0.5, -0.5]


def test_a_row_is_filled_with_part_of_a_group() -> None:
    """The first group has no room as a whole; beside the others one piece of it fits exactly.

    The next row has its other two, behind their prompt again. Long pieces come early in a row.
    """
    groups = [
        prompt_group([10, 11, 12], [20, 21, 22, 23], [30, 31, 32], [40, 41]),  # 2 + 5 + 4 + 3
        prompt_group([13, 14, 15], [50], [60]),  # 2 + 2 + 2
        prompt_group([16], [70]),  # 0 + 2
    ]
    batch = pack(groups, row_lengths=13, rows=2)
    assert batch.microbatches == 1
    assert batch.tokens[0].tolist() == [
        [10, 11, 12, 40, 41, 13, 14, 15, 50, 15, 60, 16, 70],
        [10, 11, 12, 20, 21, 22, 23, 12, 30, 31, 32, 0, 0],
    ]
    assert batch.segment_ids[0].tolist() == [
        [1] * 5 + [2] * 6 + [3] * 2,
        [1] * 11 + [0, 0],
    ]
    assert batch.completion_ids[0].tolist() == [
        [0, 0, 3, 3, 3, 0, 0, 4, 4, 5, 5, 6, 6],
        [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0],
    ]


def test_a_group_that_is_begun_goes_on_before_the_next() -> None:
    groups = [prompt_group([1, 2, 3], *[[4] * 4] * n) for n in (6, 3)]  # 2 + 6 x 5 and 2 + 3 x 5
    batch = pack(groups, row_lengths=12, rows=1)
    found = [sorted(set(row[0][row[0] > 0].tolist())) for row in batch.completion_ids]
    assert found == [[1, 2], [3, 4], [5, 6], [7, 8], [9]]


def test_groups_that_must_stay_whole() -> None:
    groups = [prompt_group([1, 2], [3] * n, [4] * n) for n in (2, 3, 1)]  # 7, 9 and 5 tokens
    batch = pack(groups, row_lengths=12, rows=1, whole_groups=True)
    assert batch.microbatches == 2
    found = [sorted(set(row[0][row[0] > 0].tolist())) for row in batch.completion_ids]
    assert found == [[1, 2, 5, 6], [3, 4]]  # 12 of 12 tokens, 9 of 12


def test_a_prompt_for_each_where_it_is_not_shared() -> None:
    group = prompt_group([10, 11, 12], [20, 21], [30])
    batch = pack([group], row_lengths=10, rows=1, share_prompts=False)
    assert batch.tokens[0, 0].tolist() == [10, 11, 12, 20, 21, 10, 11, 12, 30, 0]
    assert batch.positions[0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0]
    assert batch.segment_ids[0, 0].tolist() == [1] * 5 + [2] * 4 + [0]
    assert batch.completion_ids[0, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 2, 2, 0]


def test_unused_microbatches_are_padding() -> None:
    batch = pack(sequences(4, 4, 4), row_lengths=4, rows=2, max_microbatches=4)
    assert batch.microbatches == 2
    assert batch.tokens.shape == (4, 2, 4)
    assert not batch.segment_ids[2:].any()
    assert not batch.loss_mask[2:].any()
    assert padding_share(batch) == 1 / 4


def test_errors_give_both_numbers() -> None:
    with pytest.raises(DataError, match="a sequence of 9 tokens does not fit in pack_length 8"):
        pack(sequences(3, 9), row_lengths=8, rows=1)
    with pytest.raises(DataError, match="a sequence of 6 tokens does not fit in pack_length 5"):
        pack([prompt_group([1, 2, 3], [4, 5, 6])], row_lengths=5, rows=1)
    with pytest.raises(ConfigError, match="3 microbatches of 1 rows do not fit in 2"):
        pack(sequences(4, 4, 4), row_lengths=4, rows=1, max_microbatches=2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 12), max_size=7), room=st.integers(-2, 40))
def test_the_fullest_subset(sizes: list[int], room: int) -> None:
    chosen = fullest(sizes, room)
    subsets = (c for n in range(len(sizes) + 1) for c in itertools.combinations(sizes, n))
    best = max((sum(c) for c in subsets if sum(c) <= room), default=0)
    assert sum(sizes[i] for i in chosen) == best


# -- any groups ----------------------------------------------------------------------------------

GROUPS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=4)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    shapes=GROUPS,
    spare=st.integers(0, 20),
    rows=st.integers(1, 3),
    share=st.booleans(),
)
def test_every_token_stands_once_in_its_place(
    shapes: list[tuple[int, list[int]]], spare: int, rows: int, share: bool
) -> None:
    counter = iter(range(1, 10_000))  # all tokens differ
    prompts, completions = [], []
    for prompt_length, lengths in shapes:
        prompts.append([next(counter) for _ in range(prompt_length)])
        completions.append([[next(counter) for _ in range(length)] for length in lengths])
    groups = [prompt_group(p, *cs) for p, cs in zip(prompts, completions, strict=True)]
    longest = max(p + max(lengths) for p, lengths in shapes)
    batch = pack(groups, longest + spare, rows, share_prompts=share)
    used = int(batch.microbatches)

    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x, batch)
    assert used == batch.tokens.shape[0]
    owners = [(p, c) for p, cs in zip(prompts, completions, strict=True) for c in cs]
    segments = set()
    for completion_id, (prompt, completion) in enumerate(owners, start=1):
        found = np.argwhere(flat.completion_ids == completion_id)
        r, first = found[0]
        at = slice(first, first + len(completion) + 1)
        assert found.tolist() == [[r, column] for column in range(at.start, at.stop)]
        start, end = len(prompt) - 1, len(prompt) + len(completion)
        assert flat.tokens[r, at].tolist() == [prompt[-1], *completion]
        assert flat.positions[r, at].tolist() == list(range(start, end))
        assert flat.loss_mask[r, at].tolist() == [0.0] + [1.0] * len(completion)
        assert flat.sampler_logprobs[r, at].tolist() == [0.0] + [-float(t) for t in completion]
        assert flat.lengths[completion_id] == len(completion)
        # what it can attend to besides itself: its prompt, once, before it
        segment = flat.segment_ids[r, first]
        assert (flat.segment_ids[r, at] == segment).all()
        visible = (flat.segment_ids[r] == segment) & (flat.completion_ids[r] == 0)
        assert flat.tokens[r, visible].tolist() == prompt[:-1]
        assert flat.positions[r, visible].tolist() == list(range(len(prompt) - 1))
        begin = np.argmax(flat.segment_ids[r] == segment)  # where its segment begins
        assert np.flatnonzero(visible).tolist() == list(range(begin, begin + len(prompt) - 1))
        segments.add((int(r), int(segment), prompt[0]))
    # nothing else stands anywhere
    sizes = {prompt[0]: len(prompt) - 1 for prompt in prompts}
    tokens = sum(sizes[prompt] for _, _, prompt in segments)
    tokens += sum(len(completion) + 1 for _, completion in owners)
    assert (flat.segment_ids > 0).sum() == tokens
    assert flat.loss_mask.sum() == sum(len(completion) for _, completion in owners)
    padding = flat.segment_ids == 0
    for leaf in (flat.tokens, flat.positions, flat.completion_ids, flat.loss_mask):
        assert not leaf[padding].any()
    if not share:
        assert len(segments) == len(owners)
    for row in flat.segment_ids:
        end = np.count_nonzero(row)
        assert not row[end:].any()  # padding comes last
        assert np.isin(np.diff(row[:end]), (0, 1)).all()  # segments 1, 2, ... from the left
    assert len({(r, s) for r, s, _ in segments}) == len(segments)  # one prompt a segment


# -- packed == one by one --------------------------------------------------------------------------

TINY = ModelConfig(
    vocab_size=31, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=32
)
ROWS, LENGTH = 3, 32


@pytest.fixture(scope="module")
def params() -> Any:
    return make_params(TINY)


@functools.partial(jax.jit, static_argnums=2)
def weighted_logprobs(params: Any, batch: Batch, span: Span | None = None) -> Any:
    """Log-probabilities [B, L], and the gradient of their sum weighted by `sampler_logprobs`.

    With a random weight per token no two gradients can stand for each other.
    """

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logprobs_BL, _ = token_logprobs(Transformer(TINY, span=span), params, batch, chunk=8)
        return jnp.sum(batch.loss_mask * batch.sampler_logprobs * logprobs_BL), logprobs_BL

    grads, logprobs_BL = jax.grad(loss, has_aux=True)(params)
    return logprobs_BL, grads


def random_tokens(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, TINY.vocab_size, length).astype(np.int32)


def alone(prompt: np.ndarray, completion: np.ndarray, weights: np.ndarray) -> Batch:
    """One sequence and nothing else, without the help of pack, in the shape of a packed batch."""
    total = len(prompt) + len(completion)

    def first_row(values: np.ndarray, start: int) -> np.ndarray:
        rows = np.zeros((ROWS, LENGTH), values.dtype)
        rows[0, start : start + len(values)] = values
        return rows

    return Batch(
        tokens=first_row(np.concatenate([prompt, completion]), 0),
        positions=first_row(np.arange(total, dtype=np.int32), 0),
        segment_ids=first_row(np.ones(total, np.int32), 0),
        completion_ids=np.zeros((ROWS, LENGTH), np.int32),
        loss_mask=first_row(np.ones(len(completion), np.float32), len(prompt)),
        sampler_logprobs=first_row(weights, len(prompt)),
    )


@pytest.fixture(scope="module")
def one_by_one(params: Any) -> Any:
    """(groups to pack, log-probabilities of each completion alone, sum of their gradients)."""
    rng = np.random.default_rng(0)
    groups, logprobs, grads = [], [], []
    for prompt_length, lengths in ((5, (7, 1, 4)), (3, (9, 2)), (1, (6,))):
        prompt = random_tokens(rng, prompt_length)
        completions = [random_tokens(rng, length) for length in lengths]
        weights = [rng.normal(size=length).astype(np.float32) for length in lengths]
        groups.append(completion_group(prompt, completions, weights))
        for completion, weight in zip(completions, weights, strict=True):
            row, grad = weighted_logprobs(params, alone(prompt, completion, weight))
            logprobs.append(row[0, prompt_length : prompt_length + len(completion)])
            grads.append(grad)
    return groups, logprobs, jax.tree.map(lambda *leaves: sum(leaves), *grads)


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("own", [[0, 1], [1], []])
def test_experts_stand_beside_their_tokens(share_prompts: bool, own: list[int]) -> None:
    """In the rows that are asked for; the second completion has none."""
    groups = [prompt_group([1, 2, 3], [10, 11], [20]), prompt_group([4, 5], [30], [40, 41, 42])]
    tokens = [piece.tokens[1:] for group in groups for piece in group.pieces]
    taken = [np.stack([t, t + 100], axis=1)[:, None] for t in tokens]
    batch = pack(groups, 8, 2, 4, share_prompts)
    batch = with_experts(batch, [taken[0], None, *taken[2:]], own)
    found = batch.experts[: batch.microbatches]
    assert batch.experts.shape == (*batch.tokens.shape, 1, 2) and found.dtype == np.int16
    known = (batch.loss_mask == 1) & (batch.tokens != 20)
    expected = np.where(known, batch.tokens, -1)[: batch.microbatches]
    for row in range(2):
        if row in own:
            np.testing.assert_array_equal(found[:, row, :, 0, 0], expected[:, row])
            assert (expected[:, row] >= 0).any()
        else:
            assert not found[:, row].any()


def test_without_experts_nothing_is_added() -> None:
    batch = pack([prompt_group([1, 2], [3])], 8, 1)
    assert with_experts(batch, [None], [0]) is batch


@pytest.mark.parametrize(
    ("share_prompts", "span"),
    [(True, None), (False, None), (True, Span(prefix=4, window=10)), (False, Span(0, 12))],
)
def test_packed_is_one_by_one(
    params: Any,
    one_by_one: Any,
    share_prompts: bool,
    span: Span | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_attention, "MIN_BLOCK", 4)
    groups, logprobs, grads = one_by_one
    packed = pack(groups, LENGTH, ROWS, 1, share_prompts)
    batch = jax.tree.map(lambda x: x[0] if x.ndim == 3 else x, packed)
    assert (batch.segment_ids.max(axis=1) > 1).any()  # rows do hold several sequences
    batch = batch.replace(lengths=None)
    packed_logprobs_BL, packed_grads = weighted_logprobs(params, batch, span)
    for completion_id, expected in enumerate(logprobs, start=1):
        chosen = (batch.completion_ids == completion_id) & (batch.loss_mask == 1)
        np.testing.assert_allclose(packed_logprobs_BL[chosen], expected, atol=1e-5)
    for x, y in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, float(np.abs(y).max())))
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 0.1
    if span:  # it is what bounds the work: with less of it tokens miss something
        for less in (Span(0, span.window), Span(span.prefix, 4)):
            if less != span:
                cut_BL, _ = weighted_logprobs(params, batch, less)
                assert float(jnp.abs((cut_BL - packed_logprobs_BL) * batch.loss_mask).max()) > 1e-3
