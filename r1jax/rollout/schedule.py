"""Which completion decodes where: the engine's book-keeping, on the host alone.

Every process of a run holds the same Schedule and tells it the same things, so all take the same
decisions. Rows and prompts are split over the shards of the mesh's batch axes; a row reads a prompt
of its own shard, so a group that spans shards has its prompt in each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

SHARES = (1, 2, 8)  # of all slots decode: all, half, an eighth
MOST_READERS = 16  # of a prompt row; a larger group has several rows


@dataclass
class Row:
    """A busy slot."""

    prompt_index: int
    sample_index: int
    prompt_row: int  # of its shard
    count: int = 0  # tokens sampled so far
    steps: int = 0  # of decoding so far, each but the first with a draft where there are any
    right_drafts: int = 0
    tokens: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    experts: list[np.ndarray] = field(default_factory=list)
    # Where tokens lie in pages:
    shared: list[int] = field(default_factory=list)  # those of its prompt
    pages: list[int] = field(default_factory=list)  # behind them, its own
    stored: int = 0  # how many the host keeps of it while it is suspended

    def last_token(self, prompt: np.ndarray) -> int:
        """What is fed next."""
        sampled = next((part for part in reversed(self.tokens) if part.size), prompt)
        return int(sampled[-1])


@dataclass(frozen=True)
class Load:
    """A prompt that goes into a prompt row."""

    shard: int
    row: int
    prompt_index: int


@dataclass(frozen=True)
class Start:
    """A completion that begins in a slot."""

    shard: int
    slot: int
    row: Row


class Schedule:
    """A queue of (prompt, sample), slots that take from it, and the prompts that they read."""

    def __init__(
        self,
        wanted: Iterable[tuple[int, int]],
        shards: int,
        slots: int,
        prompt_rows: int,
        readers: int = MOST_READERS,
    ) -> None:
        """`wanted` (prompt, sample), those of a prompt together; `slots`, `prompt_rows` of a shard;
        at most so many `readers` of a prompt row.
        """
        self.most_readers = readers
        self.queue = deque(wanted)
        self.first_slots = slots
        self.rows: list[list[Row | None]] = [[None] * slots for _ in range(shards)]
        self.prompts: list[list[int | None]] = [[None] * prompt_rows for _ in range(shards)]

    @property
    def slots(self) -> int:
        """Of a shard."""
        return len(self.rows[0])

    @property
    def prompt_rows(self) -> int:
        """Of a shard."""
        return len(self.prompts[0])

    def busy(self) -> Iterator[tuple[int, int, Row]]:
        """(shard, slot, row) of everything that decodes."""
        for shard, rows in enumerate(self.rows):
            for slot, row in enumerate(rows):
                if row is not None:
                    yield shard, slot, row

    def unfinished(self) -> bool:
        return bool(self.queue) or any(True for _ in self.busy())

    def refill(self) -> tuple[list[Load], list[Start]]:
        """Takes from the queue, in its order, for as long as there are slots and prompt rows."""
        self._drop_finished_prompts()
        loads: list[Load] = []
        starts: list[Start] = []
        while self.queue:
            prompt_index, sample_index = self.queue[0]
            place = self._place_for(prompt_index)
            if place is None:
                break
            shard, prompt_row = place
            if self.prompts[shard][prompt_row] is None:
                self.prompts[shard][prompt_row] = prompt_index
                loads.append(Load(shard, prompt_row, prompt_index))
                self._loaded(loads[-1])
            slot = self.rows[shard].index(None)
            row = Row(prompt_index, sample_index, prompt_row)
            self.rows[shard][slot] = row
            starts.append(Start(shard, slot, row))
            self._begun(starts[-1])
            self.queue.popleft()
        return loads, starts

    def _place_for(self, prompt_index: int) -> tuple[int, int] | None:
        """A shard with a free slot and this prompt; else the emptiest with room for the prompt."""
        free = [rows.count(None) for rows in self.rows]
        room = []
        for shard, held in enumerate(self.prompts):
            if not free[shard] or not self._has_room(shard, prompt_index):
                continue
            reading = Counter(row.prompt_row for row in self.rows[shard] if row is not None)
            for prompt_row, prompt in enumerate(held):
                if prompt == prompt_index and reading[prompt_row] < self.most_readers:
                    return shard, prompt_row
            if None in held:
                room.append(shard)
        if not room:
            return None
        shard = max(room, key=lambda z: (free[z], -z))
        return shard, self.prompts[shard].index(None)

    def _has_room(self, shard: int, prompt_index: int) -> bool:
        """Whether a row of this prompt may begin, if there is a slot."""
        return True

    def _loaded(self, load: Load) -> None:
        """Called for each prompt that is taken in."""

    def _begun(self, start: Start) -> None:
        """Called for each row that begins."""

    def _drop_finished_prompts(self) -> None:
        """Frees the rows of prompts that nobody reads or will read."""
        waiting = self.queue[0][0] if self.queue else None  # only this one can be half served
        for shard, held in enumerate(self.prompts):
            read = {row.prompt_row for row in self.rows[shard] if row is not None}
            self.prompts[shard] = [
                p if i in read or p == waiting else None for i, p in enumerate(held)
            ]

    def finish(self, shard: int, slot: int) -> None:
        self.rows[shard][slot] = None

    def sizes(self) -> list[int]:
        """Numbers of slots of a shard that `shrink` may choose now or later."""
        return [size for size in _sizes(self.first_slots) if size <= self.slots]

    def shrink(self) -> tuple[np.ndarray, np.ndarray] | None:
        """One step to fewer slots, where nothing waits and these hold what is busy. None where
        they do not; it is called again until then.

        So there are few sizes, each a program of its own, and few ways from one to another, which
        are programs too. Returns the slots that stay [Z, S] and the prompt rows that stay [Z, P]:
        all in their order where there are no fewer.
        """
        if self.queue:
            return None
        busiest = max(sum(row is not None for row in rows) for rows in self.rows)
        fewer = [size for size in self.sizes() if busiest <= size < self.slots]
        slots = max(fewer, default=self.slots)
        prompt_rows = min(self.prompt_rows, slots)
        if (slots, prompt_rows) == (self.slots, self.prompt_rows):
            return None
        self._drop_finished_prompts()
        kept = [_kept(rows, slots) for rows in self.rows]
        kept_prompts = [_kept(prompts, prompt_rows) for prompts in self.prompts]
        self.rows = [[r[i] for i in k] for r, k in zip(self.rows, kept, strict=True)]
        self.prompts = [[p[i] for i in k] for p, k in zip(self.prompts, kept_prompts, strict=True)]
        for shard, _, row in self.busy():
            if row.prompt_row >= 0:
                row.prompt_row = kept_prompts[shard].index(row.prompt_row)
        return np.asarray(kept, np.int32), np.asarray(kept_prompts, np.int32)

    def readers(self, places: int) -> tuple[np.ndarray, np.ndarray]:
        """(members [Z, P, places], places [Z, S]): models.caches.SharedPrefix explains them."""
        shards, slots = len(self.rows), self.slots
        members = np.full((shards, self.prompt_rows, places), slots, np.int32)
        place = np.zeros((shards, slots), np.int32)
        count = np.zeros((shards, self.prompt_rows), np.int32)
        for shard, slot, row in self.busy():
            at = count[shard, row.prompt_row]
            members[shard, row.prompt_row, at] = slot
            place[shard, slot] = row.prompt_row * places + at
            count[shard, row.prompt_row] += 1
        return members, place

    def idle(self) -> np.ndarray:
        """bool [Z S]"""
        return np.asarray([row is None for rows in self.rows for row in rows])


def _sizes(slots: int) -> list[int]:
    """A number of slots, and those that it may shrink to: each is a program to compile."""
    return [slots // share for share in SHARES if slots % share == 0]


def _kept(values: Sequence[object | None], count: int) -> list[int]:
    """Which `count` of them stay: all, or what is there before what is not."""
    if count == len(values):
        return list(range(count))
    there = [i for i, value in enumerate(values) if value is not None]
    empty = [i for i, value in enumerate(values) if value is None]
    return (there + empty)[:count]
