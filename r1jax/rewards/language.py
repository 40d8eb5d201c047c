r"""Language consistency (R1 eq 7): the share of the thoughts' words in the target language.

The paper does not say what a word is or how languages are told apart. Here, by Unicode script:

- a Han character is a Chinese word (there are no spaces to count by);
- a run of two or more Latin letters is an English word, with the apostrophes and hyphens inside it;
- a run of letters of any other script (kana and hangul too) is a word of neither.

What is no language does not count: digits, single Latin and Greek letters (variables), tags,
addresses, names such as ABC where no Latin word stands beside them, names of functions (sin, max),
units behind a number, and the Latin letters in LaTeX and code. Nothing is hidden there either:
other scripts count, and so do words in \text{}, in comments, and three and more in a row that are
no code. So words of other languages in Latin script count as English. Thoughts are what stands
before the last </think>, or all of the text where there is none.

For a target language other than en and zh, by its ISO 639-1 code, the extra `lingua` decides: it
cuts the text into spans of the target language, English and Chinese, and a word belongs to its
span's language; words of any further language go to the likeliest of the three.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from r1jax.config import ConfigError, DataError
from r1jax.tasks.units import is_known_unit

if TYPE_CHECKING:
    from r1jax.types import Example

LANGUAGES = ("en", "zh")

# What opens a formula or code, and what closes it. Three before one: the longest is tried first.
_QUOTED = {"```": "```", "`": "`", "$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}
_OPENING = re.compile("|".join(map(re.escape, _QUOTED)))
_LATIN_LETTERS = re.compile(r"[A-Za-z]+")
_IN_TEXT = re.compile(
    r"(_\s*\{?\s*)?\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf)\s*\{([^{}]*)\}"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_IN_A_ROW = re.compile(r"(?<![A-Za-z])[A-Za-z'’-]+(?:[,.;:!?]? +[A-Za-z'’-]+)+")
_COMMENT = re.compile(r"(?:#|//)(.*)")
_SYNTAX = re.compile(r"[=()\[\]{}:;_<>+*/\\|&]")
_KEYWORDS = frozenset(
    {"if", "elif", "else", "for", "in", "from", "import", "as", "return", "def", "class", "yield"}
    | {"lambda", "while", "with", "assert", "raise", "print", "del", "global"}
)
_NAME = re.compile(r"(?<![A-Za-z])(?<![A-Za-z] )[A-Z]{2,4}(?![A-Za-z]| [A-Za-z])")
_FUNCTION = re.compile(
    r"(?<![A-Za-z])(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])"
    r"|(?<![A-Za-z])(?:log|ln|lg|exp|max|min|mod|gcd|lcm|lim)(?![A-Za-z])"
)
_BEHIND_NUMBER = re.compile(r"(?<=[0-9])( ?)([A-Za-z]{2,4}(?:/[A-Za-z]{1,3})?)(?![A-Za-z])")
_GREEK = re.compile("(?<![\u0370-\u03ff])[\u0370-\u03ff](?![\u0370-\u03ff])")  # alone: a variable
_RAISED = re.compile("[\u1d2c-\u1d6a\u2070-\u209f]")  # exponents and indices
_ADDRESS = re.compile(r"https?://[^\s\u4e00-\u9fff]+")
_NO_WORDS = re.compile(r"</?(?:think|answer)>|\\[A-Za-z]+")
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"(?![{_HAN}])[^\W\d_]"
_WORD = re.compile(rf"([{_HAN}])|(?:{_LETTER})+(?:['’-](?:{_LETTER})+)*")


def language_reward(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """Words in the example's language / words (eq 7), in [0, 1]; 0 where there are no words.

    The language is metadata["language"], or else English or Chinese by most words of the question.
    """
    language = target_language(example)
    count = word_counts if language in LANGUAGES else functools.partial(_by_lingua, language)
    counts = count(thoughts(text))
    total = sum(counts.values())
    return counts[language] / total if total else 0.0


def target_language(example: Example) -> str:
    """Raises DataError where neither the metadata nor the question tells it."""
    language = example.metadata.get("language")
    if language is None:
        counts = word_counts(example.question)
        language = max(LANGUAGES, key=lambda name: counts[name])
        if not counts[language]:
            raise DataError(
                f"example {example.id}: its question has no English or Chinese words;"
                ' set the key "language"'
            )
    if language not in LANGUAGES and _detector(str(language)) is None:
        raise DataError(f"example {example.id}: language {language!r} is no ISO 639-1 code")
    return str(language)


@functools.cache
def _detector(language: str) -> Any:
    """lingua's for that language, English and Chinese; None if there is no such language."""
    try:
        import lingua
    except ImportError:
        raise ConfigError(
            f"language {language!r}: languages other than {' and '.join(LANGUAGES)} need lingua:"
            ' pip install "r1jax[lingua]"'
        ) from None
    codes: list[Any] = [
        getattr(lingua.IsoCode639_1, x.upper(), None) for x in (language, *LANGUAGES)
    ]
    if codes[0] is None:
        return None
    return lingua.LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()


