"""The engine's book-keeping: everything decodes once, next to its prompt."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.rollout.schedule import Schedule


def wanted(prompts: int, group_size: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(prompts), range(group_size)))


def check_readers(work: Schedule, places: int) -> None:
    """`members` and `places` say the same, and what the rows say."""
    members, place = work.readers(places)
    assert members.shape == (len(work.rows), work.prompt_rows, places)
    busy = list(work.busy())
    assert int((members < work.slots).sum()) == len(busy)
    for shard, slot, row in busy:
        assert work.prompts[shard][row.prompt_row] == row.prompt_index
        assert members[shard, row.prompt_row].tolist().count(slot) == 1
        assert members[shard].reshape(-1)[place[shard, slot]] == slot


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    prompts=st.integers(1, 9),
    group_size=st.integers(1, 6),
    shards=st.integers(1, 3),
    slots=st.integers(1, 8),
    prompt_rows=st.integers(1, 4),
    readers=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 100),
)
def test_everything_decodes_once(
    prompts: int,
    group_size: int,
    shards: int,
    slots: int,
    prompt_rows: int,
    readers: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    work = Schedule(wanted(prompts, group_size), shards, slots, prompt_rows, readers)
    held: dict[tuple[int, int], int] = {}  # (shard, prompt row) -> prompt in memory
    started: list[tuple[int, int]] = []
    while work.queue or any(True for _ in work.busy()):
        loads, starts = work.refill()
        for load in loads:
            found = [r for z, _, r in work.busy() if (z, r.prompt_row) == (load.shard, load.row)]
            assert {row.prompt_index for row in found} == {load.prompt_index}
            held[load.shard, load.row] = load.prompt_index
        started += [(start.row.prompt_index, start.row.sample_index) for start in starts]
        assert len(set(started)) == len(started)
        assert started == sorted(started)  # in the queue's order
        while True:
            before = work.slots, work.prompt_rows, list(work.busy())
            kept = work.shrink()
            if kept is None:
                break
            assert not work.queue
            kept_slots, kept_prompts = kept
            assert kept_slots.shape == (shards, work.slots)
            assert kept_prompts.shape == (shards, work.prompt_rows)
            assert (work.slots, work.prompt_rows) < before[:2]
            assert [(z, kept_slots[z][slot], row) for z, slot, row in work.busy()] == before[2]
            if work.prompt_rows == before[1]:  # the engine leaves them where they are
                assert (kept_prompts == np.arange(work.prompt_rows)).all()
            held = {
                (z, row): held[z, int(old)]
                for z, olds in enumerate(kept_prompts)
                for row, old in enumerate(olds)
                if (z, int(old)) in held
            }
        busy = list(work.busy())
        assert busy, "slots are free and nothing may start"
        assert all(held[z, row.prompt_row] == row.prompt_index for z, _, row in busy)
        check_readers(work, min(readers, work.slots))
        assert work.idle().sum() == shards * work.slots - len(busy)
        for shard, slot, _ in busy:
            if rng.random() < 0.4:
                work.finish(shard, slot)
    assert started == [(p, g) for p in range(prompts) for g in range(group_size)]


def test_a_group_stays_together() -> None:
    """Two groups of 4 on two shards of 4 slots: one each, so each prompt is computed once."""
    work = Schedule(wanted(2, 4), 2, 4, 3)
    loads, starts = work.refill()
    assert [(load.shard, load.prompt_index) for load in loads] == [(0, 0), (1, 1)]
    assert [start.shard for start in starts] == [0] * 4 + [1] * 4


def test_a_large_group_has_several_prompt_rows() -> None:
    """Five samples of a prompt that two may read: three rows of it; a place that is left is taken
    before a row is."""
    work = Schedule(wanted(1, 6), 1, 5, 4, 2)
    loads, starts = work.refill()
    assert [(load.row, load.prompt_index) for load in loads] == [(0, 0), (1, 0), (2, 0)]
    assert [start.row.prompt_row for start in starts] == [0, 0, 1, 1, 2]
    work.finish(0, 1)
    loads, (start,) = work.refill()
    assert not loads and start.row.prompt_row == 0


def test_a_prompt_waits_for_its_next_sample() -> None:
    """A prompt whose rows are done stays as long as samples of it are queued."""
    work = Schedule(wanted(2, 3), 1, 1, 1)
    assert len(work.refill()[0]) == 1
    for sample in (1, 2):
        work.finish(0, 0)
        loads, (start,) = work.refill()
        assert not loads
        assert start.row.sample_index == sample
    work.finish(0, 0)
    (load,), _ = work.refill()
    assert load.prompt_index == 1


@pytest.mark.parametrize(
    ("slots", "busy", "left"),
    [(64, 64, 64), (64, 33, 64), (64, 32, 32), (64, 9, 32), (64, 8, 8), (64, 1, 8),
     (6, 4, 6), (6, 3, 3), (6, 1, 3), (7, 1, 7), (12, 5, 6), (8, 5, 8), (8, 1, 1)],
)  # fmt: skip
def test_sizes(slots: int, busy: int, left: int) -> None:
    work = Schedule(wanted(slots, 1), 1, slots, slots)
    work.refill()
    for slot in range(slots - busy):
        work.finish(0, slot)
    sizes = [slots]
    while kept := work.shrink():
        assert kept[0].shape == (1, work.slots)
        assert work.slots < sizes[-1]
        sizes.append(work.slots)
    assert work.slots == left
    possible = Schedule(wanted(slots, 1), 1, slots, slots).sizes()
    assert sizes == sorted((size for size in possible if size >= left), reverse=True)


def test_shrinks_to_what_is_busy() -> None:
    work = Schedule(wanted(8, 1), 1, 8, 8)
    work.refill()
    for slot in (0, 1, 2, 3, 4, 5, 6):
        work.finish(0, slot)
    kept = list(iter(work.shrink, None))
    assert [slots.shape[1] for slots, _ in kept] == [4, 1]
    slots, prompts = (np.arange(8), np.arange(8))
    for (kept_slots,), (kept_prompts,) in kept:
        slots, prompts = slots[kept_slots], prompts[kept_prompts]
    assert slots.tolist() == prompts.tolist() == [7]
    assert [row.prompt_row for _, _, row in work.busy()] == [0]


def test_prompts_stay_where_there_are_few() -> None:
    """Two prompts of four rows each; three rows of the second go on, in half of the slots."""
    work = Schedule(wanted(2, 4), 1, 8, 2)
    work.refill()
    for slot in (0, 1, 2, 3, 6):
        work.finish(0, slot)
    kept = list(iter(work.shrink, None))
    assert [row.sample_index for _, _, row in work.busy()] == [0, 1, 3]
    assert [slots.shape[1] for slots, _ in kept] == [4]
    assert [prompts.tolist() for _, prompts in kept] == [[[0, 1]]]
    assert [row.prompt_row for _, _, row in work.busy()] == [1, 1, 1]
