"""Samples completions of a file of prompts.

    python -m r1jax.generate --model MODEL --prompts FILE.jsonl --output FILE.jsonl

MODEL is a workdir or checkpoint of r1jax, a Hugging Face directory or a .gguf file. Each line of
the prompts has {"prompt": text} or {"messages": [{"role", "content"}, ...]}. The output has a line
per completion, sorted by prompt and sample: the prompt's own keys and

    prompt_index, sample_index    from 0
    text, tokens                  the completion; its tokens with the one that ended it
    logprobs                      of these tokens under softmax(logits / temperature), unfiltered
                                  (temperature 0: under softmax(logits))
    finish_reason                 "stop", or "length" where it was cut

The output appears when all of it is there. A completion depends on the model, its prompt, the
sampling flags, --seed and its two indices alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from etils import epath

from r1jax.cli import run_command
from r1jax.config import ConfigError, DataError
from r1jax.data.chat import TEMPLATES, render_prompt
from r1jax.data.datasets import messages_of, refuse_unasked
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import numbered_jsonl, write_jsonl_atomic
from r1jax.machines.hosts import set_up_jax
from r1jax.progress import Progress
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.sampler import Sampler
from r1jax.rollout.sampling import SamplingConfig
from r1jax.types import Completion, Message
from r1jax.weights.load import open_model, with_chat


@dataclass(frozen=True)
class How:
    """What the flags say beside sampling."""

    num_samples: int = 1  # completions per prompt
    seed: int = 0
    template: str | None = None  # default: chat if the tokenizer has one, else plain
    slots: int = 64  # as EngineConfig.slots
    stop_tokens: tuple[str, ...] = ()  # as in weights.load.ModelSource
    template_args: Mapping[str, Any] = field(default_factory=dict)  # as there
    speculative: bool = False  # as EngineConfig.speculative


def read_prompts(
    path: epath.PathLike, tokenizer: Tokenizer, template: str, max_length: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """(rows, their prompts' tokens); DataError with file and line for what cannot be a prompt."""
    rows, prompts = [], []
    for number, row in numbered_jsonl(path):
        try:
            tokens = render_prompt(_messages(row), tokenizer, template)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        if not 1 <= len(tokens) < max_length:
            raise DataError(
                f"{path}:{number}: the prompt has {len(tokens)} tokens; the model's max_length"
                f" {max_length} allows 1 to {max_length - 1}"
            )
        rows.append(row)
        prompts.append(np.asarray(tokens, np.int32))
    return rows, prompts


def _messages(row: Mapping[str, Any]) -> Sequence[Message]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if prompt is not None and messages is not None:
        raise DataError("both prompt and messages say what is asked; leave one out")
    refuse_unasked(row)
    messages = prompt if isinstance(prompt, list | str) else messages
    if not isinstance(messages, list | str):
        raise DataError(
            "a row needs the key prompt (a text) or messages (a list of objects with role and"
            f" content); it has {', '.join(row) or 'no keys'}"
        )
    return messages_of({"prompt": messages})


def to_row(completion: Completion, text: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "prompt_index": completion.prompt_index,
        "sample_index": completion.sample_index,
        "text": text,
        "tokens": completion.tokens.tolist(),
        "logprobs": [float(str(x)) for x in completion.logprobs],  # shortest text of a float32
        "finish_reason": completion.finish_reason,
    }


def generate(
    model: str,
    prompts_file: epath.PathLike,
    output: epath.PathLike,
    sampling: SamplingConfig,
    how: How | None = None,
) -> None:
    """Reads the prompts, samples, writes `output`. Raises DataError, ConfigError."""
    how = how or How()
    opened = with_chat(open_model(model), how.stop_tokens, how.template_args, "--template_args")
    tokenizer, config = opened.tokenizer, opened.config
    template = how.template or ("chat" if tokenizer.chat_template else "plain")
    rows, prompts = read_prompts(prompts_file, tokenizer, template, config.max_length)
    mesh = opened.mesh()
    sizes = EngineConfig(slots=how.slots, speculative=how.speculative)
    engine = Engine(opened.transformer(mesh), tokenizer.stop_ids, sizes)
    sampler = Sampler(engine, tokenizer)
    params, key = opened.load(mesh, how.seed), jax.random.key(how.seed)
    finished: dict[tuple[int, int], dict[str, Any]] = {}
    with Progress("generating", len(prompts) * how.num_samples, 0, {}) as progress:
        for c, text in sampler.completions(params, prompts, sampling, key, how.num_samples):
            finished[c.prompt_index, c.sample_index] = to_row(c, text, rows[c.prompt_index])
            progress.update(len(finished), {})
    if (did := engine.statistics).drafts:
        logging.info("drafts: %d, of which %.1f %% right", did.drafts, 100 * did.acceptance_rate)
    if jax.process_index() == 0:
        write_jsonl_atomic(output, [finished[place] for place in sorted(finished)])


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Model to sample from.", required=True)
    flags.DEFINE_string("prompts", None, "JSONL file of the prompts.", required=True)
    flags.DEFINE_string("output", None, "JSONL file to write.", required=True)
    flags.DEFINE_integer("num_samples", 1, "Completions per prompt.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.6, "0 = greedy. The paper evaluates at 0.6.")
    flags.DEFINE_float("top_p", 0.95, "Smallest set of tokens with this probability; 1 = all.")
    flags.DEFINE_integer("top_k", 0, "The likeliest tokens only; 0 = all.")
    flags.DEFINE_float("min_p", 0.0, "Tokens of at least this share of the likeliest's.")
    flags.DEFINE_integer("max_tokens", 1024, "Tokens of a completion, at most.")
    flags.DEFINE_integer("seed", 0, "Of the random numbers.")
    names = sorted(TEMPLATES)
    flags.DEFINE_enum(
        "template", None, names, "Default: chat if the tokenizer has one, else plain."
    )
    flags.DEFINE_multi_string(
        "stop_token", [], "Token that ends a completion, instead of those that the model names."
    )
    flags.DEFINE_string(
        "template_args", "{}", "JSON: variables of the model's chat template, as enable_thinking."
    )
    flags.DEFINE_multi_string(
        "stop", [], "Text that ends a completion (which keeps it); the flag may be repeated."
    )
    flags.DEFINE_integer(
        "slots", 64, "Completions sampled at the same time; 0 = as many as memory allows.",
        lower_bound=0,
    )  # fmt: skip
    flags.DEFINE_bool(
        "speculative", False,
        "Check a draft of multi-token prediction in every step: as many tokens in fewer steps.",
    )  # fmt: skip


def _json_object(text: str, flag: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f'{flag} {text!r} is not an object such as {{"enable_thinking": false}}')
    return value


def main() -> None:
    f = flags.FLAGS
    sampling = SamplingConfig(f.max_tokens, f.temperature, f.top_k, f.top_p, f.min_p, tuple(f.stop))
    set_up_jax()
    arguments = _json_object(f.template_args, "--template_args")
    stops = tuple(f.stop_token)
    how = How(f.num_samples, f.seed, f.template, f.slots, stops, arguments, f.speculative)
    generate(f.model, f.prompts, f.output, sampling, how)
    print(f"wrote {f.output}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
