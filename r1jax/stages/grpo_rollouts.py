"""The rollouts of GRPO: questions, sampled and graded, an iteration at a time, and their worth.

An iteration's rollouts are written down before its first update, so that a resumed run neither
samples nor grades them again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import check_located, examples_of, stream
from r1jax.data.fingerprint import keep_rows
from r1jax.files import CHECKPOINTS, ROLLOUTS, children
from r1jax.losses.advantages import batch_normalised, decoupled_advantages, group_advantages
from r1jax.machines.hosts import agreed, ask_first
from r1jax.rewards import load_rewards
from r1jax.rollout.files import delete_rollouts, is_written, read_rollouts, write_rollouts
from r1jax.rollout.sampler import (
    OverlongError,
    Prompt,
    Questions,
    Sampler,
    Ungraded,
    make_prompt,
)
from r1jax.stages.grpo_config import GrpoConfig, in_effect, sampling_at
from r1jax.training.run import TrainingRun
from r1jax.types import Example, Rollout
from r1jax.weights.load import open_known

SHOWN_SIDE = 200  # characters of a text's beginning, and of its end, on the screen
REWARDS = "config.rewards"  # the name of the training's rewards in the run's sampler


Examples = Sequence[Example] | Callable[[int], Example]


class TrainingQuestions:
    """The endless stream of training questions, all that can be counted checked to be gradable.

    With `data_at` a rollout's questions come from the source that is in effect when it starts.
    """

    def __init__(self, config: GrpoConfig, sources: Mapping[str, Examples]) -> None:
        """`sources` by the update from which on they are in effect."""
        self.sources = sources
        self._config = config
        self._streams = {at: stream(found, config.seed) for at, found in sources.items()}

    def __call__(self, index: int) -> Example:
        config = self._config
        attempts = 1 + config.dynamic_sampling
        per_iteration = config.prompts_per_update * config.updates_per_rollout * attempts
        at = in_effect(self.sources, index // per_iteration * config.updates_per_rollout) or "0"
        found = self._streams[at](index)
        if callable(self.sources[at]):  # the others were looked at
            check_located(found)
        return found


def checked_stream(config: GrpoConfig) -> TrainingQuestions:
    """Reads all of the questions; an error in any of them is one before the model is loaded."""
    found: dict[str, Examples] = {}
    attempts = 1 + config.dynamic_sampling
    for at, source in ({"0": config.data} | config.data_at).items():
        examples = examples_of(source, _key(at))
        if not callable(examples):
            examples = _checked(examples, config, _key(at))
        found[at] = examples
        if callable(examples):
            check_located(examples(int(at) * config.prompts_per_update * attempts))
    return TrainingQuestions(config, found)


def _key(at: str) -> str:
    """The config's name of the source that is in effect from that update on."""
    return "config.data" if at == "0" else f"config.data_at.{at}"


def _checked(examples: Sequence[Example], config: GrpoConfig, key: str) -> Sequence[Example]:
    """Those whose prompts fit, each gradable; the others are an error, or counted and dropped."""
    drop = config.overlong_prompts == "drop"
    opened = open_known(config.model)
    tokenizer = opened.tokenizer if opened else None
    if tokenizer is None and drop:
        raise ConfigError("config.overlong_prompts = 'drop' needs config.model.tokenizer")
    fitting = []
    for example in examples:
        check_located(example)
        if tokenizer is None:
            continue
        try:
            make_prompt(example, tokenizer, config.template, config.max_prompt_tokens)
        except OverlongError:
            if not drop:
                raise
        else:
            fitting.append(example)
    if tokenizer is None or len(fitting) == len(examples):
        return examples
    limit = config.max_prompt_tokens
    if not fitting:
        raise DataError(f"{key}: every prompt has more than max_prompt_tokens {limit} tokens")
    logging.warning(
        "%s: %d of %d prompts have more than max_prompt_tokens %d tokens and are dropped",
        key, len(examples) - len(fitting), len(examples), limit,
    )  # fmt: skip
    return fitting


