"""What the configs of this folder share."""

from __future__ import annotations

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
SAMPLES = {"aime24": 64, "math500": 16, "gpqa": 64, "livecodebench": 8}  # k of pass@1 and cons@k


def chat_model(where: str, max_tokens: int) -> dict:
    """A MODEL's path, or the address of a server that speaks OpenAI's protocol."""
    sampling = {"sampling": {"max_tokens": max_tokens}}
    if where.startswith(("http://", "https://")):
        return {"endpoint": where, **sampling}
    return {"path": where, "override": {"dtype": "bfloat16"}, "engine": ENGINE, **sampling}


def benchmark_data(data: str) -> dict:
    """{name: questions} of the benchmarks, DATA/eval/NAME.jsonl."""
    return {name: {"path": f"{data}/eval/{name}.jsonl"} for name in SAMPLES}


def benchmarks(data: str, template: str, form: str) -> dict:
    """They, by the paper's protocol; `form` is the reward that measures the format."""
    return {
        name: {
            "data": questions,
            "num_samples": SAMPLES[name],
            "template": template,
            "max_prompt_tokens": 4_096,
            "sampling": {"max_tokens": 32_768, "temperature": 0.6, "top_p": 0.95},
            "rewards": {"accuracy": 1.0, "lenient_accuracy": 0.0, form: 0.0},
        }
        for name, questions in benchmark_data(data).items()
    }
