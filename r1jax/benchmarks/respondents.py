"""Who is asked: a model of ours under its engine, or a server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from r1jax.benchmarks.protocol import Benchmark
from r1jax.config import ConfigError
from r1jax.judges.server import NoReply, ServerConfig, complete
from r1jax.machines.preemption import stop_if_asked
from r1jax.rollout.sampler import Place, Sampler
from r1jax.types import Sample


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
        pool = ThreadPoolExecutor(self.config.parallel)
        try:
            wanted = [place for place in places if place not in done]
            for asked in as_completed([pool.submit(self._one, benchmark, p) for p in wanted]):
                stop_if_asked()
                yield asked.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

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


def is_server(model: str) -> bool:
    """Whether a MODEL names one."""
    return model.startswith(("http://", "https://"))
