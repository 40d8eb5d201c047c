"""Kinds of question: how an answer is found and compared. Imports no jax.

An example's `task` names one: a key of TASKS, or `module:NAME` of a Task of the user's own. Where
the answer stands in a completion is the same for most: answers.py. Rows are JSON lines; their other
keys become metadata:

    {"prompt": "What is 2 + 3?", "answer": "5", "task": "integer"}
    {"messages": [{"role": "user", "content": "Which is prime? A) 4 B) 7"}],
     "answer": "B", "task": "choice"}
    {"prompt": "Write f(x) = x + 1 in Python.", "answer": "", "task": "code",
     "tests": ["assert f(1) == 2", "assert f(-1) == 0"]}
    {"prompt": "Double the number you read.", "answer": "", "task": "code",
     "tests": [{"input": "4", "output": "8"}], "time_limit_s": 2}

    math       numbers with units, formulas, lists, sets, intervals, equations, words
    integer, sorted, letter, choice, countdown
    answer_letter, the_answer_is, chinese_answer, json_answer    an option, stated in a fixed form
    drop       a short text, compared word by word; the reward `f1` is for it
    knights    knights and knaves
    gym        any task of reasoning-gym (the extra `gym`)
    code       a program in a ```python block, run against `tests` in a sandbox, which is bubblewrap
               (apt install bubblewrap); without it code is refused unless the config says
               graders.sandbox = "rlimits". The expected values are in another sandbox, so a program
               can only answer. What that stops and what not: sandbox.py.
    instructions
               what a program can check of a response, as IFEval has it (the extra `ifeval`)
    general    without a reference: its reward is a model's

HumanEval, MBPP, LeetCode- and Codeforces-style files are read by r1jax/benchmarks/code.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1jax.config import ConfigError, DataError, import_object
from r1jax.tasks.answers import final_answers
from r1jax.tasks.choice_task import last_choice, last_letter, same_choice, same_letter
from r1jax.tasks.code_task import check_code, final_programs, last_program, passes_tests
from r1jax.tasks.drop_task import check_drop, exact, last_line_answer, whole_answer
from r1jax.tasks.gym_task import check_gym, last_line, solves_gym
from r1jax.tasks.instructions import (
    check_instructions,
    follows_all,
    follows_all_loosely,
    response_of,
)
from r1jax.tasks.logic_task import (
    check_countdown,
    last_expression,
    last_list,
    last_roles,
    same_expression,
    same_list,
    same_roles,
    solves_countdown,
)
from r1jax.tasks.math_task import (
    check_formula,
    last_formula,
    last_number,
    same_formula,
    same_integer,
)
from r1jax.tasks.stated_task import json_answers, same_option, stated

if TYPE_CHECKING:
    from r1jax.types import Example

MAX_BOXES = 8  # different boxed values; a final answer with more is wrong


@dataclass(frozen=True)
class Task:
    """How one kind of answer is found and compared."""

    extract: Callable[[str], str | None]  # lenient: the last thing like an answer, anywhere
    equivalent: Callable[[Example, str], bool]  # strict: the answer as a whole, nothing around it
    final: Callable[[str], list[str]] = final_answers
    # `final`, where the example says more of what the answer looks like
    final_for: Callable[[str, Example], list[str]] | None = None
    # Whether a final answer is right but for what is around it: lenient, in the place of `extract`
    lenient: Callable[[Example, str], bool] | None = None
    comparable: bool = True  # whether two answers can be compared
    same: Callable[[str, str], bool] | None = None  # how, where not by `equivalent`
    # DataError for what no completion could get right; None: the answer must equal itself
    check: Callable[[Example], None] | None = None


TASKS = {
    "math": Task(last_formula, same_formula, check=check_formula),
    "integer": Task(last_number, same_integer),
    "sorted": Task(last_list, same_list),
    "letter": Task(last_letter, same_letter),
    "countdown": Task(
        last_expression, solves_countdown, same=same_expression, check=check_countdown
    ),
    "choice": Task(last_choice, same_choice),
    **{
        form: Task(last_choice, same_option, stated(form))
        for form in ("answer_letter", "the_answer_is", "chinese_answer")
    },
    "json_answer": Task(last_choice, same_option, json_answers),
    "drop": Task(whole_answer, exact, last_line_answer, check=check_drop),
    "general": Task(  # without a reference: its reward is a model's
        lambda text: None,
        lambda example, answer: False,
        comparable=False,
        check=lambda example: None,
    ),
    "knights": Task(last_roles, same_roles),
    "gym": Task(last_line, solves_gym, comparable=False, check=check_gym),
    "instructions": Task(
        response_of,
        follows_all,
        lambda text: [response_of(text)],
        lenient=follows_all_loosely,
        comparable=False,
        check=check_instructions,
    ),
    "code": Task(
        last_program,
        passes_tests,
        final_programs,
        final_programs,
        comparable=False,
        check=check_code,
    ),
}


def task_of(name: str) -> Task:
    """A task by its name; ConfigError where there is none."""
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        known = ", ".join(TASKS)
        raise ConfigError(f"task {name!r} is neither module:NAME nor one of {known}")
    found = import_object(name, f"task {name!r}")
    if not isinstance(found, Task):
        raise ConfigError(f"task {name!r} is of type {type(found).__name__}, not a Task")
    return found


def check_example(example: Example) -> None:
    """Raises DataError if no completion could ever be right: a silent reward of 0 for ever."""
    try:
        task = task_of(example.task)
    except ConfigError as error:
        raise DataError(f"example {example.id}: {error}") from None
    if task.check is not None:
        task.check(example)
    elif not task.equivalent(example, example.answer):
        raise DataError(f"example {example.id}: {example.answer!r} is no {example.task} answer")


def finals(example: Example, text: str) -> list[str]:
    """The final answers of a completion to this example."""
    task = task_of(example.task)
    return task.final(text) if task.final_for is None else task.final_for(text, example)


def same_answer(example: Example, first: str, second: str) -> bool:
    """Whether two answers to the same question say the same, right or wrong (for cons@k)."""
    task = task_of(example.task)
    equivalent = task.equivalent
    if first == second or not task.comparable:
        return first == second
    if task.same is not None:
        return task.same(first, second)
    return equivalent(replace(example, answer=first), second) and equivalent(
        replace(example, answer=second), first
    )
