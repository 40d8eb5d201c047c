"""Runs a config file's sweep(): one training run per dict of overrides, each in its own workdir.

    python -m r1jax.sweep --config FILE.py[:arg] --workdir DIR [--parallel N] [--dry_run]

A key is one of the config's ("loss.kl_coef"), or with a colon one of the file's arguments
(":seed"). WORKDIR/NAME is named by what differs between the runs (`kl_coef=0.01,seed=1`), and
WORKDIR/sweep.json says how far each is. With `--parallel N` each run has its N-th of the CPU's
cores. The same command again skips the runs that are complete and resumes the others. SIGTERM stops
those that run, each with a checkpoint. `python -m r1jax.tables --sweep DIR` makes the table.

tpu_scripts/sweep runs this with `--where=slices`: on slices of accelerators, through its verbs.
"""

import hashlib
import json
import re
import shlex
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import indent
from typing import Any

from absl import flags
from etils import epath

from r1jax.cli import run_command
from r1jax.config import ConfigError, Overrides, load_module, override
from r1jax.files import LOG, SWEEP, absolute
from r1jax.machines.preemption import STOPPED, listen
from r1jax.machines.processes import Processes, lock_workdir
from r1jax.machines.queue import HERE, Entry, Queue, read_queue
from r1jax.machines.slices import Slice, work_off
from r1jax.stages import checked

CONFIG = flags.DEFINE_string(
    "config", None, "FILE.py[:arg,arg=value] with get_config and sweep.", required=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the runs' workdirs.", required=True)
PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at the same time.", lower_bound=1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only print the runs and their commands.")
WHERE = flags.DEFINE_enum("where", "local", ["local", "slices"], "Where the runs are started.")
NAME = flags.DEFINE_string("name", "sweep", "Slices are called NAME-0, NAME-1, ...")
SLICES = flags.DEFINE_integer("slices", 1, "Slices at the same time.", lower_bound=1)
SLICE_FLAGS = flags.DEFINE_multi_string("slice_flag", [], "Of every verb of tpu_scripts/.")
CREATE_FLAGS = flags.DEFINE_multi_string("create_flag", [], "Of tpu_scripts/create.")
SETUP_FLAGS = flags.DEFINE_multi_string("setup_flag", [], "Of tpu_scripts/setup.")
PASS = flags.DEFINE_string("pass", "", "As of tpu_scripts/launch.")
KEEP = flags.DEFINE_bool("keep", False, "Leaves the slices when all is done.")
RETRY = flags.DEFINE_bool("retry", False, "On slices: runs that were set aside, too.")


@dataclass(frozen=True)
class SweepRun:
    name: str
    workdir: epath.Path
    command: list[str]
    config: dict[str, Any]  # with the overrides
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """As it would begin."""
        text = json.dumps(self.config, sort_keys=True)
        overrides = json.loads(json.dumps(self.overrides))
        return Entry(overrides, hashlib.sha256(text.encode()).hexdigest()[:16])


def make_runs(spec: str, workdir: epath.Path) -> list[SweepRun]:
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
        runs.append(SweepRun(name, workdir / name, command, values, overrides))
    return runs


def with_arguments(spec: str, overrides: Overrides) -> tuple[str, Overrides]:
    """FILE.py[:arg] with the overrides that are arguments (":seed"), and the other overrides."""
    file, _, arg = spec.partition(":")
    given = [f"{key[1:]}={value}" for key, value in overrides.items() if key.startswith(":")]
    others = {key: value for key, value in overrides.items() if not key.startswith(":")}
    arguments = ",".join(filter(None, [arg, *given]))  # of one given twice the last counts
    return (f"{file}:{arguments}" if arguments else file), others


def _command(spec: str, workdir: epath.Path, overrides: Overrides) -> list[str]:
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


def run_all(runs: Sequence[SweepRun], parallel: int, queue: Queue) -> dict[str, int]:
    """{name: exit code}, at most `parallel` at a time; one that fails doesn't stop the others."""
    waiting = list(reversed(runs))
    codes: dict[str, int] = {}
    with Processes(parallel) as processes:
        while waiting or processes.running:
            while waiting and processes.free:
                run = waiting.pop()
                print(f"started  {run.name}", flush=True)
                queue.start(run.name, HERE)
                processes.start(run.name, run.command, run.workdir)
            for name, code in processes.wait().items():
                codes[name] = code
                _finish(name, code, queue)
    return codes


