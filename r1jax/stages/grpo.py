"""Group Relative Policy Optimization, as DeepSeek-R1 describes it. Start reading here.

One iteration: sample `group_size` completions for each of `prompts_per_update` times
`updates_per_rollout` questions, grade them, turn rewards into group-relative advantages, and make
`updates_per_rollout` optimizer updates, each on the completions of `prompts_per_update` questions
(R1 section 2.1; with the paper's 16, 32 and 16 that is 8,192 completions and 16 updates).

Four log-probabilities of the same tokens are kept apart: the sampler's (as emitted by the engine),
the old ones (the parameters at the start of the iteration's updates, computed as in training), the
frozen reference policy's, and the current ones. The gap between the first two is logged.

A run that was killed goes on at the iteration after its newest checkpoint, with the rollouts that
it had written down (stages/grpo_rollouts.py); one that SIGTERM has stopped, behind its last update.
The updates' batches and programs are in stages/grpo_updates.py. Beside training it is measured on
held-out problems (stages/grpo_evaluation.py). The config is in stages/grpo_config.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from r1jax.config import section
from r1jax.files import absolute
from r1jax.machines.mesh import check_split
from r1jax.machines.preemption import Stopped, stop_if_asked
from r1jax.reports.write import print_table, write_report
from r1jax.rewards.format import reflective_words
from r1jax.rollout.sampler import Ungraded
from r1jax.stages.grpo_config import GrpoConfig, check, check_lengths, chosen, packing_of
from r1jax.stages.grpo_evaluation import HeldOut, held_out_of, open_evaluation
from r1jax.stages.grpo_plan import planned as planned
from r1jax.stages.grpo_rollouts import (
    Rewarded,
    Rollouts,
    checked_stream,
    forget_rollouts,
    rewarded,
    truncated,
)
from r1jax.stages.grpo_updates import Prepared, Programs, make_minibatches
from r1jax.tasks.sandbox import choose_sandbox
from r1jax.training.critic import open_critic
from r1jax.training.run import TrainingRun, is_due, open_run
from r1jax.weights.load import open_known

CONFIG = GrpoConfig


def describe(config: GrpoConfig) -> str:
    """What the config asks for, in numbers."""
    rollouts = -(-config.total_steps // config.updates_per_rollout)
    questions = config.updates_per_rollout * config.prompts_per_update
    return (
        f"{config.total_steps} updates: {rollouts} rollouts of {questions} questions x"
        f" {config.group_size}"
    )


SHOWN = {
    "grpo/reward/mean": "reward",
    "grpo/reward/accuracy": "accuracy",
    "grpo/reward/failures": "failures",
    "grpo/loss": "loss",
    "grpo/kl/ref": "KL",
    "grpo/completion/length": "length",
    "grpo/rollout/tokens_per_s": "tokens/s",
}


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Trains to total_steps, then writes tables and figures; resumes where the workdir is."""
    train(config_dict, workdir)
    if jax.process_index() == 0:
        print_table(workdir)
        for path in write_report([workdir], workdir):
            print(f"wrote {path}")
        print(f"model, metrics, samples and rollouts are in {absolute(workdir)}")


def train(config_dict: ConfigDict, workdir: str) -> None:
    """All of it but the tables and figures."""
    config = section(GrpoConfig, config_dict)
    check(config)
    platform = jax.devices()[0].platform
    config = chosen(config, platform)
    if platform != "cpu":
        logging.info("completions share their prompt in a row: %s", config.shares_prompts)
    choose_sandbox(config.graders.sandbox)
    examples = checked_stream(config)
    opened = open_known(config.model)
    benchmarks = None
    if opened is not None:  # what is wrong is said before the model is loaded
        check_lengths(config, opened.config.max_length)
        benchmarks = held_out_of(config, opened.tokenizer, opened.config.max_length)
    use_ref = config.loss.kl_coef > 0 or (config.critic is not None and config.critic.kl_coef > 0)
    reference = config.reference if use_ref else None
    with (
        open_run(config, config_dict, workdir, SHOWN, reference, config.shares_prompts) as stage,
        open_evaluation(config, stage, benchmarks) as (sampler, held_out),
    ):
        check_split(config.microbatch_rows, packing_of(config).lengths, stage.mesh)
        check_lengths(config, stage.trained.model.config.max_length)
        critic = None
        if config.critic is not None:
            critic = open_critic(config.critic, config, stage, config.shares_prompts)
        source = Rollouts(config, stage, sampler, examples)
        programs = Programs(config, stage.trained, stage.mesh, critic)
        held_out.run_benchmarks(0)
        held_out.measure_curves(0)
        Training(config, stage, source, programs, held_out).run()
        held_out.run_benchmarks(config.total_steps)


