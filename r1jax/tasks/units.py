"""Units and counted things behind a number: "12 cm^2", "5元", "18 dollars", "7\\text{ apples}".

A unit that is known is told by its names; any other noun is taken for the thing counted unless one
of its words says something about the number ("or more", "is wrong").
"""

from __future__ import annotations

import re
from functools import lru_cache

# canonical name: its other names, one in a word each; Latin plurals in -s are understood
_NAMES = {
    "m": "meter metre 米 公尺",
    "cm": "centimeter centimetre 厘米 公分",
    "mm": "millimeter millimetre 毫米",
    "dm": "decimeter decimetre 分米",
    "km": "kilometer kilometre kms 千米 公里",
    "μm": "\\mum micrometer micron 微米",
    "nm": "nanometer 纳米",
    "Å": "angstrom 埃",
    "chi": "尺",
    "li": "里",
    "in": "inch inches \" '' 英寸",
    "ft": "foot feet ' 英尺",
    "yd": "yard",
    "mi": "mile 英里",
    "g": "gm gram gramme 克",
    "mg": "milligram 毫克",
    "kg": "kilogram kilo 千克 公斤",
    "jin": "斤",
    "lb": "pound lbs 磅",
    "oz": "ounce 盎司",
    "t": "ton tonne 吨",
    "L": "l liter litre 升",
    "mL": "ml milliliter millilitre 毫升",
    "gal": "gallon",
    "s": "second sec secs 秒 秒钟",
    "ms": "millisecond 毫秒",
    "min": "minute mins 分钟",
    "h": "hour hr hrs 小时 时",
    "day": "天 日",
    "week": "周 星期",
    "month": "个月",
    "year": "yr yrs 年",
    "age": "岁",
    "dollar": "$ usd buck 美元",
    "cent": "¢ 美分",
    "euro": "€ eur 欧元",
    "sterling": "£ gbp 英镑",
    "yuan": "¥ ￥ rmb cny 元 块 人民币 块钱",
    "jiao": "角",
    "fen": "分钱",
    "rupee": "rs ₹",
    "%": "percent",
    "deg": "degree 度",
    "degC": "°c 摄氏度",
    "degF": "°f 华氏度",
    "rad": "radian 弧度",
    "N": "newton 牛 牛顿",
    "J": "joule 焦 焦耳",
    "kJ": "kilojoule 千焦",
    "W": "watt 瓦",
    "kW": "kilowatt 千瓦",
    "V": "volt 伏",
    "Ω": "\\Omega ohm 欧姆",
    "A": "ampere amp 安",
    "Pa": "pascal 帕",
    "Hz": "hertz 赫兹",
    "K": "kelvin",
    "mol": "mole 摩尔",
    "eV": "ev",
    "erg": "",
    "ha": "hectare 公顷",
    "acre": "亩",
    "mi/h": "mph",
    "km/h": "kph",
    "mol/L": "",
    "unit": "个单位",
    "": "way egg bag box car man men pen kid boy pie row cup bus hat toy 个 只 本 名 人 支 枝 "
    "条 张 棵 块 颗 件 辆 台 朵 次 种 组 位 头 匹 袋 箱 盒 瓶 杯 双 套 页 篇 道 步 层 间 "
    "根 把 株 份 户 架 艘 座 片 排 行 列 段 题 倍 对 班 队 分 元素",
}  # fmt: skip
_CANONICAL = {
    name: unit for unit, names in _NAMES.items() for name in (unit, *names.split()) if name
}
_LETTERS = {name for name in _CANONICAL if len(name) == 1 and name.isascii()}
_POWERS = {
    "square": 2,
    "squared": 2,
    "sq": 2,
    "平方": 2,
    "cubic": 3,
    "cubed": 3,
    "cu": 3,
    "立方": 3,
}
# Words that are no part of a thing's name.
_NO_NOUNS_TEXT = """
a an the is are was were be not no nor or and but if than then when while where which who that this
these those it its more less fewer greater most least about around approximately almost nearly over
under above below between from to into at up down only exactly just so because since thus hence
therefore for with without by as maybe perhaps possibly probably wrong right correct incorrect
false true times factorial plus minus divided multiplied equals equal half halves quarter quarters
third thirds fourths fifths dozen dozens hundreds thousands hundred thousand million billion
trillion one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty
sixty seventy eighty ninety mod modulo base answer solution result any all some either neither both
other also wait actually sorry oops negative positive approx roughly say
"""
_NO_NOUNS = frozenset(_NO_NOUNS_TEXT.split())
_HAN = "\u3400-\u9fff"
_NO_HAN_NOUN = re.compile(
    "[或和与及不非是约超近另且但错对半多余几至到以零一二三四五六七八九十百千万亿两左右上下内外"
    "加减乘除的第又于低高少这那无有为等根开打来方点折成号幂阶制质]"
)
_RAISED = r"(?:\^\{?([0-9-]+)\}?)?"
_PRICE = re.compile(r"^(-?)\s*(\\\$|\$|€|£|¥|￥|US\s?\\?\$|USD|Rs\.?|RMB)\s*(?=[-0-9.])")
_DEGREE = re.compile(r"(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*(?:\\text\{\s*)?([CF]?)\}?$")
_TEXT_UNIT = re.compile(
    rf"^(.*[0-9}})!A-Za-z])\s*\\text\s*\{{([^{{}}]*)\}}\s*{_RAISED}$", re.DOTALL
)
_WORD_UNIT = re.compile(
    rf"^(.*(?:[0-9}})!]|\\pi))(\s*)([A-Za-z][A-Za-z. /]*?|[A-Za-z]+\^\{{?[0-9]\}}?/?[A-Za-z]*"
    rf"|[A-Za-z]+/[A-Za-z]+)\s*{_RAISED}$",
    re.DOTALL,
)
_HAN_UNIT = re.compile(rf"^(.*[0-9}})!A-Za-z])\s*([{_HAN}][{_HAN}/]*)\s*{_RAISED}$", re.DOTALL)
_IN_BRACKETS = re.compile(
    rf"^(.*[0-9}}!])\s*(?:\\text\s*\{{)?\s*\(([A-Za-z{_HAN}/^0-9]+)\)\s*\}}?$", re.DOTALL
)
_FEET_OR_INCHES = re.compile(r"^([-+0-9.,/ ]*[0-9])\s*('{1,2}|\")$")
_POWER = r"\^(?:\{-?[0-9]\}|-?[0-9])"
_FACTOR = rf"(?:\\mu\s*)?(?:\\text\s*\{{[^{{}}^]*(?:{_POWER}[^{{}}^]*)*\}}|\\Omega)(?:{_POWER})?"
_FACTORS = re.compile(rf"^(.*?[0-9}})!])\s*((?:{_FACTOR}(?:\s*(?:\\cdot|/))?\s*)+)$", re.DOTALL)
_UNIT_FRACTION = re.compile(rf"\\frac\{{\s*({_FACTOR})\s*\}}\{{\s*({_FACTOR})\s*\}}$")
_UNIT_POWER = re.compile(r"(/?)([^\s/^0-9-]+)(?:\^\{?(-?[0-9])\}?)?")
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\?\s?\bpercent\b|\\text\s*\{\s*(?:percent|per cent|\\?%)\s*\})$"
)


