"""Checkpoints, and the files that make a workdir a model.

WORKDIR/checkpoints/STEP/ holds `state/` (Orbax: a zarr array a leaf), `extra.json`, lists of
checksums and, written last, `manifest.json` (weights/manifest.py). A directory without a manifest
is no checkpoint, so a kill in the middle of a save leaves nothing that a restore takes for
complete. Beside it lie WORKDIR/config.json (the run's config), model.json and tokenizer/.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from r1jax.config import ConfigError
from r1jax.files import (
    CHECKPOINTS,
    MODEL_JSON,
    absolute,
    children,
    in_bucket,
    is_directory,
    of_a_bucket,
    read_object,
    write_json,
)
from r1jax.machines.hosts import Meetings, ask_first, of_all, wait_for_all
from r1jax.machines.preemption import Stopped
from r1jax.weights.chunks import CHUNK_BYTES, dtype_of
from r1jax.weights.manifest import (
    EXTRA,
    MANIFEST,
    STATE,
    CheckpointError,
    DamagedError,
    Saved,
    abstract,
    agreed,
    check_leaves,
    leaves_of,
    specs_of,
    write_list,
    write_manifest,
)

PARAMS = "params/"  # what the names of a state's parameters begin with
_STEP = re.compile("0|[1-9][0-9]*")  # a checkpoint's directory

# What goes on behind the main thread: one save after the other, whoever began it. At its end the
# process waits for them.
_BACKGROUND = ThreadPoolExecutor(1, "checkpoints")
_saves = itertools.count()

# Orbax tells of every save in a dozen lines; what goes wrong is raised.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


# ---- checkpoints ----


class Checkpoints:
    """The checkpoints of one workdir.

    A save goes on behind the run. Whoever reads checkpoints waits for it, and so does the next
    save. As a context it waits at the end.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        max_to_keep: int = 2,  # 0: all
        beside: Callable[[int], Sequence[epath.PathLike]] = lambda step: (),
    ) -> None:
        """`beside` gives the workdirs whose checkpoints of the same step belong to this one's."""
        self._beside_at = beside
        self.directory = absolute(workdir) / CHECKPOINTS
        self.max_to_keep = max_to_keep
        self._meetings = Meetings("")  # of the save under way
        self._pending: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Stopped):
            self.wait()
        elif self._pending is not None:  # what went wrong first is what is raised
            step, saved = self._pending
            if (problem := saved.exception()) is not None:
                logging.warning("%s", self._failure(step, _reason(problem)))

    # -- reading

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        _BACKGROUND.submit(lambda: None).result()  # what was begun before is complete
        return list(ask_first(self._complete_steps))

    def _complete_steps(self) -> list[int]:
        return sorted(step for step, path in self._all() if (path / MANIFEST).exists())

    def _all(self) -> list[tuple[int, epath.Path]]:
        """Every checkpoint, torn ones too; other files and directories are somebody else's."""
        paths = [path for path in children(self.directory) if _STEP.fullmatch(path.name)]
        return [(int(path.name), path) for path in paths if is_directory(path)]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def restore_newest(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, extra) of the newest step whose files are what was written; later ones are
        set aside. None where there is no checkpoint.

        Raises CheckpointError where none is left of those that there were.
        """
        found = self.steps()
        for step in reversed(found):
            try:
                for parent in self._beside(step):
                    agreed(Saved(parent / str(step)).check_share)
                return step, *self.restore(step, abstract_state)
            except DamagedError as error:
                logging.warning("%s; it is set aside", error)
            if jax.process_index() == 0:
                self._set_aside(step)
            wait_for_all("set aside")
        if found:
            raise CheckpointError(
                f"no checkpoint in {self.directory} is whole; put one back from a copy, or take"
                " another --workdir"
            )
        return None

    def _beside(self, step: int) -> list[epath.Path]:
        return [absolute(other) / CHECKPOINTS for other in self._beside_at(step)]

    def _set_aside(self, step: int) -> None:
        for parent in (self.directory, *self._beside(step)):
            if (parent / str(step)).exists():
                (parent / str(step)).rename(_free_name(parent / f"{step}.damaged"))

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """State with the shardings of `abstract_state` (ShapeDtypeStructs), and `extra`.

        Raises DamagedError when a file is not what was written, CheckpointError when the state's
        structure is another.
        """
        self.steps()
        saved = Saved(self.directory / str(step))
        wanted = leaves_of(abstract_state)
        check_leaves(saved.leaves, specs_of(wanted), saved.directory)
        found = agreed(lambda: saved.arrays(wanted))
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), found.values())
        return state, ask_first(lambda: read_object(saved.directory / EXTRA))

    # -- writing

    def save(
        self,
        step: int,
        state: Any,
        extra: Mapping[str, Any] | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to write a pytree of arrays and a JSON dict; `then` is called, on the first
        process, when the checkpoint is complete, and the oldest ones are deleted.

        It returns when the arrays may be donated. Raises CheckpointError where they cannot be
        written, or the last ones could not; the others stay as they are.
        """
        self.wait()
        directory = self.directory / str(step)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with self._agreed(step):
            if jax.process_index() == 0:
                self._make_room(directory, needed)
        self._meetings = Meetings(f"checkpoint {next(_saves)}")
        checkpointer = _checkpointer(self._meetings)
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), state)
        with self._agreed(step):
            arguments = ocp.args.PyTreeSave(_off_device(state), save_args=chunks)
            checkpointer.save(directory / STATE, args=arguments)

        leaves = {name: abstract(leaf) for name, leaf in leaves_of(state).items()}

        def finish() -> None:
            try:
                checkpointer.wait_until_finished()
                self._complete(directory, leaves, dict(extra or {}), then)
            except BaseException as error:
                self._meetings.call_off(_reason(error))
                raise

        self._pending = step, _BACKGROUND.submit(finish)

    def wait(self) -> None:
        """Returns when what `save` has begun is complete; CheckpointError where it cannot be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            step, saved = pending
            with self._agreed(step):
                saved.result()

    @contextmanager
    def _agreed(self, step: int) -> Iterator[None]:
        """Where a process cannot write, CheckpointError on all of them."""
        problem = cause = None
        try:
            yield
        except Exception as error:  # tensorstore's for a full disk is a ValueError
            if not isinstance(error, OSError | ValueError) and not of_a_bucket(error):
                raise
            problem, cause = _reason(error), error
            self._meetings.call_off(problem)
        if problem := next(filter(None, of_all(problem)), None):
            raise self._failure(step, problem) from cause

    def _failure(self, step: int, problem: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.directory / str(step)} cannot be written: {problem}; the one"
            " before is kept"
        )

    def _make_room(self, directory: epath.Path, needed: int) -> None:
        """An empty directory on a disk with enough bytes left: said before Orbax's threads do."""
        if in_bucket(directory):
            _delete(directory)
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(self.directory).free) < needed:
            raise OSError(f"it needs {needed >> 20} MiB and the disk has {free >> 20} MiB left")
        _delete(directory)
        directory.mkdir()

    def _complete(
        self,
        directory: epath.Path,
        leaves: Mapping[str, Any],
        extra: Mapping[str, Any],
        then: Callable[[], None],
    ) -> None:
        """In the background of every process: makes a checkpoint of the files."""
        first = jax.process_index() == 0
        if first:
            write_json(directory / EXTRA, extra)
        write_list(directory, leaves)
        self._meetings.wait()
        if first:
            for parent in self._beside(int(directory.name)):
                if not (parent / directory.name / MANIFEST).exists():
                    raise OSError(f"{parent / directory.name} is not complete")
            write_manifest(directory, leaves)
            self._delete_old(int(directory.name))
            then()
        self._meetings.wait()

    def _delete_old(self, newest: int) -> None:
        """Torn ones too; a later one may be under way."""
        keep = self._complete_steps()[-self.max_to_keep :]
        for step, path in self._all():
            if step < newest and step not in keep:
                _delete(path)
                for parent in self._beside(step):
                    _delete(parent / str(step))