def _finish(name: str, code: int, queue: Queue) -> None:
    if code == 0:
        queue.complete(name)
    elif code == STOPPED:
        queue.interrupted(name)
    else:
        queue.failed(name, f"ended with exit code {code}")
    print(f"{_outcome(code):8} {name}", flush=True)


def _outcome(code: int) -> str:
    return {0: "complete", STOPPED: "stopped"}.get(code, "FAILED")


def run_here(runs: Sequence[SweepRun], workdir: epath.Path) -> int:
    """Runs what is not complete -> exit code."""
    queue = Queue(workdir, {run.name: run.entry for run in runs}, most_failures=1)
    if elsewhere := sorted(queue.places() - {HERE}):
        raise ConfigError(
            f"{workdir} has a run on the slice {elsewhere[0]}: tpu_scripts/sweep goes on"
        )
    todo = [run for run in runs if queue.entries[run.name].state != "complete"]
    for run in runs:
        if run not in todo:
            print(f"skipped  {run.name} (complete)")
    listen()
    codes = run_all(todo, PARALLEL.value, queue)
    unfinished = [run for run in todo if codes[run.name]]
    print(f"{len(runs)} runs in {workdir}: {len(runs) - len(unfinished)} complete")
    for run in unfinished:
        code = codes[run.name]
        print(f"{_outcome(code)} with exit code {code}: {run.name}, see {run.workdir / LOG}")
    if not unfinished:
        return 0
    return STOPPED if {codes[run.name] for run in unfinished} == {STOPPED} else 1


def slices_of(workdir: epath.Path, queue_id: str = "", places: Sequence[str] = ()) -> list[Slice]:
    """As the flags ask for them, and those where there are runs already."""
    names = [f"{NAME.value}-{i}" for i in range(SLICES.value)]
    return [
        Slice(
            name,
            SLICE_FLAGS.value,
            CREATE_FLAGS.value,
            [f"--workdir={workdir}", f"--sweep={queue_id}", *SETUP_FLAGS.value],
            [f"--pass={PASS.value}"] if PASS.value else [],
        )
        for name in dict.fromkeys([*names, *places])
    ]


def run_on_slices(runs: Sequence[SweepRun], workdir: epath.Path) -> int:
    """Works off what is neither complete nor set aside -> exit code."""
    queue = Queue(workdir, {run.name: run.entry for run in runs})
    if RETRY.value:
        queue.retry()
    queue.slice_gone(HERE, taken=False)  # what ran here has ended with its driver
    slices = slices_of(workdir, queue.id, sorted(queue.places()))
    good, said = slices[0].call("create", "--dry_run", *slices[0].of_create)
    if not good:
        raise ConfigError(said.strip().removeprefix("error: "))
    commands = {run.name: ["python", *run.command[1:]] for run in runs}
    try:
        work_off(queue, commands, slices, KEEP.value, lambda said: print(said, flush=True))
    except KeyboardInterrupt:
        print("slices and their runs go on; the same command goes on, tpu_scripts/delete ends them")
        return 130
    unfinished = {name: e for name, e in queue.entries.items() if e.state != "complete"}
    print(f"{len(runs)} runs in {workdir}: {len(runs) - len(unfinished)} complete")
    for name, entry in unfinished.items():
        what = "set aside" if entry.state == "failed" else entry.state
        print(f"{what} after {entry.starts} starts: {name}: {entry.error}")
    return 1 if unfinished else 0


def main() -> int:
    workdir = absolute(WORKDIR.value)
    runs = make_runs(CONFIG.value, workdir)
    if DRY_RUN.value:
        known = read_queue(workdir) if (workdir / SWEEP).exists() else {}
        for run in runs:
            is_complete = run.name in known and known[run.name].is_complete(run.entry)
            what = "skipped (complete)" if is_complete else shlex.join(run.command)
            print(f"{run.name}\n    {what}")
        if WHERE.value == "slices":
            for one in slices_of(workdir):
                words = {"create": one.of_create, "setup": one.of_setup, "delete": ()}
                print(one.name)
                for verb, flags_of_verb in words.items():
                    print(indent(one.call(verb, "--dry_run", *flags_of_verb)[1], "    "), end="")
        return 0
    with lock_workdir(workdir):
        return (run_here if WHERE.value == "local" else run_on_slices)(runs, workdir)


if __name__ == "__main__":
    run_command(main)
