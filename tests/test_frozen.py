"""The reference policy in bfloat16, in the host's memory, saved and resumed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MODEL, grpo_config, metrics_by_step
from ml_collections import ConfigDict
from test_sharding import EIGHT, TINY
from test_transformer import make_params

from r1jax.config import ConfigError
from r1jax.machines.mesh import make_mesh, to_global
from r1jax.machines.planned import Assumed
from r1jax.models.params import param_shardings
from r1jax.models.transformer import Transformer
from r1jax.stages import checked, grpo, to_plan
from r1jax.training.frozen import HOST, FrozenConfig, check_memory, fetched, kept, kept_shapes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offload", [False, True])
def test_kept_and_fetched(dtype: Any, offload: bool) -> None:
    mesh, config = make_mesh(EIGHT), FrozenConfig(dtype, offload)
    shardings = param_shardings(Transformer(TINY, mesh))
    params = to_global(jax.tree.map(np.asarray, make_params(TINY)), shardings)
    there = kept(params, config)
    assert all((x.sharding.memory_kind == HOST) == offload for x in jax.tree.leaves(there))
    here = fetched(there, config, mesh)

    def check(path: Any, x: jax.Array, found: jax.Array, shape: jax.ShapeDtypeStruct) -> None:
        assert (shape.shape, shape.dtype) == (found.shape, found.dtype)
        assert found.sharding.is_equivalent_to(x.sharding, x.ndim)
        assert shape.sharding == x.sharding
        exact = dtype == "float32" or path[-1].key.endswith("norm")
        assert found.dtype == (jnp.float32 if exact else jnp.bfloat16)
        np.testing.assert_array_equal(found, x.astype(found.dtype))

    jax.tree_util.tree_map_with_path(check, params, here, kept_shapes(params, config))
    jax.tree.map(lambda x: x.delete(), params)  # as an update does
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), here))


def test_where_there_is_no_such_memory() -> None:
    kinds = [SimpleNamespace(kind="device")]
    device = SimpleNamespace(platform="abacus", addressable_memories=lambda: kinds)
    devices = SimpleNamespace(flat=[device])
    mesh: Any = SimpleNamespace(local_mesh=SimpleNamespace(devices=devices))
    check_memory(FrozenConfig(), mesh, "reference")
    with pytest.raises(ConfigError, match=r"reference\.offload: devices of kind abacus have no"):
        check_memory(FrozenConfig(offload=True), mesh, "reference")


# -- in a run --------------------------------------------------------------------------------------


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    return {
        (step, name): line[name]
        for step, line in metrics_by_step(workdir).items()
        for name in ("grpo/loss", "grpo/kl/ref", "grpo/optimizer/grad_norm")
        if name in line
    }


def config_of(tokenizer: str, dtype: str = "float32", **changes: Any) -> ConfigDict:
    config = grpo_config(tokenizer, ref_every=0, **changes)
    config.model.config.dtype = dtype
    return config


def test_a_run_has_the_same_numbers(tokenizer_dir: str, tmp_path: Path) -> None:
    """The model computes in bfloat16: a reference in that says the same to the bit."""
    reference, compute = {"dtype": "bfloat16", "offload": True}, "bfloat16"
    grpo.train(config_of(tokenizer_dir, compute), str(tmp_path / "plain"))
    config = config_of(tokenizer_dir, compute, reference=reference)
    grpo.train(config, str(tmp_path / "other"))
    expected = losses(tmp_path / "plain")
    assert losses(tmp_path / "other") == expected
    assert expected[4, "grpo/kl/ref"] > 0
    parts = config_of(tokenizer_dir, compute, reference=reference, total_steps=2)
    grpo.train(parts, str(tmp_path / "parts"))
    config.reference.offload = not config.reference.offload  # which may change
    grpo.train(config, str(tmp_path / "parts"))
    assert losses(tmp_path / "parts") == expected


def test_planned() -> None:
    def programs(**reference: Any) -> dict[str, Any]:
        config = grpo_config("", reference=reference)
        config.model = {"config": {**MODEL, "vocab_size": 512}}
        ((config, found),) = to_plan(config).values()
        mesh = make_mesh({"fsdp": 4, "tensor": 2})
        planned = found(checked(config), mesh, Assumed(prompt=20), float(1 << 30)).programs
        return {program.name: program for program in planned}

    plain, half, away = programs(), programs(dtype="bfloat16"), programs(offload=True)
    assert list(plain)[-2:] == ["old_logprobs", "update"]
    assert list(half)[-3:] == ["old_logprobs", "ref_logprobs", "update"]
    whole = plain["update"].held["reference"]
    assert half["update"].held["reference"] < 0.6 * whole
    assert "reference" not in away["update"].held
    assert away["old_logprobs"].held["reference"] == whole
    held = half["ref_logprobs"]
    assert held.beside == pytest.approx(held.held["parameters"] + held.held["moments"])
