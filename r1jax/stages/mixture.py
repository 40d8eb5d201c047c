"""The SFT set: rows of several sources, decontaminated, shuffled, counted as in R1's Table 5.

Writes `data.jsonl`, which stage `sft` reads, and `statistics.json`: samples, rounds and tokens a
row by domain, and how many rows each source lost to decontamination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from r1jax.config import ConfigError, DataError, Seed, Size, section
from r1jax.data.chat import Template, learnt_messages, render
from r1jax.data.datasets import (
    DataConfig,
    check_keys,
    errors_at,
    finite_examples,
    place_of,
    read_row,
    rows_of,
)
from r1jax.data.decontaminate import NGRAM, Benchmarks
from r1jax.data.tokenizer import Tokenizer
from r1jax.files import DATA, STATISTICS, absolute, write_data
from r1jax.machines.hosts import wait_for_all
from r1jax.training.provenance import note_start
from r1jax.training.run_config import check_config
from r1jax.weights.load import load_tokenizer

Row = dict[str, Any]


@dataclass(frozen=True)
class SourceConfig:
    """Rows {"messages", "domain", ...}; an unlimited source needs `data.limit`."""

    data: DataConfig
    domain: str | None = None  # instead of the one in the rows


@dataclass(frozen=True)
class MixtureConfig:
    """What goes in, and what must not be in it."""

    stage: str  # "mixture"
    sources: dict[str, SourceConfig]  # by their names in the statistics
    tokenizer: str  # a MODEL or a path; tokens are counted with it
    template: Template = "chat"  # a key of data.chat.TEMPLATES, to count tokens
    benchmarks: dict[str, DataConfig] = field(default_factory=dict)  # evaluation questions
    ngram: Size = NGRAM  # words in a row that a row must not share with a benchmark
    seed: Seed = 0  # of the order of rows


CONFIG = MixtureConfig


def describe(config: MixtureConfig) -> str:
    """What the config asks for, in numbers."""
    return f"{len(config.sources)} sources, {len(config.benchmarks)} benchmarks kept out"


def run(config_dict: ConfigDict, workdir: str) -> None:
    """Reads, filters, shuffles, writes; a finished workdir is left as it is."""
    config = section(MixtureConfig, config_dict)
    path = absolute(workdir)
    check_config(path, config_dict)
    note_start(path, config)
    if jax.process_index() == 0 and not (path / STATISTICS).exists():
        rows, lost = _gather(config)
        if not rows:
            raise DataError(f"no row of {', '.join(config.sources)} is left: nothing to write")
        order = np.random.default_rng(config.seed).permutation(len(rows))
        rows = [rows[i] for i in order]
        write_data(path, DATA, rows, {"sources": lost, "domains": by_domain(rows)})
    wait_for_all("mixture")
    print((path / STATISTICS).read_text())
    print(f"rows are in {path / DATA}")


def _gather(config: MixtureConfig) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """The rows of all sources, and {source: {"rows", "contaminated"}}."""
    benchmarks = Benchmarks(
        (
            example
            for name, data in config.benchmarks.items()
            for example in finite_examples(data, f"config.benchmarks.{name}")
        ),
        config.ngram,
    )
    tokenizer = load_tokenizer(config.tokenizer)
    kept: list[Row] = []
    lost = {}
    for name, source in config.sources.items():
        rows = rows_of(source.data, f"config.sources.{name}.data")
        if callable(rows):
            raise ConfigError(f"config.sources.{name}.data.limit must be set: it has no end")
        known = [_known(row, place_of(row, i, name), source.data) for i, row in enumerate(rows)]
        clean = [row for row in known if not benchmarks.meets(row)]
        lost[name] = {"rows": len(clean), "contaminated": len(rows) - len(clean)}
        for i, row in enumerate(clean, start=1):
            with errors_at(place_of(row, i - 1, name)):
                kept.append(_row(row, source, tokenizer, config.template, f"{name}, row {i}"))
    return kept, lost


def _known(row: Mapping[str, Any], where: str, data: DataConfig) -> Mapping[str, Any]:
    """The row in our form; it has messages, and says nothing else that somebody is to read."""
    with errors_at(where):
        found = read_row(row, "sft", data)
        if found.get("messages") is None:
            raise DataError(f"the row has no key messages; it has {', '.join(found)}")
        check_keys(found, ("messages",), data.metadata)
        return found


def _row(
    row: Mapping[str, Any], source: SourceConfig, tokenizer: Tokenizer, template: str, name: str
) -> Row:
    domain = source.domain or row.get("domain")
    if not domain:
        raise DataError("the row has no domain: set config.sources.NAME.domain")
    tokens, _ = render(learnt_messages(row["messages"], template), tokenizer, template)
    about = {"domain": domain, "tokens": len(tokens)}
    return {"id": str(row.get("id", name)), "messages": row["messages"], **about}


def by_domain(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """{domain: {"samples", "rounds", "tokens"}} with "Total", as Table 5 has them."""
    domains = sorted({row["domain"] for row in rows})
    groups = {d: [row for row in rows if row["domain"] == d] for d in domains} | {"Total": rows}
    return {
        name: {
            "samples": len(group),
            "rounds": float(np.mean([_rounds(row) for row in group])),
            "tokens": float(np.mean([row["tokens"] for row in group])),
        }
        for name, group in groups.items()
    }


def _rounds(row: Row) -> int:
    return sum(message["role"] == "assistant" for message in row["messages"])
