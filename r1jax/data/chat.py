"""Prompt templates: from chat messages to token ids. The only place that knows templates; no jax.

What messages contain is untrusted: a control token typed into a message is encoded as plain text,
only those that the template itself writes become control tokens.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1jax.config import ConfigError, DataError, OneOf, check_choice

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

# What may stand open at the end of a prompt: "<think>\n", or an empty block of it.
_OPENING = re.compile(r"<(?P<name>[\w:]+)>\s*(?P<closing></(?P=name)>\s*)?\Z")

_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")

# Parts of a sequence in order: its tokens, and 1 where they are the assistant's (0 elsewhere).
Part = tuple[list[int], int]


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer, template: str) -> list[int]:
    """The tokens that a completion continues; the last message is the user's (or the system's)."""
    found = checked_messages(messages, template)
    if found[-1]["role"] == "assistant":
        raise DataError(
            "a prompt ends with a message of the assistant; it must end with the user's"
        )
    return [token for tokens, _ in TEMPLATES[template](found, tokenizer, {}) for token in tokens]


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[int], list[int]]:
    """(tokens, loss_mask) of a conversation that the assistant ends.

    The mask is 1 on the assistant's turns up to and including the token that ends them. Turns that
    the template shortens as soon as others follow (it drops their thoughts) get 0: to learn them
    would be to learn answers without thoughts. tokens begin with render_prompt(messages[:-1]).
    `variables` (tools, ...) are those of the tokenizer's own template.
    """
    found = checked_messages(messages, template)
    if found[-1]["role"] != "assistant":
        raise DataError(
            f"a conversation to learn from ends with role {found[-1]['role']!r}; it must end"
            " with the assistant's"
        )
    if len(found) == 1:
        raise DataError("the assistant's message answers nothing; the user's comes before it")
    parts = TEMPLATES[template](found, tokenizer, variables)
    tokens = [token for part, _ in parts for token in part]
    return tokens, [mask for part, mask in parts for _ in part]


def checked_messages(messages: Any, template: str) -> list[dict[str, Any]]:
    """The conversation, each content one text; DataError for what no template could render."""
    check_choice("template", template, TEMPLATES)
    if not isinstance(messages, list | tuple):
        raise DataError(
            f"messages is {_kind(messages)}, not a list of objects with role and content"
        )
    if not messages:
        raise DataError("a conversation has no messages")
    found = [_checked_message(message) for message in messages]
    for message in found if template != "chat" else ():
        if more := further_keys(message):
            raise DataError(
                f"template {template!r} reads no key {more[0]!r} of a message; what is to be"
                " learnt stands in content"
            )
    return found


def learnt_messages(messages: Any, template: str) -> list[dict[str, Any]]:
    """As checked_messages; DataError where to say nothing would be learnt."""
    found = checked_messages(messages, template)
    for message in found:
        silent = not message["content"].strip() and not further_keys(message)
        if message["role"] == "assistant" and silent:
            raise DataError("a message of the assistant is empty: to say nothing would be learnt")
    return found


def _checked_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"a message is {_kind(message)}, not an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"a message's role is {role!r}, not one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    text = joined(content)
    if role == "user" and not text.strip():
        raise DataError("a message of the user is empty")
    thoughts = further_keys(message)
    if text.lstrip().startswith("<think>") and any(isinstance(message[k], str) for k in thoughts):
        raise DataError(f"a message has thoughts both in content and under {thoughts[0]!r}")
    said = {key: value for key, value in message.items() if value is not None}
    return {**said, "role": role, "content": text}


def further_keys(message: Message) -> list[str]:
    """The keys beside role and content that say something ({"weight": 0} does)."""
    return [key for key in message if key not in ("role", "content") and says(message[key])]


def says(value: Any) -> bool:
    """Whether there is something under a key."""
    nothing: tuple[Any, ...] = (None, "", [], {})
    return value not in nothing


def refuse_json_text(value: Any) -> None:
    """DataError for messages that are written out as a text, as CSV files hold them."""
    if isinstance(value, str) and _MESSAGES_AS_TEXT.match(value):
        raise DataError(
            f"{value[:40]!r} is a list of messages written as a text; let it be the list itself"
        )


def joined(content: Any) -> str:
    """A content as one text: a string, or a list of parts of type text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise DataError(f"a message's content is {_kind(content)}, not a string")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"a message's content has a part {part!r}; only parts"
                ' {"type": "text", "text": ...} can be read'
            )
        if more := [key for key in part if key not in ("type", "text") and says(part[key])]:
            raise DataError(f"a message's content has a part with a key {more[0]!r} nobody reads")
    return "".join(part["text"] for part in content)


