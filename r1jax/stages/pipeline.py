"""A whole pipeline: stages in order, each in a workdir of its own below the pipeline's.

`config.stages` maps names to the configs of stages. In one of them a text "@NAME" or "@NAME/FILE"
stands for the workdir of another stage, or a file in it; that is how a model or a data set is
handed on, and the only way. A stage that is complete is not run again, an interrupted one resumes
by itself. A complete stage whose config has changed since, or whose inputs were made anew, is an
error that says what differs; `--restart_from NAME` deletes that stage and all that was made from
it. `pipeline.json` says what came from what, `figures/pipeline.png` shows it.

`--only NAME` runs one stage. `--parallel N` runs up to N at the same time, each in a process with
its share of the cores: for small models on a CPU, which threads make no faster.
"""

from __future__ import annotations

import copy
import functools
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from r1jax.config import ConfigError, UserError, check_choice, section
from r1jax.files import (
    DELETED,
    LOG,
    PIPELINE,
    STAGE_COMPLETE,
    STAGE_INPUTS,
    absolute,
    in_bucket,
    read_object,
    write_atomic,
    write_json,
)
from r1jax.machines.cpu import MOST_MAPPED, mapped_share, quick_compile
from r1jax.machines.hosts import ask_first, wait_for_all
from r1jax.machines.preemption import STOPPED, Stopped, stop_if_asked
from r1jax.machines.processes import Processes, lock_workdir
from r1jax.reports.pipeline import pipeline_tables
from r1jax.reports.runs import read_run
from r1jax.reports.table import print_rich
from r1jax.reports.write import write_pipeline_report
from r1jax.stages import checked, stage_of
from r1jax.training.run_config import changes, jsonable


@dataclass(frozen=True)
class PipelineConfig:
    """Each stage has its own seed, mesh and everything else."""

    stage: str  # "pipeline"
    # The configs of its stages by name. A text "@NAME" or "@NAME/FILE" in one is another's workdir.
    stages: dict[str, Any]
    # XLA compiles in half the time, to slower programs: for stages of a few steps.
    quick_compile: bool = False


CONFIG = PipelineConfig


def describe(config: PipelineConfig) -> str:
    """A line per stage, in the order in which they run."""
    configs = ConfigDict(config.stages, sort_keys=False)
    stages = ordered(ConfigDict({"stages": configs}), absolute("."))
    lines = []
    for stage in stages:
        module = stage_of(stage.config)
        size = module.describe(section(module.CONFIG, stage.config))
        lines.append(f"{stage.name} ({stage.kind}): {size}")
    return "\n".join([f"{len(stages)} stages", *lines])


@dataclass(frozen=True)
class PipelineStage:
    """One stage of the pipeline."""

    name: str
    kind: str  # config.stage
    config: Mapping[str, Any]  # as written, with its references
    reads: tuple[str, ...]  # the stages that it refers to
    workdir: epath.Path


def run(config_dict: ConfigDict, workdir: str, parallel: int = 1) -> None:
    """Runs what is not complete, then writes the tables and figures of all of it.

    With `parallel` > 1 this process must have been started as a command: it starts itself again,
    for one stage each.
    """
    config = section(PipelineConfig, config_dict)
    root = absolute(workdir)
    stages = ordered(config_dict, root)
    local = jax.default_backend() == "cpu" and jax.process_count() == 1
    if parallel > 1 and (in_bucket(root) or not local):
        raise ConfigError(
            "--parallel is for one process on CPUs with a local --workdir; on accelerators a stage"
            " has all devices"
        )
    if jax.process_index() == 0:  # what a restart that was killed has left
        _delete(root / DELETED)
        for stage in stages:
            if in_bucket(root) and (stage.workdir / DELETED).exists():
                _delete(stage.workdir)
    check_stages(stages)
    if parallel > 1:
        run_in_parallel(stages, root, parallel)
    else:
        with quick_compile(config.quick_compile):
            run_stages(stages, root)
    _write_overview(root, stages)
    if jax.process_index() == 0:
        for table in pipeline_tables([read_run(root)]):
            print_rich(table)
        for path in write_pipeline_report([root], root):
            print(f"wrote {path}")
    print(f"models, data, metrics and tables of {len(stages)} stages are in {root}")


