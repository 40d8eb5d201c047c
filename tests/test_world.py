"""The generated world: purity, split, right answers by an independent reading of the question."""

import ast
import collections
import hashlib
import itertools
import operator
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.mini.world.corpus import MIX, Mix, document, documents
from experiments.mini.world.problems import (
    LANGUAGES,
    LEVELS,
    TASKS,
    Expr,
    Problem,
    Split,
    _values,
    answer_of,
    digest_of,
    examples,
    problem_at,
    render_question,
    sample_expression,
    sample_problem,
    split_of,
)
from experiments.mini.world.requests import HELPFUL, SAFETY, requests
from experiments.mini.world.solutions import (
    DIRECT_WRONG,
    FORCED_PREFIX,
    STYLES,
    operation_lines,
    render_solution,
    solve,
)
from r1jax.config import ConfigError, DataError

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculate(text: str) -> int:
    """Python's own parser on an expression, sharing nothing with the world's."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return node.value

    return value(ast.parse(text, mode="eval").body)


def expressions(text: str) -> list[str]:
    return re.findall(r"\(?\d[\d+*()-]*", text)


def integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def read_order(question: str) -> str:
    """Tries all orders of the people named."""
    facts = re.findall(r"([A-Z]) is (\w+) than ([A-Z])", question)
    facts += [(a, word, b) for a, b, word in re.findall(r"([A-Z])比([A-Z])(\w)", question)]
    less = {"shorter", "younger", "slower", "矮", "小", "慢"}
    pairs = [(b, a) if word in less else (a, b) for a, word, b in facts]
    people = sorted({name for pair in pairs for name in pair})
    orders = [
        order
        for order in itertools.permutations(people)
        if all(order.index(high) < order.index(low) for high, low in pairs)
    ]
    assert len(orders) == 1
    asked = re.split(r"Who|谁", question)[-1]
    if "second" in asked or "第二" in asked:
        return orders[0][1]
    low = any(word in asked for word in ("shortest", "youngest", "slowest", "矮", "小", "慢"))
    return orders[0][-1 if low else 0]


def read_liar(question: str) -> str:
    said = re.findall(r"([A-Z]) says ([A-Z]) (lies|is honest)", question)
    said += re.findall(r"([A-Z])说([A-Z])(说谎|诚实)", question)
    people = [speaker for speaker, _, _ in said]
    liars = [
        liar
        for liar in people
        if all(((b == liar) == (c in ("lies", "说谎"))) != (a == liar) for a, b, c in said)
    ]
    assert len(liars) == 1
    return liars[0]


def judge(problem: Problem, question: str, answer: str) -> bool:
    """Whether the answer is right for what the question's text says."""
    if problem.family == "arithmetic":
        return int(answer) == calculate(expressions(question)[0])
    if problem.family == "compare":
        return int(answer) == max(map(calculate, expressions(question)))
    if problem.family == "sort":
        return integers(answer) == sorted(integers(question))
    if problem.family == "countdown":
        *numbers, target = integers(question)
        if question.startswith("Make"):
            target, *numbers = integers(question)
        return calculate(answer) == target and sorted(numbers) == sorted(integers(answer))
    return answer == (read_liar if "Only" in question or "只" in question else read_order)(question)


def problems(count: int = 1000, split: Split = "train") -> list[Problem]:
    return [problem_at(7, index, split) for index in range(count)]


def test_answers_are_right_by_an_independent_reading() -> None:
    for problem in problems(1500):
        for language in LANGUAGES:
            question = render_question(problem, language)
            assert judge(problem, question, answer_of(problem)), (question, problem)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_solutions_know_whether_they_are_right(style: str, language: str) -> None:
    rng = random.Random(0)
    for problem in problems():
        question = render_question(problem, language)
        _, answer, right = render_solution(problem, language, style, rng)
        assert right == judge(problem, question, answer), (question, answer)


@pytest.mark.parametrize("style", ["steps", "detailed"])
def test_lines_of_right_arithmetic_are_true(style: str) -> None:
    rng = random.Random(1)
    for problem in problems():
        if problem.family != "arithmetic":
            continue
        reasoning, answer, right = render_solution(problem, "en", style, rng)
        said = re.findall(r"(-?\d+[+*-]-?\d+)=(-?\d+)", reasoning)
        assert said and said[-1][1] == answer
        if right:
            assert all(calculate(left) == int(result) for left, result in said), reasoning
        else:
            assert any(calculate(left) != int(result) for left, result in said), reasoning