def _kind(value: Any) -> str:
    return "a text" if isinstance(value, str) else type(value).__name__


# ---- one question, one answer ----


def _single_turn(
    text: str, messages: Sequence[Message], tokenizer: Tokenizer, variables: Mapping[str, Any]
) -> list[Part]:
    """`text` with the question in the place of {prompt}, then the completion as it stands."""
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise DataError(
            "this template takes one user message and no other, but the roles are "
            + ", ".join(roles)
        )
    prompt = text.replace("{prompt}", messages[0]["content"])
    parts = [(tokenizer.beginning(prompt), 0)]
    if len(messages) == 2:
        parts.append(([*tokenizer.encode(messages[1]["content"]), tokenizer.eos_id], 1))
    return parts


# ---- DeepSeek-R1's own ----


def _r1(
    messages: Sequence[Message], tokenizer: Tokenizer, variables: Mapping[str, Any]
) -> list[Part]:
    """The template of R1 and its distilled models: the prompt ends with an open <think>.

    The system's words stand first; earlier turns of the assistant keep only what follows their
    last </think>.
    """
    mark, _ = _unused_marks(messages)
    turns = [(m["role"], _protect(m["content"], tokenizer, mark)) for m in messages]
    completion = turns.pop()[1] if turns[-1][0] == "assistant" else None
    text = "".join(content for role, content in turns if role == "system")
    for role, content in turns:
        if role == "user":
            text += R1_USER + content
        elif role == "assistant":
            answer = content.split("</think>")[-1]
            text += R1_ASSISTANT + answer + tokenizer.special_tokens["eos_token"]
    prompt = _encode(text + R1_ASSISTANT + R1_PREFILL, tokenizer, mark, begins=True)
    parts = [([*tokenizer.prefix, *prompt], 0)]
    if completion is not None:
        tokens = _encode(_behind(R1_PREFILL, completion), tokenizer, mark)
        parts.append(([*tokens, tokenizer.eos_id], 1))
    return parts


def _behind(opening: str, content: str) -> str:
    """What of a message follows an opening that ends the prompt, "<think>\\n" or an empty block.

    A message without thoughts closes the tag at once. DataError for thoughts that such a prompt
    leaves no place for.
    """
    tag = _OPENING.fullmatch(opening)
    assert tag is not None
    first, last = f"<{tag['name']}>", f"</{tag['name']}>"
    if tag["closing"]:
        if first in content or last in content:
            raise DataError(f"the prompt ends with an empty {first}, but the message has thoughts")
        return content
    if content.lstrip().startswith(first):
        content = content.lstrip().removeprefix(first)
        content = content.removeprefix("\n") if opening.endswith("\n") else content
    elif last not in content:
        content = f"\n{last}\n\n{content}"
    if first in content.partition(last)[0]:
        raise DataError(f"the prompt ends with an open {first}, and the message opens it again")
    return content


# ---- the tokenizer's own (jinja2) ----


