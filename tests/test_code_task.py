"""Programs against their tests, and programs that would rather be believed."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import final_answer
from test_sandbox import needs_bwrap

from r1jax.benchmarks import code
from r1jax.benchmarks.code import leetcode, mbpp
from r1jax.config import DataError
from r1jax.data.datasets import to_example
from r1jax.rewards.accuracy import accuracy, lenient_accuracy
from r1jax.rewards.pool import GraderConfig, GraderPool
from r1jax.tasks import TASKS, check_example, same_answer
from r1jax.tasks.code_task import final_programs, last_program, run_tests, same_output
from r1jax.tasks.sandbox import FIRST_UID, UIDS, Limits
from r1jax.tasks.sandbox_worker import decode, encode
from r1jax.types import Example

pytestmark = needs_bwrap
SHORT = Limits(cpu_s=0.5, wall_s=1.0, memory_mb=128)


def verdicts(program: str, *tests: Any, prelude: str = "", limits: Limits = SHORT) -> list[str]:
    found = run_tests(program, tests, prelude, limits, stop_early=False)
    return [result.verdict for result in found]


def code_example(*tests: Any, **metadata: Any) -> Example:
    row = {"prompt": "Write f.", "answer": "", "task": "code", "tests": list(tests)} | metadata
    return to_example(row, 0, "test")


# -- honest programs -------------------------------------------------------------------------------


def test_asserts_each_have_a_verdict() -> None:
    program = "def f(x): return x * 2"
    tests = ["assert f(2) == 4", "assert f(2) == 5", "assert f('a') == 'aa'"]
    assert verdicts(program, *tests) == ["passed", "wrong_answer", "passed"]
    stopped = run_tests(program, tests)
    assert [result.verdict for result in stopped] == ["passed", "wrong_answer"]


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(*a, **k): return a, k", "assert f(1, [2], b={'c': (3,)}) == ((1, [2]), {'b': {'c': (3,)}})"),
        ("def f(): return {1, 2}, frozenset([(1, 'x')])", "assert f() == ({1, 2}, frozenset([(1, 'x')]))"),
        ("def f(): return 10 ** 5000, 1e308 * 10, 1 + 2j, b'\\0\\xff'", "a, b, c, d = f()\nassert (a, b, c, d) == (10 ** 5000, float('inf'), 1 + 2j, b'\\0\\xff')"),
        ("def f(): return '\\ud800\\n\"', None, True", "assert f() == ('\\ud800\\n\"', None, True)"),
        ("from collections import *\ndef f(): return Counter('aab'), namedtuple('P', 'x')(1)", "assert f() == ({'a': 2, 'b': 1}, (1,))"),
        ("def f(n):\n x = []\n for _ in range(n): x = [x]\n return x", "x = f(5000)\nfor _ in range(5000): x, = x\nassert x == []"),
        ("def f():\n x = []\n x.append(x)\n return x", "x = f()\nassert x[0] is x"),
        ("def f():\n yield 1\n yield 2", "assert list(f()) == [1, 2]"),
        ("class A:\n def __init__(self, n): self.n = n\n def add(self, m): self.n += m\n def __len__(self): return self.n",
         "a = A(2)\na.add(3)\na.x = 7\nassert (a.n, len(a), a.x) == (5, 5, 7) and a is not A(2)"),
        ("class Solution:\n def g(self, n): return sorted(n)", "def check(c):\n    assert c(n=[2, 1]) == [1, 2]\ncheck(Solution().g)"),
        ("def f(x): raise ValueError('no')", "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'"),
        ("def f(x, kind): return isinstance(x, kind)", "assert f(1, int) and not f(1, str)"),
        ("def f(g): return g(2)\ndef h(x): return x + 1", "assert f(h) == 3"),
        ("if __name__ == '__main__':\n def f(): return 1", "import math\nassert math.isclose(f(), 1)"),
        ("from decimal import Decimal\ndef f(x): return [x, Decimal('0.10')]", "from decimal import Decimal\nassert f(Decimal(2)) == [2, Decimal('0.1')]"),
        ("from fractions import Fraction as F\ndef f(x): return x / 3", "from fractions import Fraction\nassert f(Fraction(1, 2)) == Fraction(1, 6)"),
        ("from datetime import *\ndef f(d): return d + timedelta(days=1), datetime(2024, 1, 2, 3, tzinfo=timezone.utc), time(4, 5)",
         "from datetime import *\nassert f(date(2024, 2, 28)) == (date(2024, 2, 29), datetime(2024, 1, 2, 3, tzinfo=timezone.utc), time(4, 5))"),
        ("def f(g, x): return [g(y) for y in x]", "assert f(lambda y: y + 1, [1, 2]) == [2, 3]"),
        ("def f(x, key): return sorted(x, key=key)", "assert f(['bb', 'a'], len) == ['a', 'bb'] and f([1, 2], key=lambda x: -x) == [2, 1]"),
        ("def f(g): return g", "g = lambda: 1\nassert f(g) is g"),
        ("class A:\n n = 3\ndef f(g): return g(A())", "assert f(lambda a: a.n + 1) == 4"),  # asks back
        ("def f(g):\n try: g()\n except ValueError as e: return str(e)", "def g(): raise ValueError('no')\nassert f(g) == 'no'"),
        ("import numpy as np\ndef f(): return np.int64(3), np.float32(0.5), np.bool_(True)", "assert f() == (3, 0.5, True)"),
        ("import numpy as np\ndef f(x): return np.array(x).sum().item()", "assert f([1, 2]) == 3"),
        ("import numpy as np\ndef f(x): return x.T * 2", "import numpy as np\nx = np.arange(6).reshape(2, 3)\nassert (f(x) == 2 * x.T).all() and f(x).dtype == x.dtype"),
    ],
)  # fmt: skip
def test_values_travel(program: str, test: str) -> None:
    assert run_tests(program, [test], limits=SHORT)[0] == run_tests("", ["pass"])[0]


PRELUDE = """\
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next

