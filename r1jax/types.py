"""The few nouns that pass between modules.

Shape legend: B rows, L tokens a row, M microbatches of an update, C completions of an update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from flax import struct

FinishReason = Literal["stop", "length"]
# {"role": "system" | "user" | "assistant", "content": text}, and what a chat template reads.
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One question with what its grader needs."""

    id: str
    messages: tuple[Message, ...]  # a plain `prompt` becomes one user message
    answer: str
    task: str  # a key of r1jax.tasks.TASKS, or module:NAME
    metadata: Mapping[str, Any] = field(default_factory=dict)  # level, language, numbers, ...
    where: str = field(default="", compare=False)  # file:line or the like, for messages

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.where or f"example {self.id}"

    @property
    def question(self) -> str:
        """The content of the last message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Completion:
    """What the engine emits: tokens, not text."""

    prompt_index: int
    sample_index: int  # 0 .. group_size - 1
    tokens: np.ndarray  # int32 [T], with the end-of-sequence token if it was sampled
    logprobs: np.ndarray  # float32 [T], log_softmax(logits / temperature) at the sampled tokens
    finish_reason: FinishReason
    # int16 [T, S, k], of a model with experts: those that the token before took, in S layers.
    experts: np.ndarray | None = None
    drafts: int = 0  # of multi-token prediction that were checked on the way
    right_drafts: int = 0


@dataclass(frozen=True)
class Rollout:
    """A completion with its text and its reward."""

    example_id: str
    prompt_tokens: np.ndarray  # int32 [P]
    completion: Completion
    text: str  # the completion decoded, without the end-of-sequence token
    reward: float
    reward_breakdown: Mapping[str, float]  # unweighted parts by name
    failure: str | None = None  # why it has no honest grade (rewards.Failure.kind)
    failure_message: str | None = None

    @property
    def prompt_index(self) -> int:
        return self.completion.prompt_index


@dataclass(frozen=True)
class Sample:
    """A completion of a benchmark's problem and what it earned: text, no tokens."""

    example_id: str
    prompt_index: int
    sample_index: int  # 0 .. k - 1
    text: str  # without the end-of-sequence token
    length: int  # tokens
    finish_reason: FinishReason
    reward_breakdown: Mapping[str, float] = field(default_factory=dict)  # unweighted, by name
    failure: str | None = None  # why it has no honest grade (rewards.Failure.kind)
    failure_message: str | None = None
    reward: float = 0.0  # their weighted sum


@struct.dataclass
class Batch:
    """Packed sequences: each leaf [B, L], or [M, B, L] for an update of M microbatches.

    A token attends to the tokens before it in its row with the same segment whose completion is
    its own or 0: so a row can hold one copy of a prompt (completion 0) and behind it the
    completions of its group, each with positions that continue the prompt's. Token-level arrays
    are aligned to targets: entry l speaks of tokens[l] given what precedes it.
    """

    tokens: Any  # int32
    positions: Any  # int32, place in the sequence
    segment_ids: Any  # int32, 0 = padding
    completion_ids: Any  # int32, index into the per-completion arrays, 0 = prompt or none
    loss_mask: Any  # float32, 1 where the token is a target that counts
    sampler_logprobs: Any = None  # float32, as emitted by the engine
    old_logprobs: Any = None  # float32, parameters at the start of this rollout's updates
    ref_logprobs: Any = None  # float32, frozen reference policy
    advantages: Any = None  # float32 [C + 1] (never split into microbatches); entry 0 is unused
    token_advantages: Any = None  # float32, in the place of `advantages` (PPO)
    returns: Any = None  # float32, what the value of the state before the token should be (PPO)
    labels: Any = None  # float32 [C + 1], what a pointwise reward model should say; entry 0 unused
    lengths: Any = None  # float32 [C + 1], tokens of completions; 0 = not counted; entry 0 is 1
    experts: Any = None  # int16 [.., L, S, k], as a Completion has them; -1 where none are known
    num_targets: Any = None  # float32 scalar, tokens that count in all microbatches together
    microbatches: Any = None  # int32 scalar, how many of the M hold anything; the rest is padding


@struct.dataclass
class TrainState:
    """Everything an optimizer step reads and writes. Arrays only."""

    step: Any  # int32 scalar, optimizer updates done
    params: Any  # float32 master parameters, a plain nested dict
    opt_state: Any
