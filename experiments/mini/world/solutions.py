"""Worked solutions of the world's problems, as a web corpus would hold them: some wrong.

Styles: "direct" says an answer at once, "steps" does one short line per operation, "detailed" takes
operations apart into facts that a tiny model learns almost without error, "check" works, then goes
over it another way and corrects what was wrong. More work means fewer wrong answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.mini.world.problems import (
    Expr,
    Problem,
    answer_of,
    apply,
    contradictions,
    evaluate,
    make_rng,
    sample_chain,
    show,
    signed_terms,
)

STYLES = ("direct", "steps", "detailed", "check")
DIRECT_WRONG = {1: 0.35, 2: 0.45, 3: 0.55, 4: 0.60, 5: 0.70}  # level -> share; mean 0.53
SLIPS = {"steps": 0.08, "detailed": 0.02}  # share of solutions with one slip
CHECK_SLIPS = 0.5  # share of checks that find a slip planted before them
CHECK_STEPS_FIRST = 0.6  # share of checks whose first pass is in steps, not detailed
MAX_CHARACTERS = {"detailed": 125, "check": 96}  # digits and operators; beyond it, all is in steps

OPENING = {"en": "Step by step:", "zh": "一步一步："}
FORCED_PREFIX = {language: f" <think> {words}" for language, words in OPENING.items()}
_TRYING = {"en": "Let me see:", "zh": "让我想想："}
_SPACE = {"en": " ", "zh": ""}
_NEXT = "; "
_STOP = {"en": ".", "zh": "。"}
_YES = {"en": "yes", "zh": "对"}
_NO = {"en": "no", "zh": "否"}
_CHECK = {
    "en": (" Wait, check:", " Check again:", " But let me verify:", " Wait, verify:"),
    "zh": ("等等，检查：", "再检查：", "但是验证一下：", "等等，验证："),
}
_WRONG = {
    "en": (" {new}, not {old}, so that was wrong.", " But {old} was wrong, it is {new}."),
    "zh": ("是{new}，不是{old}，刚才不对。", "但{old}不对，应该是{new}。"),
}
_LIST_WRONG = {"en": (" No, the first was wrong.",), "zh": ("不对，刚才错了。",)}
_LIST_RIGHT = {"en": (" The same, correct.",), "zh": ("一样，正确。",)}
_RIGHT = {
    "en": (" {new} again, correct.", " {new}, right."),
    "zh": ("还是{new}，正确。", "{new}没错。"),
}


@dataclass(frozen=True)
class Try:
    """One pass over a problem: lines of work, and the answer they end in."""

    lines: list[str]
    answer: str


def _one(rng: random.Random, options: Sequence[Any]) -> Any:
    return options[int(rng.random() * len(options))]  # one draw, however many options


# Arithmetic


def _nudge(value: int, step: int, rng: random.Random) -> int:
    """A plausible wrong value: off by 1, by 10, or by a row of the multiplication table."""
    wrong = value + _one(rng, (1, -1)) * _one(rng, (1, 1, 10, step))
    return 2 * value - wrong if wrong < 0 <= value else wrong


def _sum_lines(left: int, right: int) -> list[str]:
    tens = left - left % 10 + right - right % 10
    ones = left % 10 + right % 10
    total = f"{left}+{right}={left + right}"
    if (left < 10 and right < 10) or left % 10 == 0 or right % 10 == 0:
        return [total]
    ones_line = f"{left % 10}+{right % 10}={ones}"
    if min(left, right) < 10:
        return [ones_line, f"{tens}+{ones}={tens + ones}"] if ones > 9 else [total]
    tens_line = f"{left - left % 10}+{right - right % 10}={tens}"
    return [tens_line, ones_line, f"{tens}+{ones}={tens + ones}"]


def _difference_lines(left: int, right: int) -> list[str]:
    """left >= right >= 0: first the tens go, then down to the ten, then the rest."""
    tens, ones = right - right % 10, right % 10
    if tens and ones:
        return [f"{left}-{tens}={left - tens}", *_difference_lines(left - tens, ones)]
    below = left % 10
    if tens or ones <= below or left < 20:
        return [f"{left}-{right}={left - right}"]
    if not below:
        return [f"{left}-{right}={left - right}"]
    return [
        f"{left}-{below}={left - below}",
        f"{left - below}-{ones - below}={left - ones}",
    ]


def _product_lines(left: int, right: int) -> list[str]:
    big, small = max(left, right), min(left, right)
    if big < 10 or big % 10 == 0 or small > 9:
        return [f"{left}*{right}={left * right}"]
    tens, ones = (big - big % 10) * small, big % 10 * small
    return [
        f"{big - big % 10}*{small}={tens}",
        f"{big % 10}*{small}={ones}",
        f"{tens}+{ones}={tens + ones}",
    ]


def operation_lines(operator: str, left: int, right: int) -> list[str]:
    """The operation taken apart; the last line ends in '=result'."""
    whole = f"{left}{operator}{right}={apply(operator, left, right)}"
    if right < 0 or (operator == "*" and left < 0):
        return [whole]  # only after a slip
    if operator == "*":
        return _product_lines(left, right)
    if left < 0:
        if operator == "-":
            lines = _sum_lines(-left, right)
        elif right >= -left:
            lines = _difference_lines(right, -left)
        else:
            lines = _difference_lines(-left, right)
        return [*lines, whole]
    if operator == "+":
        return _sum_lines(left, right)
    return (
        _difference_lines(left, right)
        if left >= right
        else [*_difference_lines(right, left), whole]
    )


def _count(expr: Expr) -> int:
    return 0 if isinstance(expr, int) else 1 + _count(expr[1]) + _count(expr[2])


def drill(operator: str, left: int, right: int) -> str:
    """'47+38:40+30=70,7+8=15,70+15=85', or just the fact where there is nothing to take apart."""
    parts = operation_lines(operator, left, right)
    return parts[0] if len(parts) == 1 else f"{left}{operator}{right}:{','.join(parts)}"


def work(
    expr: Expr, detailed: bool, slip_at: int = -1, rng: random.Random | None = None
) -> tuple[list[str], int]:
    """One line per operation and the value; operation number `slip_at` (from 0) goes wrong."""
    lines: list[str] = []
    done = 0

    def reduce(expr: Expr) -> int:
        nonlocal done
        if isinstance(expr, int):
            return expr
        operator, left, right = expr[0], reduce(expr[1]), reduce(expr[2])
        value = apply(operator, left, right)
        line = f"{left}{operator}{right}={value}"
        if detailed:
            line = drill(operator, left, right)
        if done == slip_at and rng is not None:
            wrong = _nudge(value, right if operator == "*" else 2, rng)
            line, value = line.removesuffix(str(value)) + str(wrong), wrong
        lines.append(line)
        done += 1
        return value

    return lines, reduce(expr)


def _reordered(expr: Expr) -> Expr:
    """The same sum another way: what is added first, in reverse, then what is taken away."""
    terms = signed_terms(expr)
    if len(terms) < 2:
        return expr
    plus = [term for sign, term in reversed(terms) if sign > 0]
    result = plus[0]
    for term in plus[1:]:
        result = ("+", result, term)
    for sign, term in terms:
        if sign < 0:
            result = ("-", result, term)
    return result


def _guess_value(expr: Expr, rng: random.Random) -> int:
    """A wrong value as people get it: off by one or ten, a term dropped, products not first."""
    kind, value = _one(rng, (0, 0, 1, 2)), evaluate(expr)
    guess = value
    if kind == 1 and not isinstance(expr, int):
        guess = evaluate(expr[1])
    if kind == 2:
        guess = _left_to_right(expr)
    return guess if guess != value else _nudge(value, 2, rng)


def _left_to_right(expr: Expr) -> int:
    total = 0
    for operator, number in _flat(expr, "+"):
        total = apply(operator, total, number)
    return total


def _flat(expr: Expr, operator: str) -> list[tuple[str, int]]:
    if isinstance(expr, int):
        return [(operator, expr)]
    return _flat(expr[1], operator) + _flat(expr[2], expr[0])


def _try_arithmetic(
    problem: Problem, detailed: bool, slip: bool, earlier: str | None, rng: random.Random, _: str
) -> Try:
    expr = problem.spec if earlier is None else _reordered(problem.spec)
    slip_at = int(rng.random() * _count(expr)) if slip else -1
    lines, value = work(expr, detailed, slip_at, rng)
    return Try(lines, str(value))


def _try_compare(
    problem: Problem, detailed: bool, slip: bool, earlier: str | None, rng: random.Random, _: str
) -> Try:
    exprs = problem.spec if earlier is None else problem.spec[::-1]
    slipping = int(rng.random() * len(exprs)) if slip else -1
    lines: list[str] = []
    values = []
    for index, expr in enumerate(exprs):
        slip_at = int(rng.random() * _count(expr)) if index == slipping else -1
        more, value = work(expr, detailed, slip_at, rng)
        lines += more
        values.append(value)
    lines.append(">".join(map(str, sorted(values, reverse=True))))
    return Try(lines, str(max(values)))


# Sorting


def _swap(items: list[Any], rng: random.Random) -> list[Any]:
    """Two neighbours exchanged."""
    at = int(rng.random() * (len(items) - 1))
    return [*items[:at], items[at + 1], items[at], *items[at + 2 :]]


def _join(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _try_sort(
    problem: Problem, detailed: bool, slip: bool, earlier: str | None, rng: random.Random, _: str
) -> Try:
    """In steps: the numbers below 50, then the others; detailed: insert one after the other."""
    numbers = list(problem.spec)
    result = _swap(sorted(numbers), rng) if slip else sorted(numbers)
    if detailed:
        lines = [_join(sorted(numbers[: count + 1])) for count in range(len(numbers) - 1)]
        return Try([*lines, _join(result)], ", ".join(map(str, result)))
    low, high = [n for n in result if n < 50], [n for n in result if n >= 50]
    lines = [name + _join(half) for name, half in (("<50:", low), (">=50:", high)) if half]
    return Try(lines if earlier is None else lines[::-1], ", ".join(map(str, low + high)))


# Countdown


def _attempt_line(expr: Expr, detailed: bool, verdict: str) -> str:
    parts = work(expr, False)[0] if detailed else [f"{show(expr)}={evaluate(expr)}"]
    return f"{','.join(parts)} {verdict}"


def _try_countdown(
    problem: Problem,
    detailed: bool,
    slip: bool,
    earlier: str | None,
    rng: random.Random,
    language: str,
) -> Try:
    """Tries combinations until one hits; a slip takes a miss for a hit."""
    numbers, target, solution = problem.spec
    no, yes = _NO[language], _YES[language]
    misses: list[Expr] = []
    if earlier is not None:
        before = parse_chain(earlier)
        if evaluate(before) == target:
            return Try([_attempt_line(before, True, yes)], earlier)
        misses.append(before)
    hit = solution
    for _ in range(2 + int(rng.random() * 3) if detailed else 1 + int(rng.random() * 2)):
        candidate = sample_chain(rng, numbers, problem.level)
        if evaluate(candidate) == target:
            hit = candidate
            break
        if candidate not in misses and evaluate(candidate) >= 0:
            misses.append(candidate)
    lines = [_attempt_line(miss, detailed, no) for miss in misses]
    if slip and misses:  # the last miss
        wrong = show(misses[-1])
        lines[-1] = f"{wrong}={target} {yes}"
        return Try(lines, wrong)
    return Try([*lines, _attempt_line(hit, detailed, yes)], show(hit))


# Logic


def _try_order(
    problem: Problem, detailed: bool, slip: bool, earlier: str | None, rng: random.Random
) -> Try:
    _, ranking, clues, asked, _ = problem.spec
    order = _swap(list(ranking), rng) if slip else list(ranking)
    first = 3 if detailed else len(order)
    if earlier is None:
        lines = [f"{higher}>{lower}" for higher, lower, _ in clues]
        lines += [">".join(order[:count]) for count in range(first, len(order) + 1)]
    else:  # from the other end
        upwards = order[::-1]
        lines = [
            "<".join(upwards[:count]) for count in range(2 if detailed else first, len(order) + 1)
        ]
    return Try(lines, order[asked - 1])


_SUPPOSE = {"en": "if {name} lies, {why}{verdict}", "zh": "若{name}说谎，{why}{verdict}"}
_HOLDS = {"en": ("{0} true, ", "{0} false, "), "zh": ("{0}真，", "{0}假，")}


def _suppose(
    statements: Sequence[tuple[str, str, bool]], liar: str, detailed: bool, language: str
) -> str:
    bad = contradictions(statements, liar)
    why = ""
    for speaker, about, says_lies in statements:
        if detailed or speaker in bad[:1]:
            holds = (about == liar) == says_lies
            why += _HOLDS[language][not holds].format(speaker)
    verdict = (_NO if bad else _YES)[language]
    return _SUPPOSE[language].format(name=liar, why=why, verdict=verdict)


def _try_liar(
    problem: Problem,
    detailed: bool,
    slip: bool,
    earlier: str | None,
    rng: random.Random,
    language: str,
) -> Try:
    _, letters, statements = problem.spec
    right = answer_of(problem)
    others = [name for name in letters if name != right]
    if slip:
        wrong = _one(rng, others)
        claim = _SUPPOSE[language].format(name=wrong, why="", verdict=_YES[language])
        before = [] if rng.random() < 0.5 else [next(name for name in others if name != wrong)]
        lines = [_suppose(statements, name, detailed, language) for name in before]
        return Try([*lines, claim], wrong)
    order = letters if earlier is None else [earlier, *(n for n in letters if n != earlier)]
    tried = list(order)[: list(order).index(right) + 1]
    return Try([_suppose(statements, name, detailed, language) for name in tried], right)


def _try(
    problem: Problem,
    style: str,
    slip: bool,
    earlier: str | None,
    rng: random.Random,
    language: str,
) -> Try:
    arguments = (problem, style == "detailed", slip, earlier, rng)
    if problem.family == "logic":
        if problem.spec[0] == "order":
            return _try_order(*arguments)
        return _try_liar(*arguments, language)
    return {
        "arithmetic": _try_arithmetic,
        "compare": _try_compare,
        "sort": _try_sort,
        "countdown": _try_countdown,
    }[problem.family](*arguments, language)


# Whole solutions


def is_right(problem: Problem, answer: str) -> bool:
    """Whether an answer of this module is right (graders of free text live in r1jax.rewards)."""
    if problem.family != "countdown":
        return answer == answer_of(problem)
    return evaluate(parse_chain(answer)) == problem.spec[1]


def parse_chain(text: str) -> Expr:
    """'3*5-2' back to an Expr; no parentheses."""
    for at in range(len(text) - 1, 0, -1):
        if text[at] in "+-":
            return (text[at], parse_chain(text[:at]), parse_chain(text[at + 1 :]))
    if "*" in text:
        left, _, right = text.rpartition("*")
        return ("*", parse_chain(left), parse_chain(right))
    return int(text)


def _first_try(problem: Problem, style: str, slip: bool, rng: random.Random, language: str) -> Try:
    """A pass that is right, or wrong if a slip is wanted and one can be made to matter."""
    for _ in range(8 if slip else 1):
        attempt = _try(problem, style, slip, None, rng, language)
        if slip and not is_right(problem, attempt.answer):
            return attempt
    return attempt


def _pieces(opening: str, attempt: Try, language: str) -> list[str]:
    """Opening, lines with what separates them, and the full stop."""
    head, *tail = attempt.lines
    pieces = [opening + _SPACE[language] + head]
    pieces += [_NEXT + line for line in tail]
    return [*pieces[:-1], pieces[-1] + _STOP[language]]


def _wrong_answer(problem: Problem, rng: random.Random) -> str:
    right, spec = answer_of(problem), problem.spec
    if problem.family == "arithmetic":
        return str(_guess_value(spec, rng))
    if problem.family == "compare":
        others = [evaluate(expr) for expr in spec if str(evaluate(expr)) != right]
        value = int(right)
        return str(_one(rng, others) if rng.random() < 0.5 else _nudge(value, 2, rng))
    if problem.family == "sort":
        return ", ".join(map(str, _swap(sorted(spec), rng)))
    if problem.family == "countdown":
        guesses = (sample_chain(rng, spec[0], problem.level) for _ in range(8))
        return show(next((guess for guess in guesses if evaluate(guess) != spec[1]), spec[2]))
    return _one(rng, [name for name in spec[1] if name != right])


def _length(lines: list[str]) -> int:
    """Digits, operators and commas: in calculations the same in every language."""
    return sum(character in "0123456789+-*=," for line in lines for character in line)


def _checked(problem: Problem, language: str, rng: random.Random) -> tuple[list[str], str]:
    slip = rng.random() < CHECK_SLIPS
    style, other = (
        ("steps", "detailed") if rng.random() < CHECK_STEPS_FIRST else ("detailed", "steps")
    )
    first = _first_try(problem, style, slip, rng, language)
    second = _try(problem, other, False, first.answer, rng, language)
    if _length(first.lines + second.lines) > MAX_CHARACTERS["check"]:
        first = _first_try(problem, "steps", slip, rng, language)
        second = _try(problem, "steps", False, first.answer, rng, language)
    agree = is_right(problem, first.answer)
    trying = rng.random() < (0.3 if agree else 0.7)
    opening = (_TRYING if trying else OPENING)[language]
    answer = first.answer if agree else second.answer
    phrases = (_LIST_WRONG, _LIST_RIGHT) if problem.family == "sort" else (_WRONG, _RIGHT)
    verdict = _one(rng, phrases[agree][language])
    pieces = _pieces(opening, first, language)
    pieces += _pieces(_one(rng, _CHECK[language]), second, language)
    return [*pieces, verdict.format(new=answer, old=first.answer)], answer


def solve(
    problem: Problem, language: str, style: str, rng: random.Random
) -> tuple[list[str], str, bool]:
    """(pieces of reasoning, answer, whether it is right); equally many pieces in each language."""
    if style == "direct":
        wrong = rng.random() < DIRECT_WRONG[problem.level]
        answer = _wrong_answer(problem, rng) if wrong else answer_of(problem)
        return [], answer, is_right(problem, answer)
    if style == "check":
        pieces, answer = _checked(problem, language, rng)
    else:
        slip = rng.random() < SLIPS[style]
        attempt = _first_try(problem, style, slip, rng, language)
        if _length(attempt.lines) > MAX_CHARACTERS["detailed"]:
            attempt = _first_try(problem, "steps", slip, rng, language)
        pieces, answer = _pieces(OPENING[language], attempt, language), attempt.answer
    return pieces, answer, is_right(problem, answer)


def render_solution(
    problem: Problem,
    language: str,
    style: str,
    rng: random.Random,
    switch_to: str | None = None,
) -> tuple[str, str, bool]:
    """(reasoning, answer, whether it is right); with `switch_to` it changes language midway."""
    if switch_to is None or style == "direct":
        pieces, answer, right = solve(problem, language, style, rng)
        return "".join(pieces), answer, right
    key = rng.random()
    pieces, answer, right = solve(problem, language, style, make_rng(key))
    others, _, _ = solve(problem, switch_to, style, make_rng(key))
    at = 1 + int(rng.random() * (len(pieces) - 1)) if len(pieces) > 1 else 0
    return "".join(pieces[:at] + others[at:]), answer, right
