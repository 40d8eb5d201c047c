"""Programs: benchmark files of others as our rows.

Rows of task "code" carry their tests, as tasks/code_task.py reads them.
"""

from __future__ import annotations

import base64
import binascii
import builtins
import json
import pickletools
import re
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatch
from typing import Any, Literal

from etils import epath

from r1jax.benchmarks.kind import Kind
from r1jax.config import ConfigError, DataError
from r1jax.files import absolute, children, is_directory, parse_line, read_rows
from r1jax.tasks.programs import defined

PROGRAM = "Answer with the whole program in one block of ```python."
FUNCTION = "Answer with the whole function, and what it needs, in one block of ```python."
MBPP_SPLITS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
# What LeetCode's solutions may use without an import, and what its tests build arguments with.
LEETCODE = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from string import *
from typing import *
inf = float("inf")

class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right

def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head

def list_values(node):
    values = []
    while node is not None and len(values) < 1_000_000:
        values.append(node.val)
        node = node.next
    return values

def is_same_list(first, second):
    return list_values(first) == list_values(second)

def tree_node(values):
    values = list(values)
    if not values:
        return None
    root = TreeNode(values[0])
    waiting, i = collections.deque([root]), 1
    while i < len(values):
        parent = waiting.popleft()
        for side in ("left", "right"):
            if i < len(values) and values[i] is not None:
                child = TreeNode(values[i])
                setattr(parent, side, child)
                waiting.append(child)
            i += 1
    return root

def tree_values(root):
    values, waiting = [], collections.deque([root])
    while waiting and len(values) < 1_000_000:
        node = waiting.popleft()
        values.append(None if node is None else node.val)
        if node is not None:
            waiting += [node.left, node.right]
    return values

def is_same_tree(first, second):
    return tree_values(first) == tree_values(second)
"""


def humaneval(path: str, instruction: str = FUNCTION) -> list[dict[str, Any]]:
    """HumanEval's JSONL (prompt, entry_point, test): a function begun, to be written out."""
    rows = []
    for row in read_rows(path, "task_id", "prompt", "entry_point", "test"):
        before, _, _ = row["prompt"].partition(f"def {row['entry_point']}(")
        rows.append(
            {
                "id": row["task_id"],
                "prompt": f"{instruction}\n\n```python\n{row['prompt'].rstrip()}\n```",
                "answer": row.get("canonical_solution", ""),
                "task": "code",
                "tests": [f"{row['test']}\ncheck({row['entry_point']})"],
                "prelude": before,
            }
        )
    return rows


def mbpp(
    path: str,
    split: Literal["prompt", "test", "validation", "train"] = "test",
    instruction: str = FUNCTION,
) -> list[dict[str, Any]]:
    """MBPP's JSONL (text, test_list, test_setup_code); the question shows the tests, as usual."""
    if split not in MBPP_SPLITS:
        raise ConfigError(f"mbpp split {split!r} is not one of {', '.join(MBPP_SPLITS)}")
    rows = []
    for row in read_rows(path, "task_id", "text", "test_list", "test_setup_code"):
        if row["task_id"] not in MBPP_SPLITS[split]:
            continue
        own = sorted(defined(row.get("code", "")) & set(dir(builtins)))  # it is to write `sum`
        setup = "".join(f"global {name}\n" for name in own) + row["test_setup_code"]
        shown = "\n".join(row["test_list"])
        question = f"{row['text']} Your code should pass these tests:\n\n{shown}\n\n{instruction}"
        rows.append(
            {
                "id": f"mbpp/{row['task_id']}",
                "prompt": question,
                "answer": row.get("code", ""),
                "task": "code",
                "tests": [f"{setup}\n{test}" for test in row["test_list"]],
            }
        )
    return rows


def leetcode(path: str) -> list[dict[str, Any]]:
    """JSONL (id, problem, test) with `def check(candidate)` and a call of it as the test."""
    return [
        {
            "id": f"leetcode/{row['id']}",
            "prompt": row["problem"],
            "answer": row.get("solution", ""),
            "task": "code",
            "tests": [row["test"]],
            "prelude": LEETCODE,
        }
        for row in read_rows(path, "id", "problem", "test")
    ]


def codeforces(path: str, instruction: str = PROGRAM, slower: float = 5.0) -> list[dict[str, Any]]:
    """JSONL (id, problem, tests of input and output); limits as the problem states them.

    Its time limits are meant for C++: Python gets `slower` times as much.
    """
    return [
        {
            "id": f"codeforces/{row['id']}",
            "prompt": f"{row['problem'].strip()}\n\n{instruction}",
            "answer": "",
            "task": "code",
            "tests": row["tests"],
        }
        | stated_limits(row["problem"], slower)
        for row in read_rows(path, "id", "problem", "tests")
    ]


