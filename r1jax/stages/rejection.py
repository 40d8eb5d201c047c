"""Rejection sampling: SFT rows from what a model gets right (R1 B.3.2 and B.3.3).

Several completions a question; those stay whose rewards reach the minima that the config sets, as
`{"accuracy": 1.0, "language": 1.0, "repetition": -0.2}` (right, in one language, without
repetition), and that a judge, if there is one, finds correct. A writer (a model of ours or a
server) or a rewriter (`module:function`) may then make them readable; what it returns must pass the
same minima. At most `per_prompt` of a question's completions become rows `{"messages", "domain",
...}`.

With R1-Zero as the model and a rewriter this builds the cold-start data, with the first RL stage's
checkpoint the reasoning half of the SFT set. Questions are worked off in portions, each written
down when it is sampled (`rollouts/`) and when it is through (`kept/`), so a killed run goes on
where it was. Writes `data.jsonl` and `statistics.json`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.config import ConfigError, DataError, Seed, Size, import_function, section
from r1jax.data.chat import Template
from r1jax.data.datasets import DataConfig, check_located, finite_examples
from r1jax.data.fingerprint import keep_rows
from r1jax.files import (
    DATA,
    KEPT,
    ROLLOUTS,
    STATISTICS,
    absolute,
    children,
    read_jsonl,
    write_data,
    write_jsonl_atomic,
)
from r1jax.judges.chat_model import ChatModel, ChatModelConfig, open_chat_model
from r1jax.judges.planned import PlannedChats
from r1jax.judges.prompts import JUDGE_PROMPT, WRITER_PROMPT, ask, is_correct
from r1jax.machines.hosts import ask_first, wait_for_all
from r1jax.machines.mesh import make_mesh
from r1jax.machines.planned import Assumed, Iteration, bytes_of
from r1jax.progress import Progress
from r1jax.rewards import Grade, Weights, by_name, load_rewards
from r1jax.rewards.pool import GraderConfig, GraderPool
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.files import is_written, read_rollouts, write_rollouts
from r1jax.rollout.planned import (
    Asked,
    mean_completion,
    params_of,
    questions_in,
    rollout_programs,
)
from r1jax.rollout.sampler import Graders, Questions, Sampler, make_prompt
from r1jax.rollout.sampling import SamplingConfig
from r1jax.tasks.sandbox import choose_sandbox
from r1jax.training.provenance import note_start
from r1jax.training.run_config import check_config
from r1jax.types import Example, Rollout
from r1jax.weights.load import ModelSource, open_shapes, open_source

Row = dict[str, Any]
Chosen = tuple[Example, Rollout, str]  # a question, its completion, and how that reads now
Rewriter = Callable[[Example, str], str | None]  # (question, completion) -> a better one, or None
STAYED, JUDGED, REWRITTEN, SURPLUS = "kept", "judged wrong", "rewriting failed", "more than needed"


@dataclass(frozen=True)
class RejectionConfig:
    """What is sampled, and what stays."""

    stage: str  # "rejection"
    model: ModelSource
    data: DataConfig  # questions as in RL; an unlimited source needs `limit`
    # What each reward must reach; with arguments: {"minimum": ..., argument: value}. A dict, or
    # pairs as in load_rewards.
    minimum: Any = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    num_samples: Size = 16  # completions of a question
    per_prompt: Size = 1  # of them become rows, at most
    template: Template = "r1_zero"  # a key of data.chat.TEMPLATES
    max_prompt_tokens: Size = 1024  # a longer prompt is an error
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(max_tokens=32_768, temperature=1.0, top_p=1.0)
    )
    judge: ChatModelConfig | None = None  # compares with the reference answer
    writer: ChatModelConfig | None = None  # refines what was kept (paper: DeepSeek-V3)
    rewriter: str | None = None  # module:function(example, text) -> text or None, instead
    portion: Size = 1024  # questions between two saves
    seed: Seed = 0  # of the samples
    # Devices along "data", "fsdp", "context", "expert" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=lambda: {"data": -1})
    engine: EngineConfig = field(default_factory=EngineConfig)
    graders: GraderConfig = field(default_factory=GraderConfig)


CONFIG = RejectionConfig


def describe(config: RejectionConfig) -> str:
    """What the config asks for, in numbers."""
    return f"{config.num_samples} completions a question, at most {config.per_prompt} of them kept"


def check(config: RejectionConfig) -> None:
    """What can be wrong in the config alone."""
    if config.writer is not None and config.rewriter is not None:
        raise ConfigError("config.writer and config.rewriter: at most one of them")
    split_minimum(config.minimum)


def planned(config: RejectionConfig, mesh: Mesh, assumed: Assumed, memory: float) -> Iteration:
    """A portion of questions, in shapes alone (see r1jax.stages).

    As if every completion were good enough for the judge, and every question for the writer.
    """
    rows = questions_in(config.data, "config.data", assumed)
    portion = min(config.portion, rows)
    model = open_shapes(config.model).transformer(mesh)
    chats = PlannedChats({"judge": config.judge, "writer": config.writer}, mesh, memory)
    state = {"parameters": bytes_of(params_of(model))} | chats.held
    asked = Asked(portion, config.num_samples, config.sampling.max_tokens, config.max_prompt_tokens)
    programs, notes = rollout_programs(model, config.engine, asked, assumed, memory, state)
    read = Assumed(prompt=assumed.prompt + mean_completion(asked, assumed))
    longest = asked.max_prompt_tokens + asked.max_tokens
    chosen = portion * min(config.per_prompt, config.num_samples)
    for name, times in (("judge", portion * config.num_samples), ("writer", chosen)):
        more, said = chats.programs(name, times, read, longest, state)
        programs, notes = [*programs, *more], [*notes, *said]
    return Iteration(programs, rows / portion, notes)


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Samples, filters, rewrites; a finished workdir is left as it is."""
    config = section(RejectionConfig, config_dict)
    check(config)
    choose_sandbox(config.graders.sandbox)
    path = absolute(workdir)
    examples = finite_examples(config.data, "config.data")
    for example in examples:
        check_located(example)
    weights, minima = split_minimum(config.minimum)
    check_config(path, config_dict)
    note_start(path, config)
    begun = ask_first(lambda: any(any(children(path / n)) for n in (ROLLOUTS, KEPT)))
    keep_rows(path, {"config.data": examples}, {"config.data"} if begun else ())
    if not ask_first((path / STATISTICS).exists):
        portions = list(_portions(config, path, examples, weights, minima))
        rows = [row for portion in portions for row in portion["rows"]]
        statistics = _statistics(portions, rows, len(examples))
        if not rows:
            fates = ", ".join(
                f"{n} {name}" for name, n in statistics["completions_by_fate"].items()
            )
            raise DataError(f"none of the completions is a row; what they failed at: {fates}")
        if jax.process_index() == 0:
            write_data(path, DATA, rows, statistics)
        wait_for_all("rows")
    print((path / STATISTICS).read_text())
    print(f"rows are in {path / DATA}")


