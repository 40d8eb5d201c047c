"""Whole numbers, lists, letters, choices and countdown expressions, by pairs made by hand."""

import pytest
from helpers import example

from r1jax.tasks import TASKS

# ---- integer ----

INTEGER_PAIRS = [
    ("1234", "1234", True),
    ("1234", "1,234", True),
    ("1,234", "1234", True),
    ("1234", "1234.", True),
    ("1234", " 1234\n", True),
    ("1234", "１２３４", True),
    ("1234", "１，２３４。", True),
    ("1234", "1{,}234", True),
    ("1234", r"1,\!234", True),
    ("1234", "+1234", True),
    ("1234", "01234", True),
    ("1234", "1234.0", True),
    ("1234", "$1234$", True),
    ("1234", r"\(1234\)", True),
    ("1234", "**1234**", True),
    ("1234", r"\text{1234}", True),
    ("-5", "-5", True),
    ("-5", "−5", True),
    ("-5", "－５", True),
    ("-5", "- 5", True),
    ("0", "-0", True),
    ("9" * 5000, "9" * 5000, True),
    ("1234567", "1,234,567", True),
    ("1234", "12,34", False),
    ("1234", "1234,", False),
    ("1234", "1,2345", False),
    ("1234", "1 234", False),
    ("1234", "12 34", False),
    ("1234", "1234.5", False),
    ("1234", "1234 or 1235", False),
    ("1234", "1235, 1234", False),
    ("1234", "The answer is 1234", False),
    ("1234", "1234 apples", False),
    ("1234", "1200+34", False),
    ("5", "-5", False),
    ("-5", "5", False),
    ("5", "--5", False),
    ("52", "5²", False),
    ("5", "5/1", False),
    ("5", "x=5", False),
    ("5", "five", False),
    ("5", "", False),
    ("5", "५", False),
    ("5", "5%", False),
    ("100000", "1e5", False),
    ("5", "5</answer>", False),
    ("", "", False),
    ("five", "five", False),
    ("9" * 5000, "9" * 4999, False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), INTEGER_PAIRS)
