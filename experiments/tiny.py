"""What `:smoke` puts in the place of the paper's models, data and sizes in r1/ and distill/.

Random models of some ten thousand parameters in the families of the paper's, with the mini world's
tokenizer, problems and requests, and a few steps. A model, and rows of SFT, that an argument of the
config names stay: so a pipeline hands on what its stages make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1jax.rewards.format import r1_format_reward

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from r1jax.types import Example

MINI = "experiments/mini/base"  # a MODEL, for what takes no fresh one; and its tokenizer
_NARROW = {"embed_dim": 64, "num_heads": 4, "ffn_dim": 128, "max_length": 1024}
V3 = _NARROW | {
    "num_layers": 2,
    "num_kv_heads": 4,
    "head_dim": 24,
    "tie_embeddings": False,
    "mtp": True,
    "rope_scaling": {
        "kind": "yarn",
        "factor": 40.0,
        "original_length": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "latent": {"kv_rank": 32, "q_rank": 48, "nope_dim": 16, "rope_dim": 8, "value_dim": 16},
    "experts": {
        "num_experts": 8,
        "top_k": 2,
        "ffn_dim": 32,
        "num_shared": 1,
        "dense_layers": (0,),
        "score": "sigmoid",
        "bias": True,
        "normalize": True,
        "scale": 2.5,
        "groups": 4,
        "top_groups": 2,
    },
}
_GROUPED = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 16, "tie_embeddings": False}
QWEN2 = _NARROW | _GROUPED | {"qkv_bias": True}
_STRETCHED = {"kind": "llama3", "factor": 8.0, "original_length": 8192}
LLAMA = _NARROW | _GROUPED | {"rope_theta": 5e5, "rope_scaling": _STRETCHED}
ROWS = 8  # packed rows in memory at once: split evenly over 1, 2, 4 or 8 devices
CUT = {"max_prompt_tokens": 256, "engine": {"slots": 16, "chunk": 8, "bucket": 64}}


# -- rows ------------------------------------------------------------------------------------------


def _world(function: str, split: str, **args: object) -> dict:
    found = {"seed": 0, "split": split, **args}
    return {"function": f"experiments.mini.world.{function}", "args": found}


def questions(count: int = 16, split: str = "train") -> dict:
    return _world("problems:problems", split, count=count)


def general(kind: str) -> dict:
    """Prompts of RL for a reward model."""
    return _world("requests:prompts", "train", kind=kind)


def conversations() -> dict:
    """Rows of SFT."""
    return _world("requests:conversations", "train", count=16)


def pairs() -> dict:
    return _world("requests:pairs", "train", count=16)


def labels() -> dict:
    return _world("requests:labels", "train", count=16)


def learnable(example: Example, text: str, *, length: int, finish_reason: str) -> float:
    """1 iff SFT in R1's template can take it, which of a random model's texts not all are."""
    thoughts = text if "</think>" in text else f"{text}</think>{text}"
    return r1_format_reward(example, thoughts, length=length, finish_reason=finish_reason)


# -- stages ----------------------------------------------------------------------------------------


def _small(config: ConfigDict, model: str, shape: dict) -> None:
    """A fresh model, unless one is named, and no demand for devices."""
    if not model:
        config.model = {"config": shape, "tokenizer": MINI}
    else:
        config.model.override = {}
    config.mesh = {"data": -1}


def shrink_grpo(config: ConfigDict, model: str, shape: dict) -> None:
    """Four updates of two rollouts; what changes behind an update changes behind the second."""
    _small(config, model, shape)
    config.data = questions()
    config.update({"total_steps": 4, "updates_per_rollout": 2, "ref_every": 2})
    config.update({"prompts_per_update": 2, "group_size": 4, "microbatch_rows": ROWS})
    config.update({"logits_chunk": 64, "checkpoint_every": 4, **CUT})
    config.sampling.max_tokens = 16
    if "max_tokens_at" in config:
        config.max_tokens_at = {"2": 24}
    config.graders = {"workers": 0}


def shrink_sft(config: ConfigDict, model: str, data: str, shape: dict) -> None:
    """Three updates."""
    _small(config, model, shape)
    if not data:
        config.data = conversations()
    config.update({"total_steps": 3, "batch_size": 4, "pack_length": 512, "microbatch_rows": ROWS})
    config.logits_chunk = 64


def shrink_reward_model(config: ConfigDict, model: str, shape: dict) -> None:
    """Three updates, on the mini world's pairs or labels."""
    _small(config, model, shape)
    config.data = pairs() if config.kind == "pairwise" else labels()
    config.update({"total_steps": 3, "batch_size": 4, "pack_length": 512, "microbatch_rows": ROWS})