def split_minimum(minimum: Weights) -> tuple[dict[str, Any], dict[str, float]]:
    """(rewards as `load_rewards` takes them, {name: what it must reach})."""
    weights: dict[str, Any] = {}
    minima: dict[str, float] = {}
    for name, value in by_name(minimum, "config.minimum").items():
        arguments = dict(value) if isinstance(value, Mapping) else {"minimum": value}
        least = arguments.pop("minimum", None)
        if isinstance(least, bool) or not isinstance(least, int | float):
            raise ConfigError(f"config.minimum: {name!r} must reach {least!r}, which is no number")
        weights[name], minima[name] = {"weight": 0.0, **arguments}, float(least)
    load_rewards(weights)  # unknown names are an error before anything is sampled
    return weights, minima


def _portions(
    config: RejectionConfig,
    path: epath.Path,
    examples: Sequence[Example],
    weights: Mapping[str, Any],
    minima: Mapping[str, float],
) -> Iterator[dict[str, Any]]:
    """{"rows", "fates", "tokens"} of a portion at a time; finished ones from their files."""
    mesh = make_mesh(config.mesh)
    starts = range(0, len(examples), config.portion)
    with (
        GraderPool({"": weights}, config.graders) as pool,
        Progress(path.name, len(examples), 0, {}) as progress,
    ):
        source = _Source(config, path, mesh, pool)
        selection = _Selection(config, minima, pool, mesh)
        for number, start in enumerate(starts):
            kept = path / KEPT / f"{number:06d}.jsonl"
            part = examples[start : start + config.portion]
            if not ask_first(kept.exists):
                rollouts = source.of(number, part)
                rows, fates = selection.of(part, rollouts)
                if jax.process_index() == 0:
                    tokens = sum(len(rollout.completion.tokens) for rollout in rollouts)
                    write_jsonl_atomic(kept, [{"fates": fates, "tokens": tokens}, *rows])
                wait_for_all("kept")
            about, *rows = list(read_jsonl(kept))
            progress.update(start + len(part), {})
            yield {**about, "rows": rows}


