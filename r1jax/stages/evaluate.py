"""Benchmarks of one model, as a stage of a pipeline and for the command of the same name.

Every completion is written down as it finishes (benchmarks/samples.py), so that nothing is sampled
twice, and last results.json. A benchmark whose file is there is not repeated.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
from absl import logging
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.benchmarks.judging import Verdict, judge_samples, with_verdicts
from r1jax.benchmarks.kind import Scores
from r1jax.benchmarks.protocol import (
    Benchmark,
    BenchmarkConfig,
    counted,
    open_benchmarks,
    open_graders,
    write_results,
)
from r1jax.benchmarks.respondents import OwnModel, Respondent, ServedModel
from r1jax.benchmarks.samples import (
    Kept,
    file_of,
    from_row,
    partial_of,
    place_of,
    read_samples,
    to_row,
    verdicts_of,
    write_samples,
)
from r1jax.config import ConfigError, Seed, section
from r1jax.data.fingerprint import keep_rows
from r1jax.files import ASKED, CHECKPOINTS, absolute, parts_of, read_object, write_json
from r1jax.judges.chat_model import ChatModelConfig, open_judge
from r1jax.judges.planned import scoring_programs
from r1jax.judges.server import ServerConfig, is_server
from r1jax.machines.hosts import ask_first, wait_for_all
from r1jax.machines.planned import Assumed, Iteration, bytes_of
from r1jax.progress import Progress
from r1jax.reports.write import print_evaluation
from r1jax.rewards import load_rewards
from r1jax.rewards.pool import GraderConfig
from r1jax.rollout.config import EngineConfig
from r1jax.rollout.engine import Engine
from r1jax.rollout.planned import Asked, params_of, questions_in, rollout_programs
from r1jax.rollout.sampler import Place, Sampler
from r1jax.tasks.sandbox import choose_sandbox
from r1jax.types import Sample
from r1jax.weights.checkpoint import Checkpoints
from r1jax.weights.load import ModelSource, OpenModel, open_model, open_shapes, with_chat
from r1jax.weights.manifest import MANIFEST


@dataclass(frozen=True)
class EvaluateConfig:
    """What is asked of a model; `mesh`, `engine` and `graders` say how, not what."""

    benchmarks: dict[str, BenchmarkConfig]
    stage: str = "evaluate"  # only this
    # A MODEL, or a server of OpenAI's protocol, "http://HOST:PORT/v1". The command evaluate has it
    # from its flag.
    model: str = ""
    server: ServerConfig = field(default_factory=ServerConfig)  # how it is asked
    # Of its fields what is to be other than its own: {"dtype": "bfloat16"}, as in config.model.
    override: dict[str, Any] = field(default_factory=dict)
    # The tokens that end a completion, instead of those that the model's files name.
    stop_tokens: tuple[str, ...] = ()
    # Variables of the model's own chat template: {"enable_thinking": False}.
    template_args: dict[str, Any] = field(default_factory=dict)
    label: str = ""  # its name in tables; "" = the workdir's
    seed: Seed = 0  # of the samples
    judge: ChatModelConfig | None = None  # of the benchmarks that need one
    # Devices along "data", "fsdp", "context", "expert" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    graders: GraderConfig = field(default_factory=GraderConfig)


CONFIG = EvaluateConfig
KEY = "config.benchmarks"
CHANGES = ("override", "stop_tokens", "template_args")  # of the model, where there are any
ABOUT = ("model", "step", "seed")  # in results.json
# What of a benchmark's config grades completions, and does not ask for them.
GRADING = ("rewards", "reward_models", "truncated", "kind")


def describe(config: EvaluateConfig) -> str:
    """What the config asks for, in numbers."""
    return ", ".join(f"{name} x {b.num_samples}" for name, b in config.benchmarks.items())


def check(config: EvaluateConfig) -> None:
    """What can be wrong in the config alone."""
    if not config.benchmarks:
        raise ConfigError("the config has no benchmarks")
    for benchmark in config.benchmarks.values():
        load_rewards(benchmark.rewards)


def planned(config: EvaluateConfig, mesh: Mesh, assumed: Assumed, memory: float) -> Iteration:
    """One benchmark behind the other, in shapes alone (see r1jax.stages)."""
    source = ModelSource(config.model or None, override=config.override)
    if source.path is None:
        raise ConfigError('config.model is missing: --config.model="models/NAME" says what to plan')
    opened = open_shapes(source)
    model = opened.transformer(mesh)
    programs, notes = [], []
    for name, benchmark in config.benchmarks.items():
        questions = questions_in(benchmark.data, f"config.benchmarks.{name}.data", assumed)
        limits = benchmark.sampling.max_tokens, benchmark.max_prompt_tokens
        asked = Asked(questions, benchmark.num_samples, *limits)
        scored, state = scoring_programs(
            benchmark.reward_models,
            *(opened.compute, mesh, asked, assumed, {"parameters": bytes_of(params_of(model))}),
        )
        found, said = rollout_programs(model, config.engine, asked, assumed, memory, state)
        programs += [replace(each, name=f"{name} {each.name}") for each in [*found, *scored]]
        notes += [f"{name}: {note}" for note in said]
    return Iteration(programs, 1, notes)


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Evaluates `config.model` and prints its results."""
    evaluate(section(EvaluateConfig, config_dict), workdir)
    print_evaluation(workdir)


