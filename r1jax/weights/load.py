"""MODEL, wherever it comes from: a workdir or checkpoint of r1jax, a Hugging Face directory, a
`.gguf` file, or fresh random parameters."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

from r1jax.config import ConfigError, DataError, import_function, section
from r1jax.data.chat import template_variables
from r1jax.data.tokenizer import FILES, Tokenizer, with_stops
from r1jax.files import CONFIG, MODEL_JSON, TOKENIZER, absolute, read_object
from r1jax.machines.cpu import devices_for
from r1jax.machines.hosts import wait_for_all
from r1jax.machines.mesh import make_mesh
from r1jax.models.config import ModelConfig
from r1jax.models.layer import INIT_STD
from r1jax.models.layouts import Compute, places_of_layers
from r1jax.models.lora import LORA_A, LORA_B, adapter_std, is_adapter, product
from r1jax.models.params import (
    abstract_params,
    count_params,
    param_shardings,
    random_params,
)
from r1jax.models.transformer import SCALAR_PARAMS, Transformer
from r1jax.models.zoo import MODELS
from r1jax.weights.checkpoint import Checkpoints, model_root, open_saved, params_in
from r1jax.weights.chunks import Index, array_of
from r1jax.weights.gguf_tokenizer import gguf_files
from r1jax.weights.hf import open_checkpoint
from r1jax.weights.hf_config import config_from_hf
from r1jax.weights.layout import Name, parameters
from r1jax.weights.manifest import Saved, agreed, check_leaves, specs_of

GONE = ("fused", "weights_left")  # keys of model.json in workdirs of earlier versions


@dataclass(frozen=True)
class ModelFields(Compute, ModelConfig):
    """All that a config or a model.json says of a model, in one section."""

    @classmethod
    def read(cls, values: Any, path: str) -> tuple[ModelConfig, Compute]:
        """ConfigError names `path` for what is wrong."""
        both = section(cls, values, path)

        def part(of: type[Any]) -> Any:
            return of(**{f.name: getattr(both, f.name) for f in dataclasses.fields(of)})

        try:
            return part(ModelConfig), part(Compute)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


@dataclass(frozen=True)
class ModelSource:
    """Exactly one of `path` (a MODEL) and `config` (for a fresh model).

    `config` and `override` have the fields of ModelConfig and of layouts.Compute.
    """

    path: str | None = None  # a workdir, a checkpoint, a Hugging Face directory, a .gguf file
    config: dict[str, Any] | None = field(default=None, metadata={"keys": ModelFields})
    # Of these fields what is to be other than the model's own: dtype, remat, max_length, ...; with
    # {"lora": {"rank": 16}} fresh adapters are trained instead of its matrices.
    override: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None  # a path; default: the model's own
    tokenizer_function: str | None = None  # module:function(directory, **tokenizer_args) trains one
    tokenizer_args: dict[str, Any] = field(default_factory=dict)  # of that function
    # The tokens that end a completion, instead of those that the model's files name.
    stop_tokens: tuple[str, ...] = ()
    # Variables of the model's own chat template: {"enable_thinking": False}.
    template_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenModel:
    """A model whose parameters (and tokenizer) have not been read yet."""

    config: ModelConfig
    compute: Compute
    read_tokenizer: Callable[[], Tokenizer]
    load: Callable[[Mesh, int], Any]  # (mesh, seed) -> float32 params with their shardings

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Read when it is asked for: tokens are scored without one."""
        return self.read_tokenizer()

    @property
    def fields(self) -> dict[str, Any]:
        """As a workdir's model.json has them."""
        return dataclasses.asdict(self.config) | dataclasses.asdict(self.compute)

    def mesh(self, axes: Mapping[str, int] | None = None, rows: int = 0) -> Mesh:
        """The mesh for this model, with `axes` as a config has them.

        Of a CPU's cores it takes as many devices as pay for a model of this size, and as split the
        `rows` of a microbatch.
        """
        if axes and -1 not in axes.values():
            return make_mesh(axes)
        return make_mesh(axes, devices_for(count_params(self.config), rows))

    def transformer(self, mesh: Mesh, kernel: str = "xla") -> Transformer:
        """The model on this mesh; for packed rows with a kernel that choose_kernel gave."""
        return Transformer(self.config, mesh, compute=self.compute, kernel=kernel)


