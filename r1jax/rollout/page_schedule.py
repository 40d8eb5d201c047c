"""Which completion decodes where, and in which pages: the host's book-keeping.

A row shares the whole pages of its prompt; what is left of that it has as a copy in the first page
of its own. Before each chunk it is given the pages that the chunk may fill. Where none is left the
youngest row of the shard is suspended: it gives back its pages, whose content its row keeps on the
host, and goes on in others as soon as there are some.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from r1jax.rollout.schedule import Load, Row, Schedule, Start
from r1jax.rollout.store import Request


@dataclass(frozen=True)
class PageSizes:
    """Of rows, prompts and pages."""

    page: int  # tokens of a page
    step: int  # tokens that a chunk of decoding may add to a row
    width: int  # tokens of a row in a step

    def pages(self, tokens: int) -> int:
        return -(-tokens // self.page)

    def prompt(self, length: int) -> int:
        """That the tokens of a prompt but its last lie in."""
        return self.pages(length - 1)

    def shared(self, length: int) -> int:
        """Of these, those that rows share."""
        return (length - 1) // self.page

    def row(self, prompt: int, count: int, limit: int) -> int:
        """Of all tokens of a row that has sampled so many, after the next chunk."""
        return self.pages(prompt - 1 + min(count + self.step, limit + self.width - 1))

    def most(self, prompt: int, limit: int) -> int:
        """Of all tokens that a row ever has."""
        return self.row(prompt, limit, limit)

    def own(self, tokens: int) -> int:
        """That a row of so many tokens needs beside those that it shares, whatever its prompt."""
        return self.pages(self.page - 1 + tokens + self.width - 1)


@dataclass(frozen=True)
class Copy:
    """The content of a page that goes into another."""

    shard: int
    source: int
    target: int


@dataclass(frozen=True)
class Move:
    """A row whose pages go to the host, or come back from there."""

    shard: int
    slot: int
    row: Row
    pages: tuple[int, ...]


class PageSchedule(Schedule):
    """A Schedule whose rows have pages of their shard."""

    def __init__(
        self, request: Request, shards: int, slots: int, pages: int, sizes: PageSizes
    ) -> None:
        """`slots`, `pages` of a shard."""
        super().__init__(request.wanted, shards, slots, slots, slots)
        self._request, self._sizes = request, sizes
        self.width = max(map(sizes.most, map(len, request.prompts), request.limits))  # of a table
        self._free = [list(range(pages))[::-1] for _ in range(shards)]
        self._of_prompts: list[dict[int, list[int]]] = [{} for _ in range(shards)]
        self._suspended: list[list[Row]] = [[] for _ in range(shards)]  # the oldest first
        self._copies: list[Copy] = []

    # -- beginning and ending --

    def unfinished(self) -> bool:
        return super().unfinished() or any(self._suspended)

    def resume(self) -> list[Move]:
        """Rows that go on, in slots and pages that are free."""
        self._drop_finished_prompts()
        moves = []
        for shard, waiting in enumerate(self._suspended):
            while waiting and None in self.rows[shard]:
                row = waiting[0]
                if len(self._free[shard]) < self._next(row) + self._reserve(shard):
                    break
                waiting.pop(0)
                row.pages = self._take(shard, row.stored)
                slot = self.rows[shard].index(None)
                self.rows[shard][slot] = row
                moves.append(Move(shard, slot, row, tuple(row.pages)))
        return moves

    def _has_room(self, shard: int, prompt_index: int) -> bool:
        """For another row of this prompt. Those that are suspended come first."""
        if self._suspended[shard]:
            return False
        length = len(self._request.prompts[prompt_index])
        limit, held = self._request.limits[prompt_index], self._of_prompts[shard]
        needed = self._sizes.row(length, 0, limit) - self._sizes.shared(length)
        needed += 0 if prompt_index in held else self._sizes.prompt(length)
        return len(self._free[shard]) >= needed + self._reserve(shard)

    def _loaded(self, load: Load) -> None:
        length = len(self._request.prompts[load.prompt_index])
        pages = self._take(load.shard, self._sizes.prompt(length))
        self._of_prompts[load.shard][load.prompt_index] = pages

    def _begun(self, start: Start) -> None:
        row = start.row
        shared = self._sizes.shared(len(self._request.prompts[row.prompt_index]))
        of_prompt = self._of_prompts[start.shard][row.prompt_index]
        row.shared = of_prompt[:shared]
        if len(of_prompt) > shared:
            row.pages = self._take(start.shard, 1)
            self._copies.append(Copy(start.shard, of_prompt[shared], row.pages[0]))

    def copies(self) -> list[Copy]:
        """For the rows that have just begun: what is left of their prompts behind whole pages."""
        copies, self._copies = self._copies, []
        return copies

    def finish(self, shard: int, slot: int) -> None:
        row = self.rows[shard][slot]
        assert row is not None
        self._give_back(shard, row)
        super().finish(shard, slot)

    def _drop_finished_prompts(self) -> None:
        super()._drop_finished_prompts()
        for shard, held in enumerate(self._of_prompts):
            for index in set(held) - set(self.prompts[shard]):
                self._free[shard] += held.pop(index)

    # -- while they decode --

    def grow(self) -> list[Move]:
        """Pages for the next chunk of every row, the oldest first; those that are suspended for
        want of one.
        """
        moves = []
        for shard, rows in enumerate(self.rows):
            busy = [(slot, row) for slot, row in enumerate(rows) if row is not None]
            busy.sort(key=lambda item: -item[1].count)
            while busy:
                slot, row = busy.pop(0)
                more = self._next(row) - len(row.shared) - len(row.pages)
                while more > len(self._free[shard]) and busy:
                    moves.append(self._suspend(shard, *busy.pop()))
                if more > len(self._free[shard]):
                    moves.append(self._suspend(shard, slot, row))
                else:
                    row.pages += self._take(shard, more)
        return moves

    def tables(self) -> np.ndarray:
        """The pages of every slot's row, int32 [Z S, A]."""
        tables = np.zeros((len(self.rows), self.slots, self.width), np.int32)
        for shard, slot, row in self.busy():
            pages = row.shared + row.pages
            tables[shard, slot, : len(pages)] = pages
        return tables.reshape(-1, self.width)

    def prompt_pages(self, load: Load) -> list[int]:
        return self._of_prompts[load.shard][load.prompt_index]

    def shrink(self) -> tuple[np.ndarray, np.ndarray] | None:
        return None if any(self._suspended) else super().shrink()

    def _suspend(self, shard: int, slot: int, row: Row) -> Move:
        length = len(self._request.prompts[row.prompt_index])
        stored = self._sizes.pages(length - 1 + row.count)
        pages = (row.shared + row.pages)[:stored]
        self._give_back(shard, row)
        row.shared, row.prompt_row, row.stored = [], -1, stored  # it has its prompt for itself
        self.rows[shard][slot] = None
        self._suspended[shard].append(row)
        self._suspended[shard].sort(key=lambda row: -row.count)
        self._drop_finished_prompts()
        return Move(shard, slot, row, tuple(pages))

    def _next(self, row: Row) -> int:
        """Pages of a row after the next chunk, those of its prompt among them."""
        length = len(self._request.prompts[row.prompt_index])
        return self._sizes.row(length, row.count, self._request.limits[row.prompt_index])

    def _reserve(self, shard: int) -> int:
        """Pages that the shard's rows may need for a chunk."""
        busy = sum(row is not None for row in self.rows[shard])
        return busy * self._sizes.pages(self._sizes.step)

    def _take(self, shard: int, count: int) -> list[int]:
        return [self._free[shard].pop() for _ in range(count)]

    def _give_back(self, shard: int, row: Row) -> None:
        self._free[shard] += row.pages[::-1]
        row.pages = []