def evaluate(config: EvaluateConfig, workdir: epath.PathLike) -> dict[str, Scores]:
    """Asks what is not finished yet and writes results.json -> {benchmark: {metric: value}}."""
    check(config)
    choose_sandbox(config.graders.sandbox)
    directory = absolute(workdir)
    opened, about = _open(config)
    tokenizer = opened.tokenizer if opened else None
    limit = opened.config.max_length if opened else 0
    benchmarks = open_benchmarks(config.benchmarks, KEY, tokenizer, limit)
    record = Record(directory, config, {**about, "seed": config.seed})
    record.check(benchmarks)
    done = record.done(benchmarks)
    samples = {name: record.read(name, benchmarks[name]) for name in done}
    todo = {name: benchmark for name, benchmark in benchmarks.items() if name not in done}
    if todo:
        samples |= _ask(opened, config, todo, directory)
    samples |= _judged(config, benchmarks, samples, directory)
    return record.write(benchmarks, samples)


def regrade(config: EvaluateConfig, workdir: epath.PathLike) -> dict[str, Scores]:
    """Grades the completions of all finished benchmarks anew, by this config's rewards, and writes
    results.json. No model is opened; what a judge has said is read anew.

    The problems must be those that were asked; their reference answers may be others.
    """
    check(config)
    choose_sandbox(config.graders.sandbox)
    directory = absolute(workdir)
    benchmarks = open_benchmarks(config.benchmarks, KEY, None, 0)
    path = directory / ASKED
    if not ask_first(path.exists):
        raise ConfigError(f"{directory} has no evaluation whose completions could be graded")
    asked = ask_first(lambda: read_object(path))
    record = Record(directory, config, {key: asked.get(key) for key in ABOUT})
    done = {name: benchmarks[name] for name in record.done(benchmarks)}
    if not done:
        raise ConfigError(f"{directory} has finished none of {', '.join(benchmarks)}")
    record.check(done, regrades=True)
    samples = {name: record.read(name, benchmark) for name, benchmark in done.items()}
    with open_graders(config.graders, done.values()) as graders:
        samples = {name: done[name].graded(samples[name], graders) for name in done}
    for name, benchmark in done.items():
        if benchmark.judging is not None:
            with Kept(verdicts_of(directory, name)) as kept:
                verdicts = _verdicts_in(kept, benchmark)
            if verdicts:
                samples[name] = with_verdicts(samples[name], verdicts)
        if jax.process_index() == 0:
            write_samples(file_of(directory, name), samples[name], benchmark.examples)
    return record.write(done, samples)


def _open(config: EvaluateConfig) -> tuple[OpenModel | None, dict[str, Any]]:
    """The model, None for a server's, and what it is called in results.json."""
    if not is_server(config.model):
        opened = open_model(config.model, config.override)
        opened = with_chat(opened, config.stop_tokens, config.template_args, "config")
        return opened, {
            "model": str(absolute(config.model)),
            "step": model_step(config.model),
        }
    if jax.process_count() > 1:
        raise ConfigError(f"{config.model} is a server: one process is enough to ask it")
    for key in (*CHANGES, *(["mesh"] if config.mesh else [])):
        if getattr(config, key):
            raise ConfigError(f"config.{key} is for models of ours, not for {config.model}")
    return None, {"model": f"{config.model} {config.server.name}".strip(), "step": 0}


