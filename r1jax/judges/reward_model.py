"""Reward models at work: a conversation's scalar, and their part in the reward of rollouts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.config import ConfigError, DataError, Size
from r1jax.data.chat import Template, render, render_prompt
from r1jax.data.packing import Group, Piece, pack, rounded_up
from r1jax.data.tokenizer import Tokenizer
from r1jax.losses.logprobs import token_scalars
from r1jax.losses.scalar import sequence_scalars
from r1jax.machines.mesh import make_mesh, parts_of
from r1jax.models.kernels import choose_kernel
from r1jax.models.transformer import Transformer
from r1jax.tasks.answers import summary
from r1jax.training.frozen import FrozenConfig, check_memory, fetched, kept
from r1jax.training.train_state import on_mesh
from r1jax.types import Batch, Example, Message, Rollout, Sample
from r1jax.weights.load import open_model

THOUGHTS = "<think>"
Graded = TypeVar("Graded", Rollout, Sample)
IN_PLACE = FrozenConfig()
ROUND = 128  # lengths of rows are rounded up to multiples of it: few programs
Conversation = tuple[Sequence[Message], str]  # messages that end with the user's, response


@dataclass(frozen=True)
class Labelled:
    """A row as it is packed: a prompt with its responses, and a label for each (or 0)."""

    group: Group
    labels: tuple[float, ...]


def to_group(
    messages: Sequence[Message],
    responses: Sequence[str],
    tokenizer: Tokenizer,
    template: str,
    reads: str,
) -> Group:
    """The prompt once and the responses behind it; each one's last token is its target."""
    prompt = render_prompt(messages, tokenizer, template)
    pieces = []
    for response in responses:
        content = summary(response) if reads == "summary" else response
        turn = {"role": "assistant", "content": content}
        tokens = render([*messages, turn], tokenizer, template)[0][len(prompt) - 1 :]
        mask = np.zeros(len(tokens), np.float32)
        mask[-1] = 1.0
        pieces.append(Piece(np.asarray(tokens, np.int32), mask))
    return Group(pieces, np.asarray(prompt[:-1], np.int32))


def sampled(response: str) -> str:
    """A policy's text as it can be rendered: what opens thoughts elsewhere than at its beginning,
    which no template has a place for, is read without the tags that do.
    """
    rest = response.lstrip().removeprefix(THOUGHTS)
    return response.replace(THOUGHTS, "") if THOUGHTS in rest else response


def size_of(group: Group) -> int:
    return len(group.prefix) + sum(len(piece.tokens) for piece in group.pieces)


def row_length(longest: int, mesh: Mesh) -> int:
    """Of packed rows that have room for the longest conversation; of few sizes."""
    multiple = ROUND * parts_of("length", mesh)
    return -(-longest // multiple) * multiple


def pack_labelled(rows: Sequence[Labelled], length: int, microbatch_rows: int) -> Batch:
    """Pairs stay in one row."""
    groups = [row.group for row in rows]
    batch = rounded_up(pack(groups, length, microbatch_rows, whole_groups=True))
    labels = np.array([0.0, *(label for row in rows for label in row.labels)], np.float32)
    return replace(batch, labels=labels)


class Scorer:
    """The scalars of groups' responses under given parameters."""

    def __init__(self, model: Transformer, mesh: Mesh, microbatch_rows: int) -> None:
        self._mesh, self._rows = mesh, microbatch_rows

        def scalars(params: Any, batch: Batch) -> jax.Array:
            return sequence_scalars(token_scalars(model, params, batch), batch)[0]

        self._scalars = jax.jit(scalars)

    def __call__(self, params: Any, groups: Sequence[Group]) -> np.ndarray:
        """float32, a value per response in order; rows are as long as the longest group asks."""
        if not groups:
            return np.zeros(0, np.float32)
        length = row_length(max(map(size_of, groups)), self._mesh)
        batch = pack(groups, length, self._rows, whole_groups=True)
        count = len(batch.lengths)
        room = (1 << count.bit_length()) - count  # shapes for any number of responses: few programs
        whole = replace(batch, lengths=np.pad(batch.lengths, (0, room)), microbatches=None)
        total = np.zeros(count + room, np.float32)
        for m in range(batch.microbatches):
            one = jax.tree.map(lambda x, m=m: x[m : m + 1] if x.ndim == 3 else x, whole)
            one = on_mesh(one, self._mesh)
            one = jax.tree.map(lambda x: x[0] if x.ndim == 3 else x, one)
            total += np.asarray(jax.device_get(self._scalars(params, one)))
        return total[1:count]

    def lower(self, params: Any, batch: Batch) -> jax.stages.Lowered:
        """For a batch of one microbatch, all in shapes."""

        def one(x: Any) -> Any:
            if x.ndim != 3:
                return x
            sharding = NamedSharding(self._mesh, PartitionSpec(*x.sharding.spec[1:]))
            return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)

        rows = jax.tree.map(one, replace(batch, microbatches=None))
        return self._scalars.lower(params, rows)


