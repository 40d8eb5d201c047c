"""Group Relative Policy Optimization, as DeepSeek-R1 describes it. Start reading here.

One iteration: sample `group_size` completions for each of `prompts_per_update` times
`updates_per_rollout` questions, grade them, turn rewards into group-relative advantages, and make
`updates_per_rollout` optimizer updates, each on the completions of `prompts_per_update` questions
(R1 section 2.1; with the paper's 16, 32 and 16 that is 8,192 completions and 16 updates).

Four log-probabilities of the same tokens are kept apart: the sampler's (as emitted by the engine),
the old ones (the parameters at the start of the iteration's updates, computed as in training), the
frozen reference policy's, and the current ones. The gap between the first two is logged.

A run that was killed goes on at the iteration after its newest checkpoint, with the rollouts that
it had written down (stages/grpo_rollouts.py). Beside training it is measured on held-out problems
(stages/grpo_evaluation.py). The config is in stages/grpo_config.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from r1jax.config import ConfigError, section
from r1jax.data.packing import Group, completion_group, pack, padding_share
from r1jax.files import absolute
from r1jax.losses.aggregation import Metrics
from r1jax.losses.logprobs import token_logprobs, token_loss
from r1jax.losses.policy import grpo_loss
from r1jax.losses.supervised import ahead_loss
from r1jax.machines.mesh import check_divisible, spec_of
from r1jax.models.transformer import Transformer
from r1jax.reports.write import print_table, write_report
from r1jax.rewards.format import reflective_words
from r1jax.stages.grpo_config import GrpoConfig, check, longest_completion, packing_of
from r1jax.stages.grpo_evaluation import held_out_of, open_evaluation
from r1jax.stages.grpo_rollouts import (
    Rewarded,
    Rollouts,
    checked_stream,
    forget_rollouts,
    rewarded,
    truncated,
)
from r1jax.tasks.sandbox import choose_sandbox
from r1jax.training.critic import Critic, open_critic
from r1jax.training.run import Trainable, TrainingRun, is_due, open_run
from r1jax.training.train_state import microbatch, on_mesh
from r1jax.types import Batch, Rollout
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
    choose_sandbox(config.graders.sandbox)
    examples = checked_stream(config)
    opened = open_known(config.model)
    benchmarks = None
    if opened is not None:  # what is wrong is said before the model is loaded
        check_lengths(config, opened.config.max_length)
        benchmarks = held_out_of(config, opened.tokenizer, opened.config.max_length)
    use_ref = config.loss.kl_coef > 0 or (config.critic is not None and config.critic.kl_coef > 0)
    with (
        open_run(config, config_dict, workdir, SHOWN, use_ref, config.share_prompts) as stage,
        open_evaluation(config, stage, benchmarks) as (sampler, held_out),
    ):
        check_divisible((config.microbatch_rows,), ("batch",), stage.mesh, "config.microbatch_rows")
        check_lengths(config, stage.trained.model.config.max_length)
        critic = None
        if config.critic is not None:
            critic = open_critic(config.critic, config, stage, config.share_prompts)
        programs = Programs(config, stage, critic)
        source = Rollouts(config, stage, sampler, examples)
        held_out.run_benchmarks(0)
        held_out.measure_curves(0)
        step = stage.start
        while step < config.total_steps:
            iteration = step // config.updates_per_rollout
            found = rewarded(config, source.of(iteration, step))
            minibatches = make_minibatches(config, found, iteration)
            batches = [programs.prepare(stage, minibatch) for minibatch in minibatches]
            summary = summarise(found)
            ahead = source.begin_ahead(iteration + 1, step + len(batches))
            for batch, packed in batches:
                step += 1
                stage.profiler.step(step)
                with stage.timer("update"):
                    metrics = jax.device_get(stage.trained.update(programs.step, batch))
                if critic is not None:
                    with stage.timer("critic"):
                        metrics |= critic.update(batch)
                tokens_per_s = packed["batch/tokens"] / stage.timer.read("update")
                stage.note({"update/tokens_per_s": tokens_per_s})
                stage.log(step, "grpo", summary | metrics | packed)
                stage.watch(step, metrics, batch)
                summary = {}  # on the iteration's first line only
                held_out.measure_curves(step)
            if ahead is not None:  # before the checkpoint, which cannot sample it any more
                source.finish_ahead(iteration + 1, ahead)
            replace_reference(config, stage, step)
            if is_due(config.checkpoint_every, step, len(batches)) or step == config.total_steps:
                if critic is not None:
                    critic.save(step)
                stage.save(step)
                forget_rollouts(stage.workdir, config.keep_rollouts, iteration)
        held_out.run_benchmarks(config.total_steps)


def check_lengths(config: GrpoConfig, limit: int) -> None:
    """What the model's max_length allows."""
    longest = config.max_prompt_tokens + longest_completion(config)
    if longest > limit:
        raise ConfigError(
            f"config.max_prompt_tokens {config.max_prompt_tokens} + sampling.max_tokens"
            f" {longest_completion(config)} is more than the model's max_length {limit}"
        )
    if config.pack_length and config.pack_length < longest:
        raise ConfigError(
            f"config.pack_length {config.pack_length} is less than {longest}, the longest prompt"
            " and completion"
        )


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


