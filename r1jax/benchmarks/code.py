"""Programs: benchmark files of others as our rows.

Rows of task "code" carry their tests, as tasks/code_task.py reads them.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from r1jax.benchmarks.kind import Kind
from r1jax.config import ConfigError
from r1jax.files import read_rows

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
        shown = "\n".join(row["test_list"])
        question = f"{row['text']} Your code should pass these tests:\n\n{shown}\n\n{instruction}"
        rows.append(
            {
                "id": f"mbpp/{row['task_id']}",
                "prompt": question,
                "answer": row.get("code", ""),
                "task": "code",
                "tests": [f"{row['test_setup_code']}\n{test}" for test in row["test_list"]],
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
    rows = []
    for row in read_rows(path, "id", "problem", "tests"):
        limits = {}
        if seconds := re.search(r"Time Limit: (\d+) ms", row["problem"]):
            limits["time_limit_s"] = slower * int(seconds[1]) / 1_000
        if megabytes := re.search(r"Memory Limit: (\d+) MB", row["problem"]):
            limits["memory_limit_mb"] = int(megabytes[1])
        rows.append(
            {
                "id": f"codeforces/{row['id']}",
                "prompt": f"{row['problem'].strip()}\n\n{instruction}",
                "answer": "",
                "task": "code",
                "tests": row["tests"],
            }
            | limits
        )
    return rows


KINDS: dict[str, Kind] = {}
