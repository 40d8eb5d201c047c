"""Where the answer stands: thoughts, tags, boxes."""

from __future__ import annotations

import re
import unicodedata
from typing import Any


def final_answers(text: str) -> list[str]:
    r"""The final answer as written, [] if there is none; several if it boxes several values.

    It stands in the last <answer>...</answer> behind the thoughts (there in \boxed{} or bare), or
    else in the last \boxed{} behind the last </think>, with those in the same sentence: "\boxed{5}
    or \boxed{6}" are two answers, of which a reward wants both right, but a box that a later
    sentence corrects is no final answer any more (the paper grades one, in its box). Without these
    tags the same holds of all the text. What stands before a </think> never counts, nor does a box
    behind a <think> that is never closed (an <answer> there does: it ends the thoughts).
    """
    final = after_thoughts(text)
    tagged = tagged_answer(final)
    final = final.partition("<think>")[0] if tagged is None else tagged
    boxes = boxed_values(final)
    last = boxes[-1:]
    for (value, start), (_, later) in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        if _SENTENCE_END.search(final, start + len(value), later):
            break
        last.append((value, start))
    values = list(dict.fromkeys(value for value, _ in last[::-1]))
    return values or ([] if tagged is None else [tagged.strip()])


_SENTENCE_END = re.compile(r"[.!?](?:[\s$*)]|\\[)\]])|[。！？\n]")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


MAX_CHARACTERS = 20_000  # of a text that extraction looks at, counted from its end


# Letters and a symbol of no shape: fillers of Hangul, an empty Braille cell.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def visible(text: str) -> bool:
    """Whether there is something to see: marks, controls, spaces and fillers alone are nothing."""
    return any(unicodedata.category(x)[0] in "LNPS" and x not in _BLANK for x in text)


def after_thoughts(text: str) -> str:
    """What follows the last </think> (all of the text if there is none), its last part only."""
    return text.rpartition("</think>")[2][-MAX_CHARACTERS:]


def said(text: str) -> str:
    """What a reader is told: `after_thoughts`, and nothing of thoughts that never end."""
    return after_thoughts(text).partition("<think>")[0]


def tagged_answer(text: str) -> str | None:
    """The inside of the last complete <answer>...</answer>, or None."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    inside, _, _ = text[start + len("<answer>") :].partition("</answer>")
    return inside


def summary(text: str) -> str:
    """What a reader sees: the inside of <answer>...</answer> behind the thoughts, or all there."""
    final = after_thoughts(text)
    tagged = tagged_answer(final)
    return (final if tagged is None else tagged).strip()


BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def boxed_values(text: str) -> list[tuple[str, int]]:
    r"""The inside of every closed \boxed{...} with its place; of nested ones the innermost."""
    found: list[tuple[str, int]] = []
    opened: list[list[Any]] = []  # per open brace: [where the inside starts, is a box, holds a box]
    for token in BOX_TOKEN.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append([token.end(), token[0] != "{", False])
        elif token[0] == "}" and opened:
            start, is_box, holds_box = opened.pop()
            if is_box and not holds_box:
                found.append((text[start : token.start()].strip(), start))
            if opened:
                opened[-1][2] = opened[-1][2] or is_box or holds_box
    return found
