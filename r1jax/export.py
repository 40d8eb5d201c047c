"""Writes a model as a directory that transformers and vLLM open.

    python -m r1jax.export --model MODEL --output DIR [--dtype bfloat16]

MODEL is a workdir or checkpoint of r1jax, a Hugging Face directory or a .gguf file. DIR must not
exist or be empty; it gets config.json, model.safetensors and the tokenizer's files.
"""

from absl import flags
from etils import epath

from r1jax.cli import run_command
from r1jax.config import ConfigError
from r1jax.files import absolute
from r1jax.machines.hosts import set_up_jax
from r1jax.machines.mesh import make_mesh
from r1jax.models.layouts import stack_layers
from r1jax.weights.hf import EXPORT_DTYPES, save_hf
from r1jax.weights.load import open_model


def export(model: str, output: epath.PathLike, dtype: str = "bfloat16") -> None:
    """Raises ConfigError where `output` is not empty."""
    opened, directory = open_model(model), absolute(output)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"--output {output} exists and is not an empty directory")
    params = stack_layers(opened.load(make_mesh(), 0), opened.config)
    save_hf(str(directory), opened.config, params, opened.tokenizer, dtype)


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Model to export.", required=True)
    flags.DEFINE_string("output", None, "Directory to write.", required=True)
    flags.DEFINE_enum("format", "hf", ["hf"], "hf: a Hugging Face directory.")
    flags.DEFINE_enum("dtype", "bfloat16", sorted(EXPORT_DTYPES), "Of the parameters.")


def main() -> None:
    f = flags.FLAGS
    set_up_jax()
    export(f.model, f.output, f.dtype)
    print(f"wrote {f.output}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
