"""Group Relative Policy Optimization, as DeepSeek-R1 describes it. Start reading here.

One iteration: sample `group_size` completions for each of `prompts_per_update` times
`updates_per_rollout` questions, grade them, turn rewards into group-relative advantages, and make
`updates_per_rollout` optimizer updates, each on the completions of `prompts_per_update` questions
(R1 section 2.1; with the paper's 16, 32 and 16 that is 8,192 completions and 16 updates).

Four log-probabilities of the same tokens are kept apart: the sampler's (as emitted by the engine),
the old ones (the parameters at the start of the iteration's updates, computed as in training), the
frozen reference policy's, and the current ones. The gap between the first two is logged.

A run that was killed goes on at the iteration after its newest checkpoint. An iteration's rollouts
are written down before its first update, so a resumed run neither samples nor grades them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from r1jax.advantages import batch_normalised, decoupled_advantages, group_advantages
from r1jax.config import ConfigError, check_choice, section
from r1jax.critic import Critic, CriticConfig
from r1jax.data.datasets import DataConfig, examples_of, stream
from r1jax.data.packing import Group, completion_group, pack, padding_share
from r1jax.evaluation import (
    BenchmarkConfig,
    check_benchmark,
    load_examples,
    read_results,
    run_benchmark,
    write_results,
)
from r1jax.losses import (
    AGGREGATIONS,
    RATIOS,
    SURROGATES,
    GrpoLossConfig,
    Metrics,
    grpo_loss,
    token_logprobs,
)
from r1jax.metrics import ProfileConfig, absolute, read_jsonl, write_jsonl_atomic
from r1jax.models.load import ModelSource
from r1jax.models.transformer import Transformer
from r1jax.report import print_table, write_report
from r1jax.rewards import check_example, load_rewards, reflective_words
from r1jax.rewards.learned_reward import LearnedReward, LearnedRewards
from r1jax.rewards.pool import GraderPool
from r1jax.rewards.sandbox import choose_sandbox
from r1jax.rollout.engine import Engine, EngineConfig
from r1jax.rollout.graded import (
    GraderConfig,
    Prompt,
    Ungraded,
    from_row,
    graded_rollouts,
    make_prompt,
    open_pool,
    to_row,
    ungraded_rollouts,
)
from r1jax.rollout.sampling import SamplingConfig
from r1jax.sharding import check_divisible, replicated, to_global
from r1jax.stages.run import Run, open_run
from r1jax.train_state import OptimizerConfig, batch_shardings, make_step, microbatch
from r1jax.types import Batch, Example, Rollout

TRUNCATED = ("grade", "zero", "mask")  # what a completion cut by length is worth
NORMALISE = ("sum", "each")
SPLITS = ("question", "output")  # what a minibatch is a part of (the paper can be read both ways)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured beside training, on held-out problems."""

    every: int = 0  # updates between two points of the curves; 0 = no curves
    curve: dict[str, BenchmarkConfig] = field(default_factory=dict)
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict)  # before and after
    seed: int = 0