def open_source(source: ModelSource, workdir: epath.Path) -> OpenModel:
    """A stage's starting point; a tokenizer to be trained is kept in the workdir."""
    if (source.path is None) == (source.config is None):
        raise ConfigError("config.model needs exactly one of path and config")
    if source.path is not None:
        opened = open_model(source.path, source.override, source.tokenizer)
    else:
        tokenizer = _fresh_tokenizer(source, workdir)
        fields = {"vocab_size": tokenizer.vocab_size} | dict(source.config or {}) | source.override
        config, compute = ModelFields.read(fields, "config.model.config")

        def load(mesh: Mesh, seed: int) -> Any:
            return random_params(Transformer(config, mesh, compute=compute), seed)

        opened = OpenModel(config, compute, lambda: tokenizer, load)
    opened = with_chat(opened, source.stop_tokens, source.template_args, "config.model")
    if opened.tokenizer.vocab_size > opened.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {opened.tokenizer.vocab_size} tokens, more than the model's"
            f" vocab_size {opened.config.vocab_size}"
        )
    return opened


def open_known(source: ModelSource) -> OpenModel | None:
    """As open_source, before there is a workdir; None where a tokenizer is still to be trained."""
    if source.path is None and source.tokenizer is None:
        return None
    return open_source(source, epath.Path())


def with_chat(
    opened: OpenModel, stop_tokens: Sequence[str], template_args: Mapping[str, Any], key: str
) -> OpenModel:
    """The model with other stops and defaults of its chat template, which its tokenizer keeps."""
    if not stop_tokens and not template_args:
        return opened

    def read_tokenizer() -> Tokenizer:
        tokenizer = opened.read_tokenizer()
        known = template_variables(tokenizer)
        if wrong := [name for name in template_args if name not in known]:
            raise ConfigError(
                f"{key}, template_args: the chat template reads no variable {wrong[0]!r}; it reads"
                f" {', '.join(sorted(known)) or 'none'}"
            )
        return tokenizer.changed(stop_tokens, template_args)

    return dataclasses.replace(opened, read_tokenizer=read_tokenizer)


def open_model(
    path: str, override: dict[str, Any] | None = None, tokenizer: str | None = None
) -> OpenModel:
    """MODEL -> its config and tokenizer, and a function that reads the parameters.

    A Hugging Face directory may be on gs://, of which only the parts are read that are wanted.
    """
    root = absolute(path)
    try:
        there = root.exists()
    except Exception as error:  # of a bucket: each library between has kinds of its own
        raise ConfigError(f"model {path} cannot be reached: {error}") from error
    if not there:
        raise ConfigError(
            f"model {path} does not exist; expected a workdir of r1jax, a Hugging Face directory"
            " or a .gguf file"
        )
    if root.is_dir() and not (root / CONFIG).exists() and not _is_workdir(root):
        raise ConfigError(
            f"model {path} is neither a workdir of r1jax (no {MODEL_JSON}) nor a Hugging Face"
            " directory (no config.json)"
        )
    if _is_workdir(root):
        return _open_workdir(root, override or {}, tokenizer)
    checkpoint = open_checkpoint(str(root))
    fields = dataclasses.asdict(checkpoint.config) | (override or {})
    config, compute = ModelFields.read(fields, "config.model.override")

    def load(mesh: Mesh, seed: int) -> Any:
        model = Transformer(config, mesh, compute=compute)
        known = parameters(checkpoint.config)
        return _from_slices(model, with_fresh(checkpoint.read_slice, known, config, seed))

    return OpenModel(config, compute, lambda: load_tokenizer(tokenizer or str(root)), load)


