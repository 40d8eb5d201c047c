"""The config of GRPO: what it may be, and its schedules by the number of updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from r1jax.benchmarks.protocol import BenchmarkConfig
from r1jax.config import Bounds, ConfigError, Count, NotNegative, Seed, Size, check_choice
from r1jax.data.chat import Template
from r1jax.data.datasets import DataConfig
from r1jax.judges.reward_model import LearnedReward
from r1jax.losses.aggregation import AGGREGATIONS
from r1jax.losses.policy import RATIOS, SURROGATES, GrpoLossConfig
from r1jax.models.packed_attention import Span
from r1jax.rewards import load_rewards
from r1jax.rewards.pool import GraderConfig
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.sampling import SamplingConfig
from r1jax.training.balancing import RouterConfig
from r1jax.training.critic import CriticConfig
from r1jax.training.frozen import FrozenConfig
from r1jax.training.metrics import ProfileConfig
from r1jax.training.optimizers import OptimizerConfig
from r1jax.weights.load import ModelSource

TRUNCATED = ("grade", "zero", "mask")  # what a completion cut by length is worth
NORMALISE = ("sum", "each")
OVERLONG = ("error", "drop")
MASKED_LENGTH = 2048  # tokens of rows whose attention may have a mask as an array
SPLITS = ("question", "output")  # what a minibatch is a part of (the paper can be read both ways)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured beside training, on held-out problems."""

    every: Count = 0  # updates between two points of the curves; 0 = no curves
    curve: dict[str, BenchmarkConfig] = field(default_factory=dict)  # asked at every point
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict)  # before and after
    seed: Seed = 0  # of the samples