def _off_device(state: Any) -> Any:
    """What Orbax may read while the next step donates the state: from accelerators it copies to the
    host itself. On a CPU it would read the arrays where they are, and XLA lets that step wait.
    """
    leaves, tree = jax.tree.flatten(state)
    on_cpu = [isinstance(x, jax.Array) and _platform(x) == "cpu" for x in leaves]
    copies = [
        jax.device_put(x, x.sharding, may_alias=False) if here else x
        for x, here in zip(leaves, on_cpu, strict=True)
    ]
    return jax.block_until_ready(jax.tree.unflatten(tree, copies))


def _platform(x: jax.Array) -> str:
    device: Any = next(iter(x.sharding.device_set))
    return str(device.platform)


def _checkpointer(meetings: Meetings) -> ocp.AsyncCheckpointer:
    """For one save: it keeps what it has copied.

    An array is a folder, and what a device has of it a file or more: who reads a part knows which.
    Devices of one process do not share the writing of what each of them has: to cut an array into
    their parts is a program for each shape and device.
    """
    kinds = ocp.type_handlers
    arrays = kinds.ArrayHandler(use_replica_parallel=jax.process_count() > 1)
    registry = kinds.create_type_handler_registry(
        (np.ndarray, kinds.NumpyHandler()), (jax.Array, arrays)
    )
    # Without compression: float32 weights hardly shrink, and a small model saves 2x faster.
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False, use_ocdbt=False, type_handler_registry=registry
    )
    options = ocp.options.AsyncOptions(
        timeout_secs=Meetings.SECONDS,
        barrier_sync_fn=lambda **_: meetings.wait(),
        create_directories_asynchronously=False,
    )
    return ocp.AsyncCheckpointer(handler, async_options=options)


