"""What the configs of this folder share."""

from __future__ import annotations

from r1jax.benchmarks.catalog import benchmark, kind_of
from r1jax.judges.server import is_server

BASE = "models/DeepSeek-V3-Base"
V3 = "models/DeepSeek-V3"  # judges, refines, writes responses
RUNS = "runs/r1"  # a stage's workdir is RUNS/NAME, in a pipeline and by its own command
COMPUTE = {"dtype": "bfloat16", "remat": "full"}
MESH = {"fsdp": 4, "expert": 8, "tensor": 8}  # 256 chips
ROWS = 32  # packed rows in memory at once: a multiple of the 4 x 8 shards that a batch has
MOMENTS = "bfloat16"  # as DeepSeek-V3's were (its report, 3.3.3)
FROZEN = {"dtype": "bfloat16", "offload": True}  # B.1: what is not in use lies elsewhere
# B.1: drafts by multi-token prediction. So large a model's prompts come in small batches.
ENGINE = {"slots": 0, "speculative": True, "prefill_batch": 2}
GRADERS = {"workers": 16}
CORE = ("aime24", "math500", "gpqa_diamond", "livecodebench")  # of Table 15
# The others of Table 3: what rules grade, and what a judge does.
MORE = (
    "cnmo24",
    "codeforces",
    "mmlu",
    "mmlu_redux",
    "mmlu_pro",
    "drop",
    "ifeval",
    "cluewsc",
    "ceval",
)
JUDGED = ("simpleqa", "c_simpleqa", "frames", "alpaca_eval", "arena_hard")


def chat_model(where: str, max_tokens: int) -> dict:
    """A MODEL's path, or the address of a server that speaks OpenAI's protocol."""
    sampling = {"sampling": {"max_tokens": max_tokens}}
    if is_server(where):
        return {"endpoint": where, **sampling}
    return {"path": where, "override": {"dtype": "bfloat16"}, "engine": ENGINE, **sampling}


def chosen(names: str) -> tuple[str, ...]:
    """ "aime24+math500" -> those; "" -> CORE; "all" -> Table 3."""
    return (
        (*CORE, *MORE, *JUDGED) if names == "all" else tuple(filter(None, names.split("+"))) or CORE
    )


def benchmark_data(data: str, names: tuple[str, ...]) -> dict:
    """{name: questions} of benchmarks: what training must not have seen."""
    return {name: benchmark(name, data)["data"] for name in names}


def benchmarks(data: str, template: str, form: str, names: tuple[str, ...] = CORE) -> dict:
    """They, by the paper's protocol; `form` is the reward that measures the format."""
    return {
        name: benchmark(name, data, template=template, rewards={**kind_of(name).rewards, form: 0.0})
        for name in names
    }