def _open_workdir(root: epath.Path, override: dict[str, Any], tokenizer: str | None) -> OpenModel:
    home = model_root(root)
    kept, computed = read_model_json(home / MODEL_JSON)
    fields = dataclasses.asdict(kept) | dataclasses.asdict(computed) | override
    config, compute = ModelFields.read(fields, "config.model.override")

    def load(mesh: Mesh, seed: int) -> Any:
        saved = open_saved(root)
        expected = {"/".join(name): leaf for name, leaf in _shapes(kept, computed).items()}
        check_leaves(params_in(saved), specs_of(expected), saved.directory)
        read, known = _slices_of(saved, kept, computed), _shapes(kept)
        if config.lora != kept.lora:  # others go on from what these have made of the model
            read = merged_slices(read, kept)
            known = {name: leaf for name, leaf in known.items() if not is_adapter(name[-1])}
        for name, leaf in _shapes(config).items():
            if name in known and known[name].shape != leaf.shape:
                raise ConfigError(
                    f"config.model.override: it makes {'.'.join(name)} {list(leaf.shape)}, which is"
                    f" {list(known[name].shape)} in {root}"
                )

        def read_slice(name: Name, index: Index) -> np.ndarray:
            if name in known:
                return read(name, index)
            raise ConfigError(
                f"config.model.override: it wants {'.'.join(name)}, which {root} has not got"
            )

        model = Transformer(config, mesh, compute=compute)
        return agreed(lambda: _from_slices(model, with_fresh(read_slice, known, config, seed)))

    read_tokenizer = functools.partial(load_tokenizer, tokenizer or str(home / TOKENIZER))
    return OpenModel(config, compute, read_tokenizer, load)


def read_model_json(path: epath.Path) -> tuple[ModelConfig, Compute]:
    """What a workdir says of its model."""
    kept = {key: value for key, value in read_object(path).items() if key not in GONE}
    return ModelFields.read(kept, str(path))


ReadSlice = Callable[[Name, Index], np.ndarray]  # -> parts of stacked layers


def _shapes(config: ModelConfig, compute: Compute | None = None) -> dict[Name, Any]:
    """Of the parameters, layers stacked where `compute` does not say otherwise."""
    model = Transformer(config, compute=compute or Compute())
    return dict(traverse_util.flatten_dict(abstract_params(model)))


def _slices_of(saved: Saved, config: ModelConfig, compute: Compute) -> ReadSlice:
    """What a checkpoint has, whether its layers are stacked or not."""
    layers = {} if compute.scan_layers else {s.name: s.layers for s in config.stacks}

    def read(name: Name, index: Index) -> np.ndarray:
        stack, *rest = name
        if stack not in layers:
            return saved.read("/".join(("params", *name)), index)
        own = [layers[stack][i] for i in range(*index[0].indices(len(layers[stack])))]
        return np.stack(
            [saved.read("/".join(("params", f"layers_{i}", *rest)), index[1:]) for i in own]
        )

    return read


def with_fresh(
    read_slice: ReadSlice, known: Collection[Name], config: ModelConfig, seed: int
) -> ReadSlice:
    """Also of what the files have not got yet: a scalar head and adapters, which begin anew.

    `known` are the names that `read_slice` reads.
    """
    shapes = _shapes(config)

    @functools.cache
    def fresh(name: Name) -> np.ndarray:
        shape = shapes[name].shape
        if name[-1] == "scalar_head":
            return INIT_STD * np.random.default_rng(seed).standard_normal(shape)
        if name[-1].endswith(LORA_A):
            rng = np.random.default_rng([seed, zlib.crc32(".".join(name).encode())])
            return adapter_std(shape[1:-1]) * rng.standard_normal(shape)
        return np.zeros(shape)

    def read(name: Name, index: Index) -> np.ndarray:
        is_fresh = name not in known and (is_adapter(name[-1]) or name[-1] in SCALAR_PARAMS)
        return fresh(name)[index] if is_fresh else read_slice(name, index)

    return read


def merged_slices(read: ReadSlice, config: ModelConfig) -> ReadSlice:
    """Of the model without its adapters: as `merged`, a part at a time."""
    if config.lora is None:
        return read
    shapes, scale = _shapes(config), config.lora.scale

    def read_merged(name: Name, index: Index) -> np.ndarray:
        value = read(name, index)
        a, b = ((*name[:-1], name[-1] + kind) for kind in (LORA_A, LORA_B))
        if a not in shapes:
            return value
        lead = len(shapes[a].shape) + len(shapes[b].shape) - 2 - value.ndim  # of stacked layers
        inner = len(shapes[a].shape) - 1
        of_a = read(a, (*index[:inner], slice(None)))
        of_b = read(b, (*index[:lead], slice(None), *index[inner:]))
        return np.asarray(value + product(of_a, of_b, value.ndim) * scale)

    return read_merged