class _Source:
    """A portion's rollouts, from their files or sampled into them."""

    def __init__(
        self, config: RejectionConfig, path: epath.Path, mesh: Mesh, pool: GraderPool
    ) -> None:
        self._config, self._path, self._mesh, self._pool = config, path, mesh, pool

    def of(self, number: int, examples: Sequence[Example]) -> list[Rollout]:
        config = self._config
        directory = self._path / ROLLOUTS / f"{number:06d}"
        if ask_first(lambda: is_written(directory)):
            return read_rollouts(directory)
        sampler, params = self._opened
        prompts = [
            make_prompt(e, sampler.tokenizer, config.template, config.max_prompt_tokens)
            for e in examples
        ]
        questions = Questions(prompts, config.sampling, config.num_samples)
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        rollouts = sampler.sample(params, questions, key).graded()
        write_rollouts(directory, rollouts)
        return rollouts

    @functools.cached_property
    def _opened(self) -> tuple[Sampler, Any]:
        """The model, read when it is first needed."""
        config = self._config
        opened = open_source(config.model, self._path)
        params = opened.load(self._mesh, config.seed)
        engine = Engine(opened.transformer(self._mesh), opened.tokenizer.stop_ids, config.engine)
        return Sampler(engine, opened.tokenizer, Graders(self._pool)), params


class _Selection:
    """What becomes of a portion's completions: the minima, the judge, the writer, the surplus."""

    def __init__(
        self,
        config: RejectionConfig,
        minima: Mapping[str, float],
        pool: GraderPool,
        mesh: Mesh,
    ) -> None:
        self._limit, self._minima, self._pool = config.per_prompt, minima, pool
        self._judge = open_chat_model(config.judge, mesh) if config.judge else None
        self._rewrite = _rewriter(config, mesh)

    def of(
        self, examples: Sequence[Example], rollouts: Sequence[Rollout]
    ) -> tuple[list[Row], dict[str, int]]:
        """The rows, and how many completions had which fate."""
        fates: Counter[str] = Counter()
        questions = [examples[rollout.completion.prompt_index] for rollout in rollouts]
        chosen: list[Chosen] = []
        for example, rollout in zip(questions, rollouts, strict=True):
            reason = below(rollout.reward_breakdown, self._minima) or rollout.failure
            fates[reason or STAYED] += 1
            if not reason:
                chosen.append((example, rollout, rollout.text))
        if self._judge is not None:
            asked = [ask(JUDGE_PROMPT, e.question, text, e.answer) for e, _, text in chosen]
            chosen = _passing(chosen, map(is_correct, self._judge(asked)), fates, JUDGED)
        chosen = _first(chosen, self._limit, fates)
        if self._rewrite is not None and chosen:
            texts = self._rewrite([e for e, _, _ in chosen], [text for _, _, text in chosen])
            chosen = [(e, r, text or "") for (e, r, _), text in zip(chosen, texts, strict=True)]
            good = [
                bool(text) and not below(grade.breakdown, self._minima)
                for (_, _, text), grade in zip(chosen, self._grades(chosen), strict=True)
            ]
            chosen = _passing(chosen, good, fates, REWRITTEN)
        return [_row(example, rollout, text) for example, rollout, text in chosen], dict(fates)

    def _grades(self, chosen: Sequence[Chosen]) -> list[Grade]:
        """What the same graders say of the rewritten texts."""
        batch = self._pool.begin("")
        for place, (example, rollout, text) in enumerate(chosen):
            completion = rollout.completion
            batch.submit(place, example, text, len(completion.tokens), completion.finish_reason)
        grades = dict(batch.results())
        batch.judge(grades.values())
        return [grades[place] for place in range(len(chosen))]