# -- minibatches ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minibatch:
    """The completions of one update."""

    rollouts: Sequence[Rollout]  # sorted by (prompt, sample)
    advantages: np.ndarray  # float32 [C]
    rewards: np.ndarray  # float64 [C]
    left_out: Sequence[Rollout] = ()  # counted in the denominators, not computed


def make_minibatches(config: GrpoConfig, found: Rewarded, iteration: int) -> Iterator[Minibatch]:
    """The iteration's updates: whole questions each, or a random split of all outputs."""
    rollouts = found.rollouts
    advantages, rewards = found.advantages.reshape(-1), found.rewards.reshape(-1)
    size = config.prompts_per_update * config.group_size
    order = np.arange(len(rollouts))
    if config.split_by == "output":
        np.random.default_rng([config.seed, iteration]).shuffle(order)
    for start in range(0, len(rollouts), size):
        chosen = np.sort(order[start : start + size])
        yield Minibatch([rollouts[i] for i in chosen], advantages[chosen], rewards[chosen])


def with_gradient(minibatch: Minibatch) -> Minibatch:
    """The completions that have a gradient: without a KL, those with an advantage.

    The rest adds exact zeros to the update. One completion stays where none has an advantage.
    """
    keep = minibatch.advantages != 0
    keep[0] |= not keep.any()
    return Minibatch(
        [r for r, kept in zip(minibatch.rollouts, keep, strict=True) if kept],
        minibatch.advantages[keep],
        minibatch.rewards[keep],
        [r for r, kept in zip(minibatch.rollouts, keep, strict=True) if not kept],
    )


def count_left_out(batch: Batch, minibatch: Minibatch) -> Batch:
    """Puts the completions that were left out into the per-completion arrays."""
    lengths = np.array([len(r.completion.tokens) for r in minibatch.left_out], np.float32)
    return replace(
        batch,
        lengths=np.append(batch.lengths, lengths),
        advantages=np.append(batch.advantages, np.zeros_like(lengths)),
    )


def to_groups(config: GrpoConfig, rollouts: Sequence[Rollout]) -> list[Group]:
    """Rollouts sorted by prompt -> one group to pack per prompt."""
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.completion.prompt_index, []).append(rollout)
    return [
        completion_group(
            members[0].prompt_tokens,
            [member.completion.tokens for member in members],
            [member.completion.logprobs for member in members],
            [member.completion.experts for member in members],
        )
        for members in groups.values()
    ]


# -- the jitted programs ----------------------------------------------------------------------


