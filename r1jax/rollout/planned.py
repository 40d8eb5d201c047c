"""The programs of a rollout, in shapes alone: for `python -m r1jax.plan`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from r1jax.config import ConfigError
from r1jax.data.datasets import DataConfig, finite_examples
from r1jax.files import absolute
from r1jax.machines.planned import Assumed, Planned, bytes_of, with_shardings
from r1jax.models.kernels import grouped_kernels, kernel_flops
from r1jax.models.paged_kernels import paged_costs
from r1jax.models.params import abstract_params, model_flops, param_shardings
from r1jax.models.transformer import Transformer
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.decoding import DECODE_STEPS
from r1jax.rollout.engine import Engine
from r1jax.rollout.memory import FREE_SHARE, MIB
from r1jax.rollout.store import Need

SPREAD = 0.8  # standard deviation of the logarithms of completions' lengths


@dataclass(frozen=True)
class Asked:
    """A rollout."""

    questions: int
    group_size: int
    max_tokens: int
    max_prompt_tokens: int


def questions_in(data: DataConfig, key: str, assumed: Assumed) -> int:
    """How many a source has; of a file that is not here its limit says it, or what is assumed."""
    here = data.hub is None and (data.path is None or absolute(data.path).exists())
    found = len(finite_examples(data, key)) if here else data.limit or assumed.rows
    if not found:
        raise ConfigError(
            f"{key} is not here and has no limit: --rows says how many questions it has"
        )
    return found


def mean_completion(asked: Asked, assumed: Assumed) -> int:
    """In tokens."""
    return assumed.completion or asked.max_tokens // 4


def rollout_programs(
    model: Transformer,
    config: EngineConfig,
    asked: Asked,
    assumed: Assumed,
    memory: float,
    state: Mapping[str, float],
) -> tuple[list[Planned], list[str]]:
    """Parameters laid out for rollouts, prompts, decoding; and what was assumed.

    `memory` is a device's, in bytes; `state` is what stays there meanwhile, by kind, the model's
    own parameters among it.
    """
    trained = params_of(model)
    beside = sum(state.values())
    engine, params = _engine(model, config, memory - beside, trained)
    by, config = engine.programs, engine.config
    before = dict(state)
    held = before | {"rollout parameters": bytes_of(params)}
    rows = asked.questions * asked.group_size
    need = Need(asked.max_prompt_tokens, asked.max_tokens, asked.group_size, -(-rows // by.shards))
    lowered = engine.keeping.lowered(params, need, engine.memory(need))
    held["caches"] = bytes_of(lowered.caches)
    c, mean = by.model.config, mean_completion(asked, assumed)
    lengths = imagined_lengths(rows / by.shards, mean, asked.max_tokens)
    steps = decode_steps(lengths, lowered.slots)
    # Tokens that a row sees in the mean, of the slots that decode.
    live = sum(n * (assumed.prompt + n / 2) for n in lengths) / (steps * lowered.slots)
    loads = -(-asked.questions // (by.shards * config.prefill_batch))
    loads *= -(-assumed.prompt // config.prefill_chunk)
    of_prompts = model_flops(c, asked.questions * assumed.prompt, assumed.prompt, 1) / loads
    of_chunk = model_flops(c, rows * mean, mean, 1) * config.chunk / steps
    apart = beside - bytes_of(trained)
    assert engine.mesh is not None
    kernels, grouped = grouped_kernels(c, engine.mesh, backward=False), kernel_flops(engine.mesh)
    of_pages = paged_costs(live / lowered.row_tokens) if lowered.row_tokens else {}
    return [
        Planned("prepare", lambda: by.prepare.lower(trained), 1, before, apart),
        Planned(
            "prefill",
            lowered.prefill,
            loads,
            held,
            beside + bytes_of(lowered.apart),
            kernels=kernels,
            formulas=grouped | dict(paged_costs(assumed.prompt / asked.max_prompt_tokens)),
            model_flops=of_prompts,
        ),
        Planned(
            "decode",
            lowered.decode,
            steps / config.chunk,
            held,
            beside,
            {DECODE_STEPS: config.chunk},
            kernels=(*lowered.kernels, *kernels),
            formulas=grouped | dict(of_pages),
            model_flops=of_chunk,
        ),
    ], [
        f"completions have {mean:,} tokens in the mean, at most {asked.max_tokens:,}, and"
        f" log-normal lengths; prompts {assumed.prompt:,}",
        f"{by.shards * lowered.slots:,} rows decode together: {steps:,.0f} steps for {rows:,}"
        f" completions, {lowered.said}; rows that decode have {live:,.0f} tokens in the mean",
    ]


def params_of(model: Transformer) -> Any:
    """Its parameters in shapes with their shardings, as they are read."""
    return with_shardings(abstract_params(model), param_shardings(model))


def _engine(
    model: Transformer, config: EngineConfig, memory: float, trained: Any
) -> tuple[Engine, Any]:
    """An engine for so much memory of a device, and the parameters as it lays them out."""
    engine = Engine(model, [0], config)
    shapes = jax.eval_shape(engine.programs.prepare, trained)
    params = with_shardings(shapes, engine.programs.param_shardings())
    if not config.slots and not config.memory_mib:  # it takes a share of what it finds free
        free = max(int(FREE_SHARE * (memory - bytes_of(params))) // MIB, 1)
        engine = Engine(model, [0], replace(config, memory_mib=free))
    return engine, params


def imagined_lengths(rows: float, mean: float, most: int) -> list[float]:
    """Of so many completions: quantiles of a log-normal distribution of this mean, cut at `most`,
    in a random order.
    """
    count = max(math.ceil(rows), 1)
    ranks = (np.random.default_rng(0).permutation(count) + 0.5) / count
    normal = NormalDist(math.log(mean) - SPREAD**2 / 2, SPREAD)
    return [min(math.exp(normal.inv_cdf(rank)), most) for rank in ranks]


def decode_steps(lengths: Sequence[float], slots: int) -> float:
    """Until the last completion has ended, where `slots` decode at a time."""
    ends = [0.0] * min(slots, len(lengths))
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)