def _rewriter(config: RejectionConfig, mesh: Mesh) -> Callable[..., list[str | None]] | None:
    """(examples, texts) -> better texts, None where there is none."""
    if config.writer is not None:
        return _written_by(open_chat_model(config.writer, mesh))
    if config.rewriter is None:
        return None
    function: Rewriter = import_function(config.rewriter, f"config.rewriter = {config.rewriter!r}")
    return lambda examples, texts: [
        function(example, text) for example, text in zip(examples, texts, strict=True)
    ]


def _written_by(model: ChatModel) -> Callable[..., list[str | None]]:
    def write(examples: Sequence[Example], texts: Sequence[str]) -> list[str | None]:
        pairs = zip(examples, texts, strict=True)
        return list(model([ask(WRITER_PROMPT, e.question, text, e.answer) for e, text in pairs]))

    return write


def below(breakdown: Mapping[str, float], minima: Mapping[str, float]) -> str | None:
    """The first reward that misses its minimum, None if all reach it."""
    return next((name for name, least in minima.items() if breakdown[name] < least), None)


def _passing(
    chosen: Sequence[Chosen], good: Iterable[bool], fates: Counter[str], fate: str
) -> list[Chosen]:
    """Those that are good; the others' fate is written down."""
    passing = [item for item, is_good in zip(chosen, good, strict=True) if is_good]
    lost = len(chosen) - len(passing)
    fates[STAYED] -= lost
    fates[fate] += lost
    return passing


def _first(chosen: Sequence[Chosen], limit: int, fates: Counter[str]) -> list[Chosen]:
    """At most `limit` a question, in the order of samples; equal texts count once."""
    seen: dict[int, set[str]] = {}
    good = []
    for _, rollout, text in chosen:
        texts = seen.setdefault(rollout.completion.prompt_index, set())
        good.append(len(texts) < limit and text not in texts)
        if good[-1]:
            texts.add(text)
    return _passing(chosen, good, fates, SURPLUS)


def _row(example: Example, rollout: Rollout, text: str) -> Row:
    turn = {"role": "assistant", "content": text}
    about = example.metadata
    return {
        "id": f"{example.id}/{rollout.completion.sample_index}",
        "messages": [*map(dict, example.messages), turn],
        "domain": str(about.get("domain") or about.get("family") or example.task),
        "rewritten": text != rollout.text,
    }


def _statistics(
    portions: Sequence[Mapping[str, Any]], rows: Sequence[Row], questions: int
) -> dict[str, Any]:
    """What became of the completions, and rows by domain."""
    fates: Counter[str] = Counter()
    for portion in portions:
        fates.update(portion["fates"])
    lengths = [len(row["messages"][-1]["content"]) for row in rows]
    return {
        "questions": questions,
        "completions": sum(fates.values()),
        "completion_tokens": sum(portion["tokens"] for portion in portions),
        "rows": len(rows),
        "rewritten": sum(row["rewritten"] for row in rows),
        "characters": float(np.mean(lengths)) if rows else 0.0,
        "completions_by_fate": dict(sorted(fates.items())),
        "rows_by_domain": dict(sorted(Counter(row["domain"] for row in rows).items())),
    }
