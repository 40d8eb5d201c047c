"""Checkpoints, and the files that make a workdir a model.

WORKDIR/checkpoints/STEP/ holds `state/` (Orbax), `extra.json` and, written last, `manifest.json`:
the shapes of all leaves and a checksum of every file. A directory without a manifest is no
checkpoint, so a kill in the middle of a save leaves nothing that a restore takes for complete.
Beside it lie WORKDIR/config.json (the run's config), model.json and tokenizer/.
"""

import itertools
import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from r1jax.config import ConfigError, UserError
from r1jax.files import CHECKPOINTS, MODEL_JSON, absolute, read_object, write_json
from r1jax.machines.hosts import of_first_process, wait_for_all

STATE, EXTRA, MANIFEST = "state", "extra.json", "manifest.json"
PARAMS = "params/"  # what the names of a state's parameters begin with
READ_BYTES = 1 << 28  # read at the same time, where no single array has more
_STEP = re.compile("0|[1-9][0-9]*")  # a checkpoint's directory

# Orbax tells of every save in a dozen lines.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno >= logging.WARNING or "orbax" not in record.pathname
)


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""


# ---- checkpoints ----


class Checkpoints:
    """The checkpoints of one workdir. Saves are complete when `save` returns."""

    def __init__(
        self,
        workdir: epath.PathLike,
        max_to_keep: int = 2,
        beside: Sequence[epath.PathLike] = (),
    ) -> None:
        """`beside` are workdirs whose checkpoints of the same steps belong to these."""
        self._beside = [absolute(other) / CHECKPOINTS for other in beside]
        self.directory = absolute(workdir) / CHECKPOINTS
        self.max_to_keep = max_to_keep
        # Without compression: float32 weights hardly shrink, and a small model saves 2x faster.
        self._checkpointer = _checkpointer()
        self._sound: set[int] = set()  # steps whose files were compared with their checksums

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        if not self.directory.exists():
            return []
        return sorted(step for step, path in self._all() if (path / MANIFEST).exists())

    def _all(self) -> list[tuple[int, epath.Path]]:
        """Every checkpoint, torn ones too; other files and directories are somebody else's."""
        paths = list(self.directory.iterdir())
        return [(int(p.name), p) for p in paths if _STEP.fullmatch(p.name) and p.is_dir()]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def sound_step(self) -> int | None:
        """The newest step whose files are what was written; later ones are set aside.

        Raises CheckpointError where none is left of those that there were.
        """
        found = self.steps()
        for step in reversed(found):
            parts = [parent / str(step) for parent in (self.directory, *self._beside)]
            problem = of_first_process(_problem(parts) if jax.process_index() == 0 else None)
            if problem is None:
                self._sound.add(step)
                return step
            logging.warning("%s; it is set aside", problem)
            if jax.process_index() == 0:
                for directory in (part for part in parts if part.exists()):
                    directory.rename(_free_name(directory.parent / f"{step}.damaged"))
            wait_for_all("set aside")
        if found:
            raise CheckpointError(
                f"no checkpoint in {self.directory} is whole; put one back from a copy, or take"
                " another --workdir"
            )
        return None

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Writes a pytree of arrays and a JSON dict, then deletes the oldest checkpoints.

        Raises CheckpointError where they cannot be written; the others stay as they are.
        """
        try:
            _check_space(self.directory, state)
            self._write(step, state, extra)
        except (OSError, ValueError) as error:  # tensorstore's for a full disk is a ValueError
            (reason, *_) = str(error).splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} cannot be written: {reason}; the one"
                " before is kept"
            ) from error

    def _write(self, step: int, state: Any, extra: Mapping[str, Any] | None) -> None:
        directory = self.directory / str(step)
        if jax.process_index() == 0:
            _delete(directory)
            directory.mkdir(parents=True)
        wait_for_all(f"checkpoint {step} begins")
        self._checkpointer.save(directory / STATE, args=ocp.args.PyTreeSave(state))
        if jax.process_index() == 0:
            write_json(directory / EXTRA, dict(extra or {}))
            manifest = {"leaves": _leaf_specs(state), "files": _checksums(directory)}
            write_json(directory / MANIFEST, manifest)
            self._delete_old()
        wait_for_all(f"checkpoint {step} is complete")

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """State with the shardings of `abstract_state` (ShapeDtypeStructs), and `extra`.

        Raises CheckpointError when a file is damaged or the state's structure is another.
        """
        directory = self.directory / str(step)
        manifest = _read_manifest(directory, check=step not in self._sound)
        _check_leaves(manifest["leaves"], _leaf_specs(abstract_state), directory)
        state = _restore(self._checkpointer, directory, abstract_state, partial=False)
        return state, read_object(directory / EXTRA)

    def _delete_old(self) -> None:
        complete = self.steps()
        keep = complete[-self.max_to_keep :]
        for step, path in self._all():
            if step not in keep:
                _delete(path)


def _check_space(directory: epath.Path, state: Any) -> None:
    """OSError where the disk has less room than the state needs: said before Orbax's threads do."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    directory.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(directory).free) < needed:
        raise OSError(f"it needs {needed >> 20} MiB and the disk has {free >> 20} MiB left")