@dataclass(frozen=True)
class GrpoConfig:
    """The paper's numbers where it prints them (r1_facts 1.2), for R1-Zero."""

    stage: str
    model: ModelSource
    data: DataConfig
    data_at: dict[str, DataConfig] = field(default_factory=dict)  # {"1300": ...}: from there on
    total_steps: int = 10_400  # optimizer updates
    rewards: Any = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    reward_models: dict[str, LearnedReward] = field(default_factory=dict)
    template: str = "r1_zero"
    max_prompt_tokens: int = 1024
    max_tokens: int = 32_768  # of a completion
    max_tokens_at: dict[str, int] = field(
        default_factory=dict
    )  # {"8200": 65536}: from that update on
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # texts; a completion ends with the token that completes one
    allow_filtered_rollouts: bool = False  # top-p rollouts bias the ratio: refused unless set
    group_size: int = 16
    prompts_per_update: int = 32
    updates_per_rollout: int = 16
    rollouts_ahead: int = 0  # 1: a rollout is sampled before the updates on the one before it
    dynamic_sampling: int = 0  # further rollouts at most, to replace groups that earn all the same
    split_by: str = "question"
    truncated: str = "grade"
    advantage_std_eps: float = 1e-6
    advantage_scale: bool = True  # divide by the group's standard deviation
    normalise: str = "sum"  # the sum of the rewards (the paper), or "each" of them and the batch
    loss: GrpoLossConfig = field(default_factory=GrpoLossConfig)
    critic: CriticConfig | None = None  # PPO: advantages per token instead of the group's
    ref_every: int = 400  # updates after which the reference becomes the current policy; 0 = never
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    graders: GraderConfig = field(default_factory=GraderConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    pack_length: int = 0  # tokens of a packed row; 0 = the longest prompt and completion
    microbatch_rows: int = 8  # packed rows in memory at once
    share_prompts: bool = True  # one copy of a prompt per row for its completions
    logits_chunk: int = 128  # positions whose logits exist at once
    seed: int = 0
    mesh: dict[str, int] = field(default_factory=lambda: {"fsdp": -1})
    checkpoint_every: int = 16  # updates; taken at the end of the iteration
    samples_per_step: int = 4  # completions a rollout shows in samples.jsonl
    keep_rollouts: int = 0  # iterations whose rollout files stay; 0 = all
    wandb_project: str | None = None
    profile: ProfileConfig = field(default_factory=ProfileConfig)


CONFIG = GrpoConfig  # what train checks the config file against


def describe(config: GrpoConfig) -> str:
    """What the config asks for, in numbers."""
    rollouts = -(-config.total_steps // config.updates_per_rollout)
    questions = config.updates_per_rollout * config.prompts_per_update
    return (
        f"{config.total_steps} updates: {rollouts} rollouts of {questions} questions x"
        f" {config.group_size}"
    )


SHOWN = {
    "grpo/reward/mean": "reward",
    "grpo/reward/accuracy": "accuracy",
    "grpo/completion/length": "length",
    "grpo/rollout/tokens_per_s": "tokens/s",
}


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Trains to total_steps, then writes tables and figures; resumes where the workdir is."""
    train(config_dict, workdir)
    if jax.process_index() == 0:
        print_table(workdir)
        for path in write_report([workdir], workdir):
            print(f"wrote {path}")
        print(f"model, metrics, samples and rollouts are in {absolute(workdir)}")


def train(config_dict: ConfigDict, workdir: str) -> None:
    """All of it but the tables and figures."""
    config = section(GrpoConfig, config_dict)
    check(config)
    choose_sandbox(config.graders.sandbox)
    examples = checked_stream(config)
    use_ref = config.loss.kl_coef > 0 or (config.critic is not None and config.critic.kl_coef > 0)
    with (
        open_run(config, config_dict, workdir, SHOWN, use_ref, config.share_prompts) as stage,
        open_pool(config.rewards, config.graders) as pool,
    ):
        check_shapes(config, stage)
        engine = Engine(stage.model.config, stage.tokenizer.stop_ids, config.engine, stage.mesh)
        critic = open_critic(config, stage)
        programs = Programs(config, stage, critic)
        learned = LearnedRewards(config.reward_models, stage.mesh)
        benchmarks(config, stage, engine, 0)
        curves(config, stage, engine, 0)
        step = stage.start
        while step < config.total_steps:
            iteration = step // config.updates_per_rollout
            rollouts = rollouts_of(config, stage, engine, pool, learned, examples, iteration, step)
            minibatches = make_minibatches(config, rollouts, iteration)
            batches = [programs.prepare(stage, minibatch) for minibatch in minibatches]
            summary = summarise(config, rollouts)
            ahead = begin_ahead(config, stage, engine, pool, examples, iteration + 1, step)
            for batch, used, packed in batches:
                step += 1
                stage.profiler.step(step)
                with stage.timer("update"):
                    stage.state, metrics = programs.step(stage.state, batch, used)
                    metrics = jax.device_get(metrics)
                if critic is not None:
                    with stage.timer("critic"):
                        metrics |= critic.update(batch, used)
                tokens_per_s = packed["batch/tokens"] / stage.timer.read("update")
                stage.clocks["update/tokens_per_s"] = tokens_per_s
                stage.log(step, "grpo", summary | metrics | packed)
                summary = {}  # on the iteration's first line only
                curves(config, stage, engine, step)
            if ahead is not None:  # before the checkpoint, which cannot sample it any more
                write_rollouts(stage, iteration + 1, graded_ahead(stage, learned, ahead))
            replace_reference(config, stage, step)
            if is_due(config.checkpoint_every, step, len(batches)) or step == config.total_steps:
                if critic is not None:
                    critic.save(step)
                stage.save(step)
                forget_rollouts(config, stage, iteration)
        benchmarks(config, stage, engine, config.total_steps)


# -- start-up checks -------------------------------------------------------------------------


def check(config: GrpoConfig) -> None:
    """Everything that can be wrong in the config alone."""
    check_choice("config.truncated", config.truncated, TRUNCATED)
    check_choice("config.normalise", config.normalise, NORMALISE)
    check_choice("config.split_by", config.split_by, SPLITS)
    check_choice("config.loss.loss_agg", config.loss.loss_agg, AGGREGATIONS)
    check_choice("config.loss.ratio", config.loss.ratio, RATIOS)
    check_choice("config.loss.surrogate", config.loss.surrogate, SURROGATES)
    if config.temperature <= 0:
        raise ConfigError(f"config.temperature {config.temperature} must be above 0 in training")
    if config.top_p < 1 and not config.allow_filtered_rollouts:
        raise ConfigError(
            f"config.top_p {config.top_p} draws from another distribution than the loss assumes;"
            " set it to 1, or config.allow_filtered_rollouts to True"
        )
    if config.rollouts_ahead not in (0, 1):
        raise ConfigError(f"config.rollouts_ahead {config.rollouts_ahead} must be 0 or 1")
    if config.rollouts_ahead and not config.loss.importance_cap:
        raise ConfigError(
            "config.rollouts_ahead trains on an older policy's rollouts: set"
            " config.loss.importance_cap, for instance to 2.0"
        )
    if config.rollouts_ahead and config.dynamic_sampling:
        raise ConfigError("config.rollouts_ahead and config.dynamic_sampling: at most one of them")
    for name in ("group_size", "prompts_per_update", "updates_per_rollout", "microbatch_rows"):
        if getattr(config, name) < 1:
            raise ConfigError(f"config.{name} {getattr(config, name)} must be at least 1")
    for name in ("max_tokens_at", "data_at"):
        bad = [step for step in getattr(config, name) if not step.isdecimal()]
        if bad:
            raise ConfigError(f"config.{name}: {bad[0]!r} is not a number of updates")


def check_shapes(config: GrpoConfig, stage: Run) -> None:
    """What the mesh and the model's length allow."""
    check_divisible((config.microbatch_rows,), ("batch",), stage.mesh, "config.microbatch_rows")
    limit = stage.model.config.max_length
    longest = config.max_prompt_tokens + longest_completion(config)
    if longest > limit:
        raise ConfigError(
            f"config.max_prompt_tokens {config.max_prompt_tokens} + max_tokens"
            f" {longest_completion(config)} is more than the model's max_length {limit}"
        )
    if config.pack_length and config.pack_length < longest:
        raise ConfigError(
            f"config.pack_length {config.pack_length} is less than {longest}, the longest prompt"
            " and completion"
        )
    for name, benchmark in (config.evaluation.curve | config.evaluation.benchmarks).items():
        check_benchmark(benchmark, limit, f"config.evaluation {name}")


def checked_stream(config: GrpoConfig) -> Callable[[int], Example]:
    """The endless stream of training questions; each is checked to be gradable when it comes.

    With `data_at` a rollout's questions come from the source that is in effect when it starts.
    """
    sources = {"0": config.data} | config.data_at
    streams = {
        at: stream(
            examples_of(source, "config.data" if at == "0" else f"config.data_at.{at}"), config.seed
        )
        for at, source in sources.items()
    }

    attempts = 1 + config.dynamic_sampling
    per_iteration = config.prompts_per_update * config.updates_per_rollout * attempts

    def example(index: int) -> Example:
        at = in_effect(streams, index // per_iteration * config.updates_per_rollout)
        found = streams[at or "0"](index)
        check_example(found)
        return found

    for at in sources:  # an error in a first row is an error before the model is loaded
        check_example(streams[at](int(at) * config.prompts_per_update * attempts))
    return example


# -- schedules: counted in updates, in effect from the next rollout ---------------------------


def longest_completion(config: GrpoConfig) -> int:
    return max(config.max_tokens, *config.max_tokens_at.values(), 1)


def max_tokens_of(config: GrpoConfig, step: int) -> int:
    """The length cap of a rollout that starts after `step` updates."""
    at = in_effect(config.max_tokens_at, step)
    return config.max_tokens_at[at] if at else config.max_tokens


def in_effect(schedule: Mapping[str, Any], step: int) -> str | None:
    """The schedule's last key that is not after `step`; None before the first."""
    passed = [at for at in schedule if int(at) <= step]
    return max(passed, key=int) if passed else None


def is_due(every: int, step: int, updates: int) -> bool:
    """Whether a multiple of `every` lies among the last `updates` updates."""
    return bool(every) and step // every > (step - updates) // every


def replace_reference(config: GrpoConfig, stage: Run, step: int) -> None:
    """The reference policy becomes the current one every `ref_every` updates (R1 section 2.1)."""
    updates = min(config.updates_per_rollout, step)
    if stage.ref_params is not None and is_due(config.ref_every, step, updates):
        stage.ref_params = jax.tree.map(jnp.copy, stage.state.params)


# -- rollouts ---------------------------------------------------------------------------------


def rollouts_of(
    config: GrpoConfig,
    stage: Run,
    engine: Engine,
    pool: GraderPool,
    learned: LearnedRewards,
    examples: Callable[[int], Example],
    iteration: int,
    step: int,
) -> list[Rollout]:
    """The iteration's rollouts, sorted by (prompt, sample): from its file, or sampled into it.

    The last iteration samples for the updates that remain and no more.
    """
    updates = min(config.updates_per_rollout, config.total_steps - step)
    attempts = [
        prompts_of(config, stage, examples, iteration, attempt, updates)
        for attempt in range(1 + config.dynamic_sampling)
    ]
    path = rollouts_file(stage, iteration)
    if path.exists():
        rollouts = [from_row(row) for row in read_jsonl(path)]
    else:
        rollouts = sample_rollouts(config, stage, engine, pool, learned, attempts, iteration, step)
        write_rollouts(stage, iteration, rollouts)
    questions = {prompt.example.id: prompt.example for prompts in attempts for prompt in prompts}
    stage.writer.samples(step + 1, samples(config, rollouts, questions))
    return rollouts


def rollouts_file(stage: Run, iteration: int) -> epath.Path:
    return stage.workdir / "rollouts" / f"{iteration:06d}.jsonl"


def write_rollouts(stage: Run, iteration: int, rollouts: Sequence[Rollout]) -> None:
    if jax.process_index() == 0:
        write_jsonl_atomic(rollouts_file(stage, iteration), [to_row(r) for r in rollouts])


def prompts_of(
    config: GrpoConfig,
    stage: Run,
    examples: Callable[[int], Example],
    iteration: int,
    attempt: int,
    updates: int,
) -> list[Prompt]:
    """The questions of an iteration's rollout; those of further attempts are others."""
    number = iteration * (1 + config.dynamic_sampling) + attempt
    first = number * config.updates_per_rollout * config.prompts_per_update
    return [
        make_prompt(examples(i), stage.tokenizer, config.template, config.max_prompt_tokens)
        for i in range(first, first + updates * config.prompts_per_update)
    ]


def sample_rollouts(
    config: GrpoConfig,
    stage: Run,
    engine: Engine,
    pool: GraderPool,
    learned: LearnedRewards,
    attempts: Sequence[Sequence[Prompt]],
    iteration: int,
    step: int,
) -> list[Rollout]:
    """Graded completions of the first attempt's questions.

    With dynamic sampling (DAPO section 3.2) groups that earn all the same are replaced by groups of
    the next attempts' questions, while there are attempts left.
    """
    groups: list[list[Rollout]] = []
    tokens = 0
    for attempt, prompts in enumerate(attempts):
        key = jax.random.fold_in(jax.random.key(config.seed), iteration)
        with stage.timer("rollout"):
            rollouts = graded_rollouts(
                engine,
                stage.state.params,
                prompts,
                pool,
                stage.tokenizer,
                sampling_of(config, step),
                jax.random.fold_in(key, attempt) if attempt else key,
                config.group_size,
            )
        with stage.timer("reward_models"):
            rollouts = learned.added(rollouts, [prompt.example for prompt in prompts])
        size = config.group_size
        groups += [rollouts[i : i + size] for i in range(0, len(rollouts), size)]
        tokens += engine.statistics.tokens
        if sum(map(varied, groups)) >= len(prompts):
            break
    stage.clocks["rollout/attempts"] = attempt + 1
    note_statistics(stage, engine, tokens)
    return most_varied(groups, len(attempts[0]))


def sampling_of(config: GrpoConfig, step: int) -> SamplingConfig:
    """How a rollout is sampled that is trained on from update `step` on."""
    return SamplingConfig(
        max_tokens_of(config, step), config.temperature, top_p=config.top_p, stop=config.stop
    )


def note_statistics(stage: Run, engine: Engine, tokens: int) -> None:
    """The engine's numbers, for the next line of timings."""
    stage.clocks["rollout/tokens_per_s"] = tokens / stage.timer.read("rollout")
    stage.clocks["rollout/wasted_slot_share"] = engine.statistics.wasted_share
    stage.clocks["rollout/slots"] = engine.statistics.slots
    stage.clocks["rollout/prefill_seconds"] = engine.statistics.prefill_seconds
    stage.clocks["rollout/decode_seconds"] = engine.statistics.decode_seconds


def begin_ahead(
    config: GrpoConfig,
    stage: Run,
    engine: Engine,
    pool: GraderPool,
    examples: Callable[[int], Example],
    iteration: int,
    step: int,
) -> Ungraded | None:
    """Samples the next iteration's completions with the policy as it is before this one's updates.

    So graders work on them during the updates. None without `rollouts_ahead`, where it is the last
    iteration, and where a run that was killed has them already.
    """
    start = step + config.updates_per_rollout  # of the next iteration
    done = rollouts_file(stage, iteration).exists()
    if not config.rollouts_ahead or start >= config.total_steps or done:
        return None
    updates = min(config.updates_per_rollout, config.total_steps - start)
    prompts = prompts_of(config, stage, examples, iteration, 0, updates)
    with stage.timer("rollout"):
        ahead = ungraded_rollouts(
            engine,
            stage.state.params,
            prompts,
            pool,
            stage.tokenizer,
            sampling_of(config, start),
            jax.random.fold_in(jax.random.key(config.seed), iteration),
            config.group_size,
        )
    note_statistics(stage, engine, engine.statistics.tokens)
    return ahead


def graded_ahead(stage: Run, learned: LearnedRewards, ahead: Ungraded) -> list[Rollout]:
    with stage.timer("graders"):  # what they still need after the updates
        rollouts = ahead.graded()
    with stage.timer("reward_models"):
        return learned.added(rollouts, [prompt.example for prompt in ahead.prompts])


def varied(group: Sequence[Rollout]) -> bool:
    return len({rollout.reward for rollout in group}) > 1


def most_varied(groups: Sequence[list[Rollout]], count: int) -> list[Rollout]:
    """`count` groups in the order they came, those without variance only if there are too few."""
    ranked = sorted(range(len(groups)), key=lambda i: not varied(groups[i]))  # stable
    chosen = [groups[i] for i in sorted(ranked[:count])]
    return [
        replace(rollout, completion=replace(rollout.completion, prompt_index=place))
        for place, group in enumerate(chosen)
        for rollout in group
    ]


def samples(
    config: GrpoConfig, rollouts: Sequence[Rollout], questions: Mapping[str, Example]
) -> Iterator[dict[str, Any]]:
    """A few completions with their question and rewards, for people to read."""
    stride = max(len(rollouts) // max(config.samples_per_step, 1), 1)
    for rollout in rollouts[::stride][: config.samples_per_step]:
        example = questions[rollout.example_id]
        yield {
            "question": example.question,
            "answer": example.answer,
            "completion": rollout.text,
            "length": len(rollout.completion.tokens),
            "finish_reason": rollout.completion.finish_reason,
            "reward": rollout.reward,
            "reward_breakdown": dict(rollout.reward_breakdown),
        }


def forget_rollouts(config: GrpoConfig, stage: Run, iteration: int) -> None:
    """Deletes the files of iterations that a resumed run cannot need any more."""
    if not config.keep_rollouts or jax.process_index() != 0:
        return
    for path in (stage.workdir / "rollouts").glob("*.jsonl"):
        if int(path.stem) <= iteration - config.keep_rollouts:
            path.unlink()


def summarise(config: GrpoConfig, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What the rollouts were worth and what they look like."""
    lengths = [len(rollout.completion.tokens) for rollout in rollouts]
    rewards_BG = rewards_of(config, rollouts)
    parts = {
        f"reward/{name}": float(np.mean([r.reward_breakdown[name] for r in rollouts]))
        for name in rollouts[0].reward_breakdown
    }
    return parts | {
        "reward/mean": float(rewards_BG.mean()),
        "reward/std": float(rewards_BG.std(axis=1).mean()),
        "reward/failures": sum(rollout.failure is not None for rollout in rollouts),
        "group/zero_variance": float(np.mean(rewards_BG.std(axis=1) == 0)),
        "completion/length": float(np.mean(lengths)),
        "completion/length_max": max(lengths),
        "completion/truncated": float(np.mean([truncated(r) for r in rollouts])),
        "completion/reflective_words": float(np.mean([reflective_words(r.text) for r in rollouts])),
        "completion/tokens": sum(lengths),
    }


def truncated(rollout: Rollout) -> bool:
    return rollout.completion.finish_reason == "length"


# -- advantages and minibatches ---------------------------------------------------------------


@dataclass(frozen=True)
class Minibatch:
    """The completions of one update."""

    rollouts: Sequence[Rollout]  # sorted by (prompt, sample)
    advantages: np.ndarray  # float32 [C]
    rewards: np.ndarray  # float64 [C]
    left_out: Sequence[Rollout] = ()  # counted in the denominators, not computed


def rewards_of(config: GrpoConfig, rollouts: Sequence[Rollout]) -> np.ndarray:
    """float64 [B, G]; with truncated="zero" a completion cut by length earns nothing."""
    rewards = [0.0 if config.truncated == "zero" and truncated(r) else r.reward for r in rollouts]
    return np.asarray(rewards, np.float64).reshape(-1, config.group_size)


def advantages_of(config: GrpoConfig, rollouts: Sequence[Rollout]) -> np.ndarray:
    """float32 [B, G], of the weighted sum of the rewards or of each of them."""
    eps, scale = config.advantage_std_eps, config.advantage_scale
    if config.normalise == "sum":
        return group_advantages(rewards_of(config, rollouts), eps, scale)
    weights = {name: weight for name, (_, weight) in load_rewards(config.rewards).items()}
    weights |= {name: term.weight for name, term in config.reward_models.items()}
    parts_PBG = [
        rewards_of(config, [replace(r, reward=r.reward_breakdown[name]) for r in rollouts])
        for name in weights
    ]
    each_BG = decoupled_advantages(np.asarray(parts_PBG), list(weights.values()), eps, scale)
    return batch_normalised(each_BG, eps)


def make_minibatches(
    config: GrpoConfig, rollouts: Sequence[Rollout], iteration: int
) -> Iterator[Minibatch]:
    """The iteration's updates: whole questions each, or a random split of all outputs."""
    advantages = advantages_of(config, rollouts).reshape(-1)
    rewards = rewards_of(config, rollouts).reshape(-1)
    size = config.prompts_per_update * config.group_size
    order = np.arange(len(rollouts))
    if config.split_by == "output":
        np.random.default_rng([config.seed, iteration]).shuffle(order)
    for start in range(0, len(rollouts), size):
        chosen = np.sort(order[start : start + size])
        yield Minibatch([rollouts[i] for i in chosen], advantages[chosen], rewards[chosen])


def moving(minibatch: Minibatch) -> Minibatch:
    """The completions that have a gradient: without a KL, those with an advantage.

    The rest adds exact zeros to the update. One completion stays where none has an advantage.
    """
    keep = minibatch.advantages != 0
    keep[0] |= not keep.any()
    return Minibatch(
        [r for r, kept in zip(minibatch.rollouts, keep, strict=True) if kept],
        minibatch.advantages[keep],
        minibatch.rewards[keep],
        [r for r, kept in zip(minibatch.rollouts, keep, strict=True) if not kept],
    )


def count_left_out(batch: Batch, minibatch: Minibatch) -> Batch:
    """Puts the completions that were left out into the per-completion arrays."""
    lengths = np.array([len(r.completion.tokens) for r in minibatch.left_out], np.float32)
    return replace(
        batch,
        lengths=np.append(batch.lengths, lengths),
        advantages=np.append(batch.advantages, np.zeros_like(lengths)),
    )


def to_groups(config: GrpoConfig, rollouts: Sequence[Rollout]) -> list[Group]:
    """Rollouts sorted by prompt -> one group to pack per prompt."""
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.completion.prompt_index, []).append(rollout)
    return [
        completion_group(
            members[0].prompt_tokens,
            [member.completion.tokens for member in members],
            [member.completion.logprobs for member in members],
        )
        for members in groups.values()
    ]


# -- the jitted programs ----------------------------------------------------------------------


def open_critic(config: GrpoConfig, stage: Run) -> Critic | None:
    if config.critic is None:
        return None
    return Critic(
        config.critic,
        config.model,
        stage.workdir,
        stage.mesh,
        config.seed,
        config.total_steps,
        stage.start,
    )


class Programs:
    """The update step and the pass that computes log-probabilities of packed completions."""

    def __init__(self, config: GrpoConfig, stage: Run, critic: Critic | None = None) -> None:
        self.config, self.critic = config, critic
        longest = config.max_prompt_tokens + longest_completion(config)
        self.pack_length = config.pack_length or longest
        completions = config.prompts_per_update * config.group_size
        rows = -(-completions // (self.pack_length // longest))  # enough if all are the longest
        self.max_microbatches = -(-rows // config.microbatch_rows)
        self.step = make_step(
            make_loss(config, stage.model), stage.optimizer, stage.schedule, stage.state_shardings
        )
        self._logprobs = jax.jit(self._all_logprobs)
        self._model = stage.model

    def prepare(self, stage: Run, minibatch: Minibatch) -> tuple[Batch, Any, dict[str, float]]:
        """Packs a minibatch and adds the log-probabilities of the old and reference policies."""
        config = self.config
        with stage.timer("pack"):
            # A KL pulls at every completion, and a critic has an advantage for each of its tokens.
            if stage.ref_params is None and self.critic is None:
                minibatch = moving(minibatch)
            batch, used = pack(
                to_groups(config, minibatch.rollouts),
                self.pack_length,
                config.microbatch_rows,
                self.max_microbatches,
                config.share_prompts,
                minibatch.advantages,
            )
            packed = {
                "batch/tokens": int(np.sum(batch.segment_ids > 0)),
                "batch/padding_share": padding_share(batch, used),
                "batch/microbatches": used,
                "batch/completions": len(minibatch.rollouts),
            }
            batch = count_left_out(batch, minibatch)
            if config.truncated == "mask":
                batch = mask_truncated(batch, minibatch.rollouts)
            batch = to_global(batch, batch_shardings(batch, stage.mesh))
            count = jax.device_put(np.int32(used), replicated(stage.mesh))
        if config.updates_per_rollout > 1:  # else the current policy is the old one
            with stage.timer("old_logprobs"):
                old = self._logprobs(stage.state.params, batch, count)
                batch = replace(batch, old_logprobs=jax.block_until_ready(old))
        if stage.ref_params is not None:
            with stage.timer("ref_logprobs"):
                ref = self._logprobs(stage.ref_params, batch, count)
                batch = replace(batch, ref_logprobs=jax.block_until_ready(ref))
        if self.critic is not None:
            with stage.timer("critic"):
                batch = self.critic.judge(batch, count, minibatch.rewards)
        return batch, count, packed

    def _all_logprobs(self, params: Any, batch: Batch, microbatches: Any) -> jax.Array:
        """Log-probabilities of every token of the batch's first microbatches -> [M, B, L]."""

        def one(index: Any, out: jax.Array) -> jax.Array:
            logprobs_BL, _ = token_logprobs(
                self._model,
                params,
                microbatch(batch, index),
                self.config.temperature,
                self.config.logits_chunk,
            )
            return jax.lax.dynamic_update_index_in_dim(out, logprobs_BL, index, 0)

        return jax.lax.fori_loop(0, microbatches, one, jnp.zeros(batch.tokens.shape, jnp.float32))


def make_loss(
    config: GrpoConfig, model: Transformer
) -> Callable[[Any, Batch], tuple[jax.Array, Metrics]]:
    """loss_fn(params, microbatch) for make_step."""

    def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        logprobs_BL, entropy_BL = token_logprobs(
            model, params, batch, config.temperature, config.logits_chunk
        )
        return grpo_loss(logprobs_BL, batch, config.loss, longest_completion(config), entropy_BL)

    return loss_fn


def mask_truncated(batch: Batch, rollouts: Sequence[Rollout]) -> Batch:
    """Takes the tokens of completions cut by length out of the loss (they stay counted)."""
    keep = np.array([1.0, *(float(not truncated(r)) for r in rollouts)], np.float32)
    return replace(batch, loss_mask=batch.loss_mask * keep[batch.completion_ids])


# -- evaluation beside training ---------------------------------------------------------------


def curves(config: GrpoConfig, stage: Run, engine: Engine, step: int) -> None:
    """A point of the held-out curves, as metrics of that step."""
    every = config.evaluation.every
    if not every or step % every or (step == 0 and stage.start > 0):
        return
    values: dict[str, float] = {}
    with stage.timer("evaluation"):
        for name, benchmark in config.evaluation.curve.items():
            examples = load_examples(benchmark, f"config.evaluation.curve.{name}")
            metrics, _ = run_benchmark(
                benchmark,
                examples,
                engine,
                stage.state.params,
                stage.tokenizer,
                config.evaluation.seed,
                config.graders,
            )
            values |= {f"{name}/{key}": value for key, value in metrics.items()}
    stage.log(step, "eval", values)


def benchmarks(config: GrpoConfig, stage: Run, engine: Engine, step: int) -> None:
    """The full benchmarks, before the first update and after the last; done once."""
    directory = stage.workdir / "evaluations" / f"{step:06d}"
    done = read_results(directory) is not None or (step == 0 and stage.start > 0)
    if done or not config.evaluation.benchmarks:
        return
    results, rollouts = {}, {}
    for name, benchmark in config.evaluation.benchmarks.items():
        examples = load_examples(benchmark, f"config.evaluation.benchmarks.{name}")
        total = len(examples) * benchmark.num_samples
        with stage.progress.task(f"evaluating {name} at step {step}", total) as advance:
            results[name], rollouts[name] = run_benchmark(
                benchmark,
                examples,
                engine,
                stage.state.params,
                stage.tokenizer,
                config.evaluation.seed,
                config.graders,
                advance,
            )
    about = {"step": step, "model": str(stage.workdir), "seed": config.evaluation.seed}
    if jax.process_index() == 0:
        write_results(directory, results, rollouts, about)
