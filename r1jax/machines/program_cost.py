"""What a compiled program does, read from the compiler's own text: FLOPs, bytes, collectives.

Loops are multiplied out, which XLA's own analysis doesn't do. Everything is of one device.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "f8e4m3fn": 8,
    "f8e5m2": 8, "c64": 64, "c128": 128,
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# Neither computed nor moved: names for what is there, or the ends of what has begun elsewhere.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "add-dependency",
    "copy-done", "async-done", "async-update", "domain",
}  # fmt: skip
UNMOVED = r'custom_call_target="(AllocateBuffer|ShapeOnlyCustomCall|Sharding|SPMD\w*)"'
BEGINS = 'custom_call_target="AsyncCollectiveStart"'
SLICING = ("dynamic-slice", "slice", "gather")
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place, by which of the operands
# (operands, outputs) of a kernel's call -> FLOPs, or FLOPs and bytes, by what its name begins with
KernelFormula = Callable[[Sequence["Shape"], Sequence["Shape"]], float | tuple[float, float]]

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_BEGIN = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")


@dataclass(frozen=True)
class Shape:
    """Of one array."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool  # not in a core's own memory

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        return self.size * BITS[self.dtype] / 8

    @property
    def hbm_bytes(self) -> float:
        return self.bytes if self.in_hbm else 0.0


@dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    opcode: str
    outputs: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str  # what stands in its brackets
    attributes: str  # what stands behind them
    is_root: bool

    @property
    def output(self) -> Shape:
        return self.outputs[0]

    def called(self, *keys: str) -> list[str]:
        """The computations that these attributes name."""
        found = []
        for key in keys:
            for names in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += re.findall(r"[\w.\-]+", names.replace("%", ""))
        return found

    def numbers(self, key: str) -> list[int]:
        """{1,2} of an attribute."""
        found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return [int(n) for n in found[1].split(",") if n] if found else []

    @property
    def scope(self) -> str:
        """Where in the Python program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = Mapping[str, Instruction]


def _totals() -> Any:
    return defaultdict(float)


@dataclass
class Cost:
    """Of a program, or a part of it, on one device."""

    flops: float = 0.0  # of matrix products and kernels
    bytes: float = 0.0  # read from and written to its memory
    # Bytes sent, and how often, by kind of collective and the mesh's axes: ("all-gather", "fsdp").
    collectives: dict[tuple[str, str], float] = field(default_factory=_totals)
    calls: dict[tuple[str, str], float] = field(default_factory=_totals)
    kernels: dict[str, float] = field(default_factory=_totals)  # calls by name
    unknown_loops: set[str] = field(default_factory=set)  # counted once, for want of a number

    def add(self, other: Cost, times: float = 1) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for key, value in other.collectives.items():
            self.collectives[key] += times * value
            self.calls[key] += times * other.calls[key]
        for name, count in other.kernels.items():
            self.kernels[name] += times * count
        self.unknown_loops |= other.unknown_loops

    @property
    def collective_bytes(self) -> float:
        return sum(self.collectives.values())


def cost_of(
    text: str,
    mesh: Mesh,
    loops: Mapping[str, float] | None = None,
    kernels: Mapping[str, KernelFormula] | None = None,
) -> Cost:
    """The cost of a compiled program's text (`compiled.as_text()`).

    `loops`: how often those loops run whose length is a value, by the `jax.named_scope` around
    them; of a branching, which branch is the usual one. `kernels`: the FLOPs of kernels whose
    inside the text does not show.
    """
    computations, entry = _parse(text)
    return _Walk(computations, mesh, loops or {}, kernels or {}).cost(entry)


# -- reading ---------------------------------------------------------------------------------------


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """The computations by name, and the name of the one that begins."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current, line = "", None, ""
    for next_line in [*text.splitlines(), "}"]:
        begins = _BEGIN.match(next_line) is not None
        if line and current is not None and (begins or next_line == "}"):
            found = _instruction(line)
            current[found.name] = found
            line = ""
        if header := _HEADER.match(next_line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif next_line == "}":
            current = None
        elif begins or line:  # an instruction may go over several lines
            line += next_line
    return computations, entry


def _instruction(line: str) -> Instruction:
    begin = _BEGIN.match(line)
    assert begin is not None
    rest = line[begin.end() :]
    type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.search(rest, type_end)
    assert opcode is not None, line[:200]
    close = _closing(rest, opcode.end() - 1)
    arguments = rest[opcode.end() : close]
    return Instruction(
        name=begin[2],
        opcode=opcode[1],
        outputs=tuple(_shapes(rest[:type_end])),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        attributes=rest[close + 1 :],
        is_root=begin[1] is not None,
    )


def _closing(text: str, start: int) -> int:
    """The bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"no closing bracket in {text[:100]!r}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        if dtype in BITS:
            space = re.search(r"S\((\d+)\)", layout)
            sizes = tuple(int(n) for n in dims.split(",") if n)
            yield Shape(dtype, sizes, space is None or space[1] == "0")


# -- counting --------------------------------------------------------------------------------------


class _Walk:
    def __init__(
        self,
        computations: Mapping[str, Computation],
        mesh: Mesh,
        loops: Mapping[str, float],
        kernels: Mapping[str, KernelFormula],
    ) -> None:
        self._computations, self._mesh = computations, mesh
        self._loops, self._kernels = loops, kernels
        self._known: dict[tuple[str, bool], Cost] = {}
        self._begun = _begun(computations)

    def cost(self, name: str, fused: bool = False) -> Cost:
        """Of a computation; what is fused moves nothing through the memory."""
        if (name, fused) not in self._known:
            found = self._known[name, fused] = Cost()
            for instruction in self._computations.get(name, {}).values():
                if instruction.opcode not in FREE and not instruction.opcode.endswith("-done"):
                    self._count(found, instruction, self._computations[name], fused)
        return self._known[name, fused]

    def _count(self, total: Cost, it: Instruction, around: Computation, fused: bool) -> None:
        operands = [around[name] for name in it.operands if name in around]
        kind = it.opcode.removesuffix("-start")
        if it.opcode == "while":
            (body,) = it.called("body")
            total.add(self.cost(body), self._trips(it, total))
            return
        if it.opcode == "conditional":
            branches = it.called("true_computation", "false_computation", "branch_computations")
            costs = [self.cost(branch) for branch in branches]
            usual = self._named(it)
            dearest = max(costs, key=lambda cost: cost.flops + cost.bytes)
            total.add(dearest if usual is None else costs[int(usual)])
            return
        if it.opcode in ("call", "async-start"):
            for name in it.called("to_apply", "calls", "called_computations"):
                total.add(self.cost(name, fused))
            return
        if kind in COLLECTIVES:
            if self._begun.get(_channel(it), it.name) != it.name:
                return  # a later piece of one that runs beside products, and was counted
            if kind == "all-reduce" and fused and _is_scattered(it, around):
                kind = "reduce-scatter"
            key = kind, self._axes(it)
            total.collectives[key] += _sent(kind, it, operands, self._group_size(it))
            total.calls[key] += 1
        elif it.opcode == "fusion":
            for name in it.called("calls"):
                total.add(self.cost(name, fused=True))
        elif it.opcode == "dot":
            total.flops += _dot_flops(it, operands)
        elif it.opcode == "convolution":
            total.flops += _convolution_flops(it, operands)
        elif it.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in it.attributes:
            flops, moved = self._of_kernel(total, it, operands)
            total.flops += flops
            total.bytes += moved
            return
        if not fused:
            total.bytes += self._moved(it, operands)

    def _of_kernel(
        self, total: Cost, it: Instruction, operands: Sequence[Instruction]
    ) -> tuple[float, float]:
        """FLOPs and bytes; what no formula says is read and written whole."""
        name = re.sub(r"[.\d]+$", "", it.name)
        total.kernels[name] += 1
        flops, moved = 0.0, self._moved(it, operands)
        for begin, formula in self._kernels.items():
            if name.startswith(begin):
                shapes = [shape for operand in operands for shape in operand.outputs]
                found = formula(shapes, it.outputs)
                flops, moved = found if isinstance(found, tuple) else (found, moved)
        return flops, moved

    def _named(self, it: Instruction) -> float | None:
        """What `loops` says of it, by the name of the scope around it."""
        around = it.scope.rpartition("/")[0].split("/")[-1]  # jvp(NAME) where differentiated
        scopes = re.findall(r"\w+", around)
        return next((self._loops[scope] for scope in scopes if scope in self._loops), None)

    def _trips(self, loop: Instruction, total: Cost) -> float:
        """How often a loop runs: a number that its condition compares with, or one of `loops`."""
        if (named := self._named(loop)) is not None:
            return named
        (name,) = loop.called("condition")
        condition = self._computations[name]
        for instruction in condition.values():
            if instruction.opcode == "compare" and "direction=LT" in instruction.attributes:
                counter, bound = (condition[operand] for operand in instruction.operands)
                if (most := _number_of(bound)) is not None:
                    return -(-most // self._step(loop, counter))
        known = re.search(r"known_trip_count\D+(\d+)", loop.attributes)
        if known:
            return int(known[1])
        total.unknown_loops.add(loop.scope or loop.name)
        return 1

    def _step(self, loop: Instruction, counter: Instruction) -> int:
        """What the loop's body adds to its counter; 1 where that is not to be seen."""
        place = re.search(r"\bindex=(\d+)", counter.attributes)
        (name,) = loop.called("body")
        body = self._computations[name]
        root = next(i for i in body.values() if i.is_root)
        if place is None or root.opcode != "tuple":
            return 1
        added = body[root.operands[int(place[1])]]
        steps = [_number_of(body[name]) for name in added.operands if name in body]
        found = [step for step in steps if step]
        return found[0] if added.opcode == "add" and found else 1

    def _moved(self, it: Instruction, operands: Sequence[Instruction]) -> float:
        """Bytes read and written by an instruction that is not fused."""
        if it.opcode == "custom-call" and re.search(UNMOVED, it.attributes):
            return 0.0
        if it.opcode == "copy-start":  # (to, from, a flag)
            return it.outputs[0].hbm_bytes + it.outputs[1].hbm_bytes
        if it.opcode in SLICING:
            return 2 * it.output.hbm_bytes
        if it.opcode in UPDATES:
            return 2 * operands[UPDATES[it.opcode]].output.hbm_bytes
        if it.opcode == "fusion":
            return self._moved_by_fusion(it, operands)
        read = sum(shape.hbm_bytes for operand in operands for shape in operand.outputs)
        return read + sum(shape.hbm_bytes for shape in it.outputs)

    def _moved_by_fusion(self, it: Instruction, operands: Sequence[Instruction]) -> float:
        """Of what is only sliced the slices, of what is updated in place the updates."""
        (name,) = it.called("calls")
        inside = self._computations[name]
        parameters = {int(i.arguments): i.name for i in inside.values() if i.opcode == "parameter"}
        # What a piece of a collective beside products hands on to the next one is not moved by it.
        handed = _aliases(it) if any(i.opcode in COLLECTIVES for i in inside.values()) else {}
        total = 0.0
        for place, operand in enumerate(operands):
            if place in handed.values():
                continue
            whole = sum(shape.hbm_bytes for shape in operand.outputs)
            part = _read_of(parameters[place], inside) if place in parameters else None
            total += whole if part is None else min(whole, part)
        root = next(i for i in inside.values() if i.is_root)
        written = [root]
        if root.opcode == "tuple":
            written = [inside[name] for name in root.operands]
        for place, (output, made) in enumerate(zip(it.outputs, written, strict=False)):
            if place in handed:
                continue
            made = _through_bitcasts(made, inside)
            if made.opcode in UPDATES and output.in_hbm:
                total += inside[made.operands[UPDATES[made.opcode]]].output.bytes
            else:
                total += output.hbm_bytes
        return total

    # -- who talks to whom --

    def _groups(self, it: Instruction) -> np.ndarray | None:
        """Groups of devices [groups, members] by their place in the mesh; None: one with all."""
        found = re.search(
            r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", it.attributes
        )
        if found:
            shape, whole, order = (
                [int(n) for n in part.split(",")] if part else None for part in found.groups()
            )
            ids = np.arange(math.prod(whole or ())).reshape(whole)
            return np.transpose(ids, order).reshape(shape)
        if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?: \{([^}]*)\})?", it.attributes):
            sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
            taken = re.findall(r"'(\w+)'", found[2] or "")
            ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
            names = list(sizes)
            last = [names.index(name) for name in taken]
            first = [i for i in range(len(names)) if i not in last]
            members = math.prod(ids.shape[i] for i in last)
            return np.transpose(ids, [*first, *last]).reshape(-1, members)
        if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", it.attributes):
            groups = re.findall(r"\{([\d,]+)\}", found[1])
            return np.array([[int(n) for n in group.split(",")] for group in groups])
        if found := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", it.attributes):
            pairs = re.findall(r"\{(\d+),(\d+)\}", found[1])
            return np.array([[int(n) for n in pair] for pair in pairs])
        return None

    def _axes(self, it: Instruction) -> str:
        """The mesh's axes along which the members of a group differ, joined by a comma."""
        groups = self._groups(it)
        if groups is None or groups.size == 0:
            return ",".join(axis for axis, size in self._mesh.shape.items() if size > 1)
        shape = tuple(self._mesh.shape.values())
        places = np.stack(np.unravel_index(groups, shape), axis=-1)  # [groups, members, axes]
        differ = (places != places[:, :1]).any(axis=(0, 1))
        return ",".join(
            axis for axis, is_one in zip(self._mesh.shape, differ, strict=True) if is_one
        )

    def _group_size(self, it: Instruction) -> int:
        groups = self._groups(it)
        return self._mesh.size if groups is None else groups.shape[1]


