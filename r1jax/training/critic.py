"""PPO's value function, for the paper's comparison with GRPO (R1 A.3, Figure 4).

With `config.critic` stage `grpo` becomes PPO: a second model of the same shape says what a
completion will earn, generalised advantage estimation turns that into an advantage per token
(Schulman et al. 2015, eq 16), and the clipped objective stays what it is. A per-token KL to the
reference may be taken off the reward, as PPO does it, instead of the loss's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.config import NotNegative, Share
from r1jax.files import CRITIC
from r1jax.losses.advantages import token_advantages, whitened
from r1jax.losses.aggregation import Metrics
from r1jax.losses.logprobs import token_values
from r1jax.losses.scalar import value_loss
from r1jax.training.optimizers import OptimizerConfig
from r1jax.training.run import StageConfig, Trainable, TrainingRun
from r1jax.training.train_state import microbatch
from r1jax.types import Batch
from r1jax.weights.load import open_source


@dataclass(frozen=True)
class CriticConfig:
    """The paper prints lambda only (0.95 is clearly worse than 1.0)."""

    gae_lambda: Share = 1.0  # of generalised advantage estimation; 1: what was earned - value
    discount: Share = 1.0  # of a later token's reward
    kl_coef: NotNegative = 0.0  # of the per-token log(pi / pi_ref) that is taken off the reward
    whiten: bool = True  # advantages of an update to mean 0 and standard deviation 1
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))


class Critic:
    """The value model with its optimizer; its checkpoints lie in WORKDIR/critic."""

    def __init__(self, config: CriticConfig, trained: Trainable) -> None:
        """`trained` is the value model, with a scalar head."""

        def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
            return value_loss(token_values(trained.model, params, batch), batch)

        self._config, self._trained = config, trained
        self._step = trained.make_step(loss_fn)
        self._judge = jax.jit(self._judged)

    def judge(self, batch: Batch, rewards: np.ndarray) -> Batch:
        """The batch with an advantage per token and what the value of each token should be.

        `rewards` [C] are the completions'.
        """
        rewards_C = jnp.asarray(np.concatenate([[0.0], rewards]), jnp.float32)
        advantages, returns = self._judge(self._trained.params, batch, rewards_C)
        return replace(batch, token_advantages=advantages, returns=returns)

    def update(self, batch: Batch) -> dict[str, Any]:
        """One step towards the returns -> metrics."""
        metrics = jax.device_get(self._trained.update(self._step, batch))
        return {f"critic/{name}": value for name, value in metrics.items()}

    def save(self, step: int) -> None:
        """Before the policy's own checkpoint of that step, so that there is never one without."""
        self._trained.save(step)

    def _judged(
        self, params: Any, batch: Batch, rewards_C: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def one(index: Any, out: jax.Array) -> jax.Array:
            values_BL = token_values(self._trained.model, params, microbatch(batch, index))
            return jax.lax.dynamic_update_index_in_dim(out, values_BL, index, 0)

        zeros = jnp.zeros(batch.tokens.shape, jnp.float32)
        values = jax.lax.fori_loop(0, batch.microbatches, one, zeros)
        penalties = zeros
        if batch.ref_logprobs is not None:
            policy = batch.sampler_logprobs if batch.old_logprobs is None else batch.old_logprobs
            penalties = self._config.kl_coef * (policy - batch.ref_logprobs)
        advantages = token_advantages(
            values, batch, rewards_C, penalties, self._config.discount, self._config.gae_lambda
        )
        returns = advantages + values
        if self._config.whiten:
            advantages = whitened(advantages, batch.loss_mask)
        return advantages * batch.loss_mask, returns


def open_critic(
    config: CriticConfig, policy: StageConfig, stage: TrainingRun, share_prompts: bool
) -> Critic:
    """Begins at the policy's model with a new head, or at the run's newest checkpoint."""
    source = replace(policy.model, override=policy.model.override | {"scalar_head": True})
    trained = Trainable(
        open_source(source, stage.workdir),
        config.optimizer,
        policy.total_steps,
        stage.mesh,
        stage.workdir / CRITIC,
        share_prompts,
    )
    if stage.start:
        trained.resume(stage.start)
    else:
        trained.begin(policy.seed)
    return Critic(config, trained)