def _chat(
    messages: Sequence[Message], tokenizer: Tokenizer, variables: Mapping[str, Any]
) -> list[Part]:
    """The chat template that came with the model, cut where the assistant's turns begin and end."""
    chat = _Chat(tokenizer, messages, variables)
    chat.refuse_what_is_dropped(messages)
    chat.refuse_what_is_quoted(messages)
    last = messages[-1]["role"] == "assistant"
    asked = messages[:-1] if last else messages
    parts = chat.prompt(asked)
    return [*parts, *chat.turn(chat.completion(messages))] if last else parts


class _Chat:
    """A tokenizer's chat template at work on one conversation."""

    def __init__(
        self, tokenizer: Tokenizer, messages: Sequence[Message], variables: Mapping[str, Any]
    ) -> None:
        self._tokenizer = tokenizer
        self._mark, self._sentinel = _unused_marks([messages, variables])
        self._variables = self._protected(variables)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool, without: str = ""
    ) -> str:
        """The messages as text, their control tokens marked; `without` one of the variables."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template is None:
            raise ConfigError(
                "template 'chat': this tokenizer has no chat template; use one of"
                f" {', '.join(name for name in TEMPLATES if name != 'chat')}"
            )
        known = {"tools": None, "documents": None} | tokenizer.special_tokens
        known |= {name: value for name, value in self._variables.items() if name != without}
        try:
            return _compile(tokenizer.chat_template).render(
                known,
                messages=[self._protected(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a stranger's program
            raise DataError(
                f"the tokenizer's chat template refuses these messages: {error}"
            ) from error

    def prompt(self, messages: Sequence[Message]) -> list[Part]:
        """What a completion follows: the assistant's turns in it that are whole have mask 1."""
        text, done = self.render(messages, True), 0
        parts: list[Part] = []
        for i, message in enumerate(messages):
            asked = any(other["role"] == "user" for other in messages[:i])  # else it is a greeting
            if message["role"] != "assistant" or not asked:
                continue
            before, turn = self.render(messages[:i], True), self.render(messages[: i + 1], False)
            turn = self._up_to_stop(turn, len(before))
            if text.startswith(turn) and self._whole(messages[: i + 1], before, turn):
                parts.append((self.encode(text[done : len(before)], done == 0), 0))
                parts.append((self.encode(turn[len(before) :]), 1))
                done = len(turn)
        return [*parts, (self.encode(text[done:], done == 0), 0)]

    def completion(self, messages: Sequence[Message]) -> str:
        """What of the last message, the assistant's, follows the prompt, with its end.

        Where the prompt opens a tag that the template leaves out of messages (with the thoughts in
        it), or doesn't write as the message does, the message follows as it stands.
        """
        prompt, turn = self.render(messages[:-1], True), self.render(messages, False)
        if self._whole(messages, prompt, turn):
            return turn[len(prompt) :]
        opening, last = _OPENING.search(prompt[self._begin(messages, prompt) :]), messages[-1]
        if opening and not further_keys(last):
            stand_in = {**last, "content": self._sentinel}
            _, found, end = self.render([*messages[:-1], stand_in], False).rpartition(
                self._sentinel
            )
            if found:
                return _behind(opening[0], self._protected(last["content"])) + end
        place = _common(prompt, turn)
        raise ConfigError(
            "template 'chat': this tokenizer's chat template does not render the assistant's"
            " last message as a prompt with the whole message behind it: the prompt goes on with"
            f" {prompt[place:][:40]!r}, the conversation with {turn[place:][:40]!r} (does it drop"
            " thoughts?); models of the R1 family have template 'r1'"
        )

    def turn(self, text: str) -> list[Part]:
        """A turn to learn: the mask ends with the stop token; what the template adds is 0."""
        tokenizer, tokens = self._tokenizer, self.encode(text)
        stop = self._stop(tokens)
        if not stop:
            names = {i: token for token, i in tokenizer.control_tokens.items()}
            ends = tuple([names[i] for i in tokens if i in names][-1:])
            hint = f"; set config.model.stop_tokens = {ends}" if ends else ""
            raise ConfigError(
                "template 'chat': this tokenizer's chat template does not end the assistant's turn"
                f" with a stop token ({tokenizer.special_tokens['eos_token']}){hint}"
            )
        if more := tokenizer.decode(tokens[stop:]).strip():
            raise ConfigError(
                "template 'chat': this tokenizer's chat template goes on behind the stop token of"
                f" an assistant's turn, with {more[:40]!r}"
            )
        return [(tokens[:stop], 1), (tokens[stop:], 0)]

    def _up_to_stop(self, text: str, start: int) -> str:
        """The text up to and with the first stop token behind `start`; "" where there is none.

        What a template puts behind its last turn does not count: others may follow.
        """
        tokenizer = self._tokenizer
        matches = _control_pattern(tokenizer).finditer(text, start)
        ends = (m.end() for m in matches if tokenizer.control_tokens[m[0]] in tokenizer.stop_ids)
        return text[: next(ends, 0)]

    def _stop(self, tokens: list[int]) -> int:
        """How many tokens there are up to and with the first that ends a completion, or 0."""
        stops = (i for i, token in enumerate(tokens, 1) if token in self._tokenizer.stop_ids)
        return next(stops, 0)

    def encode(self, text: str, begins: bool = False) -> list[int]:
        return _encode(text, self._tokenizer, self._mark, begins)

    def refuse_what_is_dropped(self, messages: Sequence[Message]) -> None:
        """DataError for a system's content, a further key of a message, or a text as a variable,
        that changes nothing.
        """
        for name in (name for name, value in self._variables.items() if isinstance(value, str)):
            if all(
                self.render(messages, b) == self.render(messages, b, name) for b in (True, False)
            ):
                raise DataError(
                    f"the tokenizer's chat template does not read the key {name!r} beside messages"
                )
        for i, message in enumerate(messages):
            more = further_keys(message)
            if message["role"] == "system" and message["content"]:
                more.append("content")
            for key in more:
                without = {name: message[name] for name in message if name != key}
                without = without | {"content": self._sentinel} if key == "content" else without
                # Some read a system's words with the user's, and thoughts in the last turn alone.
                others: tuple[Sequence[Message], ...] = (messages[i + 1 :], ())
                if all(
                    self._same([*messages[: i + 1], *more], [*messages[:i], without, *more])
                    for more in others
                ):
                    raise DataError(
                        f"the tokenizer's chat template does not read the key {key!r} of a message"
                        f" of the {message['role']}; leave it out, or write it into another"
                    )

    def refuse_what_is_quoted(self, messages: Sequence[Message]) -> None:
        """DataError for a call's arguments, a JSON text, that the template writes as a string."""
        texts = [text for message in messages for text in _argument_texts(message)]
        rendered = self.render(messages, False) if texts else ""
        for text in texts:
            if self._protected(text) not in rendered:
                raise DataError(
                    f"the arguments {text[:40]!r} of a tool call are a text, which the tokenizer's"
                    " chat template does not write as it is; let them be an object"
                )

    def _same(self, first: Sequence[Message], second: Sequence[Message]) -> bool:
        try:
            return self.render(first, False) == self.render(second, False)
        except DataError:  # without the key it is refused: so it is read
            return False

    def _whole(self, messages: Sequence[Message], prompt: str, turn: str) -> bool:
        """Whether `turn` is the prompt with the whole last message in what is behind the others.

        White space may differ, since templates trim.
        """
        said = "".join(turn[self._begin(messages, prompt) :].split())
        texts = [
            self._protected(text)
            for key, text in messages[-1].items()
            if key != "role" and isinstance(text, str)
        ]
        return turn.startswith(prompt) and all("".join(text.split()) in said for text in texts)

    def _begin(self, messages: Sequence[Message], prompt: str) -> int:
        """Where in the text of these messages the last one's part begins."""
        others = self.render(messages[:-1], False)
        return len(others) if prompt.startswith(others) else len(prompt)

    def _protected(self, value: Any) -> Any:
        """All texts in a message or variable with broken control tokens."""
        if isinstance(value, str):
            return _protect(value, self._tokenizer, self._mark)
        if isinstance(value, Mapping):
            return {self._protected(key): self._protected(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._protected(item) for item in value]
        return value


def _argument_texts(message: Message) -> Iterator[str]:
    """The arguments of a message's tool calls that are texts, as OpenAI has them."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        call = call if isinstance(call, Mapping) else {}
        function = call.get("function") or call
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            yield arguments


def template_variables(tokenizer: Tokenizer) -> frozenset[str]:
    """The variables that the tokenizer's chat template reads."""
    return _variables(tokenizer.chat_template or "") - {"messages", "add_generation_prompt"}


@functools.lru_cache(maxsize=8)
def _variables(template: str) -> frozenset[str]:
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(template)))
    except jinja2.TemplateError as error:
        raise DataError(f"the tokenizer's chat template cannot be read: {error}") from error