def chain(values):
    head = None
    for value in reversed(values):
        head = Node(value, head)
    return head

def values(node):
    found = []
    while node:
        found.append(node.value)
        node = node.next
    return found
"""


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(n):\n  while True: yield n; n += 1", "g = f(3)\nassert (next(g), next(g)) == (3, 4)"),
        ("class A(dict): pass\ndef f():\n  a = A()\n  return [a]", "assert f() == [{}]"),
        ("class Bad(ValueError): pass\ndef f(): raise Bad('no')", "try: f()\nexcept ValueError as e: assert str(e) == 'no'\nelse: assert False"),
        ("def f(): return bytes([255]).decode()", "try: f()\nexcept UnicodeDecodeError: pass\nelse: assert False"),
        ("import json\ndef f(): json.loads('{')", "try: f()\nexcept ValueError: pass\nelse: assert False"),
        ("def f(x): return len(x), x[::2]", "assert f(range(5)) == (5, range(0, 5, 2))"),
        ("def f(x: int) -> int: return x", "assert f(1) == 1 and f.__class__ is not int"),
        ("def f(): return f.__annotations__ == {} and __file__ and __builtins__.len([1])", "assert f() == 1"),
        ("import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: int\ndef f(): return dataclasses.fields(A)[0].type is int", "assert f()"),
        ("def f(): return 1\nif __name__ == '__main__':\n  import sys\n  sys.exit(0)", "assert f() == 1"),
        ("def f(): return 1\nx = input()", "assert f() == 1"),
        ("class C:\n  def __init__(self): self.d = {}\n  def __setitem__(self, k, v): self.d[k] = v\n  def __getitem__(self, k): return self.d[k]", "c = C()\nc['a'] = 2\nassert c['a'] == 2"),
    ],
)  # fmt: skip
def test_honest_programs(program: str, test: str) -> None:
    assert run_tests(program, [test], limits=SHORT)[0] == run_tests("", ["pass"])[0]


@pytest.mark.parametrize(
    ("program", "prelude", "test", "verdict"),
    [
        ("def f(x): raise StopIteration", "", "for a, b in zip(map(f, [1]), [1]): assert a == b", "crash"),
        ("def f(x): raise StopIteration", "", "assert all(map(lambda p: f(p) == p, [1]))", "crash"),
        (
            "def f():\n n = Node(0)\n n.same = lambda o: True\n return n",
            "class Node:\n def __init__(s, v): s.v = v\n def same(s, o): return s.v == o.v\n"
            " def __eq__(s, o): return s.same(o)",
            "assert f() == Node(7)",
            "wrong_answer",
        ),
        ("class A:\n __getattr__ = lambda s, n: (lambda *a: True)\ndef f(x): return A()", "", "assert f(1).startswith('abc')", "wrong_answer"),
        ("class A:\n __getattr__ = lambda s, n: (lambda *a: True)\ndef f(x): return A()", "", "assert f(1).issubset({1})", "wrong_answer"),
        ("def f(x: List[int]) -> int: return 1", "", "assert f([1]) == 1", "crash"),
        ("class A:\n _ask = _number = 7\ndef f(): return A()", "", "assert f()._number == 8", "wrong_answer"),
    ],
)  # fmt: skip
def test_more_liars(program: str, prelude: str, test: str, verdict: str) -> None:
    assert verdicts(program, test, prelude=prelude) == [verdict]


def test_the_first_failure_ends_it() -> None:
    program = "import time\ndef f(x):\n    time.sleep(0.4)\n    return 0"
    start = time.monotonic()
    assert len(run_tests(program, ["assert f(1)"] * 9)) == 1
    assert time.monotonic() - start < 2.0


def test_names_of_processes_are_any_bytes() -> None:
    """What stands in /proc about a process is partly its own choice."""
    named = (
        "open('/proc/self/comm', 'wb').write(b'\\xff\\xfe) R 1 (')\nimport time\ntime.sleep(0.2)"
    )
    assert verdicts(f"def f():\n  exec({named!r})\n  return 1", "assert f() == 1") == ["passed"]
    assert verdicts(named + "\nprint(1)", {"input": "", "output": "1"}) == ["passed"]


def test_programs_that_read_and_print() -> None:
    tests = [{"input": "1", "output": "1"}]
    assert verdicts("print(input())\nexit()\nprint(2)", *tests) == ["passed"]
    program = "from __future__ import annotations\nprint(ceil(float(input())))"
    assert verdicts(program, *tests, prelude="from math import *") == ["passed"]
    large = [{"input": "", "output": "7" * 3_000_000}]
    assert verdicts("print('7' * 3_000_000)", *large, limits=Limits()) == ["passed"]
    assert verdicts("print(len(input()))", {"input": "\ud800", "output": "3"}) == ["passed"]
    digits = [{"input": "", "output": str(10**4000) + "0" * 1000}]
    assert verdicts("print(10 ** 5000)", *digits) == ["passed"]
    numpy = "import numpy as np\nprint(np.linalg.det(np.eye(3)))"
    assert verdicts(numpy, {"input": "", "output": "1.0"}, limits=Limits()) == ["passed"]


def test_instances_of_the_prelude_travel() -> None:
    program = (
        "class Node:\n    def __eq__(self, other): return True\n"
        "def turned(node):\n    last = None\n"
        "    while node: node.next, last, node = last, node, node.next\n    return last\n"
        "def values(node): return []\n"
        "def fake(node): return Node()\n"
    )
    tests = [
        "assert values(turned(chain(range(3000)))) == list(range(3000))[::-1]",
        "assert fake(1) == Node(1)",  # the prelude's class, which has no __eq__
    ]
    assert verdicts(program, *tests, prelude=PRELUDE) == ["passed", "wrong_answer"]


def test_standard_input_and_output() -> None:
    program = "n = int(input())\nprint(n * 2)\nprint()"
    tests = [
        {"input": "3\n", "output": "6"},
        {"input": "4", "output": "8 \n\n"},
        {"input": "x", "output": "8"},
        {"input": "4", "output": "9"},
    ]
    assert verdicts(program, *tests) == ["passed", "passed", "crash", "wrong_answer"]
    assert verdicts("import sys\nsys.exit()", {"input": "", "output": ""}) == ["passed"]
    found = run_tests("print(pi)", [{"input": "", "output": "3.141593"}], "from math import pi")
    assert found[0].verdict == "passed"


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("1 2\n3", "1  2 \r\n3\n\n", True),
        ("1 2\n3", "1 2 3", False),
        ("1", "1.0", False),
        ("0.5", "0.5000001", True),
        ("0.5", ".51", False),
        ("0.5", "nan", False),
        ("YES", "yes", False),
        ("", "x", False),
        ("1.5", "1.5x", False),
    ],
)
def test_same_output(expected: str, output: str, same: bool) -> None:
    assert same_output(expected, output) is same


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("while True: pass", "time_limit"),
        ("import time; time.sleep(9)", "time_limit"),
        ("x = bytearray(2000 << 20)", "memory_limit"),
        ("1 / 0", "crash"),
        ("import os; os._exit(0)", "crash"),
        ("import sys; sys.exit(0)", "crash"),
        ("raise MemoryError", "memory_limit"),
        ("return f()", "crash"),
        ("import ctypes; ctypes.string_at(0)", "crash"),
    ],
)
def test_verdicts(body: str, verdict: str) -> None:
    tests = ["assert f() is None", "assert 1 + 1 == 2"]
    assert verdicts(f"def f():\n    {body}", *tests) == [verdict, "passed"]


def test_memory_that_is_used() -> None:
    """Pages take their time on a busy machine, so these tests are given some."""
    program = "def f():\n    x = bytearray(200 << 20)\n    import time; time.sleep(9)"
    limits = Limits(cpu_s=8.0, wall_s=16.0, memory_mb=128)
    assert verdicts(program, "assert f()", "assert True", limits=limits) == [
        "memory_limit",
        "passed",
    ]


def test_a_program_that_does_not_load() -> None:
    assert verdicts("def f(:", "assert f()", "assert True") == ["crash", "crash"]
    assert "SyntaxError: invalid syntax" in run_tests("def f(:", ["assert f()"])[0].message
    assert verdicts("x" * 100_001, "assert True") == ["refused"]


# -- the others ------------------------------------------------------------------------------------

LIARS = {
    "equal to everything": "class E:\n def __eq__(s, o): return True\n def __hash__(s): return 0\ndef f(x): return E()",
    "an int that is": "class E(int):\n def __eq__(s, o): return True\ndef f(x): return E(1)",
    "a list that is": "class E(list):\n def __eq__(s, o): return True\n def __len__(s): return 3\ndef f(x): return E([1])",
    "exit": "import sys\nsys.exit(0)",
    "exit later": "import os\ndef f(x): os._exit(0)",
    "no assert": "import builtins\nbuiltins.AssertionError = ZeroDivisionError\ndef f(x): return 0",
    "other builtins": "import builtins\nbuiltins.sum = builtins.abs = builtins.range = lambda *a: 0\n"
    "def sum(*a): return 0\ndef range(*a): return []\ndef f(x): return 0",
    "printer": "print('[\"passed\", \"\"]', flush=True)\ndef f(x):\n print('[\"passed\", \"\"]', flush=True)",
    "writer": "import os\nfor fd in range(64):\n try: os.write(fd, b'[\"passed\", \"\"]\\n' * 9)\n except OSError: pass\n"
    "def f(x): return 0",
    "talker": "import os, json, struct\n"
    "m = json.dumps({'value': [['c', True]]}).encode()\n"
    "for fd in range(3, 64):\n try: os.write(fd, (struct.pack('!Q', len(m)) + m) * 99)\n except OSError: pass\n",
    "looker": "import sys, gc\ndef f(x):\n"
    " frames, frame = [], sys._getframe()\n"
    " while frame: frames += frame.f_locals.values(); frame = frame.f_back\n"
    " for o in frames + gc.get_objects():\n"
    "  if isinstance(o, str) and 'sum(range' in o and 'looker' not in o: return 4951\n"
    " return 0",
    "reader": "import os\ndef f(x):\n"
    " for fd in range(64):\n"
    "  try:\n   if b'sum(range' in os.pread(fd, 1 << 20, 0): return 4951\n"
    "  except OSError: pass\n"
    " for root, _, names in os.walk('/tmp'):\n"
    "  for name in names:\n   if 'sum(range' in open(root + '/' + name).read(): return 4951\n"
    " return 0",
    "stopper": "import threading, os, time\ndef f(x):\n time.sleep(9)",
    "forker": "import os\ndef f(x):\n if os.fork(): os._exit(0)\n return 0",
    "replacer": "def check(*a): pass\ndef f(x): return 0",
    "endless data": "def f(x): return 'x' * (80 << 20)",
    "deep data": "def f(x):\n t = ()\n for _ in range(100000): t = (t,)\n return t",
    "bad message": "import json\njson.dumps = lambda x: '{'\ndef f(x): return 0",
    "odd message": "import json\njson.dumps = lambda x: '{\"value\": [[\"q\"]]}'\ndef f(x): return 0",
    "alien record": "import json\njson.dumps = lambda x: '{\"value\": [[\"r\", \"os\", []]]}'\ndef f(x): return 0",
    "no number": "import json\njson.dumps = lambda x: '{\"error\": 5}'\ndef f(x): return 0",
}  # fmt: skip
HONEST = "def f(x): return sum(range(x)) + 1"
CHECK = (
    "def check(c):\n    assert c(100) == sum(range(100)) + 1\n    assert c(0) == abs(1)\ncheck(f)"
)


def test_a_test_cannot_swallow_the_end_of_the_program() -> None:
    dies = "import os\ndef f(): os._exit(0)"
    for test in (
        "try: f()\nexcept: pass\nelse: assert False",
        "try: f()\nexcept BaseException: pass",
        "try: f()\nfinally: raise SystemExit",
    ):
        assert verdicts(dies, test) == ["crash"]


def test_the_block_that_reads_is_graded() -> None:
    example = code_example({"input": "2", "output": "3"})
    program = "```python\nprint(int(input()) + 1)\n```"
    text = f"{program}\nFor example:\n```python\nx = 2\nprint(x + 1)\n```\n```\n3\n```"
    assert accuracy(example, text, length=1, finish_reason="stop") == 1
    assert final_programs(text) == ["print(int(input()) + 1)\n"]


def test_a_liar_that_speaks_as_a_callback() -> None:
    liar = (
        "import json\n"
        'def f(g):\n json.dumps = lambda x: \'{"callback": 99, "args": []}\'\n return 0'
    )
    assert verdicts(liar, "assert f(lambda: 1) == 1") != ["passed"]
    greedy = "def f(g):\n while True: g()"
    assert verdicts(greedy, "assert f(lambda: 1) == 1") == ["time_limit"]


def test_the_check_itself() -> None:
    assert verdicts(HONEST, CHECK) == ["passed"]


@pytest.mark.parametrize("name", LIARS)
def test_liars_earn_nothing(name: str) -> None:
    assert verdicts(LIARS[name], CHECK)[0] != "passed"


# -- the reward ------------------------------------------------------------------------------------

RIGHT, WRONG = "```python\ndef f(x): return x + 1\n```", "```python\ndef f(x): return x\n```"


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (RIGHT, 1, 1),
        (WRONG, 0, 0),
        (f"{WRONG}\nOr:\n{RIGHT}\nDone.", 1, 1),
        (f"{RIGHT}\nOr:\n{WRONG}", 0, 0),
        (f"<think>{WRONG}</think>{RIGHT}", 1, 1),
        (f"<think>{RIGHT}</think>It is done.", 0, 1),
        (f"<think>x</think><answer>{RIGHT}</answer>", 1, 1),
        (f"<think>x</think>{RIGHT}<answer>see above</answer>", 0, 1),
        (RIGHT.replace("python", "py"), 1, 1),
        (RIGHT.replace("python", ""), 1, 1),
        (RIGHT.replace("```python", "  ``` Python3 title"), 1, 1),
        (RIGHT.replace("python", "c++"), 0, 0),
        (f"{RIGHT}\nUse it:\n```python\nprint(f(1))\n```\nIt prints\n```\n2\n```", 1, 1),
        (f"{RIGHT}\n```python\ndef test(): assert f(1) == 2\ntest()\n```", 1, 1),
        (f"{RIGHT}\n```python\nx = 1\n```", 1, 1),
        (f"{RIGHT}\nFaster:\n{WRONG}\n```python\nprint(f(1))\n```", 0, 0),
        (RIGHT.replace("```", "~~~"), 1, 1),
        (f"```python\ndef f(x): retur\nNo, again:\n{RIGHT}", 1, 1),
        (RIGHT.replace("```", "````"), 1, 1),
        ("1. ```python\n   def f(x):\n       return x + 1\n   ```", 1, 1),
        ("- Here:\n  ```python\n  def f(x):\n      return x + 1\n  ```\n", 1, 1),
        (
            '```python\ndef f(x):\n    """Adds.\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n```',
            1,
            1,
        ),
        (
            '```python\ndef f(x):\n    s = """\n```python\n```\n"""\n    return x + 1\n```\nDone',
            1,
            1,
        ),
        (f"```text\n{RIGHT.replace('`', '~')}\n```", 0, 0),
        (f"{RIGHT}\n```text\n2\n```", 1, 1),
        (RIGHT.removesuffix("```"), 0, 0),
        ("def f(x): return x + 1", 0, 0),
        ("", 0, 0),
    ],
)
def test_where_the_program_stands(text: str, strict: int, lenient: int) -> None:
    example = code_example("assert f(1) == 2")
    assert accuracy(example, text, length=1, finish_reason="stop") == strict
    assert lenient_accuracy(example, text, length=1, finish_reason="stop") == lenient


