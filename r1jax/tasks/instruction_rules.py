r"""The 25 kinds of instruction of IFEval (Zhou et al. 2023, arXiv 2311.07911), each as a rule.

A rule's verdict is that of the official checker of the same name (google-research,
instruction_following_eval), whatever one may think of it. What surprises:

- keywords and the markers of sections are regular expressions; a keyword counts inside longer
  words, a forbidden word only between word boundaries; both whatever the case;
- words are runs of \w, so "don't" is two and a line of Chinese one; words in capitals are tokens of
  NLTK instead, where "CAN'T" is two and "I" is one;
- the language is langdetect's guess, and a text without a letter it knows is in every language;
- any JSON value is JSON, also 5 and NaN;
- *one* and **two** asterisks are one highlight, ***three*** are two;
- paragraphs are cut at *** in one rule and at a blank line in another, which counts blank pieces
  where it looks for the n-th but not for how many there are;
- the yes, no or maybe of a constrained response may stand anywhere in it.

Two things are not as there. Where an argument is missing or out of range the official code draws
one at random; here it is a DataError, but for a `letter` that is none ("#" and "!" in two of the
541 prompts): that character is counted, as the prompt says. And langdetect, which draws at random
too, has a fixed seed. NLTK is 3.9: from 3.10 on its patterns see marks (as in Hindi) and controls
otherwise, and so a few sentences. All rules take time linear in the response.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from r1jax.config import ConfigError

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")  # each may open a JSON text, in this order
POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}  # other markers are patterns
# White space behind the start of a line, and the bullet if one follows: so no space is read twice.
_STARRED = re.compile(r"^\s*+(\*[^*].*)?+", re.MULTILINE)
_DASHED = re.compile(r"^\s*+(-.*)?+", re.MULTILINE)
_BRACKET = re.compile(r"\[[^\]\n]*+(\])?+")
_HIGHLIGHTS = (re.compile(r"\*([^\n*]*)\*"), re.compile(r"\*\*([^\n*]*)\*\*"))


# -- what rules are checked with: the extra `ifeval` -----------------------------------------------


@functools.cache
def detector() -> Any:
    """langdetect's factory of detectors, always with the same draws."""
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ImportError:
        raise ConfigError(
            'the language of a response is told by langdetect: pip install "r1jax[ifeval]"'
        ) from None
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


@functools.cache
def tokenizers() -> tuple[Any, Any]:
    """NLTK's for sentences (Punkt, English) and for words."""
    try:
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktTokenizer
    except ImportError:
        raise ConfigError(
            'sentences and words in capitals are counted by NLTK 3.9: pip install "r1jax[ifeval]"'
        ) from None
    try:
        return PunktTokenizer("english"), NLTKWordTokenizer()
    except LookupError:
        raise ConfigError(
            "sentences are told by NLTK's data for English, which is not here:"
            " python -m nltk.downloader punkt_tab, or set NLTK_DATA to a directory that has"
            f" tokenizers{os.sep}punkt_tab"
        ) from None


def _language(text: str) -> str | None:
    """ISO 639-1 (Chinese is zh-cn or zh-tw); None where there is nothing to tell it by."""
    from langdetect import LangDetectException

    found = detector().create()
    found.append(text)
    try:
        return str(found.detect())
    except LangDetectException:
        return None


def _sentences(text: str) -> Iterator[str]:
    return (text[start:end] for start, end in tokenizers()[0].span_tokenize(text))


@functools.lru_cache(maxsize=10_000)  # of a degenerate text all are alike
def _capital_words(sentence: str) -> int:
    return sum(token.isupper() for token in tokenizers()[1].tokenize(sentence))


# -- arguments -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Argument:
    """What an instruction says besides its name."""

    what: str  # it is, for messages
    fits: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_pattern(value: Any) -> bool:
    try:
        return _is_text(value) and bool(re.compile(value.strip()))
    except (re.error, OverflowError, RecursionError):
        return False


def _is_language(value: Any) -> bool:
    return isinstance(value, str) and value in detector().get_lang_list()


COUNT = Argument(
    "a whole number above 0", lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0
)
RELATION = Argument("'at least' or 'less than'", lambda x: x in ("at least", "less than"))
TEXT = Argument("a text", _is_text)
PATTERN = Argument("a text that is a regular expression", _is_pattern)
MARKER = Argument(PATTERN.what, lambda x: _is_pattern(x) and _is_pattern(x.lower()))
PATTERNS = Argument(
    "a list of texts that are regular expressions",
    lambda x: isinstance(x, list | tuple) and bool(x) and all(map(_is_pattern, x)),
)
LETTER = Argument("one character", lambda x: _is_text(x) and len(x) == len(x.lower()) == 1)
LANGUAGE = Argument("a language that langdetect knows, as 'de'", _is_language)


def _holds(number: int, relation: str, bound: int) -> bool:
    return number < bound if relation == "less than" else number >= bound


# -- rules: a response, which is not blank, and the arguments by their names in the data -----------


def _existence(text: str, keywords: list[str]) -> bool:
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.finditer(keyword.strip(), text, re.IGNORECASE)
    return _holds(sum(1 for _ in found), relation, frequency)


def _forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


