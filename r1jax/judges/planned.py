"""What judges and reward models hold and run, in shapes alone: for `python -m r1jax.plan`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace

from jax.sharding import Mesh

from r1jax.judges.chat_model import ChatModelConfig
from r1jax.judges.reward_model import LearnedReward, Scorer, row_length, same_model
from r1jax.machines.planned import Assumed, Planned, bytes_of, with_shardings
from r1jax.models.kernels import choose_kernel, kernel_flops, packed_kernels, seen_share
from r1jax.models.layouts import Compute
from r1jax.models.params import abstract_params, model_flops, param_shardings
from r1jax.rollout.planned import Asked, mean_completion, params_of, rollout_programs
from r1jax.training.frozen import kept_shapes
from r1jax.training.planned import abstract_batch
from r1jax.weights.load import ModelSource, open_shapes


def scoring_programs(
    terms: Mapping[str, LearnedReward],
    compute: Compute,
    mesh: Mesh,
    asked: Asked,
    assumed: Assumed,
    state: Mapping[str, float],
) -> tuple[list[Planned], dict[str, float]]:
    """A program for each model that scores a rollout; `state`, what stays on a device by kind, with
    those that are not offloaded.

    They score all completions, and all of each; they compute as `compute` says.
    """
    completions, mean = asked.questions * asked.group_size, mean_completion(asked, assumed)
    tokens = assumed.prompt + mean
    length = row_length(asked.max_prompt_tokens + asked.max_tokens, mesh)
    distinct: dict[LearnedReward, str] = {}
    for name, term in terms.items():
        distinct.setdefault(same_model(term), name)
    opened = {}
    for name in distinct.values():
        term = terms[name]
        found = open_shapes(ModelSource(term.path, override={"scalar_head": True}))
        kernel = choose_kernel(found.config, compute, mesh)
        model = replace(found, compute=compute).transformer(mesh, kernel)
        shapes = with_shardings(abstract_params(model), param_shardings(model))
        opened[name] = term, model, kept_shapes(shapes, term.frozen)
    stays = sum(bytes_of(params) for term, _, params in opened.values() if not term.frozen.offload)
    state = dict(state) | ({"reward models": stays} if stays else {})
    programs = []
    for name, (term, model, params) in opened.items():
        shape = (1, term.microbatch_rows, length)
        batch = abstract_batch(shape, completions, mesh, model=model.config)
        own = {"batch": bytes_of(batch)}
        own |= {"reward model": bytes_of(params)} if term.frozen.offload else {}
        rows = math.ceil(completions / max(length // tokens, 1))
        runs = math.ceil(rows / term.microbatch_rows)
        programs.append(
            Planned(
                f"reward {name}",
                functools.partial(Scorer(model, mesh, term.microbatch_rows).lower, params, batch),
                runs * (1 if term.against is None else 2),
                state | own,
                sum(state.values()) - (0 if term.frozen.offload else bytes_of(params)),
                kernels=packed_kernels(model.config, mesh, model.kernel, backward=False),
                model_flops=model_flops(model.config, completions * tokens, tokens, 1) / runs,
                formulas=kernel_flops(mesh, seen_share([tokens] * completions, length)),
            )
        )
    return programs, state


class PlannedChats:
    """Chat models by what they are called; a server, or none, costs these devices nothing."""

    def __init__(
        self, configs: Mapping[str, ChatModelConfig | None], mesh: Mesh, memory: float
    ) -> None:
        """`memory` is a device's, in bytes."""
        self._memory = memory
        self._models = {}
        for name, config in configs.items():
            if config is not None and config.path is not None:
                opened = open_shapes(ModelSource(config.path, override=config.override))
                self._models[name] = opened.transformer(mesh), config

    @property
    def held(self) -> dict[str, float]:
        """Bytes of parameters on a device, by name."""
        return {name: bytes_of(params_of(model)) for name, (model, _) in self._models.items()}

    def programs(
        self, name: str, times: int, assumed: Assumed, longest: int, state: Mapping[str, float]
    ) -> tuple[list[Planned], list[str]]:
        """What it runs to be asked so often, with prompts of at most `longest` tokens.

        `state` is what stays on a device, by kind, this model's own parameters among it.
        """
        if name not in self._models:
            return [], []
        model, config = self._models[name]
        asked = Asked(times, 1, config.sampling.max_tokens, longest)
        found, notes = rollout_programs(model, config.engine, asked, assumed, self._memory, state)
        named = [replace(program, name=f"{name} {program.name}") for program in found]
        return named, [f"{name}: {note}" for note in notes]
