"""A server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from r1jax.config import ConfigError, Positive, Size
from r1jax.rollout.sampling import SamplingConfig

RETRIES = 5
RETRIED = (408, 409, 429, 500, 502, 503, 504)  # HTTP: come again later
LONGEST_WAIT = 60.0  # seconds that a server may ask for


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


class ServerError(ConfigError):
    """It does not answer, or with something else than was asked for."""


def complete(
    endpoint: str,
    config: ServerConfig,
    messages: list[dict[str, Any]],
    sampling: SamplingConfig,
    seed: int,
) -> Reply:
    """One chat completion of "http://HOST:PORT/v1"; ServerError where there is none."""
    url = f"{endpoint.rstrip('/')}/chat/completions"
    body = {
        "model": config.name,
        "messages": messages,
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
        raise ServerError(f"{url} answered with no chat completion: {reply[:200]!r}") from None


def _send(request: urllib.request.Request, timeout_s: float) -> bytes:
    """The reply's body; waits and asks again where the server is busy or not there."""
    for attempt in range(RETRIES):
        wait = min(2.0**attempt, 30.0)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                body: bytes = reply.read()
                return body
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code}: {error.read()[:200].decode(errors='replace')}"
            if error.code not in RETRIED:
                break
            wait = _asked_for(error.headers.get("Retry-After"), wait)
        except OSError as error:  # refused, timed out, reset
            said = str(error)
        if attempt < RETRIES - 1:
            time.sleep(wait)
    raise ServerError(f"{request.full_url} does not answer: {said}")


def _asked_for(after: str | None, wait: float) -> float:
    """Seconds until the next try: as many as the server wants, where it says so."""
    try:
        return min(max(float(after or ""), 0.0), LONGEST_WAIT)
    except ValueError:
        return wait
