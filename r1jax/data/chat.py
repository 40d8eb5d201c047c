"""Prompt templates: from chat messages to token ids. The only place that knows templates; no jax.

What messages contain is untrusted: a control token typed into a message is encoded as plain text,
only those that the template itself writes become control tokens.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1jax.config import ConfigError, DataError, check_choice

if TYPE_CHECKING:
    from r1jax.data.tokenizer import Tokenizer
    from r1jax.types import Message

# Table 1 of the paper, word for word; `{prompt}` is the question.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. The reasoning process and answer are enclosed within "
    "<think>...</think> and <answer>...</answer> tags, respectively, i.e., <think> reasoning "
    "process here </think> <answer> answer here </answer>. User: {prompt}. Assistant:"
)
R1_ZERO_SHORT = (  # at most 80 tokens, for small models and machines
    "A conversation between User and Assistant. The Assistant first thinks, then answers: "
    "<think> reasoning </think> <answer> answer </answer>. User: {prompt} Assistant:"
)
R1_USER, R1_ASSISTANT, R1_PREFILL = "<｜User｜>", "<｜Assistant｜>", "<think>\n"

ROLES = ("system", "user", "assistant")
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode keeps them for such uses

# Parts of a sequence in order: its tokens, and 1 where they are the assistant's (0 elsewhere).
Part = tuple[list[int], int]


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer, template: str) -> list[int]:
    """The tokens that a completion continues; the last message is the user's (or the system's)."""
    _check(messages, template)
    if messages[-1]["role"] == "assistant":
        raise DataError(
            "a prompt ends with a message of the assistant; it must end with the user's"
        )
    return [token for tokens, _ in TEMPLATES[template](messages, tokenizer) for token in tokens]


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str
) -> tuple[list[int], list[int]]:
    """(tokens, loss_mask) of a conversation that the assistant ends.

    The mask is 1 on the assistant's turns up to and including the token that ends them. Turns that
    the template shortens as soon as others follow (it drops their thoughts) get 0: to learn them
    would be to learn answers without thoughts. tokens begin with render_prompt(messages[:-1]).
    """
    _check(messages, template)
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"a conversation to learn from ends with role {messages[-1]['role']!r}; it must end"
            " with the assistant's"
        )
    parts = TEMPLATES[template](messages, tokenizer)
    tokens = [token for part, _ in parts for token in part]
    return tokens, [mask for part, mask in parts for _ in part]


def _check(messages: Sequence[Message], template: str) -> None:
    check_choice("template", template, TEMPLATES)
    if not messages:
        raise DataError("a conversation has no messages")
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"a message's role is {role!r}, not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"a message's content is {type(content).__name__}, not a string")


# ---- one question, one answer ----


def _single_turn(text: str, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Part]:
    """`text` with the question in the place of {prompt}, then the completion as it stands."""
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise DataError(
            "this template takes one user message and no other, but the roles are "
            + ", ".join(roles)
        )
    prompt = text.replace("{prompt}", messages[0]["content"])
    parts = [([*tokenizer.prefix, *tokenizer.encode(prompt)], 0)]
    if len(messages) == 2:
        parts.append(([*tokenizer.encode(messages[1]["content"]), tokenizer.eos_id], 1))
    return parts


# ---- DeepSeek-R1's own ----


def _r1(messages: Sequence[Message], tokenizer: Tokenizer) -> list[Part]:
    """The template of R1 and its distilled models: the prompt ends with an open <think>.

    The system's words stand first; earlier turns of the assistant keep only what follows their
    last </think>.
    """
    mark = _unused_mark(messages)
    turns = [(m["role"], _protect(m["content"], tokenizer, mark)) for m in messages]
    completion = turns.pop()[1] if turns[-1][0] == "assistant" else None
    text = "".join(content for role, content in turns if role == "system")
    for role, content in turns:
        if role == "user":
            text += R1_USER + content
        elif role == "assistant":
            answer = content.split("</think>")[-1]
            text += R1_ASSISTANT + answer + tokenizer.special_tokens["eos_token"]
    prompt = _encode(text + R1_ASSISTANT + R1_PREFILL, tokenizer, mark)
    parts = [([*tokenizer.prefix, *prompt], 0)]
    if completion is not None:
        tokens = _encode(_after_prefill(completion), tokenizer, mark)
        parts.append(([*tokens, tokenizer.eos_id], 1))
    return parts


def _after_prefill(content: str) -> str:
    """What follows the prompt's "<think>\\n"; an answer without thoughts closes the tag at once."""
    if content.startswith("<think>"):
        return content.removeprefix("<think>").removeprefix("\n")
    return content if "</think>" in content else f"\n</think>\n\n{content}"