def run_stages(stages: Sequence[PipelineStage], root: epath.Path) -> None:
    for stage in stages:
        stop_if_asked()
        if ask_first(functools.partial(completion, stage)):
            print(f"-- {title(stage, stages)}: complete", flush=True)
            continue
        print(f"-- {title(stage, stages)}", flush=True)
        _write_overview(root, stages)
        run_stage(stage, stages, root)
        if mapped_share() > MOST_MAPPED:
            jax.clear_caches()


def title(stage: PipelineStage, stages: Sequence[PipelineStage]) -> str:
    return f"{stages.index(stage) + 1}/{len(stages)} {stage.name} ({stage.kind})"


def run_stage(stage: PipelineStage, stages: Sequence[PipelineStage], root: epath.Path) -> None:
    first = jax.process_index() == 0
    start = time.time()
    config = resolved(stage, root)
    with lock_workdir(stage.workdir) if first else nullcontext():
        if first:
            write_json(stage.workdir / STAGE_INPUTS, inputs_of(stage, stages))
        try:
            stage_of(config).run(config, str(stage.workdir))
        except UserError as error:
            raise type(error)(
                f"stage {stage.name}: {error} (--restart_from={stage.name} begins it anew)"
            ) from None
        if first:
            _mark(stage, stages, time.time() - start)
    wait_for_all(f"stage {stage.name}")


def run_only(config_dict: ConfigDict, workdir: str, name: str) -> None:
    """Runs one stage, unless it is complete; ConfigError where one that it reads is not."""
    root = absolute(workdir)
    stages = ordered(config_dict, root)
    check_choice("--only", name, [stage.name for stage in stages])
    check_stages(stages)
    stage = next(stage for stage in stages if stage.name == name)
    read = [other for other in stages if other.name in stage.reads]
    if missing := ask_first(lambda: [other.name for other in read if not completion(other)]):
        raise ConfigError(f"stage {name} reads {missing[0]}, which is not complete")
    if ask_first(lambda: completion(stage) is not None):
        print(f"stage {name} is complete")
        return
    with quick_compile(section(PipelineConfig, config_dict).quick_compile):
        run_stage(stage, stages, root)


def run_in_parallel(stages: Sequence[PipelineStage], root: epath.Path, parallel: int) -> None:
    """Each stage as a command of its own, `parallel` at a time.

    Of those that can begin, one for which more stages in a row are waiting goes first. Behind a
    stage that fails no other is started; those that run may end.
    """
    in_a_row = stages_behind(stages)
    waiting = sorted((s for s in stages if not completion(s)), key=lambda s: -in_a_row[s.name])
    by_name = {stage.name: stage for stage in stages}
    failed: dict[str, int] = {}
    with Processes(parallel) as processes:
        while waiting or processes.running:
            unmade = {stage.name for stage in waiting} | {*processes.running}
            ready = [stage for stage in waiting if unmade.isdisjoint(stage.reads)]
            for stage in ready[: processes.free]:
                print(f"-- {title(stage, stages)} begins", flush=True)
                waiting.remove(stage)
                processes.start(stage.name, command_of(stage.name), stage.workdir)
            _write_overview(root, stages)
            for name, code in processes.wait().items():
                if code == STOPPED:
                    raise Stopped
                found = completion(by_name[name])
                if code or not found:
                    failed[name] = code
                    waiting = []
                else:
                    seconds = f"{found['seconds']:.0f} s"
                    print(f"-- {title(by_name[name], stages)} is complete, {seconds}", flush=True)
    if failed:
        _write_overview(root, stages)
        raise UserError("\n".join(_failure(by_name[name], code) for name, code in failed.items()))


