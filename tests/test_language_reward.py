"""Language consistency: what counts as a word, of which language, and what cannot hide."""

import sys
import time
from typing import Any

import pytest

from r1jax.config import ConfigError, DataError
from r1jax.rewards import load_rewards, score
from r1jax.rewards.language import _detector, language_reward, target_language, word_counts
from r1jax.types import Example


def example(question: str = "How many?", **metadata: Any) -> Example:
    return Example("1", ({"role": "user", "content": question},), "3", "integer", metadata)


def share(text: str, language: str) -> float:
    return language_reward(example(language=language), text, length=1, finish_reason="stop")


@pytest.mark.parametrize(
    ("text", "en", "zh", "other"),
    [
        ("So the answer is 12.", 4, 0, 0),
        ("I don't know, it's well-known", 4, 0, 0),  # I is a single letter
        ("x = 3y + 12, A > B", 0, 0, 0),
        ("所以答案是12。", 0, 5, 0),
        ("所以 the answer 是 12", 2, 3, 0),
        ("naïve café, Ångström", 3, 0, 0),
        ("ответ: да", 0, 0, 2),
        ("ひらがな한글", 0, 0, 1),
        (r"let $\alpha_{max} = \frac{a}{bc}$ be", 2, 0, 0),
        (r"\(total\) and \[sum\] and $$\text{all of it}$$", 5, 0, 0),
        (r"\(total\) and \[sum\] and $$x + \mathrm{const}$$", 3, 0, 0),
        # nothing hides in formulas and code
        (r"$\text{So the answer is five}$", 5, 0, 0),
        (r"$\text{So}\ \text{the}\ \text{answer}$", 3, 0, 0),
        (r"\[\mbox{we add both}\]", 3, 0, 0),
        ("$I think that the answer is five$", 6, 0, 0),
        ("`we know that the answer is five`", 7, 0, 0),
        ("```\nFirst we add the numbers.\nThen we multiply them\n```", 9, 0, 0),
        ("```python\nx = 1  # first we add the numbers\n```", 5, 0, 0),
        (r"那么 $S_{\text{total}} = 5\text{ cm}$", 0, 2, 0),
        (r"$\begin{aligned} x &= 1 \\ y &= 2 \end{aligned}$", 0, 0, 0),
        (r"\(\sin x + \cos y = \max(a, b)\)", 0, 0, 0),
        ("```python\nfrom math import sqrt\nimport numpy as np\n```", 0, 0, 0),
        ("`for item in items`", 0, 0, 0),
        ("```\nwhile left < right and not found:\n    total += values[left]\n```", 0, 0, 0),
        # names, functions and units are no words
        ("三角形ABC中，AB=AC", 0, 4, 0),
        ("在△ABC 和 △DEF 中", 0, 3, 0),
        ("求 sin 30° 的值", 0, 3, 0),
        ("长5cm，重3 kg，速度60km/h", 0, 4, 0),
        ("设 f(x) 的最大值为 max", 0, 6, 0),
        ("THE SUM OF ALL IS TEN", 6, 0, 0),
        ("USA", 0, 0, 0),
        ("α + β = γ，ΔABC ≅ ΔDEF，x ∈ ℝ，aⁿ，𝑥，5㎝", 0, 0, 0),
        ("ｔｗｏ words", 2, 0, 0),
        ("run `print(total)` or\n```python\nfor item in items:\n    pass\n```\nthen", 3, 0, 0),
        ("it costs $5 today", 3, 0, 0),  # never closed
        ("see https://example.org/some/path now", 2, 0, 0),
        ("<think> yes </think>", 1, 0, 0),
        ("$中文$ `字`", 0, 3, 0),  # nothing hides behind dollars
        ("", 0, 0, 0),
    ],
)
def test_words(text: str, en: int, zh: int, other: int) -> None:
    assert word_counts(text) == {"en": en, "zh": zh, "other": other}


def test_the_share_of_the_thoughts_alone() -> None:
    text = "<think> first 再算 </think> <answer> 全是中文 </answer>"
    assert share(text, "en") == pytest.approx(1 / 3)
    assert share(text, "zh") == pytest.approx(2 / 3)
    assert share("first 再算", "zh") == pytest.approx(2 / 3)  # thoughts that never end
    assert share("слово word", "en") == pytest.approx(1 / 2)
    assert share("<think> 12 + 3 = 15 </think> fifteen", "en") == 0.0
    assert share("", "en") == 0.0


def test_the_target_is_the_language_of_the_question() -> None:
    assert target_language(example("What is 2 + 3?")) == "en"
    assert target_language(example("2+3等于多少？")) == "zh"
    assert target_language(example("What is 2 + 3?", language="zh")) == "zh"
    with pytest.raises(DataError, match="example 1: its question has no English or Chinese words"):
        target_language(example("2 + 3 = ?"))
    with pytest.raises((DataError, ConfigError), match="language 'xx'"):
        target_language(example(language="xx"))


def test_it_is_a_reward_by_name() -> None:
    rewards = load_rewards({"accuracy": 1.0, "language": 0.5})
    grade = score(rewards, example(), r"<think> so 三 </think> \boxed{3}", 9, "stop")
    assert grade.breakdown == {"accuracy": 1.0, "language": 0.5}
    assert grade.reward == pytest.approx(1.25)


@pytest.mark.parametrize("piece", ["`", "$", "\\(", "```a", "$`\\[", "a'", "a-", "字a", "https://"])
def test_linear_time(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    start = time.perf_counter()
    word_counts(text)
    assert time.perf_counter() - start < 2.0


# -- other languages, by lingua --------------------------------------------------------------------

GERMAN = (
    "Zuerst rechnen wir die Summe der beiden Zahlen aus, dann prüfen wir das Ergebnis noch einmal."
)
ENGLISH = "Then we multiply the number of apples by three and check that the answer is right."


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (GERMAN, 1.0, 1.0),
        (ENGLISH, 0.0, 0.0),
        (f"{GERMAN} {ENGLISH}", 0.35, 0.65),
        (f"{GERMAN} $x = 3$ `print(hello world)`", 1.0, 1.0),
        (f"{GERMAN}</think>{ENGLISH}", 1.0, 1.0),
        ("首先计算总和，然后检查答案是否正确。", 0.0, 0.0),
        ("123", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_german(text: str, low: float, high: float) -> None:
    pytest.importorskip("lingua")
    example = Example("e", ({"role": "user", "content": "?"},), "1", "integer", {"language": "de"})
    assert low <= language_reward(example, text, length=1, finish_reason="stop") <= high


def test_without_lingua(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lingua", None)
    _detector.cache_clear()
    example = Example("e", ({"role": "user", "content": "?"},), "1", "integer", {"language": "de"})
    with pytest.raises(ConfigError, match=r'language .de.*pip install "r1jax\[lingua\]"'):
        language_reward(example, GERMAN, length=1, finish_reason="stop")
