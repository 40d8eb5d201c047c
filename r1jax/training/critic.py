"""PPO's value function, for the paper's comparison with GRPO (R1 A.3, Figure 4).

With `config.critic` stage `grpo` becomes PPO: a second model of the same shape says what a
completion will earn, generalised advantage estimation turns that into an advantage per token
(Schulman et al. 2015, eq 16), and the clipped objective stays what it is. A per-token KL to the
reference may be taken off the reward, as PPO does it, instead of the loss's own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from r1jax.files import CRITIC
from r1jax.losses.advantages import token_advantages, whitened
from r1jax.losses.aggregation import Metrics
from r1jax.losses.logprobs import token_values
from r1jax.losses.scalar import value_loss
from r1jax.models.kernels import choose_kernel
from r1jax.training.train_state import (
    OptimizerConfig,
    abstract_state,
    make_optimizer,
    make_schedule,
    make_step,
    microbatch,
    new_state,
    state_shardings,
)
from r1jax.types import Batch, TrainState
from r1jax.weights.checkpoint import Checkpoints
from r1jax.weights.load import ModelSource, open_source


@dataclass(frozen=True)
class CriticConfig:
    """The paper prints lambda only (0.95 is clearly worse than 1.0; r1_facts 1.4)."""

    gae_lambda: float = 1.0
    discount: float = 1.0
    kl_coef: float = 0.0  # of the per-token log(pi / pi_ref) that is taken off the reward
    whiten: bool = True  # advantages of an update to mean 0 and standard deviation 1
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))


class Critic:
    """The value model with its optimizer; its checkpoints lie in WORKDIR/critic."""

    def __init__(
        self,
        config: CriticConfig,
        source: ModelSource,
        workdir: epath.Path,
        mesh: Mesh,
        seed: int,
        total_steps: int,
        start: int,
        share_prompts: bool,
    ) -> None:
        """Begins at the policy's model with a new head, or at the checkpoint of update `start`.

        `share_prompts`: completions are packed behind one copy of their prompt.
        """
        source = dataclasses.replace(source, override=source.override | {"scalar_head": True})
        opened = open_source(source, workdir)
        kernel = choose_kernel(opened.compute, mesh, share_prompts)
        model = opened.transformer(mesh, kernel)
        schedule = make_schedule(config.optimizer, total_steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        shardings = state_shardings(model, optimizer)
        self._config, self._model = config, model
        self._checkpoints = Checkpoints(workdir / CRITIC)
        if start:
            abstract = abstract_state(model, optimizer, shardings)
            saved, _ = self._checkpoints.restore(start, _tree(abstract))
            self.state = TrainState(**saved)
        else:
            self.state = new_state(opened.load(mesh, seed), optimizer, shardings)

        def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
            return value_loss(token_values(model, params, batch), batch)

        self._step = make_step(loss_fn, optimizer, schedule, shardings)
        self._judge = jax.jit(self._judged)

    def judge(self, batch: Batch, microbatches: Any, rewards: np.ndarray) -> Batch:
        """The batch with an advantage per token and what the value of each token should be.

        `rewards` [C] are the completions'.
        """
        rewards_C = jnp.asarray(np.concatenate([[0.0], rewards]), jnp.float32)
        advantages, returns = self._judge(self.state.params, batch, microbatches, rewards_C)
        return dataclasses.replace(batch, token_advantages=advantages, returns=returns)

    def update(self, batch: Batch, microbatches: Any) -> dict[str, Any]:
        """One step towards the returns -> metrics."""
        self.state, metrics = self._step(self.state, batch, microbatches)
        return {f"critic/{name}": value for name, value in jax.device_get(metrics).items()}

    def save(self, step: int) -> None:
        """Before the policy's own checkpoint of that step, so that there is never one without."""
        self._checkpoints.save(step, _tree(self.state))

    def _judged(
        self, params: Any, batch: Batch, microbatches: Any, rewards_C: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def one(index: Any, out: jax.Array) -> jax.Array:
            values_BL = token_values(self._model, params, microbatch(batch, index))
            return jax.lax.dynamic_update_index_in_dim(out, values_BL, index, 0)

        zeros = jnp.zeros(batch.tokens.shape, jnp.float32)
        values = jax.lax.fori_loop(0, microbatches, one, zeros)
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


def _tree(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step}