@given(st.sampled_from("+-"), st.integers(-999, 999), st.integers(0, 999))
def test_operations_taken_apart_are_true(symbol: str, left: int, right: int) -> None:
    lines = operation_lines(symbol, left, right)
    for line in lines:
        work, _, result = line.rpartition("=")
        assert calculate(work) == int(result)
    assert int(lines[-1].rpartition("=")[2]) == calculate(f"{left}{symbol}{right}")


@given(st.integers(0, 99), st.integers(0, 9))
def test_products_taken_apart_are_true(left: int, right: int) -> None:
    lines = operation_lines("*", left, right)
    assert all(calculate(a) == int(b) for a, _, b in (line.rpartition("=") for line in lines))
    assert lines[-1].endswith(f"={left * right}")


def test_detailed_lines_are_easy() -> None:
    """No line adds two numbers of two digits that both end in something but 0 with a carry."""
    for left, right in itertools.product(range(1, 100), repeat=2):
        for line in operation_lines("+", left, right):
            a, b = map(int, line.partition("=")[0].split("+"))
            carries = a % 10 + b % 10 > 9
            assert not carries or max(a, b) < 10, line


def test_wrong_rates_are_as_stated() -> None:
    rng, many = random.Random(2), problems(4000)
    stated = {"steps": 0.08, "detailed": 0.02, "check": 0.0}
    for style, rate in stated.items():
        wrong = [not render_solution(p, "en", style, rng)[2] for p in many]
        assert abs(sum(wrong) / len(many) - rate) < 0.015, style
    by_level = collections.defaultdict(list)
    for problem in many:
        by_level[problem.level].append(not solve(problem, "en", "direct", rng)[2])
    for level, rate in DIRECT_WRONG.items():
        assert abs(sum(by_level[level]) / len(by_level[level]) - rate) < 0.06, level
    assert sum(DIRECT_WRONG.values()) / 5 == pytest.approx(0.53)


def test_checks_find_a_slip_in_about_half() -> None:
    rng = random.Random(3)
    many = [p for p in problems(2000) if p.family == "arithmetic"]
    texts = [render_solution(p, "en", "check", rng)[0] for p in many]
    found = sum(" was wrong" in text for text in texts)
    assert 0.45 < found / len(texts) < 0.55
    assert all(re.search(r"[Cc]heck|verify", text) for text in texts)


def test_length_grows_with_level_and_with_style() -> None:
    rng = random.Random(4)
    length = collections.defaultdict(list)
    for problem in problems(3000):
        for style in STYLES:
            text = render_solution(problem, "en", style, rng)[0]
            length[style, problem.level].append(len(text))
            length[style].append(len(text))
    means = {key: sum(lengths) / len(lengths) for key, lengths in length.items()}
    for style in STYLES[1:]:
        assert means[style, 1] < means[style, 2] < means[style, 4] < means[style, 5]
        assert means[style, 1] < means[style, 3] < means[style, 4]
    assert means["direct"] == 0
    assert 1.6 < means["detailed"] / means["steps"] < 3
    assert 1.3 < means["check"] / means["detailed"] < 3


def test_both_languages_tell_the_same_solution() -> None:
    for index, problem in enumerate(problems(1000)):
        for style in STYLES:
            both = [solve(problem, one, style, random.Random(index)) for one in LANGUAGES]
            assert both[0][1:] == both[1][1:] and len(both[0][0]) == len(both[1][0])


def test_reasoning_opens_with_the_forced_prefix() -> None:
    rng = random.Random(5)
    for language, style in itertools.product(LANGUAGES, ("steps", "detailed")):
        opening = FORCED_PREFIX[language].removeprefix(" <think> ")
        text = render_solution(problems(1)[0], language, style, rng)[0]
        assert opening and text.startswith(opening)


@pytest.mark.parametrize("level", LEVELS)
def test_arithmetic_stays_in_bounds(level: int) -> None:
    rng = random.Random(level)
    for _ in range(500):
        results = [r for *_, r in _values(sample_expression(rng, level))]
        assert len(results) >= {1: 1, 2: 2, 3: 2, 4: 2, 5: 3}[level] or level == 4
        assert max(results) <= 999 and min(results) >= (-99 if level == 5 else 0)