def _response_language(text: str, language: str) -> bool:
    return _language(text) in (language, None)


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    found = itertools.islice(_sentences(text), num_sentences)  # more would not matter
    return _holds(sum(1 for _ in found), relation, num_sentences)


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def _pieces(text: str, mark: str) -> list[str] | None:
    """What stands between the marks, without blank ends; None if another piece is blank."""
    pieces = [piece.strip() for piece in text.split(mark)]
    if not all(pieces[1:-1]):
        return None
    return [piece for piece in pieces if piece]


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    pieces = _pieces(text, "***")
    return pieces is not None and len(pieces) == num_paragraphs


def _two_responses(text: str) -> bool:
    pieces = _pieces(text, "******")
    return pieces is not None and len(pieces) == 2 and pieces[0] != pieces[1]


def _nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    pieces = [piece.strip() for piece in text.split("\n\n")]
    if sum(map(bool, pieces)) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = pieces[nth_paragraph - 1].split()
    if not words:
        return False
    word = re.split("[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0]
    # Letter by letter: a final sigma stays a sigma.
    return "".join(map(str.lower, word)) == first_word.lower()


def _number_placeholders(text: str, num_placeholders: int) -> bool:
    return sum(1 for found in _BRACKET.finditer(text) if found[1]) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    return bool(re.search(POSTSCRIPTS.get(marker, marker.lower()), text.lower(), re.MULTILINE))


def _number_bullet_lists(text: str, num_bullets: int) -> bool:
    bullets = (m for pattern in (_STARRED, _DASHED) for m in pattern.finditer(text) if m[1])
    return sum(1 for _ in bullets) == num_bullets


def _constrained_response(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def _number_highlighted_sections(text: str, num_highlights: int) -> bool:
    found = (inside for pattern in _HIGHLIGHTS for inside in pattern.findall(text))
    return sum(1 for inside in found if inside.strip()) >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    marks = re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)
    return len(marks) - 1 >= num_sections


def _json_format(text: str) -> bool:
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):  # the latter: too deep to be read
        return False
    return True


def _title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = 0
    for sentence in _sentences(text):
        count += _capital_words(sentence)
        if count >= capital_frequency:  # more would not matter
            break
    return _holds(count, capital_relation, capital_frequency)


def _english_capital(text: str) -> bool:
    return text.isupper() and _language(text) in ("en", None)


def _english_lowercase(text: str) -> bool:
    return text.islower() and _language(text) in ("en", None)


def _no_comma(text: str) -> bool:
    return "," not in text


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@dataclass(frozen=True)
class Rule:
    """One kind of instruction."""

    followed: Callable[..., bool]
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    # Raises ConfigError where what it is checked with is not installed.
    needs: Callable[[], object] = lambda: None


RULES = {
    "keywords:existence": Rule(_existence, {"keywords": PATTERNS}),
    "keywords:frequency": Rule(
        _frequency, {"keyword": PATTERN, "frequency": COUNT, "relation": RELATION}
    ),
    "keywords:forbidden_words": Rule(_forbidden_words, {"forbidden_words": PATTERNS}),
    "keywords:letter_frequency": Rule(
        _letter_frequency, {"letter": LETTER, "let_frequency": COUNT, "let_relation": RELATION}
    ),
    "language:response_language": Rule(_response_language, {"language": LANGUAGE}, detector),
    "length_constraints:number_sentences": Rule(
        _number_sentences, {"num_sentences": COUNT, "relation": RELATION}, tokenizers
    ),
    "length_constraints:number_paragraphs": Rule(_number_paragraphs, {"num_paragraphs": COUNT}),
    "length_constraints:number_words": Rule(
        _number_words, {"num_words": COUNT, "relation": RELATION}
    ),
    "length_constraints:nth_paragraph_first_word": Rule(
        _nth_paragraph_first_word,
        {"num_paragraphs": COUNT, "nth_paragraph": COUNT, "first_word": TEXT},
    ),
    "detectable_content:number_placeholders": Rule(
        _number_placeholders, {"num_placeholders": COUNT}
    ),
    "detectable_content:postscript": Rule(_postscript, {"postscript_marker": MARKER}),
    "detectable_format:number_bullet_lists": Rule(_number_bullet_lists, {"num_bullets": COUNT}),
    "detectable_format:constrained_response": Rule(_constrained_response),
    "detectable_format:number_highlighted_sections": Rule(
        _number_highlighted_sections, {"num_highlights": COUNT}
    ),
    "detectable_format:multiple_sections": Rule(
        _multiple_sections, {"section_spliter": PATTERN, "num_sections": COUNT}
    ),
    "detectable_format:json_format": Rule(_json_format),
    "detectable_format:title": Rule(_title),
    "combination:two_responses": Rule(_two_responses),
    "combination:repeat_prompt": Rule(_repeat_prompt, {"prompt_to_repeat": TEXT}),
    "startend:end_checker": Rule(_end_checker, {"end_phrase": TEXT}),
    "startend:quotation": Rule(_quotation),
    "change_case:capital_word_frequency": Rule(
        _capital_word_frequency,
        {"capital_frequency": COUNT, "capital_relation": RELATION},
        tokenizers,
    ),
    "change_case:english_capital": Rule(_english_capital, needs=detector),
    "change_case:english_lowercase": Rule(_english_lowercase, needs=detector),
    "punctuation:no_comma": Rule(_no_comma),
}