def model_step(model: str) -> int:
    """The training step of MODEL; 0 where it has none."""
    path = absolute(model)
    if ask_first((path / MANIFEST).exists):
        return int(path.name)
    trained = ask_first((path / CHECKPOINTS).exists)
    return (Checkpoints(path).latest_step() if trained else None) or 0


class Record:
    """What a workdir holds of an evaluation: of one model, benchmark after benchmark."""

    def __init__(
        self, directory: epath.Path, config: EvaluateConfig, about: Mapping[str, Any]
    ) -> None:
        """`about` has the keys of ABOUT."""
        self._directory, self._config = directory, config
        benchmarks = {name: asdict(each) for name, each in config.benchmarks.items()}
        changes = {key: value for key in CHANGES if (value := getattr(config, key))}
        asked = {**about, **changes}
        self._about = about
        if (judge := config.judge) is not None:
            asked["judge"] = {key: getattr(judge, key) for key in ("path", "endpoint", "name")}
        self._asked = json.loads(json.dumps(asked | {"benchmarks": benchmarks}))

    def done(self, benchmarks: Iterable[str]) -> list[str]:
        """Those whose completions are all there."""
        directory = self._directory
        return list(ask_first(lambda: [n for n in benchmarks if file_of(directory, n).exists()]))

    def check(self, benchmarks: Mapping[str, Benchmark], regrades: bool = False) -> None:
        """Refuses to mix the completions of two models or two configs in one workdir.

        What grades them may change where they are graded anew.
        """
        directory, path = self._directory, self._directory / ASKED
        before = ask_first(lambda: read_object(path) if path.exists() else {})
        begun = ask_first(
            lambda: [
                name
                for name in before.get("benchmarks", {})
                if file_of(directory, name).exists() or parts_of(partial_of(directory, name))
            ]
        )
        free = GRADING if regrades else ()
        old, new = (_of_those(asked, begun, free) for asked in (before, self._asked))
        verdicts = [n for n in begun if ask_first(verdicts_of(directory, n).exists)]
        if not (verdicts and "judge" in old and "judge" in new):  # another may be named later
            old, new = ({k: v for k, v in said.items() if k != "judge"} for said in (old, new))
        for name in set(begun) - set(benchmarks):  # they stay, whatever this config has
            old["benchmarks"].pop(name, None)
            new["benchmarks"].pop(name, None)
        different = sorted(_said(old) ^ _said(new))
        if begun and different:
            names = dict.fromkeys(name for name, _ in different)
            raise ConfigError(
                f"{directory} holds an evaluation with another {' and '.join(names)};"
                " take another --workdir"
            )
        sources = {benchmark.key: benchmark.examples for benchmark in benchmarks.values()}
        used = () if regrades else [benchmarks[name].key for name in begun if name in benchmarks]
        keep_rows(directory, sources, used)
        if jax.process_index() == 0:
            kept = before if begun else {}
            others = kept.get("benchmarks", {}) | self._asked["benchmarks"]
            write_json(path, kept | self._asked | {"benchmarks": others})

    def read(self, name: str, benchmark: Benchmark) -> list[Sample]:
        """A finished benchmark's; DataError for a file that is not as it was written."""
        path = file_of(self._directory, name)
        return read_samples(path, benchmark.examples, benchmark.config.num_samples)

    def write(
        self, benchmarks: Mapping[str, Benchmark], samples: Mapping[str, Sequence[Sample]]
    ) -> dict[str, Scores]:
        """results.json -> the scores; what it has of other benchmarks stays there."""
        results = {name: benchmark.scores(samples[name]) for name, benchmark in benchmarks.items()}
        about = dict(self._about)
        if self._config.label:
            about["label"] = self._config.label
        if jax.process_index() == 0:
            write_results(self._directory, results, benchmarks, {}, about)
        wait_for_all("results")
        return results


def _said(asked: Mapping[str, Any]) -> set[tuple[str, str]]:
    """{("seed", "0"), ("benchmarks.aime24.num_samples", "64"), ...}"""
    flat = traverse_util.flatten_dict(dict(asked), sep=".", keep_empty_nodes=True)
    return {(name, repr(value)) for name, value in flat.items()}


def _of_those(
    asked: Mapping[str, Any], names: Iterable[str], free: Collection[str]
) -> dict[str, Any]:
    """An ASKED with some of its benchmarks, and of these without some keys."""
    benchmarks = asked.get("benchmarks", {})
    kept = {
        name: {key: value for key, value in benchmarks[name].items() if key not in free}
        for name in names
        if name in benchmarks
    }
    return {**asked, "benchmarks": kept}


