r"""One way of writing for what can be written in many: full-width digits, Unicode signs, TeX aids.

`written` turns "２½", "10-2√5", "1\,195" or "6e13" into the TeX that is compared and parsed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

# Full-width ASCII, the ideographic space and full stop, and more ways to write a minus.
_TO_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ",
    0x3002: ".",
    0x2212: "-",
    0x2010: "-",
    0x2011: "-",
    0x2013: "-",
    0xFE63: "-",
}
WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("*", "*"),
    ("`", "`"),
    ("“", "”"),
    ('"', '"'),
)
TEXT = r"\\(?:text|mathrm|mathbf|textbf|textit|textrm|mathit|mathsf|mbox|operatorname)\s*"
_TEXT_COMMAND = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}")

_SIGNS = {
    "×": r"\times ",
    "✕": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∗": r"\cdot ",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "∶": ":",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "≦": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "≧": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∞": r"\infty ",
    "∅": r"\emptyset ",
    "Ø": r"\emptyset ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∣": r"\mid ",
    "ℝ": r"\mathbb{R}",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "℃": r"^\circ C",
    "¼": r" 1/4",
    "½": r" 1/2",
    "¾": r" 3/4",
    "⅓": r" 1/3",
    "⅔": r" 2/3",
    "′": "'",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "…": r"\ldots ",
    "㎝": r"\text{ cm}",
    "㎡": r"\text{ m}^2",
}
_GREEK = (
    "α alpha β beta γ gamma δ delta ε epsilon ζ zeta η eta θ theta λ lambda μ mu ν nu ξ xi π pi"
)
_GREEK += " ρ rho σ sigma τ tau φ phi χ chi ψ psi ω omega Δ Delta Γ Gamma Θ Theta Λ Lambda Σ Sigma"
_GREEK += " Φ Phi Ψ Psi Ω Omega κ kappa ι iota υ upsilon"
_SIGNS |= {sign: rf"\{name} " for sign, name in re.findall(r"(\S) (\w+)", _GREEK)}
_UNICODE = str.maketrans(_SIGNS)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_SPACES = re.compile(r"(?<!\\)\\[,;:> ]|\\q?quad(?![A-Za-z])|~|\\(?:enspace|thinspace)(?![A-Za-z])")
_GROUPS = re.compile(r"(?<![0-9.,])([1-9][0-9]{0,2})((?:(?:,| +)[0-9]{3})+)(?![0-9]|,[0-9])")
_E_NOTATION = re.compile(
    r"(?<![0-9A-Za-z.])([0-9]+(?:\.[0-9]*)?)[eE]([+-]?[0-9]{1,3})(?![0-9A-Za-z.])"
)
_MIXED = re.compile(r"(?<![0-9./)}])([0-9]+)\s+([0-9]+)/([0-9]+)(?![0-9.(])")
_GOES_ON = re.compile(r"(?<=\.)([0-9]*?)([0-9])\2{2,}(?:\\[lcd]?dots(?:\s|$)|\.{2,})$")  # 0.1666...
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)(?:\\(?:overline|bar)\{([0-9]+)\}|\\(?:overline|bar)\s*([0-9])|\\dot\{?([0-9])\}?|\(([0-9]+)\))"
    r"(?![0-9\\])"
)
_PLAIN_WORDS = (
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=", r"\\ne "),
    (r"\*\*", "^"),
    (r"^负(?=\s*[0-9\\])", "-"),
    (r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
    (r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<![A-Za-z\\])sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"(?<![A-Za-z\\])(pi|theta|sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan)(?![A-Za-z])",
     r"\\\1 "),
    (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
)  # fmt: skip
_LARGE = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}
_ARGUMENT = r"([0-9A-Za-z]|(?<!\\)\\(?:pi|theta|alpha|beta)(?![A-Za-z]))"  # of TeX, without braces
_TEX = (
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|bf|it)(?![A-Za-z])\s*", ""),
    (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])", r"\\le"),
    (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])", r"\\ge"),
    (r"\\(?:lt)(?![A-Za-z])", "<"),
    (r"\\(?:gt)(?![A-Za-z])", ">"),
    (r"\\neq(?![A-Za-z])", r"\\ne"),
    (r"\\(?:vert|lvert|rvert)(?![A-Za-z])", "|"),
    (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
    (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
    (r"\\(?:div)(?![A-Za-z])", "/"),
    (r"\\colon(?![A-Za-z])", ":"),
    (r"\\(?:varnothing)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\[dtc](frac|binom)(?![A-Za-z])", r"\\\1"),
    (rf"\\(frac|binom)\s*{_ARGUMENT}\s*{_ARGUMENT}", r"\\\1{\2}{\3}"),
    (rf"\\(frac|binom)\s*(\{{[^{{}}]*\}})\s*{_ARGUMENT}", r"\\\1\2{\3}"),
    (rf"\\(frac|binom)\s*{_ARGUMENT}\s*(\{{)", r"\\\1{\2}\3"),
    (rf"\\sqrt\s*(\[[0-9a-z]\])?\s*{_ARGUMENT}", r"\\sqrt\1{\2}"),
    (r"\\(?:overrightarrow|vec)\s*(?=\{)", r"\\vec"),
    (r"\\vec\s*([A-Za-z])(?![A-Za-z])", r"\\vec{\1}"),
    (r"\\(?:mathbf|boldsymbol|bm|mathit|textbf|textit)\s*\{\s*([A-Za-z])\s*\}", r" \1"),
    (r"\\(?:hat|vec)\s*\{\s*([ijk])\s*\}", r" \1"),
    (r"\\(?:mathrm|text|operatorname)\s*\{\s*([ie])\s*\}", r" \1"),
    (r"\\(?:mathrm|mathbf|textbf|textit|textrm|mathit|mbox|operatorname)\s*\{", r"\\text{"),
    (r"\^\{\s*([0-9A-Za-z]|\\circ)\s*\}", r"^\1"),
    (r"_\{\s*([0-9A-Za-z])\s*\}", r"_\1"),
    (r"\\(?:boldsymbol|bm|underline)\s*(?=\{)", ""),
    (r"\\text\s*\{([^A-Za-z0-9{}\u3400-\u9fffÅμΩ]*)\}", r"\1"),
    (r"\\?exp\s*\(([^()]*)\)|\\exp\s*\{([^{}]*)\}", r"e^{\1\2}"),
    (r"\\(sin|cos|tan)\s*\^\s*\{\s*-\s*1\s*\}", r"\\arc\1 "),
    (r"\\log_(?:e|\{e\})(?![A-Za-z])", r"\\ln "),
    (r"[(\[]\s*\\begin\{array\}\{[lcr| ]*\}(.*?)\\end\{array\}\s*[)\]]",
     r"\\begin{pmatrix}\1\\end{pmatrix}"),
    (r"\\\{\s*(\\begin\{array\}.*?\\end\{array\})\s*\.?$", r"\1"),
    # whole numbers k, as in k\pi (k \in Z)
    (r"(?<=\S)[,;]?\s*\(?\s*(?:\\text\{ where \})?[a-z]\s*\\in\s*"
     r"(?:\\math(?:bb|bf)\s*\{?[ZN]\}?|\\text\{[ZN]\}|[ZN])(?:\^?[*+]|_[+])?\s*\)?$", ""),
    (r"(?<=[0-9])\s*(?:\\text\s*\{\s*)?(thousand|million|billion|trillion|万|亿)(?![A-Za-z])\s*(\})?",
     lambda m: rf"\times 10^{{{_LARGE[m[1]]}}} " if m[2] or "text" not in m[0] else
     rf"\times 10^{{{_LARGE[m[1]]}}}\text{{ "),
    (r"\\(?:degree|degrees)(?![A-Za-z])", r"^\\circ"),
    (r"(?<!\^)\\circ(?![A-Za-z])", r"^\\circ"),
    (r"\\begin\{(?:cases|array|aligned)\}(?:\{[lcr| ]*\})?([^&]*?)\\end\{(?:cases|array|aligned)\}",
     lambda m: re.sub(r"[,;]?\s*\\\\", ",", m[1])),
)  # fmt: skip
_TEX_RULES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement) for pattern, replacement in _TEX
]
_WORD_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement) for pattern, replacement in _PLAIN_WORDS
]


def to_ascii(text: str) -> str:
    """Full-width characters as ASCII, TeX's ways to group thousands as commas."""
    text = text.translate(_TO_ASCII).replace("{,}", ",")
    return re.sub(r"(?<=,)\\! *(?=[0-9])|\\!", "", text)


