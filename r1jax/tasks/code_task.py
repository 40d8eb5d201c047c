"""Programs: where the final one stands, and whether it passes its example's tests.

An example of task "code" has in its metadata `tests`, a list of one of two kinds:

- {"input": ..., "output": ...}: a whole program reads standard input and prints the output,
  compared line by line and word by word (numbers with a point to 6 digits), or with "exact": true
  as LiveCodeBench does: lines but for white space at their ends, or the decimals on them;
- a text of Python: asserts about the names that the program defines, run beside it (see
  sandbox_worker). `prelude` is run before the program and before every test: imports, and classes
  such as ListNode, whose instances travel between the two.

Not seen by such a test: what a function does to its arguments in place (they are copies). A
function that is named like one of Python's own is the program's where the test says so ("global
sum"), and else Python's. A result that is no
plain data answers for itself what the test asks of it (an item, a length, a method), but for
equality and yes-or-no questions to a text, a set or a number.

`time_limit_s` (of processor time; twice that of wall time) and `memory_limit_mb` hold per test.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import math
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from r1jax.config import DataError
from r1jax.tasks.answers import after_thoughts, tagged_answer
from r1jax.tasks.programs import asked_names, declared, defined, program_of
from r1jax.tasks.sandbox import (
    Child,
    Limits,
    Mode,
    Watch,
    check_sandbox,
    chosen_sandbox,
    memory_file,
    run_program,
)
from r1jax.tasks.sandbox_worker import MEMORY_EXIT

if TYPE_CHECKING:
    from r1jax.types import Example

Verdict = Literal["passed", "wrong_answer", "time_limit", "memory_limit", "crash", "refused"]
MAX_PROGRAM = 100_000  # characters; a longer one is refused
MAX_DATA = 1 << 20  # bytes that the harness may write
MAX_VERDICTS = 256  # that are remembered
_DECIMAL = re.compile(r"[+-]?[0-9]*\.[0-9]*(?:[eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Result:
    """Of one test."""

    verdict: Verdict
    message: str = ""


def last_program(text: str) -> str | None:
    """The last closed block of Python anywhere that answers, as far as the text tells."""
    return program_of(text)


def final_programs(text: str, example: Example | None = None) -> list[str]:
    """That block behind the thoughts, inside <answer> where there is one; [] if there is none.

    Which block answers is said by the example's tests: it defines what they call, or reads input.
    """
    final = after_thoughts(text)
    tagged = tagged_answer(final)
    final = final.partition("<think>")[0] if tagged is None else tagged
    program = program_of(final) if example is None else program_of(final, *_asked(example))
    return [] if program is None else [program]


def _asked(example: Example) -> tuple[set[str], bool]:
    """(the names that the tests call, whether they give input)."""
    tests, prelude = example.metadata["tests"], example.metadata.get("prelude", "")
    code = "\n".join(test for test in tests if isinstance(test, str))
    names = asked_names(code) - defined(prelude) - set(dir(builtins)) | declared(code)
    given = any(not isinstance(test, str) and test["input"].strip() for test in tests)
    return names, given


def check_code(example: Example) -> None:
    """Raises DataError if the tests are none, ConfigError if nothing can be run here."""
    tests = example.metadata.get("tests")
    if not isinstance(tests, list | tuple) or not tests:
        raise DataError(f"example {example.id}: code needs a list of tests")
    for number, test in enumerate(tests, start=1):
        pair = isinstance(test, dict) and all(
            isinstance(test.get(key), str) for key in ("input", "output")
        )
        exact = test.get("exact", False) if isinstance(test, dict) else False
        if not isinstance(exact, bool):
            raise DataError(f"example {example.id}: test {number}: exact {exact!r} is no boolean")
        if not pair and not isinstance(test, str):
            raise DataError(
                f"example {example.id}: test {number} is neither Python nor"
                f' {{"input": text, "output": text}}: {str(test)[:80]!r}'
            )
    if len({isinstance(test, str) for test in tests}) > 1:
        raise DataError(f"example {example.id}: its tests are of both kinds")
    _limits(example)
    check_sandbox(chosen_sandbox())


def _limits(example: Example) -> Limits:
    limits = Limits()
    for key in ("time_limit_s", "memory_limit_mb"):
        value = example.metadata.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise DataError(f"example {example.id}: {key} {value!r} is not a number above 0")
    seconds = float(example.metadata.get("time_limit_s", limits.cpu_s))
    megabytes = int(example.metadata.get("memory_limit_mb", limits.memory_mb))
    return replace(limits, cpu_s=seconds, wall_s=2 * seconds, memory_mb=megabytes)


def passes_tests(example: Example, program: str) -> bool:
    """Whether the program passes every test; stops at the first that it doesn't."""
    tests, prelude = example.metadata["tests"], example.metadata.get("prelude", "")
    limits, mode = _limits(example), chosen_sandbox()
    asked = json.dumps([program, prelude, *tests]).encode()
    key = sha256(asked).digest(), limits, mode
    if key not in _verdicts:
        results = run_tests(program, tests, prelude, limits, mode)
        if len(_verdicts) >= MAX_VERDICTS:
            del _verdicts[next(iter(_verdicts))]
        _verdicts[key] = all(result.verdict == "passed" for result in results)
    return _verdicts[key]