class Programs:
    """The update step and the pass that computes log-probabilities of packed completions."""

    def __init__(
        self, config: GrpoConfig, stage: TrainingRun, critic: Critic | None = None
    ) -> None:
        self.config, self.critic = config, critic
        self.packing = packing_of(config)
        model = stage.trained.model.clone(span=self.packing.span)
        self._models = {"ref_logprobs": model, "old_logprobs": model}
        if config.router_replay and model.config.experts is None:
            raise ConfigError("config.router_replay is for a model with experts; leave it False")
        if model.config.experts is not None:
            model = model.clone(replay=config.router_replay)
            self._models["old_logprobs"] = model
        self.step = stage.trained.make_step(make_loss(config, model), config.router)
        tokens = NamedSharding(stage.mesh, spec_of((None, "batch", None)))
        self._logprobs = jax.jit(self._all_logprobs, static_argnums=0, out_shardings=tokens)
        self._compiled_ahead = critic is not None or len(self.packing.lengths) == 1

    def prepare(self, stage: TrainingRun, minibatch: Minibatch) -> tuple[Batch, dict[str, float]]:
        """Packs a minibatch and adds the log-probabilities of the old and reference policies."""
        config, trained = self.config, stage.trained
        with stage.timer("pack"):
            # A KL pulls at every completion, and a critic has an advantage for each of its tokens.
            if trained.ref_params is None and self.critic is None:
                minibatch = with_gradient(minibatch)
            batch = pack(
                to_groups(config, minibatch.rollouts),
                self.packing.lengths,
                config.microbatch_rows,
                -(-self.packing.rows // config.microbatch_rows),
                config.share_prompts,
                minibatch.advantages,
            )
            packed = {
                "batch/tokens": int(np.sum(batch.segment_ids > 0)),
                "batch/padding_share": padding_share(batch),
                "batch/microbatches": int(batch.microbatches),
                "batch/completions": len(minibatch.rollouts),
            }
            batch = count_left_out(batch, minibatch)
            if config.truncated == "mask":
                batch = mask_truncated(batch, [*minibatch.rollouts, *minibatch.left_out])
            batch = on_mesh(batch, stage.mesh)
        policies: dict[str, Any] = {}
        if config.updates_per_rollout > 1:  # else the current policy is the old one
            policies["old_logprobs"] = trained.params
        if trained.ref_params is not None:
            policies["ref_logprobs"] = trained.reference
        if not self._compiled_ahead:
            with stage.timer("compile"):
                self._compile_ahead(trained, batch, list(policies))
        logprobs = {}
        for name, params in policies.items():
            with stage.timer(name):
                logprobs[name] = jax.block_until_ready(
                    self._logprobs(self._models[name], params, batch)
                )
        batch = replace(batch, **logprobs)
        if self.critic is not None:
            with stage.timer("critic"):
                batch = self.critic.judge(batch, minibatch.rewards)
        return batch, packed

    def _compile_ahead(self, trained: Trainable, batch: Batch, policies: Sequence[str]) -> None:
        """Compiles the programs for rows of every length, side by side.

        Else the first batch of each length stops for them.
        """
        self._compiled_ahead = True
        lowered = []
        for length in self.packing.lengths:

            def shaped(x: jax.Array, length: int = length) -> jax.ShapeDtypeStruct:
                shape = (*x.shape[:2], length, *x.shape[3:]) if x.ndim >= 3 else x.shape
                return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

            rows = jax.tree.map(shaped, batch)
            logprobs = jax.ShapeDtypeStruct(
                rows.tokens.shape, jnp.float32, sharding=rows.tokens.sharding
            )
            for model in {self._models[name] for name in policies}:
                lowered.append(self._logprobs.lower(model, trained.params, rows))
            rows = replace(rows, **dict.fromkeys(policies, logprobs))
            lowered.append(self.step.lower(trained.state, rows))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda program: program.compile(), lowered))

    def _all_logprobs(self, model: Transformer, params: Any, batch: Batch) -> jax.Array:
        """Log-probabilities of every token of the batch -> [M, B, L]."""

        def one(index: Any, out: jax.Array) -> jax.Array:
            logprobs_BL, _ = token_logprobs(
                model,
                params,
                microbatch(batch, index),
                self.config.sampling.temperature,
                self.config.logits_chunk,
            )
            return jax.lax.dynamic_update_index_in_dim(out, logprobs_BL, index, 0)

        zeros = jnp.zeros(batch.tokens.shape, jnp.float32)
        return jax.lax.fori_loop(0, batch.microbatches, one, zeros)


def make_loss(
    config: GrpoConfig, model: Transformer
) -> Callable[[Any, Batch], tuple[jax.Array, Metrics]]:
    """loss_fn(params, microbatch) for make_step."""

    def of_tokens(
        logprobs_BL: jax.Array, entropy_BL: jax.Array, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        return grpo_loss(logprobs_BL, batch, config.loss, longest_completion(config), entropy_BL)

    ahead = ahead_loss(config.mtp_coef, model.config, alone=True)

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        how = (config.sampling.temperature, config.logits_chunk)
        if config.loss.ratio == "sequence":  # of all of its tokens: no sum over them
            return of_tokens(*token_logprobs(model, params, batch, *how), batch)
        return token_loss(model, params, batch, of_tokens, *how, ahead)

    return loss_fn


def mask_truncated(batch: Batch, rollouts: Sequence[Rollout]) -> Batch:
    """Takes completions cut by length out of the loss, its means and the metrics' means.

    `rollouts` are those of the batch's per-completion arrays, in their order.
    """
    keep = np.array([1.0, *(float(not truncated(r)) for r in rollouts)], np.float32)
    loss_mask = batch.loss_mask * keep[batch.completion_ids]
    targets = np.float32(max(loss_mask.sum(), 1.0))
    return replace(batch, loss_mask=loss_mask, lengths=batch.lengths * keep, num_targets=targets)