def _reason(error: BaseException) -> str:
    (reason, *_) = str(error).splitlines() or [type(error).__name__]
    return reason


def _free_name(path: epath.Path) -> epath.Path:
    """The path, or with a number behind it where there is one already."""
    names = (f"{path.name}{number or ''}" for number in itertools.count())
    return next(p for name in names if not (p := path.parent / name).exists())


def _delete(directory: epath.Path) -> None:
    """The manifest first, so that a half-deleted checkpoint isn't taken for a complete one."""
    (directory / MANIFEST).unlink(missing_ok=True)
    if directory.exists():
        directory.rmtree()


# ---- models: parameters with their model.json ----


def open_saved(path: epath.PathLike) -> Saved:
    """The arrays of a workdir's newest step, or of a checkpoints/STEP."""
    path = absolute(path)
    step = Checkpoints(path).latest_step()
    return Saved(path if step is None else path / CHECKPOINTS / str(step))


def params_in(saved: Saved) -> dict[str, list[Any]]:
    """What it has of parameters, by their names below params/."""
    found = saved.leaves.items()
    return {name.removeprefix(PARAMS): spec for name, spec in found if name.startswith(PARAMS)}


def load_params(path: epath.PathLike, wanted: Any = None) -> Any:
    """The parameters, without the optimizer, of a workdir's newest step or a checkpoints/STEP.

    `wanted` are ShapeDtypeStructs with shardings: what a process has no device for is not read.
    Raises CheckpointError where they have other shapes than those of the checkpoint. Without it
    they are numpy arrays, as they were saved.
    """
    saved = open_saved(path)
    known = params_in(saved)
    if wanted is None:
        leaves = {
            name: jax.ShapeDtypeStruct(shape, dtype_of(dtype))
            for name, (dtype, shape) in known.items()
        }
    else:
        leaves = leaves_of(wanted)
        check_leaves(known, specs_of(leaves), saved.directory, dtypes=False)
    found = agreed(lambda: saved.arrays({PARAMS + name: x for name, x in leaves.items()}))
    flat = {name.removeprefix(PARAMS): x for name, x in found.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def model_root(path: epath.PathLike) -> epath.Path:
    """The directory with model.json and tokenizer/ that belongs to MODEL."""
    path = absolute(path)
    for root in (path, path.parent.parent):
        if (root / MODEL_JSON).exists():
            return root
    raise ConfigError(
        f"{path} is not a model of r1jax: neither it nor its workdir has {MODEL_JSON}"
    )


def write_model_json(workdir: epath.PathLike, model_config: Mapping[str, Any]) -> None:
    write_json(absolute(workdir) / MODEL_JSON, dict(model_config))