def plain(text: str) -> str:
    """`text` in ASCII without what is wrapped around an answer: $...$, \\text{...}, a full stop."""
    text = unwrapped(to_ascii(text))
    wrapped = _TEXT_COMMAND.fullmatch(text)
    return wrapped[1].strip() if wrapped else text


def unwrapped(text: str) -> str:
    """Without signs that enclose all of it, and without a full stop."""
    text = text.strip().removesuffix(".").strip()
    for opening, closing in WRAPPERS:
        inside = text[len(opening) : len(text) - len(closing)]
        if text == opening + inside + closing and opening not in inside:
            text = inside.strip().removesuffix(".").strip()
    return text


def bare_words(text: str) -> str:
    r"""Without \text{...} and the like around words."""
    while (inner := _TEXT_COMMAND.sub(r"\1", text)) != text:
        text = inner
    return text


@lru_cache(maxsize=20_000)
def written(text: str) -> str:
    """The text in the one way of writing, not yet cut into values."""
    text = unwrapped(to_ascii(text)).removesuffix(r"\\")
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: "^{" + m[0].translate(_RAISED) + "}", text)
    text = re.sub(r"[₀-₉]+", lambda m: "_{" + m[0].translate(_LOWERED) + "}", text)
    text = re.sub(r"√\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"√\s*(?:\{([^{}]*)\}|([0-9]+|[A-Za-z]))", r"\\sqrt{\1\2}", text)
    text = text.translate(_UNICODE)
    text = re.sub(r"(?<!\\)\$([^$]*)(?<!\\)\$", r"\1", text)  # pairs of dollars, but not prices
    for pattern, replacement in _WORD_RULES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<![0-9.])\.(?=[0-9])", "0.", _SPACES.sub(" ", text))
    for pattern, replacement in _TEX_RULES:
        text = pattern.sub(replacement, text)
    text = _E_NOTATION.sub(lambda m: rf"{m[1]}\times 10^{{{int(m[2])}}}", text)
    text = re.sub(r"(?<=[0-9])\s*又\s*(?=[0-9]+/|\\frac)", " ", text)  # 3又3/4
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = re.sub(
        r"(?<![0-9./}])([0-9]+)/([0-9]+)(?: +(?=[A-Za-z\\(])|(?=i\b|\\(?:pi|sqrt)\b))",
        r"\\frac{\1}{\2}",
        text,
    )
    text = _REPEATING.sub(_fraction, _GOES_ON.sub(r"\1\\overline{\2}", text))
    return re.sub(r"\s+", " ", text).strip()


def thousands(text: str) -> str:
    """'1,234' and '1 234' as 1234, but not between brackets: (100,200) is a pair."""
    if text[:1] in "([" or text[:2] == r"\{":
        return text
    return _GROUPS.sub(lambda m: m[1] + re.sub("[, ]", "", m[2]), text)


def _fraction(match: re.Match[str]) -> str:
    """A repeating decimal as a fraction: 0.1(6) is (16 - 1) / 90."""
    whole, fixed = match[1], match[2]
    cycle = match[3] or match[4] or match[5] or match[6]
    if len(whole + fixed + cycle) > 30:
        return match[0]
    below = 10 ** len(fixed) * (10 ** len(cycle) - 1)
    above = int(whole + fixed + cycle) - int("0" + whole + fixed)
    return rf"\frac{{{above}}}{{{below}}}"


def compact(text: str) -> str:
    """Without what doesn't show: spaces, but for those that part words or numbers."""
    return re.sub(
        r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z\s])|(?<=[0-9])\s+(?=[A-Za-z\\(])", "", text
    )