class RewardModel:
    """A trained one, to be asked: MODEL with a scalar head."""

    def __init__(
        self,
        path: str,
        reads: str,
        template: str = "chat",
        mesh: Mesh | None = None,
        microbatch_rows: int = 8,
        frozen: FrozenConfig = IN_PLACE,
    ) -> None:
        opened = open_model(path)
        if not opened.config.scalar_head:
            raise ConfigError(
                f"model {path} has no scalar head; a reward model is what stage reward_model writes"
            )
        self._mesh = mesh = mesh or make_mesh()
        self._frozen = frozen
        self._tokenizer, self._template, self._reads = opened.tokenizer, template, reads
        self._load = functools.partial(opened.load, mesh, 0)
        model = opened.transformer(mesh, choose_kernel(opened.config, opened.compute, mesh))
        self._scorer = Scorer(model, mesh, microbatch_rows)

    @functools.cached_property
    def _params(self) -> Any:
        """Read when it is first asked."""
        params = self._load()
        return params if self._frozen == IN_PLACE else kept(params, self._frozen)

    def scores(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """float32 [N], of (messages, response); logits for a pointwise model."""
        groups = [
            to_group(messages, [sampled(response)], self._tokenizer, self._template, self._reads)
            for messages, response in conversations
        ]
        return self._scorer(fetched(self._params, self._frozen, self._mesh), groups)


@dataclass(frozen=True)
class LearnedReward:
    """A reward model's part in a completion's reward, on the prompts it is for.

        config.reward_models = {"helpful": {"path": "runs/helpful", "kind": "helpful"}}

    adds its scores to the rules', here on the prompts whose metadata says `"kind": "helpful"`.
    Prompts without an answer have task `general`.
    """

    path: str  # MODEL with a scalar head
    weight: float = 1.0  # of its score in the reward
    reads: Literal["summary", "response"] = "summary"  # what stands behind the thoughts, or all
    template: Template = "chat"  # a key of data.chat.TEMPLATES
    kind: str | None = None  # only prompts with this metadata["kind"]; None = all
    # A metadata key with a response to compare with: the score is then the probability that the
    # completion is preferred to it (Bradley-Terry).
    against: str | None = None
    microbatch_rows: Size = 8  # packed rows in memory at once
    frozen: FrozenConfig = field(default_factory=FrozenConfig)


def same_model(term: LearnedReward) -> LearnedReward:
    """Equal for terms that one opened model serves: another weight or kind of prompt makes no
    other one.
    """
    return replace(term, weight=1.0, kind=None, against=None)


class LearnedRewards:
    """The reward models of a set of rewards; their scores are added to graded rollouts."""

    def __init__(
        self,
        terms: Mapping[str, LearnedReward],
        mesh: Mesh,
        opened: dict[LearnedReward, RewardModel] | None = None,
    ) -> None:
        """What is in `opened` already is not opened anew; what is new is added there."""
        opened = {} if opened is None else opened
        self._terms, self._models = terms, {}
        for name, term in terms.items():
            check_memory(term.frozen, mesh, f"reward_models.{name}.frozen")
            same = same_model(term)
            if same not in opened:
                opened[same] = RewardModel(
                    term.path, term.reads, term.template, mesh, term.microbatch_rows, term.frozen
                )
            self._models[name] = opened[same]

    def added(self, rollouts: Sequence[Graded], examples: Sequence[Example]) -> list[Graded]:
        """The rollouts with each model's score in the breakdown and weighted in the reward.

        `examples` are the prompts' (prompt_index counts them). The score is 0 on prompts
        that the model is not for; a failed rollout's reward stays 0.
        """
        found = list(rollouts)
        asked = [examples[rollout.prompt_index] for rollout in found]
        for name, term in self._terms.items():
            read = [i for i, e in enumerate(asked) if term.kind in (None, e.metadata.get("kind"))]
            scores = np.zeros(len(found))
            scores[read] = self._scores(
                name, [asked[i] for i in read], [found[i].text for i in read]
            )
            found = [
                replace(
                    rollout,
                    reward=rollout.reward + (0.0 if rollout.failure else term.weight * score),
                    reward_breakdown={**rollout.reward_breakdown, name: score},
                )
                for rollout, score in zip(found, map(float, scores), strict=True)
            ]
        return found

    def _scores(self, name: str, examples: Sequence[Example], texts: Sequence[str]) -> np.ndarray:
        """float, a score per text."""
        term, model = self._terms[name], self._models[name]
        asked = [example.messages for example in examples]
        scores = model.scores(list(zip(asked, texts, strict=True))).astype(np.float64)
        if term.against is None:
            return scores
        others = [_reference(example, term.against, name) for example in examples]
        margins = scores - model.scores(list(zip(asked, others, strict=True)))
        return 1.0 / (1.0 + np.exp(-margins))


def _reference(example: Example, key: str, name: str) -> str:
    if key not in example.metadata:
        raise DataError(
            f"example {example.id} has no {key!r}, which reward model {name!r} compares with"
        )
    return str(example.metadata[key])


def open_judges(
    sets: Mapping[str, Mapping[str, LearnedReward]], mesh: Mesh
) -> dict[str, LearnedRewards]:
    """The sets that have reward models, by name; a model that several ask is opened once."""
    opened: dict[LearnedReward, RewardModel] = {}
    return {name: LearnedRewards(terms, mesh, opened) for name, terms in sets.items() if terms}
