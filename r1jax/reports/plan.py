"""Programs that were planned, compiled for TPUs that are not here: memory, time, what moves.

Seconds are a roofline: the longer one of computing and of the memory's traffic, and then what the
links take, as if nothing hid it. Kernels count by formula, collectives as rings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh

from r1jax.config import ConfigError, UserError
from r1jax.files import absolute, read_bytes, write_atomic
from r1jax.machines.compiler import VARIABLE
from r1jax.machines.mesh import axes_across_slices
from r1jax.machines.planned import Iteration, Planned
from r1jax.machines.program_cache import HERE
from r1jax.machines.program_cost import Cost, cost_of
from r1jax.machines.topology import GIB, Slices
from r1jax.models.kernels import kernel_flops
from r1jax.models.moe import EXPERTS_FIT

HOUR = 3600.0
OUTSIDE_ITS_MEMORY = re.compile(
    r"(?:Used|temporaries \() ?([\d.]+)([KMGT])\)? (?:of|exceeds available HBM)"
)
PREFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Compiled:
    """What the compiler says: bytes on a device, and the program's text."""

    arguments: float = 0.0
    outputs: float = 0.0  # but those that take an argument's place
    temporaries: float = 0.0
    code: float = 0.0
    text: str = ""
    problem: str = ""  # why there is no program


@dataclass(frozen=True)
class ProgramPlan:
    """One program of an iteration, on one device."""

    planned: Planned
    compiled: Compiled
    cost: Cost
    compute_seconds: float
    memory_seconds: float
    link_seconds: float

    @property
    def held(self) -> dict[str, float]:
        """Bytes while it runs, by kind."""
        other = self.compiled.arguments - (sum(self.planned.held.values()) - self.planned.beside)
        more = {
            "other arguments": max(other, 0.0),
            "outputs": self.compiled.outputs,
            "temporaries": self.compiled.temporaries,
            "code": self.compiled.code,
        }
        return {kind: size for kind, size in (dict(self.planned.held) | more).items() if size}

    @property
    def hbm(self) -> float:
        return sum(self.held.values())

    @property
    def seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds) + self.link_seconds

    @property
    def total_seconds(self) -> float:
        """Of all its runs in an iteration."""
        return self.planned.runs * self.seconds


@dataclass(frozen=True)
class Plan:
    """A stage on these slices."""

    slices: Slices
    programs: Sequence[ProgramPlan]
    iterations: float
    notes: Sequence[str]

    @property
    def chips(self) -> int:
        return len(self.slices.devices)

    @property
    def hbm_peak(self) -> float:
        return max(program.hbm for program in self.programs)

    @property
    def fits(self) -> bool:
        sound = not any(program.compiled.problem for program in self.programs)
        return sound and self.hbm_peak <= self.slices.chip.hbm

    @property
    def iteration_seconds(self) -> float:
        return sum(program.total_seconds for program in self.programs)

    @property
    def chip_hours(self) -> float:
        return self.iteration_seconds * self.iterations * self.chips / HOUR

    def utilisation(self, program: ProgramPlan) -> float:
        """Model FLOPs over what the chips could do in its time."""
        most = program.seconds * self.chips * self.slices.chip.flops
        return program.planned.model_flops / most if most else 0.0


def make_plan(iteration: Iteration, slices: Slices, mesh: Mesh) -> Plan:
    """Compiles an iteration's programs, side by side. UserError where a kernel is missing."""
    options = os.environ.get(VARIABLE, "")
    logging.info("options of the TPU's compiler: %s", options)
    key = (
        f"{slices.name} x {slices.count}, libtpu {_version('libtpu')}, jax {_version('jax')},"
        f" {options}"
    )
    lowered: dict[str, tuple[str, Any]] = {}  # by their texts, so that equal ones compile once
    texts = []
    for program in iteration.programs:  # Python's part, one by one
        found = program.lower()
        texts.append(hashlib.sha256((key + found.as_text()).encode()).hexdigest()[:32])
        lowered.setdefault(texts[-1], (program.name, found))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ready = {text: pool.submit(_compiled, text, *one) for text, one in lowered.items()}
    programs = [
        _program(planned, ready[text].result(), slices, mesh)
        for planned, text in zip(iteration.programs, texts, strict=True)
    ]
    return Plan(slices, programs, iteration.count, iteration.notes)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _compiled(name: str, program: str, lowered: Any) -> Compiled:
    """From the cache of plans, where it has this name, or compiled and put there."""
    cache = os.environ.get("R1JAX_COMPILATION_CACHE", str(HERE))
    file = absolute(cache) / "plans" / name if cache else None
    if file is not None and file.exists():
        return Compiled(**json.loads(zlib.decompress(read_bytes(file))))
    began = time.perf_counter()
    found = _compile(lowered)
    logging.info("%s: compiled in %.0f s", program, time.perf_counter() - began)
    if file is not None:
        write_atomic(file, zlib.compress(json.dumps(asdict(found)).encode(), 1))
    return found