def _respondent(opened: OpenModel | None, config: EvaluateConfig, mesh: Mesh | None) -> Respondent:
    """Loads the model."""
    if opened is None or mesh is None:
        return ServedModel(config.model, config.server, config.seed)
    params = opened.load(mesh, config.seed)
    engine = Engine(opened.transformer(mesh), opened.tokenizer.stop_ids, config.engine)
    return OwnModel(Sampler(engine, opened.tokenizer), params, config.seed)


def _ask(
    opened: OpenModel | None,
    config: EvaluateConfig,
    benchmarks: dict[str, Benchmark],
    directory: epath.Path,
) -> dict[str, list[Sample]]:
    """Samples and grades these benchmarks; each is written down as it ends."""
    samples = {}
    mesh = opened.mesh(config.mesh) if opened else None
    respondent = _respondent(opened, config, mesh)
    with open_graders(config.graders, benchmarks.values(), mesh=mesh) as graders:
        for name, benchmark in benchmarks.items():
            partial = Kept(partial_of(directory, name))
            with partial, Progress(name, benchmark.completions, 0, {}) as progress:
                advance = functools.partial(progress.update, values={})
                answers = counted(_kept(respondent, benchmark, partial), advance)
                samples[name] = benchmark.graded(answers, graders)
            if jax.process_index() == 0:
                write_samples(file_of(directory, name), samples[name], benchmark.examples)
            partial.remove()
    return samples


def _judged(
    config: EvaluateConfig,
    benchmarks: Mapping[str, Benchmark],
    samples: Mapping[str, list[Sample]],
    directory: epath.Path,
) -> dict[str, list[Sample]]:
    """The samples of benchmarks with a judge, with its verdicts; each is asked for once."""
    judged = {name: each for name, each in benchmarks.items() if each.judging is not None}
    if not judged:
        return {}
    if config.judge is None:
        logging.warning("%s wait for a judge: config.judge says who it is", ", ".join(judged))
        return {}
    ask = open_judge(config.judge)
    found: dict[str, list[Sample]] = {}
    for name, benchmark in judged.items():
        assert benchmark.judging is not None
        with (
            Kept(verdicts_of(directory, name)) as kept,
            Progress(f"{name}, judged", benchmark.completions, 0, {}) as progress,
        ):
            keep = functools.partial(_keep, kept, progress, itertools.count(len(kept.rows) + 1))
            # Of one that was cut nobody can tell thoughts from what was to be read.
            read = [
                replace(s, text="") if s.finish_reason == "length" else s for s in samples[name]
            ]
            asked = benchmark.examples, read, benchmark.judging, ask, keep
            verdicts = judge_samples(*asked, _verdicts_in(kept, benchmark))
        found[name] = with_verdicts(samples[name], verdicts)
        if jax.process_index() == 0:
            write_samples(file_of(directory, name), found[name], benchmark.examples)
    return found


def _keep(
    kept: Kept,
    progress: Progress,
    numbers: Iterator[int],
    sample: Sample,
    verdict: Verdict | None,
    replies: Sequence[str | None],
) -> None:
    """Writes down what a judge has said of a sample."""
    kept.write({"place": place_of(sample), "verdict": verdict, "replies": list(replies)})
    progress.update(next(numbers), {})


def _verdicts_in(kept: Kept, benchmark: Benchmark) -> dict[Place, Verdict | None]:
    """What a judge has said so far, read anew."""
    assert benchmark.judging is not None
    verdicts: dict[Place, Verdict | None] = {}
    for row in kept.rows:
        prompt, sample = row["place"]
        replies = [reply for reply in row["replies"] if reply is not None]
        whole = len(replies) == len(row["replies"])
        example = benchmark.examples[prompt]
        verdicts[prompt, sample] = benchmark.judging.verdict(example, replies) if whole else None
    return verdicts


def _kept(respondent: Respondent, benchmark: Benchmark, partial: Kept) -> Iterator[Sample]:
    """What is written down already, and what is answered now, written down as it comes."""
    begun = list(map(from_row, partial.rows))
    yield from begun
    for sample in respondent.answers(benchmark, set(map(place_of, begun))):
        partial.write(to_row(sample, benchmark.examples[sample.prompt_index]))
        yield sample