class Rollouts:
    """Gives a run's rollouts by iteration, from their files or sampled into them."""

    def __init__(
        self,
        config: GrpoConfig,
        stage: TrainingRun,
        sampler: Sampler,
        examples: TrainingQuestions,
    ) -> None:
        written = ask_first(lambda: any(map(is_written, children(stage.workdir / ROLLOUTS))))
        begun = stage.start > 0 or written
        sources = {_key(at): found for at, found in examples.sources.items()}
        keep_rows(stage.workdir, sources, sources if begun else ())
        self._config, self._stage = config, stage
        self._sampler, self._examples = sampler, examples
        self._questions: dict[str, Example] = {}  # of the rollouts that were asked for last

    def of(self, iteration: int, unfinished: bool = False) -> list[Rollout]:
        """Those of an iteration, sorted by (prompt, sample); `unfinished` where a run has stopped
        between two of its updates.

        The last iteration samples for the updates that remain and no more.
        """
        config, path = self._config, rollouts_of(self._stage.workdir, iteration)
        step = iteration * config.updates_per_rollout
        attempts = [
            self._prompts(iteration, step, attempt)
            for attempt in range(1 + config.dynamic_sampling)
        ]
        self._questions = {p.example.id: p.example for prompts in attempts for p in prompts}
        rollouts = self._written(path, len(attempts[0]) * config.group_size, unfinished)
        if rollouts is None:
            rollouts = self._sampled_until_varied(attempts, iteration, step)
            write_rollouts(path, rollouts)
        return rollouts

    def show(self, iteration: int, rollouts: Sequence[Rollout]) -> None:
        """Writes a few of those that `of` has given for people to read, with the iteration's first
        update.
        """
        config, step = self._config, iteration * self._config.updates_per_rollout
        kept = list(samples(config, rollouts, self._questions))
        self._stage.writer.samples(step + 1, kept)
        if kept and config.show_every and step % config.show_every < config.updates_per_rollout:
            self._stage.progress.say(shown(kept[0]))

    def _written(self, path: epath.Path, count: int, unfinished: bool) -> list[Rollout] | None:
        """An iteration's rollouts from their files; None where there are none, or not all of them.

        Then they are sampled anew, the same ones, but for those that older parameters sampled.
        """
        problem = f"{path} is not there"
        if ask_first(lambda: is_written(path)):
            try:
                rollouts = agreed(lambda: read_rollouts(path), DataError)
                problem = f"{path} has {len(rollouts)} of {count} rollouts"
                if len(rollouts) == count:
                    if all(_is_of(rollout, self._questions) for rollout in rollouts):
                        return rollouts
                    problem = f"{path} has rollouts of other questions, or without rewards"
            except DataError as error:
                problem = str(error)
        elif not unfinished:
            return None
        if unfinished:
            step = self._stage.start
            raise DataError(
                f"{problem}; the run has stopped between its updates, so they cannot be sampled"
                f" again: delete {self._stage.workdir / CHECKPOINTS / str(step)} to go on from the"
                " checkpoint before"
            )
        if self._config.rollouts_ahead:
            raise DataError(f"{problem}; with rollouts_ahead they cannot be sampled again")
        logging.warning("%s: they are sampled again", problem)
        return None

    def begin_ahead(self, iteration: int, step: int) -> Ungraded | None:
        """Samples an iteration's completions now, before the updates that it will start after.

        So graders work on them during those updates. None without `rollouts_ahead`, where there is
        no such iteration, and where a run that was killed has its rollouts already.
        """
        config, stage = self._config, self._stage
        done = ask_first(lambda: is_written(rollouts_of(stage.workdir, iteration)))
        if not config.rollouts_ahead or step >= config.total_steps or done:
            return None
        before = stage.timer.read("rollout")
        with stage.timer("rollout"):
            ahead = self._sample(self._prompts(iteration, step), iteration, step)
        seconds = stage.timer.read("rollout") - before  # not those of the rollout in hand
        self._note_statistics(self._sampler.engine.statistics.tokens, seconds)
        return ahead

    def finish_ahead(self, iteration: int, ahead: Ungraded) -> None:
        """Waits for the graders and writes the rollouts down."""
        with self._stage.timer("graders"):  # what they still need after the updates
            rollouts = ahead.by_rules()
        path = rollouts_of(self._stage.workdir, iteration)
        write_rollouts(path, self._judged(ahead, rollouts))

    def _prompts(self, iteration: int, step: int, attempt: int = 0) -> list[Prompt]:
        """The questions of an iteration's rollout; those of further attempts are others."""
        config = self._config
        updates = min(config.updates_per_rollout, config.total_steps - step)
        number = iteration * (1 + config.dynamic_sampling) + attempt
        first = number * config.updates_per_rollout * config.prompts_per_update
        return [
            make_prompt(
                self._examples(i),
                self._stage.tokenizer,
                config.template,
                config.max_prompt_tokens,
            )
            for i in range(first, first + updates * config.prompts_per_update)
        ]

    def _sample(
        self, prompts: Sequence[Prompt], iteration: int, step: int, attempt: int = 0
    ) -> Ungraded:
        """Completions of these questions, to be trained on from update `step` on."""
        config, stage = self._config, self._stage
        key = jax.random.fold_in(jax.random.key(config.seed), iteration)
        key = jax.random.fold_in(key, attempt) if attempt else key
        questions = Questions(prompts, sampling_at(config, step), config.group_size, REWARDS)
        return self._sampler.sample(stage.trained.params, questions, key)

    def _sampled_until_varied(
        self, attempts: Sequence[Sequence[Prompt]], iteration: int, step: int
    ) -> list[Rollout]:
        """Graded completions of the first attempt's questions.

        With dynamic sampling (DAPO section 3.2) groups that earn all the same are replaced by
        groups of the next attempts' questions, while there are attempts left.
        """
        config, stage = self._config, self._stage
        size = config.group_size
        groups: list[list[Rollout]] = []
        tokens = 0
        for attempt, prompts in enumerate(attempts):
            with stage.timer("rollout"):
                sampled = self._sample(prompts, iteration, step, attempt)
                rollouts = sampled.by_rules()
            rollouts = self._judged(sampled, rollouts)
            groups += [rollouts[i : i + size] for i in range(0, len(rollouts), size)]
            tokens += self._sampler.engine.statistics.tokens
            if sum(varied(config, group) for group in groups) >= len(prompts):
                break
        stage.note({"rollout/attempts": attempt + 1})
        self._note_statistics(tokens, stage.timer.read("rollout"))
        return most_varied(config, groups, len(attempts[0]))

    def _judged(self, sampled: Ungraded, rollouts: list[Rollout]) -> list[Rollout]:
        with self._stage.timer("reward_models"):
            return sampled.judged(rollouts)

    def _note_statistics(self, tokens: int, seconds: float) -> None:
        """The engine's numbers of the last rollout, for the next line of timings."""
        statistics = self._sampler.engine.statistics
        readings = {
            "tokens_per_s": tokens / seconds,
            "wasted_slot_share": statistics.wasted_share,
            "slots": statistics.slots,
            "suspended_rows": statistics.suspended,
            "prefill_seconds": statistics.prefill_seconds,
            "decode_seconds": statistics.decode_seconds,
        }
        self._stage.note({f"rollout/{name}": value for name, value in readings.items()})