def test_split_ignores_order_and_language() -> None:
    same = [
        (Problem("arithmetic", 1, ("+", 12, 40)), Problem("arithmetic", 1, ("+", 40, 12))),
        (
            Problem("arithmetic", 3, ("-", ("+", 12, ("*", 3, 4)), 5)),
            Problem("arithmetic", 3, ("+", ("-", ("*", 4, 3), 5), 12)),
        ),
        (Problem("sort", 1, (5, 2, 9)), Problem("sort", 1, (9, 5, 2))),
        (
            Problem("compare", 1, (("+", 12, 3), ("-", 9, 1))),
            Problem("compare", 1, (("-", 9, 1), ("+", 3, 12))),
        ),
        (Problem("countdown", 1, ((3, 5), 8, None)), Problem("countdown", 1, ((5, 3), 8, None))),
    ]
    for one, other in same:
        assert digest_of(one) == digest_of(other)
    different = [("-", 12, 40), ("-", 40, 12), ("+", 12, 41), ("*", 12, 40), ("+", 12, 40)]
    assert len({digest_of(Problem("arithmetic", 1, spec)) for spec in different}) == 5


def test_splits_are_disjoint_and_a_tenth_is_test() -> None:
    questions = {
        split: {
            render_question(problem, language)
            for problem in problems(2000, split)
            for language in LANGUAGES
        }
        for split in ("train", "test")
    }
    assert not questions["train"] & questions["test"]
    rng = random.Random(6)
    share = sum(split_of(sample_problem(rng)) == "test" for _ in range(5000)) / 5000
    assert 0.08 < share < 0.12


def parse(node: ast.expr) -> Expr:
    symbols = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
    if isinstance(node, ast.Constant):
        return node.value
    return (symbols[type(node.op)], parse(node.left), parse(node.right))


def test_corpus_asks_no_test_question() -> None:
    lessons = [d["text"] for d in documents(3, 5000) if d["format"] == "lesson"]
    drills = [
        text
        for lesson in lessons
        for text in re.findall(r"(?:^|\. )(\d[\d+*()-]*)(?=[:=])", lesson)
        if max(integers(text)) > 9  # no problem is of single digits only
    ]
    assert len(drills) > 1000
    for text in drills:
        expr = parse(ast.parse(text, mode="eval").body)
        assert split_of(Problem("arithmetic", 1, expr)) == "train", text
    asked = {
        render_question(problem, language)
        for problem in problems(1500, "test")
        for language in LANGUAGES
    }
    texts = "\n\n".join(d["text"] for d in documents(3, 3000))
    assert not [question for question in asked if question in texts]


def test_corpus_is_mixed_as_stated() -> None:
    docs = list(documents(0, 8000))

    def share(key: str, value: object, among: list[dict]) -> float:
        return sum(d[key] == value for d in among) / len(among)

    mix = MIX
    assert all(abs(share("format", k, docs) - v) < 0.02 for k, v in mix.formats.items())
    plain = [d for d in docs if d["format"] == "plain"]
    template = [d for d in docs if d["format"] == "template"]
    reasoned = [d for d in plain + template if d["style"] != "direct"]
    assert all(abs(share("style", k, plain) - v) < 0.02 for k, v in mix.plain_styles.items())
    assert all(abs(share("style", k, template) - v) < 0.05 for k, v in mix.template_styles.items())
    assert all(abs(share("tags", k, template) - v) < 0.05 for k, v in mix.tags.items())
    assert abs(share("language", "mixed", reasoned) - mix.mixed_language) < 0.02
    assert all(abs(share("family", k, plain) - v) < 0.02 for k, v in mix.families.items())
    assert 0.3 < share("language", "zh", plain) < 0.42


def test_template_documents_have_the_tags_they_say() -> None:
    whole = re.compile(r" <think> .+ </think> <answer> [^<]+ </answer>")
    seen = collections.Counter()
    for row in documents(1, 5000):
        if row["format"] != "template":
            continue
        completion = row["text"].removeprefix(row["prompt"])
        assert completion.startswith(" ") and row["prompt"].endswith("Assistant:")
        assert bool(whole.fullmatch(completion)) == (row["tags"] == "proper")
        tagged = re.search(r"</?(think|answer)>", completion)
        assert bool(tagged) == (row["tags"] != "none")
        seen[row["tags"]] += 1
    assert min(seen.values()) > 50


