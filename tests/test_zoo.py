"""Parameter counts, total and of one token, are the published ones."""

import pytest

from r1jax.models.params import count_active_params, count_params
from r1jax.models.zoo import MODELS

# By the hub's safetensors headers; DeepSeek-V3 without its MTP layer, active without embedding.
TOTAL = {
    "qwen2.5-math-1.5b": 1_543_714_304,
    "qwen2.5-math-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "r1-distill-qwen-7b": 7_615_616_512,
    "r1-distill-qwen-14b": 14_770_033_664,
    "r1-distill-qwen-32b": 32_763_876_352,
    "r1-distill-llama-8b": 8_030_261_248,
    "r1-distill-llama-70b": 70_553_706_496,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "deepseek-r1": 671_026_419_200,
}
ACTIVE = {"deepseek-v2-lite": 2.4e9, "deepseek-v3": 36.6e9, "deepseek-r1": 36.6e9}


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name: str) -> None:
    config = MODELS[name]
    assert count_params(config) == TOTAL[name]
    active = count_active_params(config)
    if name not in ACTIVE:
        assert active == count_params(config)
        return
    active -= config.vocab_size * config.embed_dim
    assert active == pytest.approx(ACTIVE[name], rel=0.025)
