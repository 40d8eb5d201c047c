"""Times a GRPO config on this machine: seconds a step, tokens a second, share of the matmul peak.

    python -m r1jax.bench --config experiments/FILE.py[:arg,arg=value] [--output FILE.json] \\
        [--config.section.key=value ...]

Runs all `total_steps` of the config in a workdir that is thrown away, without its evaluations, and
takes medians over its iterations after the first, which compiles. Prints a table and writes the
numbers as JSON, one iteration after the other under `iterations`. The figures:

    step_seconds            an iteration: rollout, rewards, log-probabilities, update(s)
    rollout_seconds         of it the rollout; prefill_seconds and decode_seconds of that
    rollout_tokens_per_s    sampled tokens, up to and with the end of sequence
    wasted_slot_share       decoded rows that were idle
    acceptance_rate         drafts that were right, with engine.speculative
    ref_seconds             the reference policy's log-probabilities
    update_seconds          forward, backward and optimizer
    update_tokens_per_s     prompts (once a packed row) and completions
    padding_share           of the update's tokens
    completion_tokens       of an iteration
    matmul_peak_gflops      2048^3 float32, the best before the first step and after the last
    programs_compiled       in an iteration: where it is not 0, it took seconds longer for it
    update_peak_share       6 x parameters of a token x (completion tokens + distinct prompt tokens)
                            / update_seconds / the peak
    compile_seconds, programs, programs_after_first, peak_memory_mib, device
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from r1jax.cli import define_config, run_command
from r1jax.config import ConfigError, section
from r1jax.files import METRICS, ROLLOUTS, TIMINGS, absolute, read_jsonl, write_atomic
from r1jax.machines.hosts import set_up_jax
from r1jax.reports.runs import read_run
from r1jax.rollout.files import read_rollouts
from r1jax.types import Rollout

PEAK_SIZE, PEAK_TRIES = 2048, 10
SAMPLED = "grpo/rollout/decode_seconds"  # in the first line of an iteration that sampled


def define_flags() -> None:
    define_config("FILE.py[:arg,arg=value] of a GRPO run.")
    flags.DEFINE_string("output", None, "FILE.json for the figures.")
    flags.mark_flag_as_required("config")


def main() -> None:
    config, output = flags.FLAGS.config, flags.FLAGS.output
    if config.get("stage") != "grpo":
        raise ConfigError(f"config.stage {config.get('stage')!r}: bench times stage 'grpo'")
    set_up_jax()
    figures = bench(config)
    print_figures(figures)
    if output:
        write_atomic(absolute(output), (json.dumps(figures, indent=2) + "\n").encode())


def bench(config: ConfigDict) -> dict[str, Any]:
    """Runs the config and returns the figures."""
    import jax

    from r1jax.stages import grpo

    config = ConfigDict(config.to_dict())
    if "evaluation" in config:
        config.evaluation = {"every": 0}
    config.checkpoint_every = 0
    config.keep_rollouts = 0
    sizes = section(grpo.CONFIG, config)
    # The first iteration compiles, and with rollouts_ahead the last one samples nothing.
    least = (1 + sizes.rollouts_ahead) * sizes.updates_per_rollout
    if sizes.total_steps <= least:
        raise ConfigError(
            f"config.total_steps {sizes.total_steps} leaves no iteration to time: bench needs more"
            f" than {least}, as the first one compiles"
        )
    peak = matmul_peak()
    with tempfile.TemporaryDirectory(prefix="r1jax-bench-") as workdir:
        grpo.train(config, workdir)
        path = absolute(workdir)
        rows = [
            metrics | timings
            for metrics, timings in zip(
                read_jsonl(path / METRICS), read_jsonl(path / TIMINGS), strict=True
            )
        ]
        parameters = read_run(path).active_params
        peak = max(peak, matmul_peak())
        rollouts = [read_rollouts(directory) for directory in sorted((path / ROLLOUTS).iterdir())]
    each = sizes.updates_per_rollout
    compiled = [0, *(row["compile/programs"] for row in rows[each - 1 :: each])]
    iterations = [
        iteration_figures(rows[i * each : (i + 1) * each], rollout, compiled[i], parameters, peak)
        for i, rollout in enumerate(rollouts)
        if SAMPLED in rows[i * each]
    ]
    figures: dict[str, Any] = {
        name: statistics.median(iteration[name] for iteration in iterations[1:])
        for name in iterations[0]
    }
    first, last = rows[each - 1], rows[-1]
    device = jax.devices()[0]
    return figures | {
        "matmul_peak_gflops": peak,
        "parameters": parameters,
        "compile_seconds": last["compile/seconds"],
        "programs": last["compile/programs"],
        "programs_after_first": last["compile/programs"] - first["compile/programs"],
        "peak_memory_mib": last.get("memory/device_peak_mib", last["memory/host_peak_mib"]),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "iterations": iterations,
    }


def iteration_figures(
    updates: Sequence[Mapping[str, float]],
    rollouts: Sequence[Rollout],
    compiled_before: float,
    parameters: int,
    peak: float,
) -> dict[str, float]:
    """The figures of one iteration from the lines of its updates and its rollouts."""

    def seconds(name: str) -> float:
        return sum(line.get(f"grpo/seconds/{name}", 0.0) for line in updates)

    first, update = updates[0], seconds("update")
    completion_tokens = sum(len(rollout.completion.tokens) for rollout in rollouts)
    prompts = {r.completion.prompt_index: len(r.prompt_tokens) for r in rollouts}
    flops = 6 * parameters * (completion_tokens + sum(prompts.values()))
    return {
        "step_seconds": seconds("total"),
        "rollout_seconds": seconds("rollout"),
        "prefill_seconds": first["grpo/rollout/prefill_seconds"],
        "decode_seconds": first[SAMPLED],
        "rollout_tokens_per_s": first["grpo/rollout/tokens_per_s"],
        "wasted_slot_share": first["grpo/rollout/wasted_slot_share"],
        **_drafted(first),
        "ref_seconds": seconds("ref_logprobs"),
        "old_seconds": seconds("old_logprobs"),
        "update_seconds": update,
        "update_tokens_per_s": sum(line["grpo/batch/tokens"] for line in updates) / update,
        "padding_share": statistics.fmean(line["grpo/batch/padding_share"] for line in updates),
        "completion_tokens": completion_tokens,
        "programs_compiled": updates[-1]["compile/programs"] - compiled_before,
        "update_peak_share": flops / update / (peak * 1e9),
    }


def _drafted(line: Mapping[str, float]) -> dict[str, float]:
    name = "grpo/rollout/acceptance_rate"
    return {"acceptance_rate": line[name]} if name in line else {}


def matmul_peak() -> float:
    """GFLOP/s of a large float32 matmul over all local devices: the best of a few tries."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = jax.local_devices()
    rows = NamedSharding(Mesh(devices, "x"), PartitionSpec("x"))
    shape = (len(devices), PEAK_SIZE, PEAK_SIZE)
    a = jax.device_put(jnp.ones(shape, jnp.float32), rows)
    multiply = jax.jit(lambda a: a @ a, out_shardings=rows)
    jax.block_until_ready(multiply(a))
    best = float("inf")
    for _ in range(PEAK_TRIES):
        began = time.perf_counter()
        jax.block_until_ready(multiply(a))
        best = min(best, time.perf_counter() - began)
    return len(devices) * 2 * PEAK_SIZE**3 / best / 1e9


def print_figures(figures: Mapping[str, Any]) -> None:
    table = Table("figure", "median", title=f"{len(figures['iterations']) - 1} iterations")
    for name, value in figures.items():
        if name != "iterations":
            table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else f"{value}")
    Console().print(table)


if __name__ == "__main__":
    define_flags()
    run_command(main)
