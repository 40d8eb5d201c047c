"""Preference pairs for the helpful reward model, as in R1's appendix B.3.1.

Two responses a prompt (sampled from a chat model, or given in the rows), judged four times in
random order, kept where the judge is sure, matched in length. Writes `pairs.jsonl`, which is what
stage `reward_model` reads, and `statistics.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from r1jax.config import ConfigError, DataError, Seed, Size, section
from r1jax.data.datasets import (
    DataConfig,
    Row,
    errors_at,
    messages_of,
    place_of,
    read_row,
    refuse_unasked,
    rows_of,
)
from r1jax.files import (
    CANDIDATES,
    PAIRS,
    STATISTICS,
    absolute,
    read_jsonl,
    write_data,
    write_jsonl_atomic,
)
from r1jax.judges.chat_model import ChatModelConfig, open_chat_model
from r1jax.judges.planned import PlannedChats
from r1jax.judges.preferences import QUERIES, judge_pairs
from r1jax.machines.hosts import ask_first, wait_for_all
from r1jax.machines.mesh import make_mesh
from r1jax.machines.planned import Assumed, Iteration, Planned
from r1jax.rollout.planned import questions_in
from r1jax.training.provenance import note_start
from r1jax.training.run_config import check_config


@dataclass(frozen=True)
class PreferencesConfig:
    """Where prompts, responses and verdicts come from."""

    stage: str  # "preferences"
    data: DataConfig  # {"messages" | "prompt"[, "responses": [first, second]]}
    judge: ChatModelConfig  # says which of two responses is better
    policy: ChatModelConfig | None = None  # samples the responses where the rows have none
    queries: Size = QUERIES  # verdicts a pair, in random order of the two
    seed: Seed = 0  # of that order
    # Devices along "data", "fsdp", "context", "expert" and "tensor"; one may be -1: what is left.
    mesh: dict[str, int] = field(default_factory=lambda: {"fsdp": -1})


CONFIG = PreferencesConfig


def describe(config: PreferencesConfig) -> str:
    """What the config asks for, in numbers."""
    return f"{config.queries} verdicts a pair"


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Samples (once), judges, filters and writes; a finished workdir is left as it is."""
    config = section(PreferencesConfig, config_dict)
    rows = rows_of(config.data, "config.data")
    if callable(rows):
        raise ConfigError(f"config.data.limit must be set: {config.data.function} has no end")
    path, mesh = absolute(workdir), make_mesh(config.mesh)
    check_config(path, config_dict)
    note_start(path, config)
    if not ask_first((path / STATISTICS).exists):
        candidates = _candidates(config, rows, path, mesh)
        judge = open_chat_model(config.judge, mesh)
        pairs, statistics = judge_pairs(candidates, judge, config.seed, config.queries)
        if jax.process_index() == 0:
            write_data(path, PAIRS, pairs, asdict(statistics))
        wait_for_all("pairs")
    print((path / STATISTICS).read_text())
    print(f"pairs are in {path / PAIRS}")


def planned(config: PreferencesConfig, mesh: Mesh, assumed: Assumed, memory: float) -> Iteration:
    """Two responses a prompt, then the verdicts, in shapes alone (see r1jax.stages).

    As if no row had responses, and no prompt more than four times the mean one's tokens.
    """
    prompts = questions_in(config.data, "config.data", assumed)
    longest, most = 4 * assumed.prompt, config.judge.sampling.max_tokens
    programs: list[Planned] = []
    notes: list[str] = []
    if config.policy is not None:
        most = config.policy.sampling.max_tokens
        chats = PlannedChats({"policy": config.policy}, mesh, memory)
        found, notes = chats.programs("policy", prompts, assumed, longest, chats.held)
        programs = [replace(program, runs=2 * program.runs) for program in found]
    both = Assumed(prompt=assumed.prompt + 2 * (assumed.completion or most // 4))
    chats = PlannedChats({"judge": config.judge}, mesh, memory)
    times = prompts * config.queries
    more, said = chats.programs("judge", times, both, longest + 2 * most, chats.held)
    if not programs + more:
        raise ConfigError("servers answer all that this config asks: there is nothing to plan")
    return Iteration(programs + more, 1, notes + said)


def _candidate(row: Row, data: DataConfig) -> dict[str, Any]:
    """{"messages", "responses"} of a row; the two sides of a pair are its responses."""
    if not isinstance(row, Mapping):
        raise DataError(f"the row is {type(row).__name__}, expected an object")
    refuse_unasked(row, data.metadata)
    responses = row.get("responses") or []
    texts = isinstance(responses, list) and all(isinstance(text, str) for text in responses)
    if not texts or len(responses) not in (0, 2):
        raise DataError(f"responses {responses!r} are not two texts")
    if not responses and row.get("chosen") is not None and row.get("rejected") is not None:
        row = read_row(row, "pairs", data)
        responses = [row["chosen"], row["rejected"]]
    if row.get("messages") is None and row.get("prompt") is None:
        raise DataError(f"the row has neither messages nor prompt; it has {', '.join(row)}")
    return {"messages": messages_of(row), "responses": responses}


def _candidates(config: PreferencesConfig, rows: Any, path: Any, mesh: Any) -> list[dict[str, Any]]:
    """{"messages", "responses"} of every row, written down before they are judged."""
    if ask_first((path / CANDIDATES).exists):
        return list(read_jsonl(path / CANDIDATES))
    found = []
    for index, row in enumerate(rows):
        with errors_at(place_of(row, index, str(config.data.path or config.data.function))):
            found.append(_candidate(row, config.data))
    missing = [row for row in found if len(row["responses"]) != 2]
    if missing and config.policy is None:
        raise ConfigError("config.policy must be set: some rows do not have two responses")
    if missing and config.policy is not None:
        for seed in range(2):
            sampler = replace(config.policy, seed=config.policy.seed + seed)
            texts = open_chat_model(sampler, mesh)([row["messages"] for row in missing])
            for row, text in zip(missing, texts, strict=True):
                row["responses"] = [*row["responses"][:seed], text]
    if jax.process_index() == 0:
        write_jsonl_atomic(path / CANDIDATES, found)
    return found