def stated_limits(problem: str, slower: float) -> dict[str, Any]:
    """What a text says by "Time Limit: 2000 ms" (times `slower`) and "Memory Limit: 256 MB"."""
    limits: dict[str, Any] = {}
    if seconds := re.search(r"Time Limit: (\d+) ms", problem):
        limits["time_limit_s"] = slower * int(seconds[1]) / 1_000
    if megabytes := re.search(r"Memory Limit: (\d+) MB", problem):
        limits["memory_limit_mb"] = int(megabytes[1])
    return limits


# What lcb_runner asks models that reason: the system message before the question, both the user's.
LCB_ROLE = (
    "You are an expert Python programmer. You will be given a question (problem specification) and"
    " will generate a correct Python program that matches the specification and passes all tests."
    " You will NOT return anything except for the program."
)
LCB_FUNCTION = (
    "### Format: You will use the following starter code to write the solution to the problem and"
    " enclose your code within delimiters."
)
LCB_PROGRAM = (
    "### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do"
    " not directly test on the sample inputs). Enclose your code within delimiters as follows."
)
# The names that it puts before every program; of modules with the same names the later ones count.
_FROM = "string re datetime collections heapq bisect copy math random statistics itertools"
_FROM += " functools operator io sys json builtins typing"
LCB_PRELUDE = "".join(f"from {module} import *\n" for module in _FROM.split())
LCB_PRELUDE += "import string, re, datetime, collections, heapq, bisect, copy, math, random\n"
LCB_PRELUDE += "import statistics, itertools, functools, operator, io, sys, json\n"
LCB_PRELUDE += "sys.setrecursionlimit(50_000)\n"
LCB_KEYS = (
    *("question_id", "question_content", "platform", "contest_date", "starter_code"),
    *("difficulty", "public_test_cases", "private_test_cases", "metadata"),
)
MAX_TESTS = 1 << 30  # bytes of one problem's, unpacked


def livecodebench(
    path: str, start: str = "2024-08-01", end: str = "2025-02-01", memory_limit_mb: int = 4_096
) -> list[dict[str, Any]]:
    """LiveCodeBench's problems of contests from `start` to `end`, both midnights included.

    `path` is a release file of livecodebench/code_generation_lite, or the directory of test.jsonl,
    test2.jsonl and so on. A program has 6 seconds a test, as in lcb_runner, which does not limit
    memory.
    """
    try:
        first, last = (datetime.fromisoformat(day) for day in (start, end))
    except (TypeError, ValueError):
        raise ConfigError(f"start {start!r} and end {end!r} must be days like 2024-08-01") from None
    rows = []
    for where, row in _released(path):
        if missing := [key for key in LCB_KEYS if key not in row]:
            raise DataError(f"{where} has no key {missing[0]!r}; it has {', '.join(row)}")
        try:
            day = datetime.fromisoformat(row["contest_date"]).replace(tzinfo=None)
        except (TypeError, ValueError):
            date = row["contest_date"]
            raise DataError(f"{where}: contest_date {date!r} is no date") from None
        if first <= day <= last:
            rows.append(_lcb_row(where, row) | {"memory_limit_mb": memory_limit_mb})
    if not rows:
        raise DataError(f"{path} has no problem of a contest from {start} to {end}")
    return rows