def test_votes_compare_texts() -> None:
    example = code_example("assert f(1) == 2")
    assert final_answer(f"<think>x</think>{RIGHT}", "code") == "def f(x): return x + 1\n"
    assert same_answer(example, "a", "a")
    assert not same_answer(example, "def f(x): return x + 1", "def f(x): return 1 + x")
    assert TASKS["code"].extract(RIGHT) == last_program(RIGHT) == final_programs(RIGHT)[0]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tests": []}, "a list of tests"),
        ({"tests": "assert f(1)"}, "a list of tests"),
        ({"tests": [{"input": "1"}]}, "test 1 is neither"),
        ({"tests": ["assert f(1)", 3]}, "test 2 is neither"),
        ({"tests": ["assert f(1)", {"input": "", "output": ""}]}, "both kinds"),
        ({"tests": ["assert f(1)"], "time_limit_s": 0}, "time_limit_s 0"),
        ({"tests": ["assert f(1)"], "memory_limit_mb": "1 GB"}, "memory_limit_mb '1 GB'"),
    ],
)
def test_bad_examples(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_example(code_example(**metadata))
    check_example(code_example("assert f(1)", time_limit_s=1.5, memory_limit_mb=64))


def test_an_examples_limits_hold() -> None:
    text = "```python\nimport time\ndef f():\n    time.sleep(0.7)\n    return 1\n```"
    for seconds, right in ((0.2, 0), (2, 1)):
        example = code_example("assert f() == 1", time_limit_s=seconds)
        assert accuracy(example, text, length=1, finish_reason="stop") == right


def test_in_graders_processes() -> None:
    """A worker that is killed for being late takes the program under test with it."""
    slow = "```python\nimport time\ndef f(x):\n    time.sleep(97)\n```"
    example = code_example("assert f(1) == 2", time_limit_s=90)
    with GraderPool({"": {"accuracy": 1.0}}, GraderConfig(2, timeout_s=6.0)) as pool:
        batch = pool.begin("")
        for key, text in (("right", RIGHT), ("wrong", WRONG), ("slow", slow)):
            batch.submit(key, example, text, 1, "stop")
        grades = dict(batch.results())
    assert (grades["right"].reward, grades["wrong"].reward) == (1, 0)
    assert grades["slow"].failure is not None and grades["slow"].failure.kind == "timeout"
    if os.geteuid() == 0:
        left, end = sandboxed(), time.monotonic() + 30
        while left & sandboxed():  # programs of tests beside this one end soon, the sleeper late
            assert time.monotonic() < end
            time.sleep(0.2)


def sandboxed() -> set[str]:
    """Processes of the users that programs under test run as."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid in range(FIRST_UID, FIRST_UID + UIDS):
                found.add(path.name)
    return found


def test_plain_data_survives() -> None:
    class Point:
        def __init__(self, x: Any) -> None:
            self.x = x

    records = {"Point": Point}
    shared = [1]
    value = {"a": (shared, shared), "p": Point({2: 0.1}), (1, ("x",)): {frozenset([3])}}
    table = json.loads(json.dumps(encode(value, records, lambda x: ["h", hash(x)])))
    back = decode(table, records, lambda kind, number: number)
    assert back["a"] == ([1], [1]) and back["a"][0] is back["a"][1]
    assert type(back["p"]) is Point and back["p"].x == {2: 0.1}
    assert back[(1, ("x",))] == {frozenset([3])}


# -- benchmarks ------------------------------------------------------------------------------------


def test_benchmark_rows(tmp_path: Any) -> None:
    human = {
        "task_id": "HumanEval/0",
        "prompt": "from typing import List\n\n\ndef one(x: List[int]) -> int:\n    \"\"\" One. \"\"\"\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate([]) == 1\n",
    }  # fmt: skip
    basic = {
        "task_id": 601, "text": "Write two.", "code": "def two(): return 2", "test_setup_code": "a = 2",
        "test_list": ["assert two() == a"],
    }  # fmt: skip
    leet = {
        "id": 3, "problem": "Turn a list.",
        "test": "def check(candidate):\n    assert is_same_list(candidate(head = list_node([1,2])), list_node([2,1]))\n"
        "    assert is_same_tree(tree_node([1,None,2]), tree_node([1,None,2]))\n\ncheck(Solution().turn)",
    }  # fmt: skip
    forces = {
        "id": 4, "problem": "Add.\nTime Limit: 2000 ms\nMemory Limit: 256 MB\n",
        "tests": [{"input": "1 2", "output": "3"}],
    }  # fmt: skip
    solutions = {
        "humaneval": (human, human["prompt"] + human["canonical_solution"]),
        "mbpp": (basic, basic["code"]),
        "leetcode": (leet, "class Solution:\n  def turn(self, head: Optional[ListNode]):\n    last = None\n"
                     "    while head: head.next, last, head = last, head, head.next\n    return last"),
        "codeforces": (forces, "print(sum(map(int, input().split())))"),
    }  # fmt: skip
    path = str(tmp_path / "rows.jsonl")
    for name, (row, solution) in solutions.items():
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        arguments = {"split": "train"} if name == "mbpp" else {}
        (found,) = getattr(code, name)(path, **arguments)
        example = to_example(found, 0, path)
        check_example(example)
        for program, right in ((solution, 1), ("x = 1", 0)):
            text = f"```python\n{program}\n```"
            assert accuracy(example, text, length=1, finish_reason="stop") == right, name
    assert found["time_limit_s"] == 10.0 and found["memory_limit_mb"] == 256
    assert mbpp.__defaults__ is not None
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="rows.jsonl:1 has no key 'problem'"):
        leetcode(path)
