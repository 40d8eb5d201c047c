"""IFEval: every kind of instruction, strictly and loosely, from its rows to its accuracies.

Verdicts below were compared with the official checkers' (lm-eval 0.4.13, NLTK 3.9.4).
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import final_answer

from r1jax.benchmarks.catalog import KINDS
from r1jax.benchmarks.instruction import ifeval, instruction_accuracies
from r1jax.config import ConfigError, DataError
from r1jax.data.datasets import DataConfig, check_located, finite_examples, to_example
from r1jax.rewards.accuracy import accuracy, lenient_accuracy
from r1jax.tasks import same_answer
from r1jax.tasks.instruction_rules import RULES, detector, tokenizers
from r1jax.tasks.instructions import (
    MAX_RESPONSE,
    Instruction,
    follows,
    follows_all,
    follows_all_loosely,
    follows_loosely,
    instructions_of,
    response_of,
    variants,
)
from r1jax.types import Example, Sample

PUBLISHED = Path(__file__).parents[2] / "shared/data/ifeval/ifeval.jsonl"


def installed(needs: Callable[[], object]) -> bool:
    try:
        needs()
    except ConfigError:
        return False
    return True


WITHOUT = {rule.needs for rule in RULES.values() if not installed(rule.needs)}


def skip_without(*names: str) -> None:
    if any(RULES[name].needs in WITHOUT for name in names):
        pytest.skip('needs r1jax[ifeval] and "python -m nltk.downloader punkt_tab"')


# -- each kind: arguments, what follows it, what doesn't -------------------------------------------

AT_LEAST, LESS_THAN = {"relation": "at least"}, {"relation": "less than"}
ENGLISH = "the old mill by the river has been quiet for as long as anyone here can remember."
GERMAN = "Das ist ein sehr schöner Tag, und wir gehen heute alle zusammen in den Park."
HINDI = "यह एक अच्छा दिन है और हम सब बाहर जा रहे हैं।"

Case = tuple[str, dict[str, Any], list[str], list[str]]
CASES: list[Case] = [
    (
        "keywords:existence",
        {"keywords": ["cat", "Dog"]},
        ["A CAT and a dog.", "concatenated dogma", "dog\ncat"],
        ["A cat.", "A c at and a dog.", "ｃａｔ dog"],
    ),
    # Patterns, not texts.
    ("keywords:existence", {"keywords": ["a.c", "x|y"]}, ["abc x", "a-c y"], ["ac x", "abc z"]),
    (
        "keywords:frequency",
        {"keyword": " Cat ", "frequency": 2, **AT_LEAST},
        ["cat, CAT", "catcat", "scatter cats cat"],
        ["cat", "c a t", "dog"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, **LESS_THAN},
        ["cat", "none"],
        ["cat cat", "Cat concatenation"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "can"]},
        ["Rocks and cannot", "scan", "rock_ _can", "rocket", "岩石"],
        ["A ROCK.", "I can't", "rock", "(can)", "rock-solid", "*rock*"],
    ),
    # An alternative takes one boundary alone.
    ("keywords:forbidden_words", {"forbidden_words": ["a|b"]}, ["za xc"], ["ax", "xb"]),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": "at least"},
        ["Qq", "quick quiz", "query, q"],
        ["q", "none", "ｑｑ"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 1, "let_relation": "less than"},
        ["no such thing", "é"],
        ["one", "E"],
    ),
    # The official code draws a letter instead of these.
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
        ["#a #b", "##"],
        ["#a", "a b"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        [GERMAN, "12345 !!! ???", "😀"],
        [ENGLISH, HINDI],
    ),
    ("language:response_language", {"language": "hi"}, [HINDI, "..."], [GERMAN, "你好，世界。"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, **AT_LEAST},
        ["One. Two. Three.", "Yes! No? Well.", "Wait.\nGo.\n\nStop.", "1. Sure. Go."],
        [
            "One, two; three.",
            "Dr. Smith met Mr. Jones. Bye.",
            "一。二。三。",
            "a.b.c.d.",
            "One... two",
        ],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, **LESS_THAN},
        ["Just one by Dr. Who.", "no end", "A list:\n- a\n- b"],
        ["One. Two.", "Why? Because!", "Only one, e.g. this."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b", "***a***b***", "\n***\na\n***\nb\n***\n", "a***b\n\nc"],
        ["a", "a\n\nb", "a\n***\n***\nb", "a***b***c", "***a***", "a\n* * *\nb", "******a***b"],
    ),
    # The rest of four asterisks is a paragraph.
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a****"], ["a***"]),
    (
        "length_constraints:number_words",
        {"num_words": 4, **AT_LEAST},
        ["one two three four", "don't won't", "1,000.00 e", "a-b-c-d", "**a** _b_ c\nd"],
        ["one two three", "well_known_as one two", "我们 去 公园", "... --- ... ---"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 2, **LESS_THAN},
        ["one", "我们去公园"],
        ["a b"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Cat"},
        ["a\n\ncat b", "a\n\n'\"CAT, b", "a\n\n  Cat's b", "a\n\ncat\n\n\n", "a b\nc\n\ncat.dog"],
        ["a\n\n\n\ncat", "a\ncat", "cat\n\na", "a\n\ncats", "a\n\ncat\n\nb", "a\n\n(cat)", "cat"],
    ),
    # A blank piece isn't a paragraph, but it is counted on the way to the n-th.
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "οδοσ"},
        ["ΟΔΟΣ", "\nοδοσ", "οδοσ\n\n \n\n"],
        ["\n\nοδοσ", "οδος", "\"'οδοσ"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b]", "[][]", "[[x]] [y]", "[a](http://b) [c]"],
        ["[a", "[a] b]", "[a\nb] [c]", "(a) {b} <c>", "]a[ ]b["],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. more", "p. s. x", "lamp.s.", "P.S.", "**P.S.** x"],
        ["PS: x", "P.S x", "P.P.S x", "P.  S. x", "P .S."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": " P.P.S "},
        ["x\nP.P.S more", "p. p. s", "P.P.S.", "up.p.stairs"],
        ["P.S. x", "PPS x", "P. P S", "P.P.  S"],
    ),
    # Other markers are patterns.
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S"},
        ["x PxS", "p.s"],
        ["ps", "p  s"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n* b", "text\n\n\n  * a\n\t- b\nend", "*a\n*b", "-\n-", "* **a**\n* b"],
        ["* a", "* a\n* b\n* c", "** a\n** b", "+ a\n+ b", "a * b - c", "1. a\n2. b", "*\n*"],
    ),
    # An asterisk alone on its line takes the next line with it; rulers are bullets.
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 1},
        ["*\n* a", "---", "-5 degrees", "*italics* first", "\n\n\n*\n"],
        ["*\n\n* a", "**bold** first", "***", "•  a", "*"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "I think: My answer is no. Sorry!", "**My answer is maybe.**"],
        ["my answer is yes.", "My answer is yes", "My answer is  no.", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*", "***a***", "* a\n*b*c*\n**d**"],
        ["*a*", "**a**", "**** ** **", "*a\nb* *c*", "* a\n* b", "_a_ _b_", "*a*b*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section ", "num_sections": 2},
        [
            "Section 1\na\nSection 2\nb",
            "Section1Section2",
            "Subsection; xSection 1, Section 1",
        ],
        ["SECTION 1 SECTION 2", "Section 1", "Section one\nSection two", "Section  1 Section  2"],
    ),
    (
        "detectable_format:json_format",
        {},
        [
            '{"a": [1, 2]}',
            '```json\n{"a": 1}\n```',
            "```\n[]\n```",
            "5",
            '"text"',
            "NaN",
            " null ",
            "```Json 1```",
            "```JSON\n1",
            "1```",
            '```json```{"a": 1}```',
        ],
        [
            "{'a': 1}",
            '{"a": 1,}',
            'Here: {"a": 1}',
            "```",
            "```python\n1\n```",
            '{"a": 1} {"b": 2}',
            "yes",
            '```json\n{"a": "b\n"}\n```',
            "[" * 100000,
            '{"a":' * 100000,
        ],
    ),
    (
        "detectable_format:title",
        {},
        ["<<joy>>\ntext", "see <<a>> b", "<<<a>>>", "<< >> a <<b>>", "<< <> >>"],
        ["<joy>", "<<joy>", "<<>>", "<< >>", "<<a\nb>>", ">>a<<", "《joy》", "<<<>>>"],
    ),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "a******b", "******a******b******", "a *******\nb", "a\n***\nb******c"],
        [
            "a",
            "a\n***\nb",
            "a******a ",
            "a******b******c",
            "a************b",
            "a******",
            "a* * * * * *b",
        ],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": " Why is the sky blue? "},
        ["Why is the sky blue?\nAir.", "  WHY IS THE SKY BLUE?", "why is the sky blue?Air"],
        [
            "Sure! Why is the sky blue?",
            '"Why is the sky blue?" Air',
            "Why is  the sky blue?",
            "Air",
        ],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Anything else? "},
        ["Hi. Anything else?", '"Hi. ANYTHING ELSE?"', "anything else?\n\n", "xanything else?"],
        [
            "Anything else? No.",
            "Anything else",
            "*Anything else?*",
            "Anything else?'",
            "Anything else?」",
            'Anything else? "',
        ],
    ),
    (
        "startend:quotation",
        {},
        ['"a"', ' "a" and "b" \n', '""', '"a\nb"'],
        ["a", '"', '"a', 'a"', "'a'", "“a”", '*"a"*', '"a".', "「a」"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": "at least"},
        ["I AM NASA", "CAN'T GO", "A-B C D", "U.S. AND A.", "X1 2Y Z", "**A** B; C", "Œ ÀÉ Σ"],
        ["I am NASA", "WELL-KNOWN NAMES", "Iam Not Nasa", "1 2 3 4", "NASAs AND OR", "你 好 吗"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        ["none here.", "Only First Letters", "iPhone 4s"],
        ["I see.", "the UK"],
    ),
    (
        "change_case:english_capital",
        {},
        [ENGLISH.upper(), ENGLISH.upper() + " 123!"],
        [ENGLISH, ENGLISH.upper() + " a", GERMAN.upper(), HINDI, "123", "ΑΥΤΟ ΕΙΝΑΙ ΜΙΑ ΚΑΛΗ ΜΕΡΑ"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [ENGLISH, "**" + ENGLISH + "** 123!"],
        [ENGLISH.upper(), "The " + ENGLISH, GERMAN.lower(), HINDI, "123"],
    ),
    ("punctuation:no_comma", {}, ["a; b", "a，b、c", "1.000"], ["a, b", "1,000", ","]),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_a_rule(name: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    skip_without(name)
    (instruction,) = instructions_of({"instruction_id_list": [name], "kwargs": [arguments]})
    assert [text for text in good if not instruction.followed(text)] == []
    assert [text for text in bad if instruction.followed(text)] == []


def test_all_of_the_official_set() -> None:
    assert len(RULES) == 25
    assert {name for name, *_ in CASES} == set(RULES)


@pytest.mark.parametrize("blank", ["", " ", "\n\n\t", "\u2003"])
def test_a_blank_response_follows_nothing(blank: str) -> None:
    for name, arguments, *_ in CASES:
        instruction = Instruction(name, arguments)
        assert not any(map(instruction.followed, variants(blank)))


def test_language_is_told_the_same_every_time() -> None:
    skip_without("language:response_language")
    mixed = Instruction("language:response_language", {"language": "en"})
    doubtful = ["die in the park", "Das ist a test, mein friend, and it is gut.", "hello world"]
    first = [
        mixed.followed(text) for text in doubtful
    ]  # of unseeded draws a fifth to a half differ
    assert all([mixed.followed(text) for text in doubtful] == first for _ in range(20))


# -- strict and loose ------------------------------------------------------------------------------


def asked(*instructions: tuple[str, dict[str, Any]], **more: Any) -> Example:
    metadata = {
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [arguments for _, arguments in instructions],
    }
    return Example("e", ({"role": "user", "content": "?"},), "", "instructions", metadata, **more)


QUOTED = ("startend:quotation", {})
NO_COMMA = ("punctuation:no_comma", {})
TWO_BULLETS = ("detectable_format:number_bullet_lists", {"num_bullets": 2})
END = ("startend:end_checker", {"end_phrase": "the end."})


def test_the_variants() -> None:
    assert variants("*a*\nb\n *c*\nd") == [
        *("*a*\nb\n *c*\nd", "b\n *c*\nd", "*a*\nb\n *c*", "b\n *c*"),
        *("a\nb\n c\nd", "b\n c\nd", "a\nb\n c", "b\n c"),
    ]
    assert variants("*a*") == ["*a*", "", "a"]
    assert variants("a\n\nb\n\nc") == ["a\n\nb\n\nc", "b\n\nc", "a\n\nb", "b"]


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        ('"a"', True, True),
        ('Sure:\n"a"', False, True),  # the first line away
        ('"a"\nHope this helps', False, True),  # the last
        ('Sure:\n\n"a\nb"\n\nBye', False, True),  # both
        ('**"a"**', False, True),  # asterisks
        ('Sure:\n*"a"*', False, True),
        ('*"a"*\nBye', False, True),
        ('Sure:\n**"a"**\nBye', False, True),
        ('Sure:\nso\n"a"', False, False),
        ('"a" Bye', False, False),
        ("", False, False),
    ],
)
def test_strict_and_loose(text: str, strict: bool, loose: bool) -> None:
    example = asked(QUOTED)
    assert follows_all(example, text) == strict
    assert follows_all_loosely(example, text) == loose


def test_each_instruction_may_have_its_own_variant() -> None:
    example = asked(QUOTED, TWO_BULLETS, NO_COMMA)
    text = 'Well, so:\n"\n* a\n* b\n"'
    assert follows(example, text) == [False, True, False]
    assert follows_loosely(example, text) == [True, True, True]
    assert not follows_all(example, text)
    assert follows_all_loosely(example, text)


def graded(example: Example, text: str) -> tuple[float, float]:
    rewards = (accuracy, lenient_accuracy)
    strict, loose = (fn(example, text, length=1, finish_reason="stop") for fn in rewards)
    return strict, loose


@pytest.mark.parametrize(
    ("text", "earned"),
    [
        ("This is the end.", (1.0, 1.0)),
        ("<think>One, two</think>This is the end.", (1.0, 1.0)),
        ("<think>Hm</think>\n\nThis is the end.\n", (1.0, 1.0)),
        ("One, two</think>This is the end.", (1.0, 1.0)),
        ("<think>Hm</think> <answer>This is the end.</answer>", (1.0, 1.0)),
        ("<think>Hm</think>Well, <answer> This is the end. </answer>", (1.0, 1.0)),
        ("<think>Hm</think>First this, then that. The end.", (0.0, 0.0)),
        ("<think>Hm</think>Sure, here:\nThe end.", (0.0, 1.0)),
        ("<think>Hm</think>\n\nThe end.\nWas it, now?", (0.0, 1.0)),
        ("<think>Hm</think>*The end.*", (0.0, 1.0)),
        ("<think>The end.</think>", (0.0, 0.0)),
        ("<think>The end.</think>No.", (0.0, 0.0)),
        ("<think>It is\nthe end.", (0.0, 0.0)),
        ("The end.</think>x</think>", (0.0, 0.0)),
        ("", (0.0, 0.0)),
        ("好的，the end.", (1.0, 1.0)),  # a comma of another width
        ("a" * 100_000 + "the end.", (1.0, 1.0)),
        ("," + "a" * 100_000 + "the end.", (0.0, 0.0)),  # far before the end
    ],
)
def test_what_a_completion_earns(text: str, earned: tuple[float, float]) -> None:
    assert graded(asked(END, NO_COMMA), text) == earned


def test_white_space_counts_where_there_are_no_thoughts() -> None:
    first = ("length_constraints:nth_paragraph_first_word",)
    arguments = {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "yes"}
    example = asked((*first, arguments))
    assert response_of("\n\nYes \n") == "\n\nYes \n"
    assert not follows_all(example, response_of("\n\nYes"))
    assert follows_all(example, response_of("<think>x</think>\n\nYes"))
    assert follows_all(example, response_of("<think>x</think><answer>\n\nYes</answer>"))


def test_votes_are_for_equal_texts() -> None:
    assert final_answer("<think>x</think> a", "instructions") == "a"
    assert same_answer(asked(NO_COMMA), "a", "a")
    assert not same_answer(asked(NO_COMMA), "a", "b")


# -- rows ------------------------------------------------------------------------------------------


def row(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"key": 7, "prompt": "?", "instruction_id_list": [name], "kwargs": [arguments]} | more


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(x) + "\n" for x in rows), encoding="utf-8")
    return str(path)


def test_rows_of_a_file(tmp_path: Path) -> None:
    nulls = {"keywords": ["a"], "num_words": None, "relation": None}  # as a table has them
    rows = [row("keywords:existence", nulls), row(*NO_COMMA, key=8, more="x")]
    found = ifeval(write(tmp_path / "a.jsonl", *rows))
    assert [x["id"] for x in found] == ["7", "8"]
    examples = [to_example(x, i, "a") for i, x in enumerate(found)]
    assert [x.task for x in examples] == ["instructions"] * 2
    assert examples[1].where.endswith("a.jsonl:2")
    for example in examples:
        check_located(example)
    assert graded(examples[0], "an A") == (1.0, 1.0)
    assert graded(examples[0], "b") == (0.0, 0.0)


WORDS = "length_constraints:number_words"
NTH = "length_constraints:nth_paragraph_first_word"
LETTER = "keywords:letter_frequency"
WRONG = [
    (
        row("keywords:exist", {}),
        "'keywords:exist' is no instruction; there are keywords:existence,",
    ),
    (row("no_comma", {}), "'no_comma' is no instruction"),
    (row(*NO_COMMA, instruction_id_list=[]), r"instruction_id_list \[\] is not a list of names"),
    (row(*NO_COMMA, instruction_id_list="punctuation:no_comma"), "is not a list of names"),
    (row(*NO_COMMA, instruction_id_list=[["a"]]), r"\['a'\] is no instruction"),
    (row(*NO_COMMA, kwargs=[]), "kwargs is not a list of 1 objects"),
    (row(*NO_COMMA, kwargs=None), "has no key 'kwargs'; it has key, prompt"),
    (row(*NO_COMMA, prompt=None), "has no key 'prompt'"),
    (row("punctuation:no_comma", []), r"its kwargs \[\] are not an object"),
    (
        row("punctuation:no_comma", {"number": 1}),
        "takes no argument 'number', of kwargs it has none",
    ),
    (row(WORDS, {"num_words": 3, **AT_LEAST, "n": 1}), "'n', of kwargs it has num_words, relation"),
    (row(WORDS, {"num_words": 3}), "needs the argument 'relation' in its kwargs: 'at least' or"),
    (row(WORDS, {"num_words": 3, "relation": None}), "needs the argument 'relation'"),
    (
        row(WORDS, {"num_words": 3, "relation": "at most"}),
        "relation 'at most' is not 'at least' or",
    ),
    (row(WORDS, {"num_words": 3, "relation": ["at least"]}), "is not 'at least' or 'less than'"),
    (row(WORDS, {"num_words": 0, **AT_LEAST}), "num_words 0 is not a whole number above 0"),
    (row(WORDS, {"num_words": True, **AT_LEAST}), "num_words True is not a whole number"),
    (row(WORDS, {"num_words": "3", **AT_LEAST}), "num_words '3' is not a whole number"),
    (row(WORDS, {"num_words": 3.5, **AT_LEAST}), "num_words 3.5 is not a whole number"),
    (row("keywords:existence", {"keywords": []}), r"keywords \[\] is not a list of texts that are"),
    (row("keywords:existence", {"keywords": "cat"}), "keywords 'cat' is not a list"),
    (row("keywords:existence", {"keywords": ["a", " "]}), "is not a list of texts"),
    (row("keywords:existence", {"keywords": ["*c"]}), "that are regular expressions"),
    (row("keywords:forbidden_words", {"forbidden_words": ["(a"]}), "regular expressions"),
    (
        row("detectable_content:postscript", {"postscript_marker": "(?P<a>x)"}),
        "a regular expression",
    ),
    (row("startend:end_checker", {"end_phrase": " "}), "end_phrase ' ' is not a text"),
    (
        row(LETTER, {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}),
        "letter 'ab' is not one character",
    ),
    (
        row(NTH, {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}),
        "nth_paragraph is more than num_paragraphs",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_rows(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", row(*NO_COMMA), wrong)
    with pytest.raises(DataError, match=rf"a\.jsonl:2.*{message}"):
        ifeval(path)


def test_wrong_rows_of_another_file() -> None:
    example = asked((WORDS, {"num_words": 3}), where="b.jsonl:5")
    with pytest.raises(DataError, match=r"b\.jsonl:5.*needs the argument 'relation'"):
        check_located(example)


def test_an_unknown_language() -> None:
    skip_without("language:response_language")
    with pytest.raises(DataError, match="'tlh' is not a language that langdetect knows"):
        instructions_of(row("language:response_language", {"language": "tlh"}))


# -- what is not installed is said when the file is read -------------------------------------------

SENTENCES = row("length_constraints:number_sentences", {"num_sentences": 2, **AT_LEAST})


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        ("langdetect.detector_factory", row("language:response_language", {"language": "de"})),
        ("langdetect.detector_factory", row("change_case:english_capital", {})),
        ("langdetect.detector_factory", row("change_case:english_lowercase", {})),
        ("nltk.tokenize", SENTENCES),
        (
            "nltk.tokenize",
            row(
                "change_case:capital_word_frequency",
                {"capital_frequency": 1, "capital_relation": "at least"},
            ),
        ),
    ],
)
def test_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, wanted: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for found in (detector, tokenizers):
        found.cache_clear()
    with pytest.raises(ConfigError, match=r'a\.jsonl:1: .*pip install "r1jax\[ifeval\]"'):
        ifeval(write(tmp_path / "a.jsonl", wanted))


def test_without_the_data_of_nltk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("nltk.data")
    monkeypatch.setattr(data, "path", [str(tmp_path)])
    tokenizers.cache_clear()
    with pytest.raises(ConfigError, match=r"a\.jsonl:1: .*nltk\.downloader punkt_tab, or set NLTK"):
        ifeval(write(tmp_path / "a.jsonl", SENTENCES))


def test_other_instructions_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nltk.tokenize", "langdetect.detector_factory"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(ifeval(write(tmp_path / "a.jsonl", row(*NO_COMMA)))) == 1


# -- the benchmark ---------------------------------------------------------------------------------


def sample(example: str, text: str, failure: str | None = None) -> Sample:
    return Sample(example, 0, 0, text, 1, "stop", {}, failure)


def test_accuracies_of_instructions() -> None:
    first, second = asked(QUOTED, NO_COMMA, END), replace(asked(QUOTED), id="f")
    samples = [
        sample("e", '<think>a, b</think>"a b"'),  # 2 and 2 of 3
        sample("e", "*so it is*\nthe end."),  # 2 and 2 of 3
        sample("f", '*"a"*'),  # 0 and 1 of 1
        sample("f", '"a"'),  # 1 and 1 of 1
        sample("f", '"a"', "timeout"),  # 0 and 0 of 1
    ]
    found = instruction_accuracies([first, second], samples)
    assert found == {"instruction_strict": 5 / 9, "instruction_loose": 6 / 9}
    assert instruction_accuracies([first], []) == {
        "instruction_strict": 0.0,
        "instruction_loose": 0.0,
    }


def test_the_published_prompts() -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not here")
    skip_without(*RULES)
    kind = KINDS["ifeval"]
    data = DataConfig(
        function=f"{kind.rows.__module__}:{kind.rows.__qualname__}", args={"path": str(PUBLISHED)}
    )
    examples = finite_examples(data, "data")
    for example in examples:
        check_located(example)
    assert len(examples) == kind.problems == 541
    names = [name for x in examples for name in x.metadata["instruction_id_list"]]
    assert (len(names), set(names)) == (834, set(RULES))


# -- hostile responses -----------------------------------------------------------------------------

PIECES = [
    "\n",
    " ",
    "* ",
    "*\n",
    "-\n",
    "[",
    "<<",
    ">>",
    "p. ",
    "A",
    "Aa? ",
    ". ",
    "Section ",
    "***",
]
PIECES += ["{", '"', "\\", "a@", "http://", "\u0300", "\ud800", "\x00", "1,", "<answer>", "<think>"]


@pytest.mark.parametrize("piece", PIECES)
def test_linear_time(piece: str) -> None:
    text = response_of(piece * (50_000 // len(piece)))
    for name, arguments, *_ in CASES:
        if RULES[name].needs not in WITHOUT:
            start = time.perf_counter()
            Instruction(name, arguments).followed(text)
            assert time.perf_counter() - start < 5.0, name


def test_what_is_too_long_follows_nothing() -> None:
    example = asked(NO_COMMA)
    assert graded(example, "a" * MAX_RESPONSE) == (1.0, 1.0)
    assert graded(example, "a" * 1_000_000) == (0.0, 0.0)
    assert graded(example, "a\n" * 500_000) == (0.0, 0.0)
    assert graded(example, "," * 1_000_000 + "</think>a") == (1.0, 1.0)