def _compile(lowered: Any) -> Compiled:
    try:
        program = lowered.compile()
    except Exception as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message and "out of memory" not in message.lower():
            raise
        needed = OUTSIDE_ITS_MEMORY.search(message)
        size = float(needed[1]) * PREFIXES[needed[2]] if needed else float("inf")
        said = message.partition("\n")[0][:500]
        return Compiled(temporaries=size, problem=f"its compiler ran out of memory: {said}")
    memory = program.memory_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        text=program.as_text(),
    )


def _program(planned: Planned, compiled: Compiled, slices: Slices, mesh: Mesh) -> ProgramPlan:
    chip, cost = slices.chip, Cost()
    if compiled.text:
        formulas = kernel_flops(mesh) | dict(planned.formulas)
        loops = {EXPERTS_FIT: 1} | dict(planned.loops)
        cost = cost_of(compiled.text, mesh, loops, formulas)
        for kernel in planned.kernels:
            if not any(name.startswith(kernel) for name in cost.kernels):
                raise UserError(
                    f"the program {planned.name!r} should have the kernel {kernel!r}; it has"
                    f" {', '.join(sorted(cost.kernels)) or 'none'}"
                )
    across = axes_across_slices(mesh)
    outside = sum(
        size for (_, axes), size in cost.collectives.items() if across & set(axes.split(","))
    )
    links = (cost.collective_bytes - outside) / chip.links + outside / chip.network
    return ProgramPlan(
        planned, compiled, cost, cost.flops / chip.flops, cost.bytes / chip.hbm_bandwidth, links
    )


# -- what is told ----------------------------------------------------------------------------------


def as_json(plan: Plan, price: float = 0.0) -> dict[str, Any]:
    """Bytes, FLOPs and seconds are of one chip, and of one run of a program."""
    return {
        "topology": plan.slices.name,
        "slices": plan.slices.count,
        "chips": plan.chips,
        "fits": plan.fits,
        "hbm_bytes_of_chip": plan.slices.chip.hbm,
        "hbm_bytes_peak": plan.hbm_peak,
        "programs": [_program_json(plan, program) for program in plan.programs],
        "iteration_seconds": plan.iteration_seconds,
        "iterations": plan.iterations,
        "chip_hours": plan.chip_hours,
        "days": plan.chip_hours / plan.chips / 24,
        **({"dollars": plan.chip_hours * price} if price else {}),
        "assumed": list(plan.notes),
        "advice": advice(plan),
    }


def _program_json(plan: Plan, program: ProgramPlan) -> dict[str, Any]:
    cost = program.cost
    return {
        "name": program.planned.name,
        "runs": program.planned.runs,
        "hbm_bytes": program.hbm,
        "hbm_bytes_by_kind": program.held,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "collective_bytes": cost.collective_bytes,
        "collectives": [
            {"kind": kind, "axes": axes, "bytes": size, "calls": cost.calls[kind, axes]}
            for (kind, axes), size in sorted(cost.collectives.items(), key=lambda item: -item[1])
        ],
        "seconds": program.seconds,
        "compute_seconds": program.compute_seconds,
        "memory_seconds": program.memory_seconds,
        "link_seconds": program.link_seconds,
        "utilisation": plan.utilisation(program),
        "kernels": dict(cost.kernels),
        "loops_counted_once": sorted(cost.unknown_loops),
        **({"problem": program.compiled.problem} if program.compiled.problem else {}),
    }


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _columns(first: str, *others: str | float) -> str:
    cells = (other if isinstance(other, str) else _number(other) for other in others)
    return f"{first:14}" + "".join(f"{cell:>12}" for cell in cells)