def stages_behind(stages: Sequence[PipelineStage]) -> dict[str, int]:
    """{stage: how many stages, one made from the other, come after it at the longest}."""
    found: dict[str, int] = {}
    for stage in reversed(stages):
        readers = [found[other.name] for other in stages if stage.name in other.reads]
        found[stage.name] = 1 + max(readers) if readers else 0
    return found


def command_of(stage: str) -> list[str]:
    """This process's command for one stage; of a flag given twice the last counts."""
    flags = "--parallel=1", "--restart_from=", f"--only={stage}"
    return [sys.executable, *sys.orig_argv[1:], *flags]


def _failure(stage: PipelineStage, code: int) -> str:
    """What the stage's log ends with, where it is an error in words."""
    log = stage.workdir / LOG
    last = log.read_text().rstrip().rpartition("\n")[2]
    said = last.removeprefix("error: ") if code == 2 else f"stage {stage.name}: exit code {code}"
    return f"{said} (see {log})"


def restart(config_dict: ConfigDict, workdir: str, name: str) -> None:
    """Deletes the workdirs of a stage and of all stages that read it, directly or not."""
    stages = ordered(config_dict, absolute(workdir))
    check_choice("--restart_from", name, [stage.name for stage in stages])
    stale = {name}
    for stage in stages:
        if stale & set(stage.reads):
            stale.add(stage.name)
    # Who reads goes before what is read, and each at once: a kill leaves nothing half made.
    for stage in reversed(stages):
        if stage.name in stale and stage.workdir.exists() and jax.process_index() == 0:
            _delete(stage.workdir)
            print(f"deleted {stage.workdir}")


def _delete(path: epath.Path) -> None:
    """Out of the way by one renaming, then deleted. In a bucket, where nothing is renamed, a mark
    says that it is being deleted, and goes last.
    """
    if not path.exists():
        return
    if in_bucket(path):
        write_atomic(path / DELETED, b"deleted\n")
        (path / STAGE_COMPLETE).unlink(missing_ok=True)
        for child in path.iterdir():
            if child.name != DELETED:
                child.rmtree()
        (path / DELETED).unlink()
        return
    if path.name != DELETED:
        trash = path.parent / DELETED / f"{path.name}-{uuid.uuid4().hex}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        path = path.rename(trash)
    path.rmtree()


# -- the order -------------------------------------------------------------------------------------


def ordered(config_dict: ConfigDict, root: epath.Path) -> list[PipelineStage]:
    """The stages, each behind those that it reads and else as the config has them.

    ConfigError for a wrong key, an unknown kind of stage, a reference to nothing or in a circle.
    """
    configs = config_dict.stages
    if not configs:
        raise ConfigError("config.stages is empty")
    waiting = [_stage(name, configs[name], root) for name in configs]
    for stage in waiting:
        for name in stage.reads:
            if name not in configs:
                raise ConfigError(
                    f"config.stages.{stage.name} refers to @{name}, which is none of"
                    f" {', '.join(configs)}"
                )
    stages: list[PipelineStage] = []
    while waiting:
        placed = {stage.name for stage in stages}
        ready = next((stage for stage in waiting if placed.issuperset(stage.reads)), None)
        if ready is None:
            circle = ", ".join(stage.name for stage in waiting)
            raise ConfigError(f"config.stages: {circle} wait for each other")
        waiting.remove(ready)
        stages.append(ready)
    return stages


def _stage(name: str, config: Any, root: epath.Path) -> PipelineStage:
    where = f"config.stages.{name}"
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{where} is not a section of keys")
    if name.startswith(".") or "/" in name:
        raise ConfigError(f"{where}: a stage's name is that of a directory")
    stage_of(config, where)
    if config.stage == "pipeline":
        raise ConfigError(f"{where}: a pipeline cannot be a stage of a pipeline")
    try:
        checked(config, where)
    except ConfigError as error:
        raise ConfigError(f"stage {name}: {error}") from None
    reads = tuple(dict.fromkeys(text[1:].partition("/")[0] for text in _references(config)))
    return PipelineStage(name, config.stage, jsonable(config), reads, root / name)


