"""A server that speaks OpenAI's protocol."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1jax.config import ConfigError, Positive, Size
from r1jax.rollout.sampling import SamplingConfig
from r1jax.types import Message

RETRIES = 5
RETRIED = (408, 409, 429, 500, 502, 503, 504)  # HTTP: come again later
DENIED = (401, 403, 404)  # HTTP: the key, the name or the address is wrong, for every request
LONGEST_PAUSE = 300.0  # seconds, between two tries


@dataclass(frozen=True)
class ServerConfig:
    """How a server is asked."""

    name: str = ""  # the model's name there
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if any
    parallel: Size = 16  # requests at once
    timeout_s: Positive = 3_600.0  # of a request


@dataclass(frozen=True)
class Reply:
    """A chat completion."""

    content: str
    thoughts: str  # apart from the content, where the server tells them apart
    tokens: int  # of both; 0 where the server does not say
    finish_reason: Literal["stop", "length"]

    @property
    def text(self) -> str:
        """As a model of ours writes it."""
        return f"<think>{self.thoughts}</think>{self.content}" if self.thoughts else self.content


class NoReply(ConfigError):
    """A request that did not succeed, where others may."""


def is_server(model: str) -> bool:
    """Whether a MODEL names one."""
    return model.startswith(("http://", "https://"))


def complete(
    endpoint: str,
    config: ServerConfig,
    messages: Sequence[Message],
    sampling: SamplingConfig,
    seed: int,
) -> Reply:
    """One chat completion of "http://HOST:PORT/v1"; NoReply where there is none, ConfigError
    where there is none for any: a wrong key, name or address.
    """
    url = f"{endpoint.rstrip('/')}/chat/completions"
    body = {
        "model": config.name,
        "messages": [dict(message) for message in messages],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    # Not every server knows these.
    body |= {"top_k": sampling.top_k} if sampling.top_k else {}
    body |= {"min_p": sampling.min_p} if sampling.min_p else {}
    body |= {"stop": list(sampling.stop)} if sampling.stop else {}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(config.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    reply = _send(urllib.request.Request(url, json.dumps(body).encode(), headers), config.timeout_s)
    try:
        found: Mapping[str, Any] = json.loads(reply)
        choice = found["choices"][0]
        message = choice["message"]
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        usage = found.get("usage") or {}
        return Reply(
            content=str(message.get("content") or ""),
            thoughts=str(thoughts),
            tokens=int(usage.get("completion_tokens") or 0),
            finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NoReply(f"{url} answered with no chat completion: {reply[:200]!r}") from None


def _send(request: urllib.request.Request, timeout_s: float) -> bytes:
    """The reply's body; waits and asks again where the server is busy or not there."""
    code = None
    for attempt in range(RETRIES):
        wished = ""
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return _body(reply, timeout_s)
        except urllib.error.HTTPError as error:
            code, wished, body = error.code, error.headers.get("Retry-After", ""), b""
            with contextlib.suppress(OSError, http.client.HTTPException):
                body = error.read()[:200]
            said = f"HTTP {code}: {body.decode(errors='replace')}"
            if code not in RETRIED:
                break
        except (OSError, http.client.HTTPException) as error:  # refused, timed out, reset, cut
            said = str(error) or type(error).__name__
        if attempt < RETRIES - 1:
            time.sleep(_pause(attempt, wished))
    kind = ConfigError if code in DENIED else NoReply
    raise kind(f"{request.full_url} does not answer: {said}")


def _body(reply: http.client.HTTPResponse, timeout_s: float) -> bytes:
    """All of it within `timeout_s`, which a socket's own limit says of each piece alone."""
    end, parts = time.monotonic() + timeout_s, []
    while part := reply.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > end:
            raise TimeoutError(f"no end of the reply within {timeout_s:g} s")
    if reply.length:  # bytes that were announced and did not come
        raise http.client.IncompleteRead(b"".join(parts), reply.length)
    return b"".join(parts)


def _pause(attempt: int, wished: str) -> float:
    """Seconds until the next try; the server's Retry-After is a number of them, or a date."""
    seconds = 0.0
    try:
        seconds = float(wished)
    except ValueError:
        with contextlib.suppress(ValueError, TypeError):
            seconds = email.utils.parsedate_to_datetime(wished).timestamp() - time.time()
    # `max` this way round: a server may say nan.
    return min(max(min(2.0**attempt, 30.0), seconds), LONGEST_PAUSE)