def test_integer(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["integer"].equivalent(example("integer", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3=5", "5"),
        ("so 5. Done", "5"),
        ("it is 1,234,567.", "1,234,567"),
        ("1, 2, 3", "3"),
        ("10-5", "5"),
        ("10 - 5", "5"),
        ("x=-5", "-5"),
        ("is −5。", "-5"),
        ("(-5)", "-5"),
        ("(3)-5", "5"),
        ("答案是１２。", "12"),
        ("是-7吗", "-7"),
        ("costs 5.50", "5.50"),
        ("<answer>7</answer>", "7"),
        (r"\boxed{8}", "8"),
        ("1{,}234", "1,234"),
        ("1,2345", "2345"),
        ("", None),
        ("none", None),
    ],
)
def test_last_number(text: str, expected: str | None) -> None:
    assert TASKS["integer"].extract(text) == expected


# ---- sorted ----

SORTED_PAIRS = [
    ("1, 2, 3", "1, 2, 3", True),
    ("1, 2, 3", "1,2,3", True),
    ("1, 2, 3", "[1, 2, 3]", True),
    ("1, 2, 3", "(1, 2, 3)", True),
    ("1, 2, 3", "{1, 2, 3}", True),
    ("1, 2, 3", r"\{1, 2, 3\}", True),
    ("1, 2, 3", "1 2 3", True),
    ("1, 2, 3", "1、2、3", True),
    ("1, 2, 3", "１，２，３。", True),
    ("1, 2, 3", "1; 2; 3", True),
    ("1, 2, 3", "1, 2, 3.", True),
    ("1, 2, 3", "$1, 2, 3$", True),
    ("1, 2, 3", "1,\n2,\n3", True),
    ("1, 2, 3", " 1 ,2 , 3 ", True),
    ("-3, -1, 2", "-3, -1, 2", True),
    ("-3, -1, 2", "−3, −1, 2", True),
    ("-3, -1, 2", "[-3,-1,+2]", True),
    ("2, 2, 3", "2, 2, 3", True),
    ("7", "7", True),
    ("7", "[7]", True),
    ("1, 234", "1,234", True),
    ("1, 2, 3", "3, 2, 1", False),
    ("1, 2, 3", "1, 2", False),
    ("1, 2, 3", "1, 2, 3, 4", False),
    ("1, 2, 3", "1, 2, 3, 3", False),
    ("2, 2, 3", "2, 3", False),
    ("1, 2, 3", "1, 2, 4", False),
    ("1, 2, 3", "1,, 2, 3", False),
    ("1, 2, 3", "1, 2, 3,", False),
    ("1, 2, 3", "1 < 2 < 3", False),
    ("1, 2, 3", "[1, 2, 3", False),
    ("1, 2, 3", "[[1, 2, 3]]", False),
    ("1, 2, 3", "123", False),
    ("1, 2, 3", "1.0, 2, 3", False),
    ("1, 2, 3", "1, 2, 3 or 3, 2, 1", False),
    ("1, 2, 3", "Sorted: 1, 2, 3", False),
    ("1, 2, 3", "", False),
    ("", "", False),
    ("-3, -1, 2", "3, 1, 2", False),
    ("1, 2, 3", "一, 二, 三", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), SORTED_PAIRS)
def test_sorted(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["sorted"].equivalent(example("sorted", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sort 3, 1, 2: it is 1, 2, 3.", "1, 2, 3"),
        ("3、1、2变成1、2、3。", "1、2、3"),
        ("-1, 2 < 3", "-1, 2"),
        ("1，2，3", "1,2,3"),
        ("<answer>1, 2</answer>", "1, 2"),
        ("only 7", None),
        ("", None),
    ],
)
def test_last_list(text: str, expected: str | None) -> None:
    assert TASKS["sorted"].extract(text) == expected


# ---- letter and choice ----

LETTER_PAIRS = [
    ("B", "B", True),
    ("B", "b", True),
    ("B", "B.", True),
    ("B", "B。", True),
    ("B", "(B)", True),
    ("B", "B)", True),
    ("B", " B\n", True),
    ("B", "Ｂ", True),
    ("B", "（Ｂ）", True),
    ("B", "$B$", True),
    ("B", "**B**", True),
    ("B", "`B`", True),
    ("B", r"\text{B}", True),
    ("B", r"\mathrm{B}", True),
    ("B", r"\text{(B)}", True),
    ("(B)", "B", True),
    ("b", "B", True),
    ("Z", "Z", True),
    ("B", "A", False),
    ("B", "AB", False),
    ("B", "BB", False),
    ("B", "B B", False),
    ("B", "A or B", False),
    ("B", "A, B", False),
    ("B", "B is tallest", False),
    ("B", "Bob", False),
    ("B", "8", False),
    ("B", "ß", False),
    ("B", "В", False),  # Cyrillic
    ("B", "β", False),
    ("B", "", False),
    ("B", "()", False),
    ("B", "-B", False),
    ("B", "not B", False),
    ("", "", False),
    ("B", "丙", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), LETTER_PAIRS)
def test_letter(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["letter"].equivalent(example("letter", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A is taller than B.", "B"),
        ("所以是B。", "B"),
        ("B说谎", "B"),
        ("B lies, OK", "B"),
        ("B. I'm sure", "B"),
        ("Ｂ", "B"),
        ("<answer>C</answer>", "C"),
        ("nobody", None),
        ("", None),
    ],
)
def test_last_letter(text: str, expected: str | None) -> None:
    assert TASKS["letter"].extract(text) == expected


CHOICE_PAIRS = [
    ("C", "C", True),
    ("C", "c", True),
    ("C", "(C)", True),
    ("C", "C.", True),
    ("C", "C)", True),
    ("C", "Ｃ", True),
    ("C", "（C）", True),
    ("C", r"\text{(C)}", True),
    ("C", r"\textbf{C}", True),
    ("C", "**C**", True),
    ("C", "C. Paris", True),
    ("C", "(C) Paris", True),
    ("C", "C: Paris", True),
    ("C", "C、巴黎", True),
    ("C", "C. 巴黎。", True),
    ("C", "C. A dog", True),
    ("C", "C. -5", True),
    ("C", "C.\nParis", True),
    ("C", r"\textbf{(C)}\ 12", True),
    ("C", r"\textbf{(C) } 12", True),
    ("C", r"\text{(C)}", True),
    ("C", r"\mathrm{C}", True),
    ("C", r"\text{C}: the enzyme", True),
    ("C", r"\text{C: the enzyme}", True),
    ("C", "Option C", True),
    ("C", "option (C)", True),
    ("C", "Choice C", True),
    ("C", "Answer: C", True),
    ("C", "Answer: (C) Paris", True),
    ("C", "Final answer: C", True),
    ("C", "答案：C", True),
    ("C", "答案为C", True),
    ("C", "选C", True),
    ("C", "选项C", True),
    ("C", "C选项", True),
    ("C", "C项", True),
    ("C", "**C**. Paris", True),
    ("C", "**(C)** Paris", True),
    ("C", "C, Paris", True),
    ("C", "Option D", False),
    ("C", "Option C or D", False),
    ("C", "Options C and D", False),
    ("C", "Answer: C, D", False),
    ("C", "选C或D", False),
    ("C", "不选C", False),
    ("C", r"\textbf{(C)}\ 12 \textbf{(D)}\ 13", False),
    ("C", "C, D", False),
    ("C", "Answer: not C", False),
    ("C", "Choice", False),
    ("A", "A cat", False),
    ("J", "J", True),
    ("(C)", "C", True),
    ("C", "D", False),
    ("C", "A", False),
    ("C", "K", False),
    ("C", "CD", False),
    ("C", "C D", False),
    ("C", "C and D", False),
    ("C", "C. or D.", False),
    ("C", "(C) (D)", False),
    ("C", "A. B. C.", False),
    ("C", "C) Paris D) Rome", False),
    ("B", "B、C", False),
    ("B", "B: A, B, C, D", False),
    ("B", "B. A cat", True),
    ("C", "Paris", False),
    ("C", "Cat", False),
    ("C", "Not C", False),
    ("C", "The answer is C", False),
    ("C", "С", False),  # Cyrillic
    ("C", "C - Paris", True),
    ("C", "C – Paris", True),
    ("C", "故选C", True),
    ("D", "D. Both A and B", True),
    ("D", "D. Neither (A) nor (B)", True),
    ("D", "D - A", False),
    ("C", "", False),
    ("C", "()", False),
    ("", "", False),
    ("K", "K", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), CHOICE_PAIRS)
def test_choice(gold: str, answer: str, expected: bool) -> None:
    assert TASKS["choice"].equivalent(example("choice", gold), answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is C. I am sure", "C"),
        ("Answer: (C)", "C"),
        ("answer is not A but C", "C"),
        ("First answer: A. Final answer: C", "C"),
        ("The answer is a dog: D", "D"),
        ("答案是C", "C"),
        ("选C，因为A不对", "C"),
        ("A, B, C", "C"),
        ("K or L", None),
        ("The answer is not C.", None),
        ("Not (C)", None),
        ("A is incorrect; B", "B"),
        ("排除A，故为 D", "D"),
        ("", None),
    ],
)
def test_last_choice(text: str, expected: str | None) -> None:
    assert TASKS["choice"].extract(text) == expected


# ---- countdown ----

GAME = {"numbers": [3, 8, 8, 1], "target": 24}
COUNTDOWN = [
    ("8*3*1*8/8", [3, 8, 8, 1, 8], 24, True),
    ("(8-8+1)*3", [3, 8, 8, 1], 3, True),
    ("8 / (3 - 8 / 3)", [8, 3, 8, 3], 24, True),  # fractions on the way, exactly
    ("1/3*3", [1, 3, 3], 1, True),
    ("4+5", [5, 4], 9, True),
    ("4+5=9", [4, 5], 9, True),
    ("4+5 = 9.", [4, 5], 9, True),
    ("$4+5=9$", [4, 5], 9, True),
    ("4×5", [4, 5], 20, True),
    ("20÷5", [20, 5], 4, True),
    (r"4 \times 5", [4, 5], 20, True),
    (r"20 \div 5", [20, 5], 4, True),
    ("４＋５＝９", [4, 5], 9, True),
    ("7−5", [5, 7], 2, True),
    ("-5+7", [5, 7], 2, True),
    ("5+5", [5, 5], 10, True),
    ("((4)+(5))", [4, 5], 9, True),
    ("36 + 59 - 39", [36, 39, 59], 56, True),
    ("4+5", [4, 5], 10, False),
    ("4+5=10", [4, 5], 10, False),
    ("4+5=8", [4, 5], 9, False),
    ("4+5=9=9", [4, 5], 9, False),
    ("9=4+5", [4, 5], 9, False),
    ("9", [4, 5], 9, False),
    ("4+5", [4, 5, 1], 9, False),  # a number left over
    ("4+5+1-1", [4, 5, 1], 9, False),  # a number twice
    ("4+4+1", [4, 5], 9, False),  # a foreign number
    ("45", [4, 5], 45, False),
    ("4**5", [4, 5], 1024, False),
    ("21//5", [21, 5], 4, False),
    ("21%5", [21, 5], 1, False),
    ("4 5 +", [4, 5], 9, False),
    ("4+5)", [4, 5], 9, False),
    ("4.0+5", [4, 5], 9, False),
    ("4+5#", [4, 5], 9, False),
    ("4+5 or 5+4", [4, 5], 9, False),
    ("4/(5-5)", [4, 5, 5], 0, False),
    ("1/3", [1, 3], 0.3333333333333333, False),
    ("9**9**9", [9, 9, 9], 1, False),
    ("__import__('os').getpid()", [4, 5], 9, False),
    ("(" * 100 + "4+5" + ")" * 100, [4, 5], 9, False),  # too long
    ("(" * 90 + "4+5" + ")" * 90, [4, 5], 9, True),
    ("-" * 190 + "9", [9], 9, True),
    ("4+(5", [4, 5], 9, False),
    ("04+5", [4, 5], 9, False),
    ("4(5)", [4, 5], 20, False),
    ("(4,5)", [4, 5], 9, False),
    ("", [4, 5], 9, False),
    ("=9", [4, 5], 9, False),
    ("答案4+5", [4, 5], 9, False),
]


@pytest.mark.parametrize(("answer", "numbers", "target", "expected"), COUNTDOWN)
def test_countdown(answer: str, numbers: list[int], target: int, expected: bool) -> None:
    game = example("countdown", "", metadata={"numbers": numbers, "target": target})
    assert TASKS["countdown"].equivalent(game, answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("try 3+4=7, then 3*8=24. So 3*8", "3*8"),
        ("it is 3*8=24, right", "3*8"),
        ("3×8＝24", "3*8"),
        ("<answer>(1+2)*8</answer>", "(1+2)*8"),
        ("3*8 - yes", "3*8 -"),
        ("step-by-step 24", None),
        ("", None),
    ],
)
def test_last_expression(text: str, expected: str | None) -> None:
    assert TASKS["countdown"].extract(text) == expected