def _is_of(rollout: Rollout, questions: Collection[str]) -> bool:
    """Whether it answers one of these, with its rewards."""
    return isinstance(rollout.reward_breakdown, Mapping) and rollout.example_id in questions


def rollouts_of(workdir: epath.Path, iteration: int) -> epath.Path:
    """The directory of an iteration's rollouts."""
    return workdir / ROLLOUTS / f"{iteration:06d}"


def forget_rollouts(workdir: epath.Path, keep: int, iteration: int) -> None:
    """Deletes the files of iterations that a resumed run cannot need any more; 0 keeps all."""
    if not keep or jax.process_index() != 0:
        return
    for path in children(workdir / ROLLOUTS):
        if path.name.isdecimal() and int(path.name) <= iteration - keep:
            delete_rollouts(path)


# -- what they are worth -------------------------------------------------------------------------


def truncated(rollout: Rollout) -> bool:
    return rollout.completion.finish_reason == "length"


@dataclass(frozen=True)
class Rewarded:
    """Rollouts, and what they are worth."""

    rollouts: Sequence[Rollout]  # sorted by (prompt, sample)
    rewards: np.ndarray  # float64 [B, G]
    advantages: np.ndarray  # float32 [B, G]


def rewarded(config: GrpoConfig, rollouts: Sequence[Rollout]) -> Rewarded:
    """With the advantages of the weighted sum of the rewards, or of each of them."""
    eps, scale = config.advantage_std_eps, config.advantage_scale
    rewards_BG = _rewards(config, rollouts)
    if config.normalise == "sum":
        return Rewarded(rollouts, rewards_BG, group_advantages(rewards_BG, eps, scale))
    weights = {name: weight for name, (_, weight) in load_rewards(config.rewards).items()}
    weights |= {name: term.weight for name, term in config.reward_models.items()}

    def part(rollout: Rollout, name: str) -> Rollout:
        return replace(rollout, reward=0.0 if rollout.failure else rollout.reward_breakdown[name])

    parts_PBG = [_rewards(config, [part(r, name) for r in rollouts]) for name in weights]
    each_BG = decoupled_advantages(np.asarray(parts_PBG), list(weights.values()), eps, scale)
    return Rewarded(rollouts, rewards_BG, batch_normalised(each_BG, eps))