class Training:
    """The iterations of a run, from where it starts, and where it is."""

    def __init__(
        self,
        config: GrpoConfig,
        stage: TrainingRun,
        source: Rollouts,
        programs: Programs,
        held_out: HeldOut,
    ) -> None:
        self._config, self._stage, self._source = config, stage, source
        self._programs, self._held_out = programs, held_out
        self._step = stage.start  # updates done
        self._left: list[Prepared] = []  # of the iteration, that no update has seen
        self._ahead: tuple[int, Ungraded] | None = None  # the next iteration's completions
        self._measured = stage.restored.get("measured", stage.start)  # a point of the curves

    def run(self) -> None:
        """All updates that are left. Stopped, and a checkpoint of the last of them, where a signal
        asks for it.
        """
        try:
            self._measure()  # where a run has stopped before it
            while self._step < self._config.total_steps:
                stop_if_asked()
                self._iterate()
        except Stopped:
            self._save_stopped()
            raise

    def _iterate(self) -> None:
        """The rollouts of an iteration and its updates, or those of them that are left."""
        config, stage = self._config, self._stage
        iteration, done = divmod(self._step, config.updates_per_rollout)
        found = rewarded(config, self._source.of(iteration, unfinished=done > 0))
        minibatches = list(make_minibatches(config, found, iteration))
        self._left = self._programs.prepare(stage, minibatches[done:], unfinished=done > 0)
        summary = {} if done else summarise(found)  # on the iteration's first line only
        end = self._step + len(self._left)
        if (ahead := self._source.begin_ahead(iteration + 1, end)) is not None:
            self._ahead = iteration + 1, ahead
        while self._left:
            stop_if_asked()
            if summary:
                self._source.show(iteration, found.rollouts)
            self._update(summary)
            summary = {}
        self._finish_ahead()  # before the checkpoint, which cannot sample it any more
        if is_due(config.checkpoint_every, end, len(minibatches)) or end == config.total_steps:
            # A run that goes on from the checkpoint before would need them.
            old = functools.partial(forget_rollouts, stage.workdir, config.keep_rollouts, iteration)
            self._save(old)

    def _update(self, summary: Mapping[str, Any]) -> None:
        config, stage, critic = self._config, self._stage, self._programs.critic
        batch, packed = self._left.pop(0)
        stage.profiler.step(self._step + 1)
        with stage.timer("update"):
            metrics = jax.device_get(stage.trained.update(self._programs.step, batch))
        if critic is not None:
            with stage.timer("critic"):
                metrics |= critic.update(batch)
        self._step += 1
        tokens_per_s = packed["batch/tokens"] / stage.timer.read("update")
        stage.note({"update/tokens_per_s": tokens_per_s})
        stage.log(self._step, "grpo", {**summary, **metrics, **packed})
        stage.watch(self._step, metrics, batch)
        if not self._left:
            replace_reference(config, stage, self._step)
        self._measure()

    def _measure(self) -> None:
        if self._measured < self._step:
            self._held_out.measure_curves(self._step)
            self._measured = self._step

    def _finish_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._source.finish_ahead(*ahead)

    def _save(self, then: Callable[[], None] = lambda: None) -> None:
        if self._programs.critic is not None:
            self._programs.critic.save(self._step)
        self._stage.save(self._step, {"measured": self._measured}, then)

    def _save_stopped(self) -> None:
        """Of the last update, wherever in its iteration."""
        self._finish_ahead()
        if self._stage.is_saved(self._step):
            return
        if self._left:
            self._programs.save_unfinished(self._stage, self._step, self._left)
        self._save()


def replace_reference(config: GrpoConfig, stage: TrainingRun, step: int) -> None:
    """The reference policy becomes the current one every `ref_every` updates (R1 section 2.1)."""
    updates = min(config.updates_per_rollout, step)
    if stage.trained.ref_params is not None and is_due(config.ref_every, step, updates):
        stage.trained.renew_reference()


def summarise(found: Rewarded) -> dict[str, float]:
    """What the rollouts were worth and what they look like."""
    rollouts, rewards_BG = found.rollouts, found.rewards
    lengths = [len(rollout.completion.tokens) for rollout in rollouts]
    parts = {
        f"reward/{name}": float(np.mean([r.reward_breakdown[name] for r in rollouts]))
        for name in rollouts[0].reward_breakdown
    }
    if drafts := sum(r.completion.drafts for r in rollouts):
        right = sum(r.completion.right_drafts for r in rollouts)
        parts["rollout/acceptance_rate"] = right / drafts
    return parts | {
        "reward/mean": float(rewards_BG.mean()),
        "reward/std": float(rewards_BG.std(axis=1).mean()),
        "reward/failures": sum(rollout.failure is not None for rollout in rollouts),
        "group/zero_variance": float(np.mean((rewards_BG == rewards_BG[:, :1]).all(axis=1))),
        "completion/length": float(np.mean(lengths)),
        "completion/length_max": max(lengths),
        "completion/truncated": float(np.mean([truncated(r) for r in rollouts])),
        "completion/reflective_words": float(np.mean([reflective_words(r.text) for r in rollouts])),
        "completion/tokens": sum(lengths),
    }