# Strict and lenient accuracy ask the same, and so do a group's samples. Tests may be megabytes.
_verdicts: dict[tuple[bytes, Limits, Mode], bool] = {}


def run_tests(
    program: str,
    tests: Sequence[Any],
    prelude: str = "",
    limits: Limits | None = None,
    mode: Mode = "bwrap",
    stop_early: bool = True,
) -> list[Result]:
    """A result per test; with `stop_early` the first that is not passed is the last."""
    limits = limits or Limits()
    if len(program) > MAX_PROGRAM:
        return [Result("refused", f"the program has more than {MAX_PROGRAM} characters")]
    results: list[Result] = []
    while len(results) < len(tests):
        left = tests[len(results) :]
        if isinstance(left[0], str):
            results += _run_asserts(program, left, prelude, limits, mode, stop_early)
        else:
            results.append(_run_once(program, left[0], prelude, limits, mode))
        failed = [i for i, result in enumerate(results) if result.verdict != "passed"]
        if failed and stop_early:
            return results[: failed[0] + 1]
    return results


def _run_once(
    program: str, test: dict[str, Any], prelude: str, limits: Limits, mode: Mode
) -> Result:
    given, expected = (test[key].encode(errors="surrogatepass") for key in ("input", "output"))
    room = max(limits.output_bytes, 2 * len(expected))
    limits = replace(limits, output_bytes=room, file_bytes=max(limits.file_bytes, 2 * room))
    outcome = run_program(program, given, limits, mode, prelude)
    if outcome.cause in ("time_limit", "memory_limit"):
        return Result(outcome.cause, outcome.cause)
    if outcome.status == MEMORY_EXIT:
        return Result("memory_limit", "MemoryError")
    if outcome.cause != "exit" or outcome.status != 0:
        return Result("crash", outcome.errors or f"{outcome.cause} {outcome.status}")
    output = outcome.output.decode(errors="replace")
    same = same_lines if test.get("exact") else same_output
    if same(test["output"], output):
        return Result("passed")
    return Result("wrong_answer", f"printed {output[:200]!r}, not {test['output'][:200]!r}")


def same_output(expected: str, output: str) -> bool:
    """Equal lines, but for white space and the last digits of numbers with a point."""
    lines, printed = ([line.split() for line in x.strip().splitlines()] for x in (expected, output))
    return len(lines) == len(printed) and all(
        len(a) == len(b) and all(map(_same_word, a, b)) for a, b in zip(lines, printed, strict=True)
    )


def same_lines(expected: str, output: str) -> bool:
    """LiveCodeBench's: equal lines but for white space at their ends, or of equal decimals."""
    lines, printed = ([line.strip() for line in x.strip().split("\n")] for x in (expected, output))
    return len(lines) == len(printed) and all(
        a == b or _decimals(a) == _decimals(b) is not None
        for a, b in zip(lines, printed, strict=True)
    )


def _decimals(line: str) -> list[Decimal] | None:
    """None where not all of a line's words are numbers."""
    try:
        numbers = [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None
    return None if any(number.is_nan() for number in numbers) else numbers


def _same_word(expected: str, word: str) -> bool:
    if expected == word:
        return True
    if not any(char.isdigit() for char in expected) or not _DECIMAL.fullmatch(expected):
        return False
    try:
        return math.isclose(float(expected), float(word), rel_tol=1e-6, abs_tol=1e-6)
    except ValueError:
        return False


def _run_asserts(
    program: str,
    tests: Sequence[str],
    prelude: str,
    limits: Limits,
    mode: Mode,
    stop_early: bool,
) -> list[Result]:
    """Results of the first test at least; the rest as far as the program lived."""
    job = json.dumps(
        {"prelude": prelude, "program": program, "tests": tests, "stop_early": stop_early}
    )
    ends = socket.socketpair()
    with (
        memory_file(job.encode()) as given,
        memory_file() as verdicts,
        open(os.devnull, "r+b") as nothing,
        ends[0],
        ends[1],
        contextlib.ExitStack() as stack,
    ):
        null = nothing.fileno()
        candidate = Child("candidate", mode, limits, null, null, [ends[0].fileno()])
        stack.callback(candidate.kill)
        harness = Child("harness", mode, limits, given, null, [ends[1].fileno(), verdicts])
        stack.callback(harness.kill)
        for end in ends:
            end.close()  # or neither would see that the other is gone
        watch, seen = Watch([candidate, harness], limits), 0

        def new_turn() -> None:
            nonlocal seen
            lines = _lines(verdicts)
            if len(lines) > seen:
                seen = len(lines)
                watch.restart()

        cause = watch.until_end(harness, verdicts, new_turn)
        results = [Result(*line) for line in map(json.loads, _lines(verdicts))]
        if cause in ("time_limit", "memory_limit"):
            results.append(Result(cause, cause))  # type: ignore[arg-type]
        elif cause != "exit" or not results:
            results.append(Result("crash", cause))
        elif results[-1].verdict == "crash":
            with contextlib.suppress(subprocess.TimeoutExpired):
                if candidate.process.wait(0.2) == MEMORY_EXIT:
                    results[-1] = Result("memory_limit", "MemoryError")
    return results[: len(tests)]


def _lines(descriptor: int) -> list[bytes]:
    """The complete lines of a file that another process writes."""
    return os.pread(descriptor, MAX_DATA, 0).split(b"\n")[:-1]