# ---- the tokenizer's own (jinja2) ----


def _chat(messages: Sequence[Message], tokenizer: Tokenizer) -> list[Part]:
    """The chat template that came with the model, cut where the assistant's turns begin and end."""
    mark = _unused_mark(messages)
    rendered = functools.partial(_render_jinja, tokenizer, mark)
    encode = functools.partial(_encode, tokenizer=tokenizer, mark=mark)
    protect = functools.partial(_protect, tokenizer=tokenizer, mark=mark)
    whole = rendered(messages, messages[-1]["role"] != "assistant")
    parts: list[Part] = []
    done = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, turn = rendered(messages[:i], True), rendered(messages[: i + 1], False)
        whole_turn = whole.startswith(turn) and turn.startswith(prompt)
        if whole_turn and _contains(turn[len(prompt) :], protect(message["content"])):
            parts.append((encode(whole[done : len(prompt)]), 0))
            parts += _turn(encode(turn[len(prompt) :]), tokenizer)
            done = len(turn)
        elif i == len(messages) - 1:
            raise ConfigError(
                "template 'chat': this tokenizer's chat template does not render the assistant's"
                " last message as a prompt with the whole message behind it (does it drop"
                " thoughts?); models of the R1 family have template 'r1'"
            )
    return [*parts, (encode(whole[done:]), 0)]


def _contains(text: str, content: str) -> bool:
    """Whether `content` is in `text`, but for white space (templates trim)."""
    return "".join(content.split()) in "".join(text.split())


def _turn(tokens: list[int], tokenizer: Tokenizer) -> list[Part]:
    """A turn: the mask ends with the stop token, what the template adds after it is not learnt."""
    stops = [place for place, token in enumerate(tokens) if token in tokenizer.stop_ids]
    if not stops:
        raise ConfigError(
            "template 'chat': this tokenizer's chat template does not end the assistant's turn with"
            f" a stop token ({tokenizer.special_tokens['eos_token']})"
        )
    return [(tokens[: stops[-1] + 1], 1), (tokens[stops[-1] + 1 :], 0)]


def _render_jinja(
    tokenizer: Tokenizer, mark: str, messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    """The messages as text, their control tokens marked."""
    if tokenizer.chat_template is None:
        raise ConfigError(
            "template 'chat': this tokenizer has no chat template; use one of"
            f" {', '.join(name for name in TEMPLATES if name != 'chat')}"
        )
    plain = [
        {"role": m["role"], "content": _protect(m["content"], tokenizer, mark)} for m in messages
    ]
    try:
        return _compile(tokenizer.chat_template).render(
            messages=plain, add_generation_prompt=add_generation_prompt, tools=None, documents=None,
            **tokenizer.special_tokens,
        )  # fmt: skip
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the tokenizer's chat template refuses these messages: {error}") from error


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """As transformers does it: the template is a stranger's program, so in a sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: some templates mark the assistant's words so."""

    tags = {"generation"}  # noqa: RUF012 (the base class has it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, **options: Any) -> str:
    return json.dumps(value, **({"ensure_ascii": False} | options))


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


# ---- control tokens ----


def _unused_mark(messages: Iterable[Mapping[str, str]]) -> str:
    """A character that no message contains."""
    text = "".join(message["content"] for message in messages)
    mark = next((c for c in NONCHARACTERS if c not in text), None)
    if mark is None:
        raise DataError("a conversation contains every Unicode noncharacter from U+FDD0 to U+FDEF")
    return mark


def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    longest_first = sorted(tokenizer.control_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _protect(content: str, tokenizer: Tokenizer, mark: str) -> str:
    """Breaks the control tokens in a message, which makes them plain text for _encode."""
    return _control_pattern(tokenizer).sub(lambda m: m[0][0] + mark + m[0][1:], content)


def _encode(text: str, tokenizer: Tokenizer, mark: str) -> list[int]:
    """Ids of a template's text: whole control tokens as their ids, the rest as plain text."""
    pattern, tokens, done = _control_pattern(tokenizer), [], 0
    for match in pattern.finditer(text):
        tokens += tokenizer.encode(text[done : match.start()].replace(mark, ""))
        tokens.append(tokenizer.control_tokens[match[0]])
        done = match.end()
    return tokens + tokenizer.encode(text[done:].replace(mark, ""))


TEMPLATES: dict[str, Callable[[Sequence[Message], Tokenizer], list[Part]]] = {
    "r1_zero": functools.partial(_single_turn, R1_ZERO),
    "r1_zero_short": functools.partial(_single_turn, R1_ZERO_SHORT),
    "plain": functools.partial(_single_turn, "{prompt}"),
    "chat": _chat,
    "r1": _r1,
}
