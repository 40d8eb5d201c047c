"""Runs a config file's sweep(): one training run per dict of overrides, each in its own workdir.

    python -m r1jax.sweep --config FILE.py[:arg] --workdir DIR [--parallel N] [--dry_run]

A key is one of the config's ("loss.kl_coef"), or with a colon one of the file's arguments
(":seed"). WORKDIR/NAME is named by what differs between the runs (`kl_coef=0.01,seed=1`). With
`--parallel N` each run has its N-th of the CPU's cores. The same command again skips the runs that
are complete and resumes the others. SIGTERM stops those that run, each with a checkpoint.
"""

import json
import re
import shlex
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from r1jax.cli import run_command
from r1jax.config import ConfigError, Overrides, load_module, override
from r1jax.files import LOG, SWEEP_COMPLETE, write_atomic
from r1jax.machines.preemption import STOPPED, listen
from r1jax.machines.processes import Processes
from r1jax.stages import checked

CONFIG = flags.DEFINE_string(
    "config", None, "FILE.py[:arg,arg=value] with get_config and sweep.", required=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the runs' workdirs.", required=True)
PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at the same time.", lower_bound=1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print the runs and their commands.")
WHERE = flags.DEFINE_enum("where", "local", ["local"], "Where the runs are started.")


@dataclass(frozen=True)
class SweepRun:
    name: str
    workdir: Path
    command: list[str]
    config: dict[str, Any]  # with the overrides

    @property
    def is_complete(self) -> bool:
        path = self.workdir / SWEEP_COMPLETE
        return path.exists() and json.loads(path.read_text()) == self.config


def make_runs(spec: str, workdir: Path) -> list[SweepRun]:
    """The runs of FILE.py[:arg]; ConfigError, before any is started, for what one cannot be."""
    module, _ = load_module(spec)
    if not hasattr(module, "sweep"):
        raise ConfigError(f"config file {spec.partition(':')[0]} has no sweep()")
    sweep = module.sweep()
    runs = []
    for name, overrides in zip(run_names(sweep), sweep, strict=True):
        run_spec, keys = with_arguments(spec, overrides)
        config = module.get_config(run_spec.partition(":")[2])
        override(config, keys)
        checked(config)
        values = json.loads(json.dumps(config.to_dict()))
        command = _command(run_spec, workdir / name, keys)
        runs.append(SweepRun(name, workdir / name, command, values))
    return runs


def with_arguments(spec: str, overrides: Overrides) -> tuple[str, Overrides]:
    """FILE.py[:arg] with the overrides that are arguments (":seed"), and the other overrides."""
    file, _, arg = spec.partition(":")
    given = [f"{key[1:]}={value}" for key, value in overrides.items() if key.startswith(":")]
    others = {key: value for key, value in overrides.items() if not key.startswith(":")}
    arguments = ",".join(filter(None, [arg, *given]))  # of one given twice the last counts
    return (f"{file}:{arguments}" if arguments else file), others


def _command(spec: str, workdir: Path, overrides: Overrides) -> list[str]:
    flag_values = [f"--config.{key}={value}" for key, value in overrides.items()]
    train = [sys.executable, "-m", "r1jax.train"]
    return [*train, f"--config={spec}", f"--workdir={workdir}", *flag_values]


def run_names(sweep: Sequence[Overrides]) -> list[str]:
    """Directory names from the keys that differ, the same for the same sweep."""
    if not sweep:
        raise ConfigError("sweep() returned no runs")
    keys = list(dict.fromkeys(key for overrides in sweep for key in overrides))
    differing = [key for key in keys if len({repr(run.get(key)) for run in sweep}) > 1] or keys
    last_parts = Counter(key.rpartition(".")[2].lstrip(":") for key in differing)
    labels = {}
    for key in differing:
        last = key.rpartition(".")[2].lstrip(":")
        labels[key] = last if last_parts[last] == 1 else key.replace(":", "arg-")
    names = [_name(run, labels) for run in sweep]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"sweep() has the run {twice[0]} more than once")
    return names


def _name(overrides: Overrides, labels: dict[str, str]) -> str:
    parts = [f"{labels[key]}={overrides[key]}" for key in labels if key in overrides]
    plain = ",".join(parts) or "defaults"
    name = re.sub(r"[^\w.=,+-]+", "-", plain)
    if name == plain and len(name) <= 120:
        return name
    return f"{name[:110]}-{zlib.crc32(plain.encode()):08x}"  # may be cut or ambiguous without it


def run_all(runs: Sequence[SweepRun], parallel: int) -> dict[str, int]:
    """{name: exit code}, at most `parallel` at a time; one that fails doesn't stop the others."""
    waiting = list(reversed(runs))
    by_name = {run.name: run for run in runs}
    codes: dict[str, int] = {}
    with Processes(parallel) as processes:
        while waiting or processes.running:
            while waiting and processes.free:
                run = waiting.pop()
                print(f"started  {run.name}", flush=True)
                processes.start(run.name, run.command, run.workdir)
            for name, code in processes.wait().items():
                codes[name] = _finish(by_name[name], code)
    return codes


def _finish(run: SweepRun, code: int) -> int:
    if code == 0:
        write_atomic(run.workdir / SWEEP_COMPLETE, json.dumps(run.config).encode())
    print(f"{_outcome(code):8} {run.name}", flush=True)
    return code


def _outcome(code: int) -> str:
    return {0: "complete", STOPPED: "stopped"}.get(code, "FAILED")


def main() -> int:
    runs = make_runs(CONFIG.value, Path(WORKDIR.value))
    todo = [run for run in runs if not run.is_complete]
    for run in runs:
        if run not in todo:
            print(f"skipped  {run.name} (complete)")
    if DRY_RUN.value:
        for run in todo:
            print(f"{run.name}\n    {shlex.join(run.command)}")
        return 0
    listen()
    codes = run_all(todo, PARALLEL.value)
    unfinished = [run for run in todo if codes[run.name]]
    print(f"{len(runs)} runs in {WORKDIR.value}: {len(runs) - len(unfinished)} complete")
    for run in unfinished:
        code = codes[run.name]
        print(f"{_outcome(code)} with exit code {code}: {run.name}, see {run.workdir / LOG}")
    if not unfinished:
        return 0
    return STOPPED if {codes[run.name] for run in unfinished} == {STOPPED} else 1


if __name__ == "__main__":
    run_command(main)
