"""What a writer and a judge are asked in rejection sampling, and rewriters by rule.

None of them calls a solver: they see the question, the trace and the reference answer.

The prompts say, in our words, what the paper's Listings 1 and 4 ask for (r1_facts 3.2).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from r1jax.tasks.answers import boxed_values

if TYPE_CHECKING:
    from r1jax.types import Example, Message

WRITER_PROMPT = """\
Below are a question and a trace of how somebody solved it. Write the trace anew so that it is \
pleasant to read, between <think> and </think>, in the first person ("I") and in the language of \
the question: translate what is in another language. Keep every step, add none, correct nothing. \
Behind it write, between <answer> and </answer>, a short summary for the reader with the key steps \
and the final answer in \\boxed{{}}, in the same language, without speaking of a trace or of \
thoughts.

<|question|>
{question}

<|trace|>
{text}"""

JUDGE_PROMPT = """\
Below are a question, its reference answer and a prediction. Compare the prediction's final answer \
with the reference; how it was found does not matter. Reply with JSON: \
{{"analysis": "...", "correctness": "correct" or "incorrect"}}.

<|question|>
{question}

<|reference|>
{answer}

<|prediction|>
{text}"""
_JSON = re.compile(r"\{.*\}", re.DOTALL)
_SAID = re.compile(r'"correctness"\s*:\s*"(correct|incorrect)"')


def ask(prompt: str, question: str, text: str, answer: str) -> list[Message]:
    """The conversation that puts these into WRITER_PROMPT or JUDGE_PROMPT."""
    values = {"question": question, "text": text, "answer": answer}
    # Not str.format: texts hold braces.
    parts = re.split(r"\{(question|text|answer)\}", prompt.replace("{{", "{").replace("}}", "}"))
    content = "".join(values[part] if i % 2 else part for i, part in enumerate(parts))
    return [{"role": "user", "content": content}]


def is_correct(said: str) -> bool:
    """The judge's verdict; what cannot be read is not correct."""
    found = _JSON.search(said)
    if found:
        try:
            verdict = json.loads(found[0])
        except ValueError:
            verdict = None
        if isinstance(verdict, dict) and "correctness" in verdict:
            return verdict["correctness"] == "correct"
    verdicts = _SAID.findall(said)
    return bool(verdicts) and verdicts[-1] == "correct"


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def rewrite_boxed(example: Example, text: str) -> str | None:
    """A worked answer that ends with a boxed value -> its steps as thoughts, the value as answer.

    None where no sentence stands before the one with the box, where that holds several values, or
    where the text has tags of its own.
    """
    sentences = _SENTENCE_END.split(text.strip())
    steps, last = " ".join(sentences[:-1]), sentences[-1]
    values = [value for value, _ in boxed_values(last)]
    if not steps or len(values) != 1 or "\\boxed" in steps or "think>" in text:
        return None
    return f"<think> {steps} </think> <answer> {values[0]} </answer>"


# -- the mini world --------------------------------------------------------------------------------

# Phrases of traces in both languages; the longer ones first. Calculations need no translation.
_PHRASES = (
    ("Step by step:", "一步一步："),
    ("Let me see:", "让我想想："),
    ("Wait, check:", "等等，检查："),
    ("Check again:", "再检查："),
    ("But let me verify:", "但是验证一下："),
    ("Wait, verify:", "等等，验证："),
    ("The same, correct.", "一样，正确。"),
    ("No, the first was wrong.", "不对，刚才错了。"),
)
_OPENING = re.compile(r"^(?:(?:Step by step|Let me see):|(?:一步一步|让我想想)：) ?")
_FIRST_PERSON = {"en": "I go step by step: ", "zh": "我一步一步算："}
_TRACE = re.compile(r"^\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*$", re.DOTALL)


def rewrite_mini(example: Example, text: str) -> str | None:
    """A trace of the mini world made readable: its own steps in the first person.

    Phrases of the other language are put into the question's; None where the text is not thoughts
    and an answer in their tags, or has no steps at all.
    """
    found = _TRACE.match(text)
    if found is None:
        return None
    language = str(example.metadata["language"])
    thoughts = " ".join(found[1].split())
    for english, chinese in _PHRASES:
        if language == "en":
            thoughts = thoughts.replace(chinese, f"{english} ")
        else:
            thoughts = re.sub(f"{re.escape(english)} ?", chinese, thoughts)
    steps = _OPENING.sub("", thoughts)
    if steps == thoughts or not steps.strip():
        return None
    return (
        f" <think> {_FIRST_PERSON[language]}{steps} </think> <answer> {found[2].strip()} </answer>"
    )