def split_unit(text: str, variables: frozenset[str] = frozenset()) -> tuple[str, str | None]:
    """(the number or formula, its unit), the unit None where there is none.

    A letter by itself is a unit only behind a plain number, and not where it is one of the
    `variables`. What is no unit stays where it is.
    """
    if match := _PERCENT.search(text):
        return text[: match.start()].strip(), "%"
    if (match := _IN_BRACKETS.match(text)) and is_known_unit(match[2]):
        text = rf"{match[1]}\text{{{match[2]}}}"
    if match := _DEGREE.search(text):
        if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", text):
            return text[: match.start()].strip(), "deg" + match[1]
        return text, None
    if match := _PRICE.match(text):
        rest, unit = split_unit(match[1] + text[match.end() :], variables)
        money = _CANONICAL.get(re.sub(r"^(?:US)?\s?\\?|\.$", "", match[2]).lower() or "$", "dollar")
        money = "yuan" if match[2] in "¥￥" else money
        return rest, money if unit in (None, money) or not unit else f"{money} {unit}"
    if match := _FEET_OR_INCHES.match(text):
        return match[1], _CANONICAL[match[2]]
    match = _FACTORS.match(_UNIT_FRACTION.sub(r"\1/\2", text))
    if match and (unit := product_of_units(match[2])):
        return match[1], unit
    for pattern in (_TEXT_UNIT, _HAN_UNIT):
        if match := pattern.match(text):
            unit = unit_of(match[2], match[3] or "")
            return (text, None) if unit is None else (match[1].strip(), unit)
    if match := _WORD_UNIT.match(text):
        return _behind_number(match, variables) or (text, None)
    return text, None


def _behind_number(match: re.Match[str], variables: frozenset[str]) -> tuple[str, str] | None:
    r"""A unit without \text around it: known, or a word that is no product of variables."""
    value, space, phrase, power = match[1].strip(), match[2], match[3], match[4] or ""
    unit = unit_of(phrase, power)
    if unit is None:
        return None
    known = unit in _CANONICAL or any(part in _CANONICAL for part in re.split(r"[\^/ ]", unit))
    if phrase in _LETTERS or phrase in variables:
        plain_number = re.fullmatch(r"[-+]?[0-9.,]+|[-+]?\\frac\{[0-9]+\}\{[0-9]+\}", value)
        thousands = phrase in ("K", "k") and not space  # 10K
        if phrase in variables or not plain_number or thousands:
            return None
    elif not known and not (space and len(max(re.findall("[A-Za-z]+", phrase), key=len)) > 3):
        return None
    return value, unit


