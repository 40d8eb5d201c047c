"""A generated world of verifiable problems: arithmetic, countdown, comparison, sorting, logic.

Everything is a pure function of a seed: no files, no limit. A problem is language-free; whether it
is a train or a test item is decided by the sha256 of its canonical form (the order of summands,
numbers or clues doesn't count), before it is rendered in English or Chinese.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from r1jax.config import DataError

if TYPE_CHECKING:
    from r1jax.types import Example

Split = Literal["train", "test"]
Expr = int | tuple[str, "Expr", "Expr"]  # a number, or (operator, left, right)

FAMILIES: Mapping[str, float] = {  # family -> its share
    "arithmetic": 0.50,
    "countdown": 0.15,
    "compare": 0.15,
    "sort": 0.10,
    "logic": 0.10,
}
LEVELS = (1, 2, 3, 4, 5)
LANGUAGES = ("en", "zh")
TASKS = {  # family -> the grader's task name
    "arithmetic": "integer",
    "countdown": "countdown",
    "compare": "integer",
    "sort": "sorted",
    "logic": "letter",
}
LETTERS = "ABCDEFGHJKLM"  # names in logic puzzles; I looks like a digit
TEST_SHARE = 0.1
COUNTDOWN_OPERATORS = {1: "+-", 2: "+-", 3: "+-*", 4: "+-", 5: "+-*"}


@dataclass(frozen=True)
class Problem:
    """One problem. `spec` by family:

    arithmetic: an Expr; compare: a tuple of Exprs; sort: a tuple of integers;
    countdown: (numbers, target, an Expr that solves it);
    logic: ("order", letters from highest to lowest, clues, asked rank, relation) with clues
    ((higher, lower, said from the lower side), ...), or ("liar", letters, statements) with
    statements ((speaker, about whom, says that this one lies), ...).
    """

    family: str
    level: int
    spec: Any


# Expressions


def apply(operator: str, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def evaluate(expr: Expr) -> int:
    if isinstance(expr, int):
        return expr
    return apply(expr[0], evaluate(expr[1]), evaluate(expr[2]))


def show(expr: Expr) -> str:
    """The expression with no more parentheses than needed, e.g. '12-(3+4)*2'."""
    if isinstance(expr, int):
        return str(expr)
    operator, left, right = expr
    left_text, right_text = show(left), show(right)
    if operator == "*" and not isinstance(left, int) and left[0] != "*":
        left_text = f"({left_text})"
    if operator != "+" and not isinstance(right, int) and (operator == "*" or right[0] != "*"):
        right_text = f"({right_text})"
    return f"{left_text}{operator}{right_text}"


def signed_terms(expr: Expr, sign: int = 1) -> list[tuple[int, Expr]]:
    """The summands of a sum with their signs; parentheses in it are dissolved."""
    if isinstance(expr, int) or expr[0] == "*":
        return [(sign, expr)]
    right_sign = sign if expr[0] == "+" else -sign
    return signed_terms(expr[1], sign) + signed_terms(expr[2], right_sign)


def canonical_expr(expr: Expr) -> str:
    """Equal for expressions that differ only in the order of summands or factors."""
    terms = []
    for sign, term in signed_terms(expr):
        if isinstance(term, int):
            text = str(term)
        else:
            text = "*".join(sorted(f"({canonical_expr(side)})" for side in term[1:]))
        terms.append(("+" if sign > 0 else "-") + text)
    return "".join(sorted(terms))


def _values(expr: Expr) -> Iterator[tuple[str, int, int, int]]:
    """(operator, left, right, result) of every operation."""
    if not isinstance(expr, int):
        yield from _values(expr[1])
        yield from _values(expr[2])
        left, right = evaluate(expr[1]), evaluate(expr[2])
        yield expr[0], left, right, apply(expr[0], left, right)


# Sampling


def _within(expr: Expr, lowest: int, highest: int) -> bool:
    """Whether every intermediate result is in range and no operation starts from an odd case."""
    for operator, left, right, result in _values(expr):
        if not lowest <= result <= highest or right < 0:
            return False
        if operator == "*" and (left < 2 or right < 2 or max(left, right) > 99):
            return False
    return True


def _pm(rng: random.Random) -> str:
    return "+" if rng.random() < 0.5 else "-"


def _digit(rng: random.Random) -> int:
    return rng.randint(2, 9)


def _number(rng: random.Random) -> int:
    """One or two digits, mostly two."""
    return rng.randint(1, 9) if rng.random() < 0.25 else rng.randint(10, 99)


def _two_terms(rng: random.Random) -> Expr:
    first, second = rng.randint(10, 99), _number(rng)
    if rng.random() < 0.5:
        return ("-", max(first, second), min(first, second))
    return ("+", first, second) if rng.random() < 0.5 else ("+", second, first)


def _three_terms(rng: random.Random) -> Expr:
    return (_pm(rng), (_pm(rng), _number(rng), _number(rng)), _number(rng))


def _one_product(rng: random.Random) -> Expr:
    product: Expr = ("*", _digit(rng), _digit(rng))
    expr: Expr = (
        (_pm(rng), _number(rng), product)
        if rng.random() < 0.6
        else (_pm(rng), product, _number(rng))
    )
    return (_pm(rng), expr, _number(rng)) if rng.random() < 0.4 else expr


def _parentheses(rng: random.Random) -> Expr:
    kind = rng.randrange(4)
    if kind == 0:
        product: Expr = ("*", (_pm(rng), _number(rng), _number(rng)), _digit(rng))
        return (_pm(rng), product, _number(rng)) if rng.random() < 0.5 else product
    if kind == 1:
        return (_pm(rng), ("-", _number(rng), (_pm(rng), _number(rng), _number(rng))), _number(rng))
    product = ("*", rng.randint(11, 99), _digit(rng))
    if kind == 2:
        return (_pm(rng), product, _number(rng))
    return (_pm(rng), (_pm(rng), product, _number(rng)), _number(rng))


def _mixed(rng: random.Random) -> Expr:
    kind = rng.randrange(4)
    product: Expr = ("*", rng.randint(11, 99), _digit(rng))
    small: Expr = ("*", _digit(rng), _digit(rng))
    inner: Expr = (_pm(rng), _number(rng), _number(rng))
    if kind == 0:
        return (_pm(rng), (_pm(rng), product, small), _number(rng))
    if kind == 1:
        return (_pm(rng), (_pm(rng), ("*", inner, _digit(rng)), _number(rng)), _number(rng))
    if kind == 2:
        return (_pm(rng), (_pm(rng), product, inner), _number(rng))
    return (_pm(rng), (_pm(rng), _number(rng), small), product)


_SHAPES = {1: _two_terms, 2: _three_terms, 3: _one_product, 4: _parentheses, 5: _mixed}


def sample_expression(rng: random.Random, level: int) -> Expr:
    """Level 1: two terms; 2: three; 3: with a single-digit product; 4: parentheses or a two-digit
    factor; 5: four or five terms, results up to 999, negative ones down to -99."""
    while True:
        expr = _SHAPES[level](rng)
        if _within(expr, -99 if level == 5 else 0, 999):
            return expr


def _sample_compare(rng: random.Random, level: int) -> tuple[Expr, ...]:
    """Two expressions of one operation, then of two; three of one; two with products, then more."""
    while True:
        count = 3 if level == 3 else 2
        shape = {1: 1, 2: 2, 3: 1, 4: 3, 5: 4}[level]
        exprs = tuple(sample_expression(rng, shape) for _ in range(count))
        if len({evaluate(expr) for expr in exprs}) == count:
            return exprs


def _sample_sort(rng: random.Random, level: int) -> tuple[int, ...]:
    numbers = rng.sample(range(1, 100), level + 2)
    return _sample_sort(rng, level) if numbers == sorted(numbers) else tuple(numbers)


def chain(numbers: Sequence[int], operators: Sequence[str]) -> Expr:
    """numbers[0] op numbers[1] op ..., products bound first."""
    terms: list[Expr] = [numbers[0]]
    signs: list[str] = []
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            terms[-1] = ("*", terms[-1], number)
        else:
            signs.append(operator)
            terms.append(number)
    expr = terms[0]
    for sign, term in zip(signs, terms[1:], strict=True):
        expr = (sign, expr, term)
    return expr


def sample_chain(rng: random.Random, numbers: Sequence[int], level: int) -> Expr:
    """The numbers in a random order, joined by random operators of the level."""
    order = list(numbers)
    rng.shuffle(order)
    allowed = COUNTDOWN_OPERATORS[level]
    return chain(order, [allowed[rng.randrange(len(allowed))] for _ in order[1:]])


def _sample_countdown(rng: random.Random, level: int) -> tuple[tuple[int, ...], int, Expr]:
    count = {1: rng.randint(2, 3), 2: 3, 3: 3, 4: 4, 5: 4}[level]
    highest = {1: 12, 2: 25, 3: 15, 4: 25, 5: 12}[level]
    while True:
        numbers = [rng.randint(2, highest) for _ in range(count)]
        expr = sample_chain(rng, numbers, level)
        target = evaluate(expr)
        plain = "*" not in show(expr)
        if level in (3, 5) and plain and rng.random() < 0.7:
            continue
        if 1 <= target <= 99 and all(0 <= result <= 199 for *_, result in _values(expr)):
            return tuple(numbers), target, expr


def _sample_order(rng: random.Random, level: int) -> tuple[Any, ...]:
    size = {1: 3, 2: 3, 3: 4, 4: 4, 5: 5}[level]
    ranking = tuple(rng.sample(LETTERS, size))
    clues = [
        (ranking[i], ranking[i + 1], level > 1 and rng.random() < 0.5) for i in range(size - 1)
    ]
    rng.shuffle(clues)
    asked = rng.choice((1, size)) if level < 4 else rng.choice((1, 2, size))
    return ("order", ranking, tuple(clues), asked, rng.randrange(3))


def contradictions(statements: Sequence[tuple[str, str, bool]], liar: str) -> list[str]:
    """Who could not have said what they said if only `liar` lies."""
    return [
        speaker
        for speaker, about, says_lies in statements
        if ((about == liar) == says_lies) == (speaker == liar)
    ]


def _sample_liar(rng: random.Random) -> tuple[Any, ...]:
    while True:
        letters = tuple(rng.sample(LETTERS, 3))
        statements = tuple(
            (speaker, rng.choice([name for name in letters if name != speaker]), rng.random() < 0.6)
            for speaker in letters
        )
        if sum(not contradictions(statements, name) for name in letters) == 1:
            return ("liar", letters, statements)


def _sample_logic(rng: random.Random, level: int) -> tuple[Any, ...]:
    if level >= 3 and rng.random() < 0.3:
        return _sample_liar(rng)
    return _sample_order(rng, level)


_SAMPLERS: Mapping[str, Callable[[random.Random, int], Any]] = {
    "arithmetic": sample_expression,
    "countdown": _sample_countdown,
    "compare": _sample_compare,
    "sort": _sample_sort,
    "logic": _sample_logic,
}


def pick(rng: random.Random, weights: Mapping[str, float]) -> str:
    """A key drawn by its weight (weights need not sum to 1)."""
    point = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key


def sample_problem(
    rng: random.Random, family: str | None = None, level: int | None = None
) -> Problem:
    family = pick(rng, FAMILIES) if family is None else family
    level = LEVELS[rng.randrange(len(LEVELS))] if level is None else level
    return Problem(family, level, _SAMPLERS[family](rng, level))


# Identity and split


def _canonical(problem: Problem) -> Any:
    spec = problem.spec
    if problem.family == "arithmetic":
        return canonical_expr(spec)
    if problem.family == "compare":
        return sorted(canonical_expr(expr) for expr in spec)
    if problem.family == "sort":
        return sorted(spec)
    if problem.family == "countdown":
        return sorted(spec[0]), spec[1]
    if spec[0] == "order":
        return spec[1], spec[3]
    return sorted(spec[2])


def digest_of(problem: Problem) -> int:
    """A 64-bit hash of the canonical problem."""
    text = f"{problem.family} {_canonical(problem)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(problem: Problem) -> Split:
    return "test" if digest_of(problem) % 1000 < TEST_SHARE * 1000 else "train"


def make_rng(*key: object) -> random.Random:
    """The generator that belongs to a key such as ("problem", seed, index)."""
    return random.Random("/".join(map(str, key)))


def problem_at(
    seed: int,
    index: int,
    split: Split,
    families: Mapping[str, float] = FAMILIES,
    levels: Sequence[int] = LEVELS,
) -> Problem:
    """Problem `index` of an endless sequence; families are weighted, levels equally likely."""
    rng = make_rng("problem", split, seed, index)
    family = pick(rng, families)
    level = levels[rng.randrange(len(levels))]
    while True:
        problem = sample_problem(rng, family, level)
        if split_of(problem) == split:
            return problem


# Questions and answers

RELATIONS = (  # (higher, lower, highest, lowest) of each language
    {"en": ("taller", "shorter", "tallest", "shortest"), "zh": ("高", "矮", "最高", "最矮")},
    {"en": ("older", "younger", "oldest", "youngest"), "zh": ("大", "小", "最大", "最小")},
    {"en": ("faster", "slower", "fastest", "slowest"), "zh": ("快", "慢", "最快", "最慢")},
)
_QUESTIONS = {
    ("arithmetic", "en"): ("What is {0}?", "Compute {0}.", "{0}=?", "How much is {0}?"),
    ("arithmetic", "zh"): ("{0}等于多少？", "计算{0}。", "{0}=？", "求{0}的值。"),
    ("compare", "en"): ("Which value is largest: {0}?", "What is the largest of {0}?"),
    ("compare", "zh"): ("哪个值最大：{0}？", "求最大的值：{0}。"),
    ("sort", "en"): ("Sort {0} in ascending order.", "Sort from small to large: {0}."),
    ("sort", "zh"): ("把{0}从小到大排列。", "从小到大排序：{0}。"),
    ("countdown", "en"): ("Make {1} from {0}, each used once.", "Use {0} once each to make {1}."),
    ("countdown", "zh"): ("用{0}各一次得到{1}。", "每个数用一次，用{0}算出{1}。"),
}


def _order_question(spec: tuple[Any, ...], language: str) -> str:
    _, ranking, clues, asked, relation = spec
    higher, lower, highest, lowest = RELATIONS[relation][language]
    told = [(b, lower, a) if flipped else (a, higher, b) for a, b, flipped in clues]
    extreme = lowest if asked == len(ranking) else highest
    if language == "zh":
        facts = "".join(f"{a}比{b}{word}。" for a, word, b in told)
        return facts + ("谁第二" + highest[1] if asked == 2 else "谁" + extreme) + "？"
    facts = " ".join(f"{a} is {word} than {b}." for a, word, b in told)
    return f"{facts} Who is {'second ' if asked == 2 else ''}{extreme}?"


def _liar_question(spec: tuple[Any, ...], language: str) -> str:
    _, letters, statements = spec
    if language == "zh":
        said = "".join(f"{a}说{b}{'说谎' if lies else '诚实'}。" for a, b, lies in statements)
        return f"{'、'.join(letters)}中只有一人说谎。{said}谁说谎？"
    said = " ".join(f"{a} says {b} {'lies' if lies else 'is honest'}." for a, b, lies in statements)
    return f"Only one of {', '.join(letters)} lies. {said} Who lies?"


def render_question(problem: Problem, language: str) -> str:
    """The question; its phrasing is chosen by the problem's hash."""
    spec = problem.spec
    if problem.family == "logic":
        return (_order_question if spec[0] == "order" else _liar_question)(spec, language)
    listed = "、" if language == "zh" else ", "
    if problem.family == "arithmetic":
        parts: tuple[Any, ...] = (show(spec),)
    elif problem.family == "compare":
        parts = (listed.join(map(show, spec)),)
    elif problem.family == "sort":
        parts = (listed.join(map(str, spec)),)
    else:
        parts = (listed.join(map(str, spec[0])), spec[1])
    phrasings = _QUESTIONS[problem.family, language]
    return phrasings[digest_of(problem) // 1000 % len(phrasings)].format(*parts)


def answer_of(problem: Problem) -> str:
    """The right answer (one of several for countdown)."""
    spec = problem.spec
    if problem.family == "arithmetic":
        return str(evaluate(spec))
    if problem.family == "compare":
        return str(max(map(evaluate, spec)))
    if problem.family == "sort":
        return ", ".join(map(str, sorted(spec)))
    if problem.family == "countdown":
        return show(spec[2])
    if spec[0] == "order":
        return spec[1][spec[3] - 1]
    return next(name for name in spec[1] if not contradictions(spec[2], name))


def to_example(problem: Problem, language: str) -> Example:
    from r1jax.types import Example  # not at the top: graders' processes import no flax

    metadata: dict[str, Any] = {
        "level": problem.level,
        "family": problem.family,
        "language": language,
    }
    if problem.family == "countdown":
        metadata |= {"numbers": list(problem.spec[0]), "target": problem.spec[1]}
    return Example(
        id=f"{problem.family}-{problem.level}-{digest_of(problem):016x}-{language}",
        messages=({"role": "user", "content": render_question(problem, language)},),
        answer=answer_of(problem),
        task=TASKS[problem.family],
        metadata=metadata,
    )


def example_at(
    seed: int,
    index: int,
    split: Split,
    families: Mapping[str, float] = FAMILIES,
    levels: Sequence[int] = LEVELS,
    languages: Sequence[str] = LANGUAGES,
) -> Example:
    """Example `index` of an endless sequence, the languages equally likely."""
    language = languages[make_rng("language", split, seed, index).randrange(len(languages))]
    return to_example(problem_at(seed, index, split, families, levels), language)


def examples(
    seed: int,
    count: int,
    split: Split,
    families: Mapping[str, float] = FAMILIES,
    levels: Sequence[int] = LEVELS,
    languages: Sequence[str] = LANGUAGES,
) -> list[Example]:
    """The first `count` examples of the sequence that are different problems."""
    found: dict[str, Example] = {}
    index = newest = 0
    while len(found) < count:
        example = example_at(seed, index, split, families, levels, languages)
        problem_id = example.id.rsplit("-", 1)[0]
        if problem_id not in found:
            found[problem_id], newest = example, index
        elif index - newest > 1000:
            raise DataError(
                f"the world has only about {len(found)} {split} problems of levels "
                f"{tuple(levels)} in {sorted(families)}, asked for {count}"
            )
        index += 1
    return list(found.values())


def problems(
    seed: int, split: Split, levels: Sequence[int] = LEVELS, count: int | None = None
) -> Callable[[int], Example] | list[Example]:
    """Problems as Examples: an endless stream, or the first `count` different ones of it."""
    if count is None:
        return lambda index: example_at(seed, index, split, levels=levels)
    return examples(seed, count, split, levels=levels)