def _rewards(config: GrpoConfig, rollouts: Sequence[Rollout]) -> np.ndarray:
    """float64 [B, G]; with truncated="zero" a completion cut by length earns nothing."""
    rewards = [0.0 if config.truncated == "zero" and truncated(r) else r.reward for r in rollouts]
    return np.asarray(rewards, np.float64).reshape(-1, config.group_size)


def varied(config: GrpoConfig, group: Sequence[Rollout]) -> bool:
    """Whether a group has something to learn from: advantages, or answers of two kinds."""
    if config.vary_by != "reward":
        return len({rollout.reward_breakdown[config.vary_by] for rollout in group}) > 1
    return bool(rewarded(config, group).advantages.any())


def most_varied(config: GrpoConfig, groups: Sequence[list[Rollout]], count: int) -> list[Rollout]:
    """`count` groups in the order they came, those without variance only if there are too few."""
    ranked = sorted(range(len(groups)), key=lambda i: not varied(config, groups[i]))  # stable
    chosen = [groups[i] for i in sorted(ranked[:count])]
    return [
        replace(rollout, completion=replace(rollout.completion, prompt_index=place))
        for place, group in enumerate(chosen)
        for rollout in group
    ]


def shown(sample: Mapping[str, Any]) -> str:
    """A completion for the screen: what was asked, what came, and what it earned."""
    parts = ", ".join(f"{name} {value:.3g}" for name, value in sample["reward_breakdown"].items())
    said = "\n".join(
        f"  {line}" for name in ("question", "completion") for line in _shortened(sample[name])
    )
    return f"{said}\n  -> reward {sample['reward']:.3g} ({parts}), {sample['length']} tokens"


def _shortened(text: str) -> list[str]:
    """Its lines, of a long text the beginning and the end."""
    if len(text) > 2 * SHOWN_SIDE:
        text = f"{text[:SHOWN_SIDE]} ... {text[-SHOWN_SIDE:]}"
    return text.strip().splitlines()


def samples(
    config: GrpoConfig, rollouts: Sequence[Rollout], questions: Mapping[str, Example]
) -> Iterator[dict[str, Any]]:
    """A few completions with their question and rewards, for people to read."""
    stride = max(len(rollouts) // max(config.samples_per_step, 1), 1)
    for rollout in rollouts[::stride][: config.samples_per_step]:
        example = questions[rollout.example_id]
        yield {
            "question": example.question,
            "answer": example.answer,
            "completion": rollout.text,
            "length": len(rollout.completion.tokens),
            "finish_reason": rollout.completion.finish_reason,
            "reward": rollout.reward,
            "reward_breakdown": dict(rollout.reward_breakdown),
        }
