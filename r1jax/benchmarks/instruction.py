"""Instructions that programs can check: IFEval."""

from __future__ import annotations

from collections.abc import Sequence

from r1jax.benchmarks.kind import Kind, Scores
from r1jax.config import DataError
from r1jax.data.datasets import FileRow, errors_at
from r1jax.files import numbered_jsonl
from r1jax.tasks.instructions import follows, follows_loosely, instructions_of, response_of
from r1jax.types import Example, Sample

KEYS = ("prompt", "instruction_id_list", "kwargs")


def ifeval(path: str) -> list[FileRow]:
    """IFEval's JSONL (key, prompt, instruction_id_list, kwargs), as google-research publishes it.

    DataError for instructions and arguments that are none, ConfigError where the extra `ifeval` or
    its data are not installed: before anything is sampled.
    """
    rows = []
    for number, row in numbered_jsonl(path):
        where = f"{path}:{number}"
        if missing := [key for key in KEYS if row.get(key) is None]:
            raise DataError(f"{where} has no key {missing[0]!r}; it has {', '.join(row)}")
        with errors_at(where):
            instructions_of(row)
        about = {"id": str(row.get("key", number)), "answer": "", "task": "instructions"}
        rows.append(FileRow({key: row[key] for key in KEYS} | about, where))
    return rows


def instruction_accuracies(examples: Sequence[Example], samples: Sequence[Sample]) -> Scores:
    """The shares of all instructions that were followed, strictly and loosely.

    Over all samples, so a prompt counts by its number of instructions; a sample without an honest
    grade follows none. Both in [0, 1]; 0 without samples.
    """
    asked = {example.id: example for example in examples}
    strict: list[bool] = []
    loose: list[bool] = []
    for sample in samples:
        response = response_of(sample.text) if sample.failure is None else ""
        strict += follows(asked[sample.example_id], response)
        loose += follows_loosely(asked[sample.example_id], response)
    number = max(len(strict), 1)
    return {"instruction_strict": sum(strict) / number, "instruction_loose": sum(loose) / number}


KINDS: dict[str, Kind] = {
    "ifeval": Kind(
        "IF-Eval",
        ifeval,
        "ifeval/ifeval.jsonl",
        541,
        4,
        "Zhou et al. 2023, google-research/instruction_following_eval; Apache 2.0",
        "the prompts as they are, the verdicts of the official checkers; pass@1 is prompt-level"
        " strict, lenient is prompt-level loose; k is ours, the paper prints none",
        needs='pip install "r1jax[ifeval]"; python -m nltk.downloader punkt_tab',
        statistic=instruction_accuracies,
    ),
}