def _references(value: Any) -> Iterator[str]:
    """Every text that begins with @, at any depth."""
    if isinstance(value, str) and value.startswith("@"):
        yield value
    elif isinstance(value, Mapping | ConfigDict):
        for key in value:
            yield from _references(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)


def resolved(stage: PipelineStage, root: epath.Path) -> ConfigDict:
    """The stage's config with paths in the places of its references."""

    def replace(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("@"):
            return str(root / value[1:])
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        return [replace(item) for item in value] if isinstance(value, list) else value

    return ConfigDict(replace(copy.deepcopy(dict(stage.config))))


# -- what is complete ------------------------------------------------------------------------------


def completion(stage: PipelineStage) -> dict[str, Any] | None:
    """What the stage wrote down when it was complete: id, config, the ids of what it read."""
    path = stage.workdir / STAGE_COMPLETE
    return read_object(path) if path.exists() else None


def check_stages(stages: Sequence[PipelineStage]) -> None:
    """Raises ConfigError where a stage that is complete, or has begun, isn't what the config asks
    for any more."""
    done, begun = ask_first(
        lambda: (
            {stage.name: found for stage in stages if (found := completion(stage))},
            {stage.name: begun_with(stage) for stage in stages},
        )
    )
    for stage in stages:
        how = f"take another --workdir, or --restart_from={stage.name}"
        found = done.get(stage.name)
        if found and (differing := changes(found["config"], dict(stage.config))):
            raise ConfigError(
                f"stage {stage.name} is complete with another config"
                f" ({'; '.join(differing)}); {how}"
            )
        for name, identity in (found["reads"] if found else begun[stage.name]).items():
            if done.get(name, {}).get("id") != identity:
                raise ConfigError(
                    f"stage {stage.name} was made from another {name} than the one in"
                    f" {stage.workdir.parent / name}; {how}"
                )


def begun_with(stage: PipelineStage) -> dict[str, str]:
    """{stage: id} of what the stage read when it began; {} where it has not begun."""
    path = stage.workdir / STAGE_INPUTS
    return read_object(path) if path.exists() else {}


def inputs_of(stage: PipelineStage, stages: Sequence[PipelineStage]) -> dict[str, str]:
    """{stage: id} of the complete stages that it reads."""
    by_name = {other.name: other for other in stages}
    return {name: (completion(by_name[name]) or {})["id"] for name in stage.reads}


def _mark(stage: PipelineStage, stages: Sequence[PipelineStage], seconds: float) -> None:
    about = {
        "id": uuid.uuid4().hex,
        "seconds": round(seconds, 1),  # of the last start, where it was resumed
        "reads": inputs_of(stage, stages),
        "config": dict(stage.config),
    }
    write_json(stage.workdir / STAGE_COMPLETE, about)


def _write_overview(root: epath.Path, stages: Sequence[PipelineStage]) -> None:
    """pipeline.json: {stage: {"stage", "reads", "complete", "seconds", "model"}} in order.

    `model` is one from outside of the pipeline.
    """
    if jax.process_index() != 0:
        return
    overview = {}
    for stage in stages:
        found = completion(stage)
        about = {"stage": stage.kind, "reads": list(stage.reads), "complete": found is not None}
        if model := _model_from_outside(stage):
            about["model"] = model
        overview[stage.name] = about | ({"seconds": found["seconds"]} if found else {})
    write_json(root / PIPELINE, {"stages": overview})


def _model_from_outside(stage: PipelineStage) -> str | None:
    model = stage.config.get("model")
    path = model.get("path") if isinstance(model, Mapping) else model
    return path if isinstance(path, str) and path and not path.startswith("@") else None