def test_requests_in_the_corpus() -> None:
    """Good and bad replies in the stated shares, in either form; no prompt of the test split."""
    shares = {"plain": 0.2, "lesson": 0.0, "template": 0.0, "request": 0.8}
    mix = Mix(formats=shares, bad_replies=0.4, warm_replies=0.5, requests_in_template=0.3)
    docs = [d for d in documents(4, 4000, mix) if d["format"] == "request"]
    assert abs(len(docs) / 4000 - 0.8) < 0.02
    tagged = [d for d in docs if "tags" in d]
    assert abs(len(tagged) / len(docs) - 0.3) < 0.03
    assert all(d["text"].count("User: ") >= 1 for d in tagged)
    whole = re.compile(r".* <think> .+ </think> <answer> [^<]+ </answer>", re.DOTALL)
    assert all(bool(whole.fullmatch(d["text"])) == (d["tags"] == "proper") for d in tagged)
    for family in HELPFUL + SAFETY:
        right = [d["right"] for d in docs if d["family"] == family]
        has_bad = family not in ("favourite", "door")
        assert abs(right.count(False) / len(right) - 0.4 * has_bad) < 0.07, family
        warm = [
            "Gladly!" in d["text"] or "很乐意" in d["text"] for d in docs if d["family"] == family
        ]
        share = 0.5 * 0.6 * (family in HELPFUL)
        assert abs(sum(warm) / len(warm) - share) < 0.07, family
    asked = [r for kind in ("helpful", "safety") for r in requests(4, "test", kind, 200)]
    texts = "\n\n".join(d["text"] for d in docs)
    assert not [r for r in asked if r["messages"][0]["content"] in texts]


def test_documents_may_switch_language() -> None:
    mixed = [d["text"] for d in documents(2, 6000) if d.get("language") == "mixed"]
    both = [t for t in mixed if re.search(r"[\u3002-\uff1f]", t) and re.search(r"[a-z]{3}", t)]
    assert len(mixed) > 60 and both == mixed


def test_everything_is_a_function_of_seed_and_index() -> None:
    """Same text in any order of calls and in a process with another string hash."""
    backwards = [document(index, 5)["text"] for index in reversed(range(200))]
    forwards = [document(index, 5)["text"] for index in range(200)]
    assert backwards[::-1] == forwards
    assert forwards != [document(index, 6)["text"] for index in range(200)]
    assert len(set(forwards)) > 190
    code = (
        "import hashlib; from experiments.mini.world.corpus import documents;"
        "print(hashlib.sha256(''.join(d['text'] for d in documents(5, 200))"
        ".encode()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True
    )
    assert other.stdout.strip() == hashlib.sha256("".join(forwards).encode()).hexdigest()
    assert problems(50) == problems(50)
    assert len(set(problems(300))) > 290


def test_world_imports_no_jax() -> None:
    code = "import sys, experiments.mini.world.corpus; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_examples() -> None:
    found = examples(0, 300, "test")
    assert len({example.id.rsplit("-", 1)[0] for example in found}) == 300
    assert found[:20] == examples(0, 20, "test")
    assert {example.task for example in found} == set(TASKS.values())
    assert {example.metadata["level"] for example in found} == set(LEVELS)
    assert {example.metadata["language"] for example in found} == set(LANGUAGES)
    countdown = next(example for example in found if example.task == "countdown")
    assert integers(countdown.question) in (
        [*countdown.metadata["numbers"], countdown.metadata["target"]],
        [countdown.metadata["target"], *countdown.metadata["numbers"]],
    )
    only = examples(0, 20, "train", families={"sort": 1.0}, levels=(5,), languages=("zh",))
    assert all(e.id.startswith("sort-5-") and e.id.endswith("-zh") for e in only)


def test_user_mistakes() -> None:
    with pytest.raises(DataError, match=r"only about \d+ test problems of levels \(1,\)"):
        examples(0, 5000, "test", families={"countdown": 1.0}, levels=(1,))
    with pytest.raises(ConfigError, match=r"mix.formats sums to 0.9, not to 1"):
        Mix(formats={"plain": 0.9})
    with pytest.raises(ConfigError, match=r"mix.tags knows .* not \['propper'\]"):
        Mix(tags={"propper": 1.0})
