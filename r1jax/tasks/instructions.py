"""Instructions that programs can check, as in IFEval: a response follows each of them or not.

An example of task "instructions" has in its metadata the `instruction_id_list`, names of RULES, and
`kwargs`, the arguments of each in the same order. What is graded is the visible response alone.

    {"prompt": "Why is the sky blue? Use no commas.", "answer": "", "task": "instructions",
     "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r1jax.config import DataError
from r1jax.tasks.answers import tagged_answer
from r1jax.tasks.instruction_rules import RULES

if TYPE_CHECKING:
    from r1jax.types import Example

MAX_RESPONSE = 400_000  # characters, 12 for each of 32,768 tokens; what is longer follows nothing


@dataclass(frozen=True)
class Instruction:
    """One of an example's."""

    name: str  # a key of RULES
    arguments: Mapping[str, Any]

    def followed(self, response: str) -> bool:
        """Whether by this response; by none that is blank."""
        if not response.strip() or len(response) > MAX_RESPONSE:
            return False
        return RULES[self.name].followed(response, **self.arguments)


def instructions_of(row: Mapping[str, Any]) -> list[Instruction]:
    """Those of a row or of an example's metadata.

    DataError for names and arguments that are none, ConfigError where what they are checked with is
    not installed. Arguments that are null are left out: tables have every argument in every row.
    """
    names, given = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list | tuple) or not names:
        raise DataError(f"instruction_id_list {names!r} is not a list of names")
    if not isinstance(given, list | tuple) or len(given) != len(names):
        raise DataError(f"kwargs is not a list of {len(names)} objects, one for each instruction")
    return [_instruction(name, found) for name, found in zip(names, given, strict=True)]


def _instruction(name: Any, given: Any) -> Instruction:
    if not isinstance(name, str) or name not in RULES:
        raise DataError(f"{name!r} is no instruction; there are {', '.join(RULES)}")
    if not isinstance(given, Mapping):
        raise DataError(f"{name}: its kwargs {given!r} are not an object")
    expected = RULES[name].arguments
    arguments = {key: value for key, value in given.items() if value is not None}
    if unknown := [key for key in arguments if key not in expected]:
        takes = ", ".join(expected) or "none"
        raise DataError(f"{name} takes no argument {unknown[0]!r}, of kwargs it has {takes}")
    for key, argument in expected.items():
        if key not in arguments:
            raise DataError(f"{name} needs the argument {key!r} in its kwargs: {argument.what}")
        if not argument.fits(arguments[key]):
            raise DataError(f"{name}: {key} {arguments[key]!r} is not {argument.what}")
    if arguments.get("nth_paragraph", 0) > arguments.get("num_paragraphs", 0):
        raise DataError(f"{name}: nth_paragraph is more than num_paragraphs")
    RULES[name].needs()
    return Instruction(name, arguments)


def check_instructions(example: Example) -> None:
    """As instructions_of, for what no completion could get right."""
    instructions_of(example.metadata)


def response_of(text: str) -> str:
    """What the reader sees: the inside of <answer>...</answer> behind the thoughts, or all there.

    A completion without these tags is taken as it is, white space included; blank where its
    thoughts do not end.
    """
    _, closed, behind = text.rpartition("</think>")
    tagged = tagged_answer(behind)
    if tagged is not None:
        return tagged.strip()
    shown = behind.partition("<think>")[0]
    return shown.strip() if closed else shown


def follows(example: Example, response: str) -> list[bool]:
    """Strictly, each of its instructions."""
    return [each.followed(response) for each in instructions_of(example.metadata)]


def follows_loosely(example: Example, response: str) -> list[bool]:
    """Each of its instructions, by one of the response's eight variants at least."""
    found = variants(response)
    return [any(map(each.followed, found)) for each in instructions_of(example.metadata)]


def variants(response: str) -> list[str]:
    """The response, also without its first line, its last, and both; each also without asterisks.

    So that "Sure, here it is:" and Markdown do no harm. Each once.
    """
    lines = response.split("\n")
    parts = (lines[1:], lines[:-1], lines[1:-1])
    cut = [response, *("\n".join(part).strip() for part in parts)]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


def follows_all(example: Example, response: str) -> bool:
    return all(follows(example, response))


def follows_all_loosely(example: Example, response: str) -> bool:
    return all(follows_loosely(example, response))
