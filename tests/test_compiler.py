"""Options of the TPU's compiler."""

import pytest

from r1jax.machines.compiler import TPU_OPTIONS, VARIABLE, set_tpu_options

OURS = [f"--{name}={value}" for name, value in TPU_OPTIONS.items()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", OURS),
        ("--other=1", ["--other=1", *OURS]),
        ("--xla_enable_async_all_gather=false", ["--xla_enable_async_all_gather=false", OURS[1]]),
        (" ".join(OURS), OURS),
    ],
)
def test_the_users_come_first(
    given: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, given)
    assert set_tpu_options().split() == expected
    assert set_tpu_options().split() == expected  # again, in the same process
