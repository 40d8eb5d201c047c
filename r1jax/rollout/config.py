"""Sizes of what the rollout engine runs at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1jax.config import Count, Size


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of what runs at once; none of them changes a completion beyond rounding.

    A run that must resume to the bit names its slots, or memory_mib: what is free may differ.
    """

    slots: Count = 64  # rows that decode together, on all devices; 0 = as many as memory allows
    chunk: Size = 32  # decode steps on the device between two looks from the host
    bucket: Size = 128  # columns of a cache: multiples of it, few, up to what the longest needs
    prefill_batch: Size = 8  # prompts prefilled together, a device
    prefill_chunk: Size = 512  # tokens of a prompt that are prefilled at once
    memory_mib: Count = 0  # for caches and logits, a device; 0 = with slots=0, 80 % of what is free
    # Decoding is a program for each number of slots and of columns: compile all that may come with
    # the first prompts, side by side, instead of stopping the first iterations for one by one.
    compile_ahead: bool = False
    # On one CPU: keys and values laid out for its vector units. SmolLM2 decodes 64 rows in a tenth
    # less time at 128 columns and in 20 to 30 % less at 512; a program compiles up to half as long
    # again.
    lane_cache: bool = False
    # With multi-token prediction, speculative decoding: a step checks a draft of the token after
    # next besides, and takes it where it is right. It costs up to twice the columns of a cache, and
    # a few tokens in pages.
    speculative: bool = False
    # Columns: every row has room for as many tokens as the longest comes to have. Pages: a row has
    # as many as its tokens need. auto: pages on TPUs, where kernels read them (heads of 128
    # numbers, or latent vectors), else columns.
    cache: Literal["auto", "columns", "pages"] = "auto"
    page: Size = 128  # tokens of a page
    # Tokens that a row has in the mean, while it decodes: as many rows are planned as have room
    # then. A row that finds no page gives its own to the host, and goes on later. 0 = a quarter of
    # the most that it may have.
    mean_tokens: Count = 0
