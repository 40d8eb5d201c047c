"""Who is asked: a model of ours under its engine, or a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import jax
import numpy as np

from r1jax.benchmarks.protocol import Benchmark
from r1jax.config import ConfigError
from r1jax.judges.server import NoReply, ServerConfig, complete
from r1jax.machines.preemption import stop_if_asked
from r1jax.rollout.sampler import Place, Sampler
from r1jax.types import Sample

LOOK = 1.0  # seconds between two looks whether the command is to end


class Respondent(Protocol):
    def answers(self, benchmark: Benchmark, done: set[Place]) -> Iterator[Sample]:
        """Samples that are not `done`, not graded, in the order of finishing."""
        ...


@dataclass(frozen=True)
class OwnModel:
    """What it says hangs on the seed and on a sample's place, not on what is done."""

    sampler: Sampler
    params: Any
    seed: int

    def answers(self, benchmark: Benchmark, done: set[Place]) -> Iterator[Sample]:
        """See Respondent."""
        prompts, config = benchmark.prompts, benchmark.config
        asked = [prompt.tokens for prompt in prompts], config.sampling, jax.random.key(self.seed)
        found = self.sampler.completions(self.params, *asked, config.num_samples, done)
        for completion, text in found:
            prompt = prompts[completion.prompt_index]
            yield Sample(
                prompt.example.id,
                completion.prompt_index,
                completion.sample_index,
                prompt.prefix + text,
                len(completion.tokens),
                completion.finish_reason,
            )


@dataclass(frozen=True)
class ServedModel:
    """Behind OpenAI's protocol, in its own chat template: a request a sample."""

    endpoint: str  # "http://HOST:PORT/v1"
    config: ServerConfig
    seed: int

    def answers(self, benchmark: Benchmark, done: set[Place]) -> Iterator[Sample]:
        """See Respondent. NoReply where it does not answer; what came before is there."""
        if benchmark.config.template != "chat" or benchmark.config.prefix:
            raise ConfigError(f"{benchmark.key}: a server has its own template, and no prefix")
        k = benchmark.config.num_samples
        places = [(p, s) for p in range(len(benchmark.examples)) for s in range(k)]
        wanted = [place for place in places if place not in done]
        yield from _in_threads(lambda p: self._one(benchmark, p), wanted, self.config.parallel)

    def _one(self, benchmark: Benchmark, place: Place) -> Sample:
        example = benchmark.examples[place[0]]
        # Of 31 bits: not all servers take more.
        seed = int(np.random.SeedSequence([self.seed, *place]).generate_state(1)[0] >> 1)
        try:
            sampling = benchmark.config.sampling
            reply = complete(self.endpoint, self.config, example.messages, sampling, seed)
        except NoReply as error:
            raise NoReply(f"{example.name}: {error}") from None
        return Sample(example.id, *place, reply.text, reply.tokens, reply.finish_reason)


def _in_threads(
    work: Callable[[Place], Sample], places: Sequence[Place], count: int
) -> Iterator[Sample]:
    """What it gives, in the order of finishing. Who is stopped does not wait for what runs still:
    a request may take an hour.
    """
    todo, ended = iter(places), threading.Event()
    taking = threading.Lock()
    results: SimpleQueue[Sample | Exception] = SimpleQueue()

    def serve() -> None:
        while not ended.is_set():
            with taking:
                place = next(todo, None)
            if place is None:
                return
            try:
                results.put(work(place))
            except Exception as error:  # the main thread's to raise
                results.put(error)

    for _ in range(min(count, len(places))):
        threading.Thread(target=serve, daemon=True).start()
    left = len(places)
    try:
        while left:
            stop_if_asked()
            try:
                found = results.get(timeout=LOOK)
            except Empty:
                continue
            if isinstance(found, Exception):
                raise found
            left -= 1
            yield found
    finally:
        ended.set()
