"""Packs sequences of different lengths into rows of one fixed length, row by row, longest first.

Shape legend: M microbatches, B rows a microbatch, L tokens a row, C sequences (or completions).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from r1jax.config import ConfigError, DataError
from r1jax.types import Batch


@dataclass(frozen=True)
class Piece:
    """What goes into one row in one piece: tokens with the values that belong to them."""

    tokens: np.ndarray  # int32 [T]
    loss_mask: np.ndarray  # float32 [T], aligned to targets; the first is never a target
    sampler_logprobs: np.ndarray | None = None  # float32 [T]


@dataclass(frozen=True)
class Group:
    """A shared prefix and the pieces that continue it; plain sequences have an empty prefix."""

    pieces: Sequence[Piece]
    prefix: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # int32 [P]


def sequence_group(tokens: Sequence[int], loss_mask: Sequence[float]) -> Group:
    """One sequence alone (SFT); the first token has no predecessor and is never a target."""
    mask = np.asarray(loss_mask, np.float32).copy()
    mask[:1] = 0.0
    return Group([Piece(np.asarray(tokens, np.int32), mask)])


def completion_group(
    prompt: np.ndarray,
    completions: Sequence[np.ndarray],
    logprobs: Sequence[np.ndarray],
) -> Group:
    """A prompt and the completions sampled for it.

    The prompt's last token predicts the first token of *every* completion, so it is not part of the
    shared prefix: each piece starts with its own copy of it.
    """
    pieces = []
    for tokens, values in zip(completions, logprobs, strict=True):
        mask = np.ones(len(tokens) + 1, np.float32)
        mask[0] = 0.0
        pieces.append(
            Piece(
                np.concatenate([prompt[-1:], tokens]).astype(np.int32),
                mask,
                np.concatenate([[0.0], values]).astype(np.float32),
            )
        )
    return Group(pieces, np.asarray(prompt[:-1], np.int32))


def pack(
    groups: Sequence[Group],
    row_lengths: int | Sequence[int],
    rows: int,
    max_microbatches: int | None = None,
    share_prompts: bool = True,
    advantages: np.ndarray | None = None,
    whole_groups: bool = False,
) -> Batch:
    """Groups -> Batch with leaves [M, rows, L].

    Completion ids count the pieces of all groups in order, from 1; `lengths` counts the targets of
    each. M is `max_microbatches` where given (the rest is padding a step never looks at). L is that
    of the row lengths which leaves the fewest tokens to compute, the first of equals.
    Before the pieces that a row has of a group stands the group's prefix, once; without
    `share_prompts` each piece has its prefix directly before it. `advantages` is float32 [C]. With
    `whole_groups` all pieces of a group are in one row, as a loss over pairs needs them.
    """
    fillings = []
    for length in [row_lengths] if isinstance(row_lengths, int) else row_lengths:
        segments = _segments(groups, length, share_prompts, whole_groups)
        packed = _fill_rows(segments, length, split=share_prompts and not whole_groups)
        fillings.append((-(-len(packed) // rows), length, packed))
    used, length, packed = min(fillings, key=lambda filling: filling[0] * filling[1])
    packed.sort(key=lambda row: row.free)  # full rows together: the last microbatch is the emptiest
    total = max_microbatches or used
    if used > total:
        raise ConfigError(f"{used} microbatches of {rows} rows do not fit in {total}")
    shape = (total * rows, length)
    tokens, positions, segment_ids, completion_ids = (np.zeros(shape, np.int32) for _ in range(4))
    loss_mask, sampler_logprobs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for r, row in enumerate(packed):
        start = 0
        for segment, completion_id, position, piece in _placed(row):
            at = slice(start, start + len(piece.tokens))
            tokens[r, at] = piece.tokens
            positions[r, at] = position + np.arange(len(piece.tokens))
            segment_ids[r, at] = segment
            completion_ids[r, at] = completion_id
            loss_mask[r, at] = piece.loss_mask
            if piece.sampler_logprobs is not None:
                sampler_logprobs[r, at] = piece.sampler_logprobs
            start = at.stop

    def shaped(x: np.ndarray) -> np.ndarray:
        return x.reshape(total, rows, *x.shape[1:])

    sampled = any(piece.sampler_logprobs is not None for group in groups for piece in group.pieces)
    return Batch(
        tokens=shaped(tokens),
        positions=shaped(positions),
        segment_ids=shaped(segment_ids),
        completion_ids=shaped(completion_ids),
        loss_mask=shaped(loss_mask),
        sampler_logprobs=shaped(sampler_logprobs) if sampled else None,
        advantages=None if advantages is None else np.append(0.0, advantages).astype(np.float32),
        lengths=np.array(
            [1.0, *(piece.loss_mask.sum() for group in groups for piece in group.pieces)],
            np.float32,
        ),
        num_targets=np.float32(loss_mask.sum()),
        microbatches=np.int32(used),
    )


def with_experts(batch: Batch, taken: Sequence[np.ndarray | None], rows: Collection[int]) -> Batch:
    """With what each completion has as `experts` (see Completion), in the order of their ids.

    That is most of a batch by far: so only these rows of each microbatch, those of this process's
    devices, have it. The others' are never looked at.
    """
    some = next((experts for experts in taken if experts is not None), None)
    if some is None:
        return batch
    found = np.zeros((*batch.tokens.shape, *some.shape[1:]), np.int16)
    for m, b in itertools.product(range(batch.microbatches), rows):
        found[m, b] = -1
        ids, starts = np.unique(batch.completion_ids[m, b], return_index=True)
        for completion, start in zip(ids, starts, strict=True):
            experts = taken[completion - 1] if completion else None
            if experts is not None:  # from behind the prompt's last token on
                found[m, b, start + 1 : start + 1 + len(experts)] = experts
    return replace(batch, experts=found)


def padding_share(batch: Batch) -> float:
    """Share of the tokens of the microbatches in use that is padding."""
    return float(np.mean(batch.segment_ids[: batch.microbatches] == 0))


def rounded_up(batch: Batch, completions: int | None = None) -> Batch:
    """The batch in one of few shapes, so that few programs are compiled: M a power of two and,
    where `completions` are given, per-completion arrays for so many.
    """
    more = (1 << (int(batch.microbatches) - 1).bit_length()) - len(batch.tokens)

    def one(x: Any) -> Any:
        if x.ndim == 3:
            return np.pad(x, [(0, more), (0, 0), (0, 0)])
        if x.ndim == 1 and completions is not None:
            return np.pad(x, (0, completions + 1 - len(x)))  # without targets
        return x

    return jax.tree.map(one, batch)


@dataclass
class _Segment:
    """Pieces behind one prefix: what of a group waits for a row, or stands in one."""

    prefix: np.ndarray  # int32 [P]
    pieces: list[tuple[int, Piece]]  # (completion id, piece)

    @property
    def size(self) -> int:
        """Tokens of all of it."""
        return len(self.prefix) + sum(len(piece.tokens) for _, piece in self.pieces)


@dataclass
class _Row:
    """A row that is being filled."""

    free: int
    segments: list[_Segment] = field(default_factory=list)

    def add(self, segment: _Segment) -> _Segment | None:
        """Takes the pieces that fill it most, with their prefix -> what is left of the segment."""
        room = self.free - len(segment.prefix)
        chosen = fullest([len(piece.tokens) for _, piece in segment.pieces], room)
        if not chosen:
            return segment
        part, rest = _Segment(segment.prefix, []), _Segment(segment.prefix, [])
        for i, piece in enumerate(segment.pieces):
            (part if i in chosen else rest).pieces.append(piece)
        self.free -= part.size
        self.segments.append(part)
        return rest if rest.pieces else None


def _placed(row: _Row) -> list[tuple[int, int, int, Piece]]:
    """(segment, completion id, first position, piece) in the row's order; a prefix has id 0.

    Long pieces come early, where there is little before them in which attention could be spared.
    """
    parts = []
    for number, segment in enumerate(sorted(row.segments, key=_longest, reverse=True), start=1):
        prefix = Piece(segment.prefix, np.zeros(len(segment.prefix), np.float32))
        parts.append((number, 0, 0, prefix))
        pieces = sorted(segment.pieces, key=lambda numbered: -len(numbered[1].tokens))
        parts += [(number, index, len(segment.prefix), piece) for index, piece in pieces]
    return parts


def _longest(segment: _Segment) -> int:
    return max(len(piece.tokens) for _, piece in segment.pieces)


def _segments(groups: Sequence[Group], length: int, share: bool, whole: bool) -> list[_Segment]:
    """What is to be placed, longest first: groups, or each piece with a prefix of its own."""
    segments, first = [], 1
    for group in groups:
        pieces = list(enumerate(group.pieces, start=first))
        if not pieces:
            continue
        first += len(pieces)
        together = [_Segment(group.prefix, pieces)]
        apart = [_Segment(group.prefix, [piece]) for piece in pieces]
        for least in together if whole else apart:
            if least.size > length:
                raise DataError(
                    f"a sequence of {least.size} tokens does not fit in pack_length {length}"
                )
        segments += together if share or whole else apart
    return sorted(segments, key=lambda segment: -segment.size)


def _fill_rows(pending: list[_Segment], length: int, split: bool) -> list[_Row]:
    """Rows one after the other, from segments by size: what is left of the one that the last row
    began, then whole ones, the longest that fits first, then, to `split` it, a part of one more.

    So at most one segment is begun at a time, and while a row has room for a further piece of it,
    it gets one: each row but the last has at least as many pieces as have room with a prefix each.
    """
    rows: list[_Row] = []
    rest: _Segment | None = None
    while pending or rest:
        row = _Row(length)
        if rest:
            rest = row.add(rest)
        while not rest and (index := _longest_that_fits(pending, row.free)) < len(pending):
            row.add(pending.pop(index))
        if split and not rest:
            rest = _begin_one(pending, row)
        rows.append(row)
    return rows


def _begin_one(pending: list[_Segment], row: _Row) -> _Segment | None:
    """Puts a part of the longest segment that has a piece with room into the row -> its rest."""
    for index, segment in enumerate(pending):
        rest = row.add(segment)
        if rest is not segment:
            del pending[index]
            return rest
    return None


def _longest_that_fits(pending: list[_Segment], room: int) -> int:
    return bisect.bisect_left(pending, -room, key=lambda segment: -segment.size)


def fullest(sizes: Sequence[int], room: int) -> set[int]:
    """Which of these sizes have the largest sum that is at most `room`: their indices."""
    room = max(room, 0)
    sums = [1]  # bit s: some of the first i sizes have the sum s
    for size in sizes:
        sums.append((sums[-1] | sums[-1] << size) & ((2 << room) - 1))
    total = sums[-1].bit_length() - 1
    chosen = set()
    for i in reversed(range(len(sizes))):
        if not sums[i] >> total & 1:
            chosen.add(i)
            total -= sizes[i]
    return chosen
