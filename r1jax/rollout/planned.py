"""The programs of a rollout, in shapes alone: for `python -m r1jax.plan`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from r1jax.machines.planned import Assumed, Planned, bytes_of, with_shardings
from r1jax.models.kernels import grouped_kernels
from r1jax.models.params import abstract_params, model_flops, param_shardings
from r1jax.models.transformer import Transformer
from r1jax.rollout.decoding import DECODE_STEPS
from r1jax.rollout.engine import Engine, EngineConfig
from r1jax.rollout.memory import FREE_SHARE, MIB
from r1jax.rollout.sampling import SamplingConfig

SPREAD = 0.8  # standard deviation of the logarithms of completions' lengths


@dataclass(frozen=True)
class Asked:
    """A rollout."""

    questions: int
    group_size: int
    max_tokens: int
    max_prompt_tokens: int


def rollout_programs(
    model: Transformer,
    config: EngineConfig,
    asked: Asked,
    assumed: Assumed,
    memory: float,
    state: Mapping[str, float],
) -> tuple[list[Planned], list[str]]:
    """Parameters laid out for rollouts, prompts, decoding; and what was assumed.

    `memory` is a device's, in bytes; `state` is what stays there meanwhile, by kind.
    """
    trained = with_shardings(abstract_params(model), param_shardings(model))
    beside = sum(state.values())
    engine, params = _engine(model, config, memory - beside, trained)
    by, config = engine.programs, engine.config
    held = dict(state) | {"rollout parameters": bytes_of(params)}
    prompts = [np.zeros(asked.max_prompt_tokens, np.int32)] * asked.questions
    plan = engine.memory(prompts, [asked.max_tokens], asked.group_size)
    rows = asked.questions * asked.group_size
    shapes = engine.shapes(plan, asked.max_prompt_tokens, asked.max_tokens, asked.group_size, rows)
    slots = by.empty.eval_shape(by.shards * shapes.slots, shapes.columns)
    prefix = by.empty_prefix.eval_shape(shapes.prompts, shapes.prompt_columns)
    held["caches"] = bytes_of(slots) + bytes_of(prefix)

    def indices(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((by.shards, *shape), np.int32)

    def prefill() -> Any:
        size, chunk = config.prefill_batch, min(config.prefill_chunk, shapes.prompt_columns)
        tokens, places = indices(size, chunk), (indices(size), indices(size))
        begin = jax.ShapeDtypeStruct((), np.int32)
        return by.prefill.lower(params, prefix, tokens, tokens, places, begin)

    def decode() -> Any:
        return by.lower_decode(
            params,
            (shapes.slots, shapes.columns),
            (shapes.prompts, shapes.prompt_columns, shapes.readers),
            SamplingConfig(max_tokens=1),
            config.chunk,
        )

    c, mean = by.model.config, assumed.completion or asked.max_tokens // 4
    steps = decode_steps(rows / by.shards, shapes.slots, mean, asked.max_tokens)
    loads = -(-asked.questions // (by.shards * config.prefill_batch))
    loads *= -(-assumed.prompt // config.prefill_chunk)
    of_prompts = model_flops(c, asked.questions * assumed.prompt, assumed.prompt, 1) / loads
    of_chunk = model_flops(c, rows * mean, mean, 1) * config.chunk / steps
    before = {name: size for name, size in held.items() if name != "caches"}
    apart = beside - bytes_of(trained)
    assert model.mesh is not None, "a plan is made for a mesh"
    kernels = grouped_kernels(c, model.mesh, backward=False)
    return [
        Planned("prepare", lambda: by.prepare.lower(trained), 1, before, apart),
        Planned(
            "prefill",
            prefill,
            loads,
            held,
            beside + bytes_of(slots),
            kernels=kernels,
            model_flops=of_prompts,
        ),
        Planned(
            "decode",
            decode,
            steps / config.chunk,
            held,
            beside,
            {DECODE_STEPS: config.chunk},
            kernels,
            model_flops=of_chunk,
        ),
    ], [
        f"completions have {mean:,} tokens in the mean, at most {asked.max_tokens:,}, and"
        f" log-normal lengths; prompts {assumed.prompt:,}",
        f"{by.shards * shapes.slots:,} rows decode together: {steps:,.0f} steps for {rows:,}"
        f" completions, each at the cost of the largest caches, {shapes.columns:,} columns",
    ]


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


def decode_steps(rows: float, slots: int, mean: float, most: int) -> float:
    """Until the last of `rows` completions has ended, where `slots` decode at a time.

    Their lengths are the quantiles of a log-normal distribution of this mean, cut at `most`.
    """
    count = max(math.ceil(rows), 1)
    ranks = (np.random.default_rng(0).permutation(count) + 0.5) / count
    normal = NormalDist(math.log(mean) - SPREAD**2 / 2, SPREAD)
    ends = [0.0] * min(slots, count)
    for rank in ranks:
        heapq.heapreplace(ends, ends[0] + min(math.exp(normal.inv_cdf(rank)), most))
    return max(ends)