def _common(first: str, second: str) -> int:
    """How long their common beginning is."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def _environment() -> jinja2.Environment:
    """As transformers does it: the template is a stranger's program, so in a sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


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


def _unused_marks(value: Any) -> tuple[str, str]:
    """Two characters that no text in `value` contains."""
    text = "".join(texts_in(value))
    marks = [c for c in NONCHARACTERS if c not in text]
    if len(marks) < 2:
        raise DataError("a conversation contains every Unicode noncharacter from U+FDD0 to U+FDEF")
    return marks[0], marks[1]


def texts_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def _control_pattern(tokenizer: Tokenizer) -> re.Pattern[str]:
    longest_first = sorted(tokenizer.control_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _protect(content: str, tokenizer: Tokenizer, mark: str) -> str:
    """Breaks the control tokens in a message, which makes them plain text for _encode."""
    return _control_pattern(tokenizer).sub(lambda m: m[0][0] + mark + m[0][1:], content)


def _encode(text: str, tokenizer: Tokenizer, mark: str, begins: bool = False) -> list[int]:
    """Ids of a template's text: whole control tokens as their ids, the rest as plain text.

    `begins`: it begins a sequence; else it goes on where other text ends.
    """
    pattern, tokens, done = _control_pattern(tokenizer), [], 0
    for match in pattern.finditer(text):
        tokens += tokenizer.encode(text[done : match.start()].replace(mark, ""), begins)
        tokens.append(tokenizer.control_tokens[match[0]])
        done, begins = match.end(), tokenizer.begins_anew
    return tokens + tokenizer.encode(text[done:].replace(mark, ""), begins)


def control_token_in(text: str, tokenizer: Tokenizer) -> str | None:
    """The first control token that stands written out in a text."""
    match = _control_pattern(tokenizer).search(text)
    return match[0] if match else None


def rendered_document(text: str, tokenizer: Tokenizer) -> list[int]:
    """A document whose control tokens are written out (<|im_start|>user ...), as those tokens.

    It gets a bos and an eos where it has not got them itself.
    """
    mark, _ = _unused_marks([text])
    tokens = _encode(text, tokenizer, mark, begins=True)
    ends = _encode(text.rstrip(), tokenizer, mark, begins=True)[-1:]
    begin = [] if tokens[:1] == tokenizer.prefix else tokenizer.prefix
    return [*begin, *tokens, *([] if set(ends) & {*tokenizer.stop_ids} else [tokenizer.eos_id])]


TEMPLATES: dict[str, Callable[[Sequence[Message], Tokenizer, Mapping[str, Any]], list[Part]]] = {
    "r1_zero": functools.partial(_single_turn, R1_ZERO),
    "r1_zero_short": functools.partial(_single_turn, R1_ZERO_SHORT),
    "plain": functools.partial(_single_turn, "{prompt}"),
    "chat": _chat,
    "r1": _r1,
}
Template = Annotated[str, OneOf(TEMPLATES)]
