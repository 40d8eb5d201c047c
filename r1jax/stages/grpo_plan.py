"""The programs of an iteration of GRPO, in shapes alone: for `python -m r1jax.plan`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from jax.sharding import Mesh

from r1jax.judges.planned import scoring_programs
from r1jax.losses.logprobs import HEAD_CHUNKS, chunk_columns
from r1jax.machines.mesh import check_split
from r1jax.machines.planned import Assumed, Iteration, Planned, bytes_of
from r1jax.models.kernels import kernel_flops, seen_share
from r1jax.models.params import model_flops
from r1jax.rollout.planned import Asked, imagined_lengths, mean_completion, rollout_programs
from r1jax.stages.grpo_config import (
    GrpoConfig,
    check_lengths,
    chosen,
    longest_completion,
    packing_of,
)
from r1jax.stages.grpo_updates import Programs
from r1jax.training.planned import abstract_batch, imagined, kernels_of, state_bytes
from r1jax.training.train_state import MICROBATCHES
from r1jax.weights.load import open_shapes


def planned(config: GrpoConfig, mesh: Mesh, assumed: Assumed, memory: float) -> Iteration:
    """A rollout with the longest completions that the config comes to, and its updates.

    `memory` is a device's, in bytes. Reward models are planned for all completions and all of each,
    thoughts too. A critic is not planned.
    """
    config = chosen(config, mesh.devices.flat[0].platform)
    check_split(config.microbatch_rows, packing_of(config).lengths, mesh)
    opened = open_shapes(config.model)
    check_lengths(config, opened.config.max_length)
    reference = config.reference if config.loss.kl_coef > 0 else None
    trained = imagined(
        opened, config.optimizer, config.total_steps, mesh, config.shares_prompts, reference
    )
    state = state_bytes(trained)
    offloaded = {"reference": state.pop("reference")} if reference and reference.offload else {}
    asked = Asked(
        config.prompts_per_update * config.updates_per_rollout,
        config.group_size,
        longest_completion(config),
        config.max_prompt_tokens,
    )
    scored, state = scoring_programs(
        config.reward_models, opened.compute, mesh, asked, assumed, state
    )
    sampled, notes = rollout_programs(trained.model, config.engine, asked, assumed, memory, state)

    packing, c = packing_of(config), trained.model.config
    completions, length = config.prompts_per_update * config.group_size, packing.lengths[0]
    rows = config.microbatch_rows
    policies = {"old_logprobs": trained.params} if config.updates_per_rollout > 1 else {}
    policies |= {"ref_logprobs": trained.reference} if reference else {}
    more = ("sampler_logprobs", "advantages", "experts")
    shape = (-(-packing.rows // rows), rows, length)
    batch = abstract_batch(shape, completions, mesh, *more, model=c)
    programs = Programs(config, trained, mesh)
    lowered = functools.cache(lambda: programs.lower(trained, batch, policies))

    mean = mean_completion(asked, assumed)
    prompts = config.prompts_per_update if config.shares_prompts else completions
    tokens = completions * mean + prompts * assumed.prompt
    used = max(math.ceil(tokens / length), math.ceil(completions / (length // min(mean, length))))
    microbatches = math.ceil(used / rows)
    columns = chunk_columns(config.logits_chunk, rows, length, mesh)
    chunks = math.ceil(completions * mean / (microbatches * rows) / columns)
    loops = {MICROBATCHES: microbatches, HEAD_CHUNKS: chunks}
    lengths = imagined_lengths(completions, mean, asked.max_tokens)
    formulas = kernel_flops(mesh, seen_share([assumed.prompt + n for n in lengths], length))
    held = state | {"batch": bytes_of(batch)}

    def pass_of(names: Sequence[str], runs: float) -> Planned:
        here = held | (offloaded if "ref_logprobs" in names else {})
        beside = sum(here.values()) - bytes_of(policies[names[0]]) - here["batch"]
        flops = model_flops(c, tokens, mean, 1)
        kernels = kernels_of(trained, backward=False)
        lower = lambda: lowered()[names[0]]  # noqa: E731
        return Planned(names[0], lower, runs, here, beside, loops, kernels, flops, formulas)

    # Where both are said by one program, it stands under the first one's name.
    each = config.updates_per_rollout
    unseen = sum(state.get(kind, 0.0) for kind in ("reference", "reward models"))
    served = programs.served(policies).values()
    trains = [pass_of(names, each * len(names)) for names in served]
    trains.append(
        Planned(
            "update", lambda: lowered()["update"], each, held, unseen, loops,
            kernels_of(trained, backward=True), model_flops(c, tokens, mean, 3), formulas,
        )
    )  # fmt: skip
    notes.append(
        f"an update has {tokens:,} tokens in {used:,} rows of {length:,}: {microbatches}"
        f" microbatches of {rows}"
    )
    return Iteration([*sampled, *scored, *trains], config.total_steps / each, notes)