def _free_name(path: epath.Path) -> epath.Path:
    """The path, or with a number behind it where there is one already."""
    names = (f"{path.name}{number or ''}" for number in itertools.count())
    return next(p for name in names if not (p := path.parent / name).exists())


def _problem(directories: Sequence[epath.Path]) -> str | None:
    """What is wrong with the files of a checkpoint's parts."""
    try:
        for directory in directories:
            _read_manifest(directory)
    except CheckpointError as error:
        return str(error)
    return None


def _checkpointer() -> ocp.Checkpointer:
    """Devices of one process do not share the writing of what each of them has: to cut an array
    into their parts is a program for each shape and device.
    """
    kinds = ocp.type_handlers
    arrays = kinds.ArrayHandler(use_replica_parallel=jax.process_count() > 1)
    registry = kinds.create_type_handler_registry(
        (np.ndarray, kinds.NumpyHandler()), (jax.Array, arrays)
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    return ocp.Checkpointer(handler)


def _restore(
    checkpointer: ocp.Checkpointer, directory: epath.Path, abstract: Any, *, partial: bool
) -> Any:
    args = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=partial,
    )
    return checkpointer.restore(directory / STATE, args=args)


def _delete(directory: epath.Path) -> None:
    """The manifest first, so that a half-deleted checkpoint isn't taken for a complete one."""
    (directory / MANIFEST).unlink(missing_ok=True)
    if directory.exists():
        directory.rmtree()


# ---- manifest: what was saved, and whether it is still the same ----


def _leaf_specs(state: Any) -> dict[str, list[Any]]:
    """{"params/embed/kernel": ["float32", [64, 32]]} in the order of the tree."""
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        specs[name] = [str(np.dtype(leaf.dtype)), list(leaf.shape)]
    return specs


def _check_leaves(saved: dict[str, Any], wanted: dict[str, Any], directory: epath.Path) -> None:
    problems = [f"it has no {name}" for name in wanted if name not in saved]
    problems += [f"{name} is not in the model" for name in saved if name not in wanted]
    problems += [
        f"{name} is {_shape(saved[name])}, not {_shape(spec)}"
        for name, spec in wanted.items()
        if name in saved and saved[name] != spec
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"checkpoint {directory} is of another state: {'; '.join(problems[:3])}{more}"
        )


def _shape(spec: list[Any]) -> str:
    return f"{spec[0]}[{','.join(map(str, spec[1]))}]"


def _files(directory: epath.Path) -> Iterator[tuple[str, epath.Path]]:
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from ((f"{path.name}/{name}", file) for name, file in _files(path))
        elif path.name != MANIFEST:
            yield path.name, path


def _checksums(directory: epath.Path) -> dict[str, int]:
    return {name: _crc32(path) for name, path in _files(directory)}


def _crc32(path: epath.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            value = zlib.crc32(block, value)
    return value


def _read_manifest(directory: epath.Path, check: bool = True) -> dict[str, Any]:
    """The manifest; with `check`, after its checksums were compared with the files."""
    path = directory / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{directory} is not a complete checkpoint (no {MANIFEST})")
    try:
        manifest = json.loads(path.read_bytes())
        files = dict(manifest["files"]) if manifest["leaves"] else {}
    except (ValueError, KeyError, TypeError):
        raise _damaged(directory, MANIFEST) from None
    for name, checksum in files.items() if check else ():
        if not (directory / name).exists() or _crc32(directory / name) != checksum:
            raise _damaged(directory, name)
    return manifest


def _damaged(directory: epath.Path, name: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {directory} is damaged: {name} is not what was written")


# ---- models: parameters with their model.json ----


def load_params(path: epath.PathLike, abstract: Any = None) -> Any:
    """The parameters, without the optimizer, of a workdir's newest step or a checkpoints/STEP.

    `abstract` are ShapeDtypeStructs with shardings: each device's shards are read on their own, of
    a few parameters at a time, so that a host needs little more memory than the model on its
    devices. Raises CheckpointError where they are others than those of the checkpoint. Without
    `abstract` they are numpy arrays, as they were saved.
    """
    path = absolute(path)
    step = Checkpoints(path).latest_step()
    if step is not None:
        path = path / CHECKPOINTS / str(step)
    leaves = {
        name: spec
        for name, spec in _read_manifest(path)["leaves"].items()
        if name.startswith(PARAMS)
    }
    if abstract is None:
        wanted = {
            tuple(name.split("/")): np.empty(shape, _dtype(dtype))
            for name, (dtype, shape) in leaves.items()
        }
    else:
        wanted = traverse_util.flatten_dict({"params": abstract})
        _check_leaves(leaves, _leaf_specs({"params": abstract}), path)
    checkpointer = _checkpointer()
    found: dict[Any, Any] = {}
    for names in _together(wanted):
        item = traverse_util.unflatten_dict({name: wanted[name] for name in names})
        read = _restore(checkpointer, path, item, partial=True)
        found |= jax.block_until_ready(traverse_util.flatten_dict(read))
    return traverse_util.unflatten_dict(found)["params"]


def _together(arrays: Mapping[Any, Any]) -> Iterator[list[Any]]:
    """The names of those that are read at the same time: one, or small ones."""
    names: list[Any] = []
    size = 0
    for name, x in arrays.items():
        bytes_of = x.size * x.dtype.itemsize
        if names and size + bytes_of > READ_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes_of
    if names:
        yield names


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


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