@dataclass(frozen=True)
class GrpoConfig:
    """RL of a policy against rewards. Defaults: the paper's numbers for R1-Zero, where printed."""

    stage: str  # "grpo"
    model: ModelSource
    data: DataConfig
    data_at: dict[str, DataConfig] = field(
        default_factory=dict
    )  # {"1300": ...}: from that update on
    total_steps: Size = 10_400  # optimizer updates
    # Their weights by name (r1jax.rewards.REWARDS, or "module:function"), as a dict or as pairs; in
    # the place of a weight may stand {"weight": 0.5, argument: value}. See rewards.load_rewards.
    rewards: Any = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    reward_models: dict[str, LearnedReward] = field(default_factory=dict)  # added to the rewards
    template: Template = "r1_zero"  # how a question becomes a prompt: a key of data.chat.TEMPLATES
    max_prompt_tokens: Size = 1024  # tokens of a prompt, at most
    overlong_prompts: str = "error"  # what a longer prompt is; "drop": left out, and counted
    # max_tokens, temperature (of the rollouts, and of all log-probabilities), stop, ...
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_tokens=32_768))
    # {"8200": 65_536}: from that update on; so the paper's R1-Zero, where a config asks for it.
    max_tokens_at: dict[str, int] = field(default_factory=dict)
    allow_filtered_rollouts: bool = False  # top-p, top-k, min-p bias the ratio: refused unless set
    group_size: Size = 16  # completions of a question, the paper's G
    prompts_per_update: Size = 32  # questions of a minibatch
    updates_per_rollout: Size = 16  # minibatches that a rollout is sampled for and split into
    # 1: a rollout is sampled before the updates on the one before it
    rollouts_ahead: Annotated[int, Bounds(0, 1)] = 0
    # further rollouts at most, to replace groups that earn all the same
    dynamic_sampling: Count = 0
    # What must differ within a group for it to count as varied: the "reward", or one of the rewards
    # by its name; DAPO: "accuracy", which a term of length or language cannot stand in for.
    vary_by: str = "reward"
    split_by: str = "question"  # a minibatch has whole groups; "output": outputs at random
    # What a completion that was cut by its length is worth: "grade" it as it stands, "zero" (its
    # reward), or "mask" (it is not learnt from).
    truncated: str = "grade"
    advantage_std_eps: NotNegative = 1e-6  # added to the group's standard deviation
    advantage_scale: bool = True  # divide by the group's standard deviation; False: Dr. GRPO
    # Advantages are those of the weighted "sum" of the rewards (the paper), or the weighted sum of
    # "each" reward's own, normalised over the batch.
    normalise: str = "sum"
    loss: GrpoLossConfig = field(default_factory=GrpoLossConfig)
    critic: CriticConfig | None = None  # PPO: advantages per token instead of the group's
    # updates after which the reference becomes the current policy; 0 = never
    ref_every: Count = 400
    reference: FrozenConfig = field(default_factory=FrozenConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    # Of a model with experts: the update's tokens take the experts that the sampler's took. Whether
    # R1's did, the paper does not say.
    router_replay: bool = False
    # Weight of multi-token prediction's loss on the completions, which moves that block alone and
    # so keeps its drafts those of the policy; its gradient counts in the norm that is clipped.
    # Whether R1's was trained in RL, the paper does not say.
    mtp_coef: NotNegative = 0.0
    engine: EngineConfig = field(default_factory=EngineConfig)
    graders: GraderConfig = field(default_factory=GraderConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    pack_length: Count = 0  # tokens of a packed row; 0 = the longest prompt and completion
    # row lengths an update may take, down to 3/4 of it; all compiled first
    pack_choices: Annotated[int, Bounds(1, 8)] = 1
    microbatch_rows: Size = 8  # packed rows in memory at once
    # One copy of a prompt per row for its completions; None = where attention to that needs no
    # array of length x length that would be large: on CPUs, and elsewhere for short rows.
    share_prompts: bool | None = None
    logits_chunk: Count = 0  # of a row, tokens whose logits exist at once; 0 = by platform
    seed: Seed = 0  # of the order of questions, of the samples, of a fresh model
    # Devices along "data", "fsdp", "context", "expert" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=lambda: {"fsdp": -1})
    checkpoint_every: Count = 16  # updates; taken at the end of the iteration
    show_every: Count = 20  # updates between two completions on the screen; 0 = none
    samples_per_step: Count = 4  # completions a rollout shows in samples.jsonl
    keep_rollouts: Count = 0  # iterations whose rollout files stay; 0 = all
    wandb_project: str | None = None  # Weights & Biases, beside metrics.jsonl and TensorBoard
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    @property
    def shares_prompts(self) -> bool:
        """Of a config that was `chosen`."""
        assert self.share_prompts is not None, "the platform has not chosen yet"
        return self.share_prompts


def check(config: GrpoConfig) -> None:
    """Everything that can be wrong in the config alone."""
    check_choice("config.truncated", config.truncated, TRUNCATED)
    check_choice("config.normalise", config.normalise, NORMALISE)
    check_choice("config.overlong_prompts", config.overlong_prompts, OVERLONG)
    check_choice("config.split_by", config.split_by, SPLITS)
    check_choice("config.loss.loss_agg", config.loss.loss_agg, AGGREGATIONS)
    check_choice("config.loss.ratio", config.loss.ratio, RATIOS)
    check_choice("config.loss.surrogate", config.loss.surrogate, SURROGATES)
    _check_rewards(config)
    if config.sampling.temperature <= 0:
        raise ConfigError(
            f"config.sampling.temperature {config.sampling.temperature} must be above 0 in training"
        )
    if config.sampling.filtered and not config.allow_filtered_rollouts:
        raise ConfigError(
            "config.sampling draws from another distribution than the loss assumes; leave out"
            " top_p, top_k and min_p, or set config.allow_filtered_rollouts to True"
        )
    if config.rollouts_ahead and not config.loss.importance_cap:
        raise ConfigError(
            "config.rollouts_ahead trains on an older policy's rollouts: set"
            " config.loss.importance_cap, for instance to 2.0"
        )
    if config.rollouts_ahead and config.dynamic_sampling:
        raise ConfigError("config.rollouts_ahead and config.dynamic_sampling: at most one of them")
    if config.mtp_coef and config.loss.ratio == "sequence":
        raise ConfigError("config.mtp_coef is not for loss.ratio 'sequence'; leave it at 0")
    if config.group_size == 1 and config.critic is None:
        raise ConfigError(
            "config.group_size 1 leaves every advantage at 0, since it is taken within the group:"
            " set it to 2 or more, or config.critic"
        )
    for name in ("max_tokens_at", "data_at"):
        bad = [step for step in getattr(config, name) if not step.isdecimal()]
        if bad:
            raise ConfigError(f"config.{name}: {bad[0]!r} is not a number of updates")
    for length in config.max_tokens_at.values():
        replace(config.sampling, max_tokens=length)  # what it refuses


def _check_rewards(config: GrpoConfig) -> None:
    """Those of the training, and of the benchmarks beside it."""
    weights = {name: weight for name, (_, weight) in load_rewards(config.rewards).items()}
    if twice := weights.keys() & config.reward_models.keys():
        raise ConfigError(
            f"config.reward_models.{min(twice)}: config.rewards has that name already"
        )
    weights |= {name: term.weight for name, term in config.reward_models.items()}
    if not any(weights.values()):
        raise ConfigError("config.rewards: every weight is 0, so nothing is learnt")
    check_choice("config.vary_by", config.vary_by, ["reward", *weights])
    for section in (config.evaluation.curve, config.evaluation.benchmarks):
        for benchmark in section.values():
            load_rewards(benchmark.rewards)


def check_lengths(config: GrpoConfig, limit: int) -> None:
    """What the model's max_length allows."""
    longest = config.max_prompt_tokens + longest_completion(config)
    if longest > limit:
        raise ConfigError(
            f"config.max_prompt_tokens {config.max_prompt_tokens} + sampling.max_tokens"
            f" {longest_completion(config)} is more than the model's max_length {limit}"
        )
    if config.pack_length and config.pack_length < longest:
        raise ConfigError(
            f"config.pack_length {config.pack_length} is less than {longest}, the longest prompt"
            " and completion"
        )


def chosen(config: GrpoConfig, platform: str) -> GrpoConfig:
    """With all that the config leaves to the platform of the devices decided.

    The kernels of accelerators do not know completions that share a prompt.
    """
    if config.share_prompts is not None:
        return config
    length = config.pack_length or config.max_prompt_tokens + longest_completion(config)
    return replace(config, share_prompts=platform == "cpu" or length <= MASKED_LENGTH)


# -- the packed rows of an update -------------------------------------------------------------


@dataclass(frozen=True)
class Packing:
    """The rows that an update's completions are packed into."""

    lengths: tuple[int, ...]  # tokens of a row, to choose from; each is a program of its own
    rows: int  # that an update's completions fit into, however long they are
    span: Span | None  # what a token sees at most, where that is less than the row


def packing_of(config: GrpoConfig) -> Packing:
    """Row lengths evenly over the upper quarter of `pack_length`, and what a token sees of a row:
    a shared prompt where its segment begins, and its own completion up to itself.
    """
    completion = longest_completion(config) + 1  # behind a copy of the prompt's last token
    longest = config.max_prompt_tokens + completion - 1
    length, parts = config.pack_length or longest, 4 * config.pack_choices
    choices = {length * (parts - less) // parts for less in range(config.pack_choices)}
    lengths = sorted((each for each in choices if each >= longest), reverse=True)
    shared = config.shares_prompts
    span = Span(config.max_prompt_tokens, completion) if shared else Span(0, longest)
    return Packing(
        tuple(lengths),
        rows=-(-config.prompts_per_update * config.group_size // (lengths[-1] // longest)),
        span=span if span.prefix + span.window < length else None,
    )


# -- schedules: counted in updates, in effect from the next rollout ---------------------------


def longest_completion(config: GrpoConfig) -> int:
    return max(config.sampling.max_tokens, *config.max_tokens_at.values(), 1)


def sampling_at(config: GrpoConfig, step: int) -> SamplingConfig:
    """That of a rollout that starts after `step` updates."""
    at = in_effect(config.max_tokens_at, step)
    return replace(config.sampling, max_tokens=config.max_tokens_at[at]) if at else config.sampling


def in_effect(schedule: Mapping[str, Any], step: int) -> str | None:
    """The schedule's last key that is not after `step`; None before the first."""
    passed = [at for at in schedule if int(at) <= step]
    return max(passed, key=int) if passed else None