def _program_text(plan: Plan, program: ProgramPlan) -> str:
    cost = program.cost
    return _columns(
        program.planned.name,
        program.hbm / GIB,
        program.planned.runs,
        cost.flops / 1e12,
        cost.bytes / 1e9,
        cost.collective_bytes / 1e9,
        program.compute_seconds,
        program.memory_seconds,
        program.link_seconds,
        program.total_seconds,
        100 * plan.utilisation(program),
    )


def as_text(plan: Plan, price: float = 0.0) -> str:
    """The tables of a plan."""
    chip = plan.slices.chip
    several = f" x {plan.slices.count}" if plan.slices.count > 1 else ""
    lines = [
        f"{plan.slices.name}{several}: {plan.chips} chips of {chip.hbm / GIB:.1f} GiB",
        "",
        _columns(
            *("program", "GiB", "runs", "TFLOP", "GB", "GB sent", "compute s", "memory s"),
            *("links s", "iteration s", "MFU %"),
        ),
        *(_program_text(plan, program) for program in plan.programs),
    ]
    worst = max(plan.programs, key=lambda program: program.hbm)
    lines += ["", f"memory of a chip during {worst.planned.name!r}, the largest (GiB):"]
    for kind, size in sorted(worst.held.items(), key=lambda item: -item[1]):
        lines.append(f"  {kind:20}{_number(size / GIB):>10}")
    moved = [
        (size * p.planned.runs, f"{p.planned.name}: {kind} along {axes or 'none'}")
        for p in plan.programs
        for (kind, axes), size in p.cost.collectives.items()
    ]
    lines += ["", "collectives of an iteration, the largest (GB a chip):"]
    lines += [
        f"  {what:44}{_number(size / 1e9):>10}" for size, what in sorted(moved, reverse=True)[:6]
    ]
    days = plan.chip_hours / plan.chips / 24
    cost_said = f", {plan.chip_hours * price:,.0f} dollars" if price else ""
    lines += [
        "",
        f"an iteration {_number(plan.iteration_seconds)} s, the run's {plan.iterations:,.0f}"
        f" {_number(plan.chip_hours)} chip-hours, {_number(days)} days{cost_said}",
        *(f"assumed: {note}" for note in plan.notes),
    ]
    if unknown := {loop for program in plan.programs for loop in program.cost.unknown_loops}:
        lines.append(f"counted once, for want of a number: {', '.join(sorted(unknown))}")
    said = "fits" if plan.fits else "does NOT fit"
    lines += ["", f"{said}: {plan.hbm_peak / GIB:.1f} of {chip.hbm / GIB:.1f} GiB", *advice(plan)]
    return "\n".join(lines)


def advice(plan: Plan) -> list[str]:
    """What would make it fit, where it does not, with what that would save."""
    if plan.fits:
        return []
    worst = max(plan.programs, key=lambda program: program.hbm)
    over = worst.hbm - plan.slices.chip.hbm
    held = worst.held
    found = [f"{worst.planned.name!r} needs {over / GIB:.1f} GiB more than there are:"]
    if (caches := held.get("caches", 0.0)) > over:
        share = 1 - over / caches
        found.append(f"- engine.slots at {share:.0%} of what is planned now, or engine.memory_mib")
    state = sum(held.get(kind, 0.0) for kind in ("parameters", "moments", "reference"))
    if state:
        found.append(
            f"- twice the chips along fsdp leave {state / 2 / GIB:.1f} of the state's"
            f" {state / GIB:.1f} GiB on each"
        )
    if laid_out := held.get("rollout parameters", 0.0):
        found.append(
            f"- twice the chips along tensor leave {laid_out / 2 / GIB:.1f} of the rollout"
            f" parameters' {laid_out / GIB:.1f} GiB"
        )
    temporaries = held.get("temporaries", 0.0)
    if temporaries > over / 2 and not laid_out:
        found.append(
            f"- of {temporaries / GIB:.1f} GiB of temporaries model.override.remat = 'full' keeps"
            " one residual stream a layer; half the microbatch_rows keep about half"
        )
    return found


def write_json(plan_or_plans: Mapping[str, Any], output: str) -> None:
    """The JSON of a plan, or of each of a pipeline's."""
    try:
        Path(output).write_text(json.dumps(plan_or_plans, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from None
