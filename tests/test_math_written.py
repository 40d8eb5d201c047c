"""What people write for a reference, right and wrong, by kind (the pairs: math_written.py)."""

import pytest
from helpers import example
from math_written import NOT_REPEATED, REPEATED, RIGHT, VARIABLES, WRONG

from r1jax.tasks import TASKS


def pairs(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for of_kind in table.values() for pair in of_kind]


@pytest.mark.parametrize(("gold", "answer"), pairs(RIGHT))
def test_right(gold: str, answer: str) -> None:
    assert TASKS["math"].equivalent(example("math", gold, "?"), answer)


@pytest.mark.parametrize(("gold", "answer"), pairs(WRONG))
def test_wrong(gold: str, answer: str) -> None:
    assert not TASKS["math"].equivalent(example("math", gold, "?"), answer)


@pytest.mark.parametrize(("question", "gold", "answer"), REPEATED + VARIABLES)
def test_wrong_to_this_question(question: str, gold: str, answer: str) -> None:
    assert not TASKS["math"].equivalent(example("math", gold, question), answer)


@pytest.mark.parametrize(("question", "gold", "answer"), NOT_REPEATED)
def test_right_to_this_question(question: str, gold: str, answer: str) -> None:
    assert TASKS["math"].equivalent(example("math", gold, question), answer)


@pytest.mark.parametrize("gold", sorted({gold for gold, _ in pairs(RIGHT) + pairs(WRONG)}))
def test_every_reference_is_right_itself(gold: str) -> None:
    assert TASKS["math"].equivalent(example("math", gold, "?"), gold)