def _channel(it: Instruction) -> str:
    found = re.search(r"\bchannel_id=(\d+)", it.attributes)
    return found[1] if found else it.name


def _begun(computations: Mapping[str, Computation]) -> dict[str, str]:
    """Of collectives in several pieces, each in a fusion of its own, the first's name by channel.

    So the TPU's compiler writes those that run beside products.
    """
    return {
        _channel(it): it.name
        for computation in computations.values()
        if any(BEGINS in it.attributes for it in computation.values())
        for it in computation.values()
        if it.opcode in COLLECTIVES
    }


def _aliases(it: Instruction) -> dict[int, int]:
    """{output: the operand whose memory it is} of a fusion."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?)\}, \w+=", it.attributes)
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}\)", found[1] if found else "")
    return {int(output): int(operand) for output, operand in pairs}


def _number_of(it: Instruction) -> int | None:
    is_number = it.opcode == "constant" and it.arguments.isdigit()
    return int(it.arguments) if is_number else None


def _is_scattered(it: Instruction, around: Computation) -> bool:
    """Whether a fused sum is only sliced: so the TPU's compiler writes a reduce-scatter."""
    users = [user for user in around.values() if it.name in user.operands]
    while users and all(user.opcode in ("bitcast", "get-tuple-element") for user in users):
        names = {user.name for user in users}
        users = [user for user in around.values() if names & set(user.operands)]
    return bool(users) and all(user.opcode == "dynamic-slice" for user in users)


