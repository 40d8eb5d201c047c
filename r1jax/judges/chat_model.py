"""Whoever answers messages with text: a model of ours, or a server that speaks OpenAI's protocol.

Judges and writers of the pipeline are one of these two; `section` says which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax.config import ConfigError, Positive, Seed, Size
from r1jax.data.chat import Template, render_prompt
from r1jax.judges.server import NoReply, ServerConfig, complete
from r1jax.machines.hosts import ask_first
from r1jax.machines.mesh import make_mesh
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampler import Sampler
from r1jax.rollout.sampling import SamplingConfig
from r1jax.types import Message
from r1jax.weights.load import open_model, with_chat

ChatModel = Callable[[Sequence[list[Message]]], list[str]]
# The same asked for the n-th time, from 0, each time with other seeds; None: no reply to be had.
Ask = Callable[[Sequence[list[Message]], int], list[str | None]]
SEEDS = 1 << 20  # of one attempt


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
    """Answers all, or raises ConfigError at the first request that does not succeed."""
    ask = _opened(config, mesh, strict=True)
    return lambda conversations: cast(list[str], ask(conversations, 0))


def open_judge(config: ChatModelConfig, mesh: Mesh | None = None) -> Ask:
    """Answers None, with a warning, where a request does not succeed or a conversation is too long.

    ConfigError still where the server denies all: a wrong key, name or address.
    """
    return _opened(config, mesh, strict=False)


def _opened(config: ChatModelConfig, mesh: Mesh | None, strict: bool) -> Ask:
    if (config.path is None) == (config.endpoint is None):
        raise ConfigError("a chat model needs exactly one of path and endpoint")
    return _local(config, mesh, strict) if config.path is not None else _remote(config, strict)


def _local(config: ChatModelConfig, mesh: Mesh | None, strict: bool) -> Ask:
    mesh = mesh or make_mesh()
    opened = open_model(str(config.path), config.override)
    opened = with_chat(opened, (), config.template_args, "a chat model's")
    tokenizer, params = opened.tokenizer, opened.load(mesh, 0)
    engine = Engine(opened.transformer(mesh), tokenizer.stop_ids, config.engine)
    sampler = Sampler(engine, tokenizer)
    limit = engine.model.config.max_length

    def answer(conversations: Sequence[list[Message]], attempt: int) -> list[str | None]:
        prompts = [
            np.asarray(render_prompt(messages, tokenizer, config.template), np.int32)
            for messages in conversations
        ]
        places = [i for i, prompt in enumerate(prompts) if strict or len(prompt) < limit]
        texts: list[str | None] = [None] * len(prompts)
        for i in set(range(len(prompts))) - set(places):
            logging.warning("%s cannot read %d tokens", config.path, len(prompts[i]))
        key = jax.random.key(config.seed)
        key = jax.random.fold_in(key, attempt) if attempt else key
        asked = [prompts[i] for i in places]
        if asked:
            for completion, text in sampler.completions(params, asked, config.sampling, key):
                texts[places[completion.prompt_index]] = text
        return texts

    return answer


def _remote(config: ChatModelConfig, strict: bool) -> Ask:
    endpoint = str(config.endpoint)
    server = ServerConfig(config.name, config.key_variable, config.parallel, config.timeout_s)

    def one(messages: list[Message], seed: int) -> str | None:
        try:
            return complete(endpoint, server, messages, config.sampling, seed).content
        except NoReply as error:
            if strict:
                raise
            logging.warning("no reply: %s", error)
            return None

    def answer(conversations: Sequence[list[Message]], attempt: int) -> list[str | None]:
        first = config.seed + attempt * SEEDS
        seeds = range(first, first + len(conversations))
        with ThreadPoolExecutor(config.parallel) as pool:
            return list(pool.map(one, conversations, seeds))

    # Of several processes the first one asks for all: a server may answer each differently.
    return lambda conversations, attempt: ask_first(lambda: answer(conversations, attempt))