def _from_slices(model: Transformer, read_slice: ReadSlice) -> Any:
    """Each device's shard of each parameter, read on its own: no full array on the host.

    `read_slice` gives parts of stacked layers, whatever scan_layers is.
    """
    shapes = traverse_util.flatten_dict(abstract_params(model))
    shardings = traverse_util.flatten_dict(param_shardings(model))
    apart = {} if model.compute.scan_layers else places_of_layers(model.config)

    def one(name: Name) -> jax.Array:
        def read(index: Index) -> np.ndarray:
            if name[0] in apart:
                stack, i = apart[name[0]]
                return read_slice((stack, *name[1:]), (slice(i, i + 1), *index))[0]
            return read_slice(name, index)

        leaf = jax.ShapeDtypeStruct(shapes[name].shape, np.float32, sharding=shardings[name])
        return array_of(leaf, read)

    # What lies in the same files is read one after the other.
    names = sorted(shapes, key=lambda name: apart.get(name[0], (name[0], 0))[:1] + name[1:])
    found = {name: one(name) for name in names}
    return traverse_util.unflatten_dict({name: found[name] for name in shapes})


def _is_workdir(path: epath.Path) -> bool:
    return any((p / MODEL_JSON).exists() for p in (path, path.parent.parent))


def _fresh_tokenizer(source: ModelSource, workdir: epath.Path) -> Tokenizer:
    if source.tokenizer is not None:
        return load_tokenizer(source.tokenizer)
    if source.tokenizer_function is None:
        raise ConfigError("config.model.config needs a tokenizer (or tokenizer_function) beside it")
    directory = workdir / TOKENIZER
    if Checkpoints(workdir).latest_step() is None:  # what a failed start left binds nobody
        name = source.tokenizer_function
        train = import_function(name, f"config.model.tokenizer_function = {name!r}")
        if jax.process_index() == 0:
            train(str(directory), **source.tokenizer_args)
        wait_for_all("tokenizer")
    return load_tokenizer(str(directory))


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
    """From a directory with tokenizer.json or tokenizer.model, a workdir, or a .gguf file."""
    path = absolute(path)
    if (path / TOKENIZER).is_dir():
        path = path / TOKENIZER
    if path.suffix == ".gguf":
        return Tokenizer(gguf_files(path), str(path))
    if not path.is_dir():
        raise DataError(f"tokenizer {path} does not exist")
    files = {name: (path / name).read_bytes() for name in FILES if (path / name).exists()}
    if (path / CONFIG).exists():
        files = with_stops(files, (path / CONFIG).read_bytes(), str(path))
    return Tokenizer(files, str(path))


# -- without weights -------------------------------------------------------------------------------


def open_shapes(source: ModelSource) -> OpenModel:
    """The model in shapes alone; neither weights nor tokenizer need be there.

    Of a Hugging Face directory its config.json is read, of a workdir its model.json; of what does
    not exist the name says which model of models/zoo.py it is (models/DeepSeek-V3-Base).
    """
    fields: dict[str, Any] = dict(source.config or {})
    if source.path is not None:
        root = absolute(source.path)
        if root.suffix == ".gguf" and root.exists():
            fields = dataclasses.asdict(open_checkpoint(str(root)).config)
        elif _is_workdir(root):
            kept, computed = read_model_json(model_root(root) / MODEL_JSON)
            fields = dataclasses.asdict(kept) | dataclasses.asdict(computed)
        elif (root / CONFIG).exists():
            fields = dataclasses.asdict(config_from_hf(root))
        else:
            fields = dataclasses.asdict(_of_zoo(root.name, source.path))
    elif "vocab_size" not in fields and source.tokenizer is not None:
        fields["vocab_size"] = load_tokenizer(source.tokenizer).vocab_size
    elif "vocab_size" not in fields:
        raise ConfigError(
            "config.model.config has no vocab_size, which its tokenizer would say: set it to plan"
        )
    config, compute = ModelFields.read(fields | source.override, "config.model.override")

    def nothing(*_: Any) -> Any:
        raise AssertionError("this model has shapes alone")

    return OpenModel(config, compute, nothing, nothing)


def _of_zoo(name: str, path: str) -> ModelConfig:
    """The model of that name, with all that its makers gave away: V3 and R1 have a block for
    multi-token prediction.
    """
    name = name.lower().removesuffix("-base").removesuffix("-instruct")
    if name not in MODELS:
        raise ConfigError(
            f"model {path} does not exist, and no model of models/zoo.py is called {name!r}: "
            + ", ".join(MODELS)
        )
    return replace(MODELS[name], mtp=name in ("deepseek-v3", "deepseek-r1"))
