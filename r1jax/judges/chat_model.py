"""Whoever answers messages with text: a model of ours, or a server that speaks OpenAI's protocol.

Judges and writers of the pipeline are one of these two; `section` says which.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax.config import ConfigError, Positive, Seed, Size
from r1jax.data.chat import Template, render_prompt
from r1jax.machines.hosts import ask_first
from r1jax.machines.mesh import make_mesh
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampler import Sampler
from r1jax.rollout.sampling import SamplingConfig
from r1jax.types import Message
from r1jax.weights.load import open_model, with_chat

ChatModel = Callable[[Sequence[list[Message]]], list[str]]
RETRIES = 5
RETRIED = (408, 409, 429, 500, 502, 503, 504)  # HTTP: come again later


@dataclass(frozen=True)
class ChatModelConfig:
    """A judge or writer: exactly one of `path` (a model of ours) and `endpoint` (a server)."""

    path: str | None = None  # a MODEL
    # Of its fields what is to be other than its own: {"dtype": "bfloat16"}, as in config.model.
    override: dict[str, Any] = field(default_factory=dict)
    template: Template = "chat"  # its own: a key of data.chat.TEMPLATES
    # Variables of its own chat template: {"enable_thinking": False}.
    template_args: dict[str, Any] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    endpoint: str | None = None  # OpenAI's protocol: "http://localhost:8000/v1"
    name: str = ""  # the model's name there
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if any
    parallel: Size = 16  # requests at once
    timeout_s: Positive = 120.0  # of a request
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(max_tokens=1024, temperature=0.6, top_p=0.95)
    )
    seed: Seed = 0  # of the samples


def open_chat_model(config: ChatModelConfig, mesh: Mesh | None = None) -> ChatModel:
    if (config.path is None) == (config.endpoint is None):
        raise ConfigError("a chat model needs exactly one of path and endpoint")
    return _local(config, mesh) if config.path is not None else _remote(config)


def _local(config: ChatModelConfig, mesh: Mesh | None) -> ChatModel:
    mesh = mesh or make_mesh()
    opened = open_model(str(config.path), config.override)
    opened = with_chat(opened, (), config.template_args, "a chat model's")
    tokenizer, params = opened.tokenizer, opened.load(mesh, 0)
    engine = Engine(opened.transformer(mesh), tokenizer.stop_ids, config.engine)
    sampler = Sampler(engine, tokenizer)

    def answer(conversations: Sequence[list[Message]]) -> list[str]:
        prompts = [
            np.asarray(render_prompt(messages, tokenizer, config.template), np.int32)
            for messages in conversations
        ]
        texts = [""] * len(prompts)
        key = jax.random.key(config.seed)
        for completion, text in sampler.completions(params, prompts, config.sampling, key):
            texts[completion.prompt_index] = text
        return texts

    return answer


def _remote(config: ChatModelConfig) -> ChatModel:
    url = f"{str(config.endpoint).rstrip('/')}/chat/completions"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(config.key_variable):
        headers["Authorization"] = f"Bearer {key}"

    def one(numbered: tuple[int, list[Message]]) -> str:
        number, messages = numbered
        body = {
            "model": config.name,
            "messages": [dict(message) for message in messages],
            "max_tokens": config.sampling.max_tokens,
            "temperature": config.sampling.temperature,
            "top_p": config.sampling.top_p,
            "seed": config.seed + number,
        }
        if config.sampling.stop:
            body["stop"] = list(config.sampling.stop)
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        reply = _send(request, config.timeout_s)
        try:
            return str(json.loads(reply)["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{url} answered with no chat completion: {reply[:200]!r}") from None

    def answer(conversations: Sequence[list[Message]]) -> list[str]:
        with ThreadPoolExecutor(config.parallel) as pool:
            return list(pool.map(one, enumerate(conversations)))

    # Of several processes the first one asks for all: a server may answer each differently.
    return lambda conversations: ask_first(lambda: answer(conversations))


def _send(request: urllib.request.Request, timeout_s: float) -> bytes:
    """The reply's body; waits and asks again where the server is busy or not there."""
    for attempt in range(RETRIES):
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                body: bytes = reply.read()
                return body
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code}: {error.read()[:200].decode(errors='replace')}"
            if error.code not in RETRIED:
                break
        except OSError as error:  # refused, timed out, reset
            said = str(error)
        if attempt < RETRIES - 1:
            time.sleep(min(2.0**attempt, 30.0))
    raise ConfigError(f"{request.full_url} does not answer: {said}")