@lru_cache(maxsize=5_000)
def unit_of(phrase: str, power: str = "") -> str | None:
    """The unit's canonical name, "" for a mere counter word, or None if it is no unit or noun."""
    phrase = re.sub(r"[~\s]+|\\[ ,;]", " ", phrase).strip(" .,").replace(" per ", "/")
    if not phrase or len(phrase) > 40:
        return None
    if phrase.startswith("per "):  # "$12 per hour"
        phrase = "/" + phrase[4:]
    parts = [_simple(part.strip()) if part else "" for part in re.split(r"/|每", phrase)]
    if any(part is None for part in parts) or len(parts) > 2:
        return None
    unit = "/".join(part or "" for part in parts)
    return f"{unit}^{power}" if power not in ("", "1") else unit


def product_of_units(text: str) -> str | None:
    r"""kg m/s^2 of \text{kg}\cdot\text{m}\,\text{s}^{-2}; None where a part is no unit."""
    text = re.sub(r"\\text\s*\{([^{}]*(?:\^\{[^{}]*\}[^{}]*)*)\}", r"\1", text)
    text = re.sub(r"\\mu\s*", r"\\mu", re.sub(r"\\cdot|[~*·]|\\[ ,;]", " ", text)).strip()
    text = re.sub(r"\s*/\s*", " /", text)
    powers: dict[str, int] = {}
    parts = text.split()
    for part in parts:
        match = _UNIT_POWER.fullmatch(part)
        one_of_many = re.fullmatch("/?[A-Z].*", part) and len(parts) > 1  # C, T, M are units too
        name = match and (_known(match[2]) or (one_of_many and len(match[2]) == 1 and match[2]))
        if not match or not name:
            return None
        sign = -1 if match[1] else 1
        powers[name] = powers.get(name, 0) + sign * int(match[3] or 1)
    above = [_raised(name, power) for name, power in sorted(powers.items()) if power > 0]
    below = [_raised(name, -power) for name, power in sorted(powers.items()) if power < 0]
    return "/".join([" ".join(above), *below])


def _raised(name: str, power: int) -> str:
    return name if power == 1 else f"{name}^{power}"


def _simple(phrase: str) -> str | None:
    """One unit without a stroke: 'square centimeters' -> 'cm^2'."""
    if match := re.fullmatch(r"(.+?)(?:\^\{?|\s?)([23])\}?", phrase):
        inner = _simple(match[1])
        return inner and f"{inner}^{match[2]}"
    if re.search(rf"[{_HAN}]", phrase):
        return _han(phrase)
    words = phrase.replace(".", "").replace("-", " ").split()
    power = next((_POWERS[word.lower()] for word in words if word.lower() in _POWERS), None)
    words = [word for word in words if word.lower() not in _POWERS and word.lower() != "of"]
    if not words or len(words) > 3 or any(word.lower() in _NO_NOUNS for word in words):
        return None
    if not all(word.isalpha() or word in _CANONICAL for word in words):
        return None
    unit = " ".join(_known(word) or _singular(word.lower()) for word in words)
    return f"{unit}^{power}" if power else unit


def _han(phrase: str) -> str | None:
    power = next((_POWERS[word] for word in ("平方", "立方") if phrase.startswith(word)), None)
    phrase = phrase[2:] if power else phrase
    if phrase in _CANONICAL:
        unit = _CANONICAL[phrase]
        return f"{unit}^{power}" if power else unit
    if power or len(phrase) > 6 or _NO_HAN_NOUN.search(phrase):
        return None
    return next((_CANONICAL[x] for x in (phrase[:2], phrase[:1]) if x in _CANONICAL), "")


def _known(word: str) -> str | None:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in _CANONICAL:
            return _CANONICAL[name]
    return None


def _singular(word: str) -> str:
    for ending, replacement in (("ies", "y"), ("ses", "s"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)] + replacement
    return word


def is_known_unit(name: str) -> bool:
    """Whether every part of km/h is a unit from the list."""
    parts = [re.sub(r"\^?[23]$|^平方|^立方|s$", "", part) for part in name.split("/")]
    return all(part in _CANONICAL or _known(part) is not None for part in parts)


def units_agree(first: str | None, second: str | None) -> bool:
    """Where both have one they must be the same; of things counted one may say more of the same."""
    if not first or not second or first == second:
        return True
    words = set(first.split()), set(second.split())
    known = any(re.split(r"[\^/]", word)[0] in _CANONICAL for word in words[0] | words[1])
    return not known and (words[0] <= words[1] or words[1] <= words[0])
