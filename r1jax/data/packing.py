"""Packs sequences of different lengths into rows of one fixed length, best fit, longest first.

Shape legend: M microbatches, B rows a microbatch, L tokens a row, C sequences (or completions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass
class _Row:
    """A row being filled: per segment its pieces as (completion id, piece).

    The segment's key is the group's index, plus a multiple of the number of groups where every
    piece is a segment of its own.
    """

    free: int
    front: int  # tokens of further prefixes that it takes
    segments: dict[int, list[tuple[int, Piece]]] = field(default_factory=dict)


def sequence_group(tokens: Sequence[int], loss_mask: Sequence[float]) -> Group:
    """One sequence alone (SFT); the first token has no predecessor and is never a target."""
    mask = np.asarray(loss_mask, np.float32).copy()
    mask[:1] = 0.0
    return Group([Piece(np.asarray(tokens, np.int32), mask)])


def completion_group(
    prompt: np.ndarray, completions: Sequence[np.ndarray], logprobs: Sequence[np.ndarray]
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
    length: int,
    rows: int,
    max_microbatches: int | None = None,
    share_prompts: bool = True,
    advantages: np.ndarray | None = None,
    whole_groups: bool = False,
    front: int | None = None,
) -> tuple[Batch, int]:
    """Groups -> (Batch with leaves [M, rows, length], number of microbatches used).

    Completion ids count the pieces of all groups in order, from 1; `lengths` counts the targets of
    each. M is `max_microbatches` where given (the rest is padding a step never looks at). A row
    begins with the prefixes of its groups, each once for all of its pieces there; without
    `share_prompts` each piece has its prefix directly before it. `advantages` is float32 [C]. With
    `whole_groups` all pieces of a group are in one row, as a loss over pairs needs them. `front` is
    how many tokens of prefixes a row has at most.
    """
    packed = _best_fit(groups, length, share_prompts, whole_groups, front)
    packed.sort(key=lambda row: row.free)  # full rows together: the last microbatch is the emptiest
    used = -(-len(packed) // rows)
    total = max_microbatches or used
    if used > total:
        raise ConfigError(f"{used} microbatches of {rows} rows do not fit in {total}")
    shape = (total * rows, length)
    tokens, positions, segment_ids, completion_ids = (np.zeros(shape, np.int32) for _ in range(4))
    loss_mask, sampler_logprobs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for r, row in enumerate(packed):
        start = 0
        for segment, completion_id, position, piece in _placed(row, groups, share_prompts):
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
        return x.reshape(total, rows, length)

    sampled = any(piece.sampler_logprobs is not None for group in groups for piece in group.pieces)
    batch = Batch(
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
    )
    return batch, used


def padding_share(batch: Batch, used: int) -> float:
    """Share of the tokens of the used microbatches that is padding."""
    return float(np.mean(batch.segment_ids[:used] == 0))


def _placed(
    row: _Row, groups: Sequence[Group], prefixes_first: bool
) -> list[tuple[int, int, int, Piece]]:
    """(segment, completion id, first position, piece) in the row's order; a prefix has id 0."""
    parts = []
    for segment, (key, pieces) in enumerate(row.segments.items(), start=1):
        prefix = groups[key % len(groups)].prefix
        parts.append((segment, 0, 0, Piece(prefix, np.zeros(len(prefix), np.float32))))
        parts += [(segment, number, len(prefix), piece) for number, piece in pieces]
    if prefixes_first:
        parts.sort(key=lambda part: part[1] != 0)
    return parts


@dataclass(frozen=True)
class _Item:
    """What is placed at once: a piece, or all pieces of a group, with its prefix."""

    group: int
    completion_id: int  # of the first piece
    pieces: Sequence[Piece]
    prefix: int  # tokens

    @property
    def tokens(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)


def _items(groups: Sequence[Group], length: int, whole: bool) -> list[_Item]:
    items, completion_id = [], 1
    for index, group in enumerate(groups):
        for pieces in [group.pieces] if whole else [[piece] for piece in group.pieces]:
            item = _Item(index, completion_id, pieces, len(group.prefix))
            completion_id += len(pieces)
            size = item.prefix + item.tokens
            if size > length:
                raise DataError(f"a sequence of {size} tokens does not fit in pack_length {length}")
            items.append(item)
    return items


def _best_fit(
    groups: Sequence[Group], length: int, share: bool, whole: bool, front: int | None
) -> list[_Row]:
    """Longest item first, into the row that it leaves least room in."""
    items = _items(groups, length, whole)
    front = length if front is None else front

    def size(item: _Item) -> int:
        return item.prefix + item.tokens

    if share:  # the items of a group stay together, groups by their longest item
        longest = {item.group: 0 for item in items}
        for item in items:
            longest[item.group] = max(longest[item.group], size(item))
        items.sort(key=lambda i: (-longest[i.group], i.group, -size(i), i.completion_id))
    else:
        items.sort(key=lambda i: (-size(i), i.completion_id))
    rows: list[_Row] = []
    for item in items:
        key = item.group if share else item.completion_id * len(groups) + item.group
        best = None
        for row in rows:
            prefix = 0 if key in row.segments else item.prefix
            need = prefix + item.tokens
            if (need <= row.free and prefix <= row.front) and (
                best is None or (key in row.segments, -row.free + need) > best[0]
            ):
                best = ((key in row.segments, -row.free + need), row, prefix)
        if best is None:
            best = ((False, 0), _Row(length, front), item.prefix)
            rows.append(best[1])
        _, row, prefix = best
        row.free -= prefix + item.tokens
        row.front -= prefix
        numbered = enumerate(item.pieces, start=item.completion_id)
        row.segments.setdefault(key, []).extend(numbered)
    return rows