def _by_lingua(language: str, text: str) -> Mapping[str, int]:
    """The number of words in that language and in others, as the module says."""
    prose, counts = _prose(text), {language: 0, "other": 0}
    for span in _detector(language).detect_multiple_languages_of(prose):
        name = span.language.iso_code_639_1.name.lower()
        words = _WORD.finditer(prose, span.start_index, span.end_index)
        number = sum(bool(word[1]) or len(word[0]) > 1 for word in words)
        counts[language if name == language else "other"] += number
    return counts


def thoughts(text: str) -> str:
    """What stands before the last </think>; all of the text if there is none."""
    before, closed, after = text.rpartition("</think>")
    return before if closed else after


def word_counts(text: str) -> Mapping[str, int]:
    """The number of words by language: "en", "zh" and "other", as the module says."""
    counts = {"en": 0, "zh": 0, "other": 0}
    for match in _WORD.finditer(_prose(text)):
        word = match[0]
        if match[1]:
            counts["zh"] += 1
        elif not all(map(_is_latin, word)):
            counts["other"] += 1
        elif len(word) > 1:
            counts["en"] += 1
    return counts


def _is_latin(character: str) -> bool:
    if character.isascii() or not character.isalpha():
        return True
    return unicodedata.name(character, "").startswith("LATIN")


def _prose(text: str) -> str:
    """The text without tags and addresses, and of formulas and code the words only.

    Letters in other forms (the R of real numbers, wide ones) are those letters.
    """
    text = unicodedata.normalize("NFKC", _RAISED.sub(" ", text))
    text = _GREEK.sub(" ", _ADDRESS.sub(" ", text))
    parts = (
        _ordinary(part) if not mark else _words_of(part, code=mark[0] == "`")
        for part, mark in _parts(text)
    )
    return _NO_WORDS.sub(" ", " ".join(parts))


def _ordinary(text: str) -> str:
    """Without names of points and functions, and units behind numbers; words in \\text{} stay."""
    text = _BEHIND_NUMBER.sub(lambda m: m[0] if not _is_unit(m[2]) else " ", text)
    return _FUNCTION.sub(" ", _NAME.sub(" ", text))


@functools.lru_cache(maxsize=1_000)
def _is_unit(name: str) -> bool:
    return is_known_unit(name)


def _words_of(quoted: str, code: bool) -> str:
    """What is said in words inside a formula or code, and everything that isn't Latin."""
    lines = quoted.split("\n") if code else [quoted]
    return " ".join(_said_in_code(line) if code else _said_in_formula(line) for line in lines)


def _said_in_formula(formula: str) -> str:
    """The words of its \\text{} but for units and subscripts, and three or more in a row."""
    texts = [m[2] for m in _IN_TEXT.finditer(formula) if not m[1] and not _is_unit(m[2].strip())]
    rest = _ENVIRONMENT.sub(" ", _IN_TEXT.sub(" , ", formula))
    foreign = _LATIN_LETTERS.sub(" ", formula)
    return " ".join([foreign, *texts, *(run for run in _runs(rest) if len(run.split()) >= 3)])


def _said_in_code(line: str) -> str:
    """The words of comments, and three or more in a row where no sign of code is, six anywhere."""
    comment = _COMMENT.search(line)
    code = line[: comment.start()] if comment else line
    enough = 6 if _SYNTAX.search(code) else 3
    said = [run for run in _runs(code) if len(run.split()) >= enough]
    if comment and "://" not in line:
        said += [run for run in _runs(comment[1]) if len(run.split()) >= 2]
    return " ".join([_LATIN_LETTERS.sub(" ", line), *said])


def _runs(text: str) -> Iterator[str]:
    """Words in a row, as one text each, without keywords of code and single letters."""
    for match in _IN_A_ROW.finditer(text):
        words = re.findall(r"[A-Za-z'’-]{2,}", match[0])
        yield " ".join(word for word in words if word not in _KEYWORDS)


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """(part, the mark that opens it as a formula or code, or "") in order; what is never closed is
    ordinary text.

    In linear time: a closing mark that was not found once is not searched for again.
    """
    at, absent = 0, set()
    for match in _OPENING.finditer(text):
        closing = _QUOTED[match[0]]
        if match.start() < at or closing in absent:
            continue
        end = text.find(closing, match.end())
        if end < 0:
            absent.add(closing)
            continue
        yield text[at : match.start()], ""
        yield text[match.end() : end], match[0]
        at = end + len(closing)
    yield text[at:], ""
