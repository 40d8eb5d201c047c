"""The updates of an iteration of GRPO: minibatches, packed, and the programs that learn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from r1jax.config import ConfigError
from r1jax.data.packing import Group, completion_group, pack, padding_share, with_experts
from r1jax.files import CHECKPOINTS, UNFINISHED
from r1jax.losses.aggregation import Metrics
from r1jax.losses.logprobs import token_logprobs, token_loss, whole_loss
from r1jax.losses.policy import grpo_loss
from r1jax.losses.supervised import ahead_loss
from r1jax.machines.mesh import spec_of
from r1jax.models.transformer import Transformer
from r1jax.stages.grpo_config import GrpoConfig, longest_completion, packing_of
from r1jax.stages.grpo_rollouts import Rewarded, truncated
from r1jax.training.critic import Critic
from r1jax.training.run import Trainable, TrainingRun
from r1jax.training.train_state import MICROBATCHES, microbatch, on_mesh, own_rows
from r1jax.types import Batch, Rollout
from r1jax.weights.checkpoint import Checkpoints
from r1jax.weights.manifest import CheckpointError, DamagedError


@dataclass(frozen=True)
class Minibatch:
    """The completions of one update."""

    rollouts: Sequence[Rollout]  # sorted by (prompt, sample)
    advantages: np.ndarray  # float32 [C]
    rewards: np.ndarray  # float64 [C]
    left_out: Sequence[Rollout] = ()  # counted in the denominators, not computed


class Prepared(NamedTuple):
    """A minibatch on the devices, ready for its update."""

    batch: Batch
    metrics: dict[str, float]  # of its packing


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
        )
        for members in groups.values()
    ]


# -- the jitted programs ----------------------------------------------------------------------


class Programs:
    """The update step and the pass that computes log-probabilities of packed completions."""

    def __init__(
        self,
        config: GrpoConfig,
        trained: Trainable,
        mesh: Mesh,
        critic: Critic | None = None,
    ) -> None:
        self.config, self.critic = config, critic
        self.packing = packing_of(config)
        model = trained.model.clone(span=self.packing.span)
        self._models = {"ref_logprobs": model, "old_logprobs": model}
        if config.router_replay and model.config.experts is None:
            raise ConfigError("config.router_replay is for a model with experts; leave it False")
        if model.config.experts is not None:
            model = model.clone(replay=config.router_replay)
            self._models["old_logprobs"] = model
        self.step = trained.make_step(make_loss(config, model), config.router)
        tokens = NamedSharding(mesh, spec_of((None, "batch", None)))
        self._logprobs = jax.jit(self._all_logprobs, static_argnums=0, out_shardings=tokens)
        self._compiled_ahead = critic is not None or len(self.packing.lengths) == 1

    def prepare(
        self, stage: TrainingRun, minibatches: Sequence[Minibatch], unfinished: bool = False
    ) -> list[Prepared]:
        """Packs an iteration's minibatches and adds what policies and critic say of them before its
        first update: of an `unfinished` iteration what the run wrote down when it stopped.
        """
        if unfinished:
            return self._restored(stage, [self._packed(stage, m) for m in minibatches])
        return [self._judged(stage, self._packed(stage, m), m) for m in minibatches]

    def save_unfinished(self, stage: TrainingRun, step: int, left: Sequence[Prepared]) -> None:
        """Begins to write what was said of the batches behind this update, before its checkpoint:
        nobody can say it again.
        """
        names = self._said_before(stage.trained)
        said = {
            f"{i}": {name: getattr(one.batch, name) for name in names} for i, one in enumerate(left)
        }
        # They go with the checkpoints that they belong to.
        with Checkpoints(stage.workdir / UNFINISHED, max_to_keep=0) as checkpoints:
            checkpoints.save(step, said)

    def _restored(self, stage: TrainingRun, packed: Sequence[Prepared]) -> list[Prepared]:
        """The batches behind the update that the run starts from, with what was said of them."""
        names = self._said_before(stage.trained)

        def shapes(tokens: jax.Array) -> dict[str, jax.ShapeDtypeStruct]:
            like = jax.ShapeDtypeStruct(tokens.shape, jnp.float32, sharding=tokens.sharding)
            return dict.fromkeys(names, like)

        wanted = {f"{i}": shapes(one.batch.tokens) for i, one in enumerate(packed)}
        try:
            said, _ = Checkpoints(stage.workdir / UNFINISHED).restore(stage.start, wanted)
        except DamagedError:
            raise
        except CheckpointError as error:
            raise ConfigError(
                f"the run has stopped between two updates of a rollout, whose rows were others"
                f" ({error}): set what changed back (config.microbatch_rows, config.share_prompts),"
                f" or delete {stage.workdir / CHECKPOINTS / str(stage.start)} to go on from the"
                " checkpoint before"
            ) from None
        return [
            one._replace(batch=replace(one.batch, **said[f"{i}"])) for i, one in enumerate(packed)
        ]

    def _said_before(self, trained: Trainable) -> list[str]:
        """The fields of a batch that hold what was said of it before the iteration's updates."""
        return [
            *(["old_logprobs"] if self.config.updates_per_rollout > 1 else []),
            *(["ref_logprobs"] if trained.ref_params is not None else []),
            *(["token_advantages", "returns"] if self.critic is not None else []),
        ]

    def _packed(self, stage: TrainingRun, minibatch: Minibatch) -> Prepared:
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
                config.shares_prompts,
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
            experts = [rollout.completion.experts for rollout in minibatch.rollouts]
            batch = with_experts(batch, experts, own_rows(config.microbatch_rows, stage.mesh))
            return Prepared(on_mesh(batch, stage.mesh), packed)

    def _judged(self, stage: TrainingRun, prepared: Prepared, minibatch: Minibatch) -> Prepared:
        """With the log-probabilities of the old and reference policies, and the critic's part."""
        config, trained, batch = self.config, stage.trained, prepared.batch
        policies: dict[str, Any] = {}
        if config.updates_per_rollout > 1:  # else the current policy is the old one
            policies["old_logprobs"] = trained.params
        if trained.ref_params is not None:
            policies["ref_logprobs"] = trained.reference
        if not self._compiled_ahead:
            with stage.timer("compile"):
                self._compile_ahead(trained, batch, policies)
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
        return prepared._replace(batch=batch)

    def _compile_ahead(self, trained: Trainable, batch: Batch, policies: Mapping[str, Any]) -> None:
        """Compiles the programs for rows of every length, side by side.

        Else the first batch of each length stops for them.
        """
        self._compiled_ahead = True
        lowered: list[jax.stages.Lowered] = []
        for length in self.packing.lengths:

            def shaped(x: jax.Array, length: int = length) -> jax.ShapeDtypeStruct:
                shape = (*x.shape[:2], length, *x.shape[3:]) if x.ndim >= 3 else x.shape
                return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

            lowered += self.lower(trained, jax.tree.map(shaped, batch), policies).values()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda program: program.compile(), lowered))

    def served(self, policies: Mapping[str, Any]) -> dict[str, list[str]]:
        """The policies, of which parameters or shapes are given, by the first of those whose
        log-probabilities the same program says.
        """
        found: dict[Any, list[str]] = {}
        for name, params in policies.items():
            types = tuple(x.dtype for x in jax.tree.leaves(params))
            found.setdefault((self._models[name], types), []).append(name)
        return {names[0]: names for names in found.values()}

    def lower(
        self, trained: Trainable, batch: Batch, policies: Mapping[str, Any]
    ) -> dict[str, jax.stages.Lowered]:
        """The programs for batches of this shape: `update`, and what says the log-probabilities of
        these policies, each under the name of the first that it serves.
        """
        found = {
            name: self._logprobs.lower(self._models[name], policies[name], batch)
            for name in self.served(policies)
        }
        logprobs = jax.ShapeDtypeStruct(
            batch.tokens.shape, jnp.float32, sharding=batch.tokens.sharding
        )
        batch = replace(batch, **dict.fromkeys(policies, logprobs))
        return found | {"update": self.step.lower(trained.state, batch)}

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
        with jax.named_scope(MICROBATCHES):
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
            return whole_loss(model, params, batch, of_tokens, *how)
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
