"""What a writer and a judge are asked in rejection sampling.

They see the question, the trace and the reference answer.

The prompts say, in our words, what the paper's Listings 1 and 4 ask for.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r1jax.types import Message

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