def _sent(kind: str, it: Instruction, operands: Sequence[Instruction], members: int) -> float:
    """Bytes that a device sends, in a ring of the members."""
    given = sum(shape.bytes for operand in operands for shape in operand.outputs)
    if kind == "all-gather":
        return given * (members - 1)
    if kind == "all-reduce":
        return 2 * given * (members - 1) / members
    if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return given * (members - 1) / members
    return given


def _read_of(name: str, inside: Computation) -> float | None:
    """Bytes read of a fusion's parameter that is only sliced or updated; None: all of it."""
    total = 0.0
    for user in inside.values():
        if name not in user.operands:
            continue
        if user.opcode == "bitcast":
            part = _read_of(user.name, inside)
            if part is None:
                return None
            total += part
        elif user.opcode in SLICING and user.operands[0] == name:
            total += user.output.bytes
        elif not (user.opcode in UPDATES and user.operands[0] == name):
            return None
    return total


def _through_bitcasts(it: Instruction, inside: Computation) -> Instruction:
    while it.opcode == "bitcast" and it.operands[0] in inside:
        it = inside[it.operands[0]]
    return it


def _dot_flops(it: Instruction, operands: Sequence[Instruction]) -> float:
    left = operands[0].output.dims
    return 2 * it.output.size * math.prod(left[d] for d in it.numbers("lhs_contracting_dims"))


def _convolution_flops(it: Instruction, operands: Sequence[Instruction]) -> float:
    """A product of matrices too, as TPUs have it: batches are then spatial dimensions."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", it.attributes)
    assert labels is not None, it.attributes[:200]
    left, right = operands[0].output.dims, operands[1].output.dims
    window = re.search(r"window=\{([^}]*)\}", it.attributes)
    said = dict(part.split("=") for part in window[1].split()) if window else {}
    sides = sorted(label for label in labels[2] if label.isdigit())
    products = it.output.dims[labels[3].index("b")] * it.output.dims[labels[3].index("f")]
    products *= right[labels[2].index("i")]

    def of(key: str, side: int, default: str) -> list[int]:
        return (
            [int(n) for n in said[key].split("x")[side].split("_")]
            if key in said
            else [int(default)]
        )

    for side, label in enumerate(sides):
        products *= _pairs(
            inputs=left[labels[1].index(label)],
            taps=right[labels[2].index(label)],
            outputs=it.output.dims[labels[3].index(label)],
            stride=of("stride", side, "1")[0],
            pad=of("pad", side, "0")[0],
            spread=of("lhs_dilate", side, "1")[0],
            apart=of("rhs_dilate", side, "1")[0],
        )
    return 2 * products


def _pairs(
    *, inputs: int, taps: int, outputs: int, stride: int, pad: int, spread: int, apart: int
) -> int:
    """Pairs of an input and a tap that meet along one dimension: padding and holes don't count."""
    place = np.arange(outputs)[:, None] * stride + np.arange(taps) * apart - pad
    return int(((place >= 0) & (place <= (inputs - 1) * spread) & (place % spread == 0)).sum())