def _released(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, row), one after another: the files have gigabytes."""
    place = absolute(path)
    found: list[epath.Path] = [place]
    if is_directory(place):
        found = sorted(file for file in children(place) if fnmatch(file.name, "test*.jsonl"))
        if not found:
            raise DataError(f"{path} has no file test.jsonl, test2.jsonl, ... of LiveCodeBench")
    for file in found:
        try:
            lines = file.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"file {path} does not exist") from None
        with lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", parse_line(line, file, number)


def _lcb_row(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    tests: list[Any] = []
    for key in ("public_test_cases", "private_test_cases"):
        cases = _lcb_json(f"{where}: {key}", row[key], packed=key.startswith("private"))
        if not isinstance(cases, list):
            raise DataError(f"{where}: {key} is no list of tests")
        tests += cases
    about = _lcb_json(f"{where}: metadata", row["metadata"])
    name = about.get("func_name") if isinstance(about, dict) else None
    for number, test in enumerate(tests, start=1):
        texts = isinstance(test, dict) and all(
            isinstance(test.get(key), str) for key in ("input", "output")
        )
        if not texts or (test.get("testtype") == "functional") != (name is not None):
            raise DataError(
                f"{where}: test {number} needs the texts input and output, and testtype"
                f" {'stdin' if name is None else 'functional'!r}: {str(test)[:80]}"
            )
    if row["starter_code"]:
        form = f"{LCB_FUNCTION}\n```python\n{row['starter_code']}\n```\n\n"
    else:
        form = f"{LCB_PROGRAM}\n```python\n# YOUR CODE HERE\n```\n\n"
    asked = f"### Question:\n{row['question_content']}\n\n{form}"
    asked += "### Answer: (use the provided format with backticks)\n\n"
    return {
        "id": f"livecodebench/{row['question_id']}",
        "prompt": f"{LCB_ROLE}\n\n{asked}",
        "answer": "",
        "task": "code",
        "tests": [_lcb_test(f"{where}: test {i}", t, name) for i, t in enumerate(tests, start=1)],
        "prelude": LCB_PRELUDE,
        "time_limit_s": 6.0,
        "difficulty": row["difficulty"],
        "platform": row["platform"],
        "contest_date": row["contest_date"],
    }


def _lcb_test(where: str, test: Mapping[str, str], function: str | None) -> Any:
    """A pair of texts, or an assert about a method of Solution: arguments are JSON, one a line.

    A tuple is as good as a list, but not one inside another value, and without a class Solution a
    function will do: so does lcb_runner.
    """
    if function is None:
        return {"input": test["input"], "output": test["output"], "exact": True}
    if not function.isidentifier():
        raise DataError(f"{where}: func_name {function!r} is no name")
    lines = test["input"].split("\n")
    for text in (*lines, test["output"]):
        _lcb_json(where, text)
    values = f'__import__("json").loads({"[" + ", ".join(lines) + "]"!r})'
    return (
        f'found = (Solution().{function} if "Solution" in globals() else {function})(*{values})\n'
        "found = list(found) if isinstance(found, tuple) else found\n"
        f'assert found == __import__("json").loads({test["output"]!r})'
    )


def _lcb_json(where: str, text: Any, packed: bool = False) -> Any:
    """The value of a JSON text, or of one in base64 of zlib of a pickled text."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        if not packed or not isinstance(text, str):
            raise DataError(f"{where} is not JSON: {error}") from None
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MAX_TESTS)
        if not unpacker.eof:
            raise ValueError(f"it is cut, or has more than {MAX_TESTS} bytes")
        return json.loads(pickled_text(data))
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"{where} is neither JSON nor JSON packed: {error}") from None


PICKLED_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
# What else stands around a text: nothing that names a class or calls anything.
PICKLED_ELSE = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}


def pickled_text(data: bytes) -> str:
    """The one text that a pickle holds, read and never executed; ValueError for any other."""
    texts: list[str] = []
    for operation, value, _ in pickletools.genops(data):
        if operation.name in PICKLED_TEXTS:
            texts.append(str(value))
        elif operation.name not in PICKLED_ELSE:
            raise ValueError(f"its pickle does more than hold a text: {operation.name}")
    if len(texts) != 1:
        raise ValueError(f"its pickle holds {len(texts)} texts, not one")
    return texts[0]


CHECKED = "its own tests, all of which must pass, in our sandbox"
KINDS: dict[str, Kind] = {
    "humaneval": Kind(
        "HumanEval",
        humaneval,
        "humaneval/humaneval.jsonl",
        164,
        4,
        "openai/human-eval; MIT",
        f"our instruction before the begun function, which the paper does not print; {CHECKED}",
    ),
    "mbpp": Kind(
        "MBPP",
        mbpp,
        "mbpp/mbpp.jsonl",
        500,
        4,
        "google-research's MBPP, its test split; CC BY 4.0",
        f"the text, the tests as usual, and our instruction; zero-shot; {CHECKED}",
    ),
    "livecodebench": Kind(
        "LiveCodeBench",
        livecodebench,
        "livecodebench",
        279,
        8,
        "livecodebench/code_generation_lite; CC BY 4.0",
        "lcb_runner's, as it asks models that reason: all in one message of the user's; its checker"
        " (6 s a test). The paper's Table 14 has parts of 26, 37 and 49 problems at k = 8, fewer"
        " than the public files have in its months",
        needs="livecodebench/test.jsonl, test2.jsonl, ... as the hub has them",
        max_prompt_tokens=8_192,
    ),
    "leetcode": Kind(
        "LeetCode",
        leetcode,
        "leetcode_rl/test.jsonl",
        200,
        8,
        "rllm's test set of LeetCode, in the place of LiveCodeBench; MIT, problems (c) LeetCode",
        f"the file's; {CHECKED}",
    ),
    "codeforces_problems": Kind(
        "Codeforces problems",
        codeforces,
        "codeforces_test/codeforces_test.jsonl",
        408,
        16,
        "rllm's test set of Codeforces; MIT, problems (c) their authors",
        "our instruction behind the problem; only the tests that a problem shows, and one answer"
        " where several are right: no rating",
    ),
}