def shrink_rejection(config: ConfigDict, model: str, shape: dict) -> None:
    """What a random model writes passes every filter; nobody judges or rewrites it."""
    _small(config, model, shape)
    config.data = questions()
    passing = [(name, -1.0) for name in config.minimum]
    with config.ignore_type():
        config.minimum = (*passing, (f"{__name__}:learnable", 1.0))
    config.judge = config.writer = None
    config.update({"num_samples": 2, "portion": 16, **CUT})
    config.sampling.max_tokens = 16
    config.graders = {"workers": 0}


def shrink_preferences(config: ConfigDict) -> None:
    """Two pairs, without verdicts: no model of this size gives one."""
    config.data = pairs() | {"limit": 2}
    config.judge = {"path": MINI, "template": "plain", "sampling": {"max_tokens": 8}}
    config.policy = None
    config.mesh = {"data": -1}


def shrink_mixture(config: ConfigDict, args: ConfigDict) -> None:
    """The mini world's conversations, beside the named sources."""
    named = {name: source for name, source in config.sources.items() if args.get(name)}
    config.sources = named | {"general": {"data": conversations()}}
    config.benchmarks = {"problems": questions(4, "test")}
    config.tokenizer = args.model or MINI


def shrink_preference_rewards(config: ConfigDict, args: ConfigDict) -> None:
    """The named reward models, and their prompts from the second rollout on."""
    config.reward_models = {
        name: term | {"microbatch_rows": ROWS}
        for name, term in config.reward_models.to_dict().items()
        if args[name]
    }
    kinds = {kind: general(kind) | {"share": 1} for kind in ("helpful", "safety")}
    shares = {"reasoning": questions() | {"share": 2}, **kinds}
    mixed = {"function": "r1jax.data.datasets:mixed", "args": {"parts": shares, "seed": 0}}
    config.data_at = {"2": mixed}


def shrink_evaluate(config: ConfigDict, model: str) -> None:
    """One benchmark, of the named model or the mini world's base."""
    config.model, config.override = model or MINI, {}
    config.benchmarks = shrink_benchmarks({"aime24": config.benchmarks.aime24.to_dict()})
    config.update({"graders": {"workers": 0}, "engine": CUT["engine"]})
    if not model:
        config.engine.speculative = False  # it has no multi-token prediction
    config.mesh = {"data": -1}


def shrink_benchmarks(benchmarks: dict) -> dict:
    """Four samples of four problems: the shapes of training, for fewer programs."""
    few = {"data": questions(4, "test"), "num_samples": 4}
    few["max_prompt_tokens"] = CUT["max_prompt_tokens"]
    return {
        name: benchmark | few | {"sampling": benchmark["sampling"] | {"max_tokens": 16}}
        for name, benchmark in benchmarks.items()
    }


def base_model() -> dict:
    """The stage whose model a smoked pipeline begins with."""
    corpus = {"function": "experiments.mini.world.corpus:corpus", "args": {"seed": 0, "mix": {}}}
    return {
        "stage": "sft",
        "model": {"config": V3, "tokenizer": MINI},
        "data": corpus,
        "total_steps": 2,
        "batch_size": 4,
        "pack_length": 512,
        "microbatch_rows": ROWS,
        "overlong": "drop",
        "mesh": {"data": -1},
    }
