"""All workers of a slice see one workdir, and in it the sweep.json of who drives the sweep."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from r1jax.machines.queue import Entry, Queue
from r1jax.machines.shared import wrong_with


def ask(workdirs: Sequence[Path], queue_id: str) -> list[str]:
    """What each worker, with its own workdir, finds wrong."""
    barrier, numbers = Barrier(len(workdirs)), [0] * len(workdirs)

    def worker(process: int) -> str:
        def gather(number: int) -> list[int]:
            barrier.wait()
            numbers[process] = number
            barrier.wait()
            found = list(numbers)
            barrier.wait()
            return found

        return wrong_with(str(workdirs[process]), queue_id, process, gather, seconds=0.3)

    with ThreadPoolExecutor(len(workdirs)) as pool:
        return list(pool.map(worker, range(len(workdirs))))


def test_one_for_all(tmp_path: Path) -> None:
    queue = Queue(tmp_path, {"a": Entry({}, "a")})
    assert ask([tmp_path, tmp_path, tmp_path], queue.id) == ["", "", ""]
    assert ask([tmp_path / "new"] * 2, "") == ["", ""]
    assert [path.name for path in tmp_path.glob("**/.probe*")] == []


def test_each_its_own(tmp_path: Path) -> None:
    queue = Queue(tmp_path, {"a": Entry({}, "a")})
    right, wrong = ask([tmp_path, tmp_path / "b"], queue.id)
    assert right == ""
    assert wrong.startswith(
        f"{tmp_path}/b is not one directory for all: what worker 0 writes there"
    )
    assert "mount the same disk there on every worker" in wrong
    Queue(tmp_path / "c", {"a": Entry({}, "a")})
    for missing in ("c", "d"):  # another sweep's, and none
        (said,) = ask([tmp_path / missing], queue.id)
        assert "the sweep.json of who drives the sweep is not here" in said


def test_one_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first, second = ask([tmp_path / "file", tmp_path], "")
    assert first.startswith(f"cannot write to {tmp_path}/file: ")
    assert second == f"worker 0 cannot write to {tmp_path}"
    assert list(tmp_path.glob(".probe*")) == []
