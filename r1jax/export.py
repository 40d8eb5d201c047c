"""Writes a model as a directory that transformers and vLLM open, or its adapters for PEFT.

    python -m r1jax.export --model MODEL --output DIR [--format hf|peft] [--dtype bfloat16]

MODEL is a workdir or checkpoint of r1jax, a Hugging Face directory or a .gguf file. DIR must not
exist or be empty. `hf` writes config.json, model.safetensors and the tokenizer's files, adapters
merged into the matrices that they stand beside; `peft` writes the adapters alone, as
adapter_config.json and adapter_model.safetensors, to be opened on the model they were trained on.
"""

from absl import flags
from etils import epath

from r1jax.cli import run_command
from r1jax.config import ConfigError
from r1jax.files import on_disk
from r1jax.machines.hosts import set_up_jax
from r1jax.machines.mesh import make_mesh
from r1jax.models.layouts import stack_layers
from r1jax.models.lora import merged, without_adapters
from r1jax.weights.hf import EXPORT_DTYPES, save_hf
from r1jax.weights.load import open_model
from r1jax.weights.peft import save_peft

FORMATS = {"hf": "a Hugging Face directory", "peft": "a LoRA adapter"}


def export(
    model: str, output: epath.PathLike, dtype: str = "bfloat16", file_format: str = "hf"
) -> None:
    """Raises ConfigError where `output` is not empty, or the model has nothing in that format."""
    opened, directory = open_model(model), on_disk(output)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"--output {output} exists and is not an empty directory")
    config, params = opened.config, opened.load(make_mesh(), 0)
    if file_format == "peft":
        save_peft(str(directory), config, stack_layers(params, config), dtype)
        return
    params = stack_layers(merged(params, config), config)
    save_hf(str(directory), without_adapters(config), params, opened.tokenizer, dtype)


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Model to export.", required=True)
    flags.DEFINE_string("output", None, "Directory to write.", required=True)
    said = "; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items())
    flags.DEFINE_enum("format", "hf", sorted(FORMATS), f"{said}.")
    flags.DEFINE_enum("dtype", "bfloat16", sorted(EXPORT_DTYPES), "Of the parameters.")


def main() -> None:
    f = flags.FLAGS
    set_up_jax()
    export(f.model, f.output, f.dtype, f.format)
    print(f"wrote {f.output}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
