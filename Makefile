# make env    the environment alone: .venv from requirements.lock, this project installed editable
# make scope  text to features: harvest, store, SAEs, evaluation, pages; with the shipped model, or MODEL=gemma3-270m
# make test   the tests
# make test-killed  harvests and training in processes that are killed again and again, and in several; minutes
# make lint   ruff's lint and format checks
# make lock   rewrite requirements.lock from setup.py's ranges
#
# make test-oldest  mishax_lite and gemma with the oldest versions that setup.py admits (.venv-oldest)
# make test-bare    mishax_lite with nothing but jax and pytest (.venv-bare); what needs more is skipped, and says so
# make test-tpu     gemma compiled ahead of time for TPUs, no TPU needed; x86-64 Linux alone (.venv-tpu, with libtpu)
# make test-peers   transformers loads what gemma.save writes, and the other way round (.venv-peers)
# make locks        rewrite the locks of these environments from setup.py's ranges
# make lock-peers   rewrite requirements-peers.lock and requirements-peers-cuda.lock
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp
MODEL ?= gemma2-tiny
# The shipped model has runs/scope, another one a folder of its own.
SCOPE_DIR ?= runs/scope$(if $(filter-out gemma2-tiny,$(MODEL)),-$(notdir $(MODEL)))

.PHONY: env scope test test-killed lint format lock
.DELETE_ON_ERROR:

env: $(STAMP)

$(STAMP): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "make: $(PYTHON) lacks the venv module (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

scope: $(STAMP)
	$(VENV)/bin/python -m experiments.scope --model=$(MODEL) --out_dir=$(SCOPE_DIR) $(SCOPE_FLAGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

test-killed: $(STAMP)
	$(VENV)/bin/python -m pytest tests/sae -m killed $(PYTEST_FLAGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lock: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip compile setup.py --extra test --universal --generate-hashes --python-version 3.11 \
	  --no-header --no-annotate --allow-unsafe --upgrade -o requirements.lock

# Environments beside the main one. Nothing of this project is installed in them: pytest has the checkout on its path.
OTHER_STAMPS := .venv-oldest/.stamp .venv-bare/.stamp .venv-tpu/.stamp
.PHONY: test-oldest test-bare test-tpu locks

$(OTHER_STAMPS): .venv-%/.stamp: requirements-%.lock
	@case $*-$$($(PYTHON) -c 'import sys; print(sys.version_info.minor)') in oldest-1[3-9]) \
	  echo "make: the oldest versions have no wheels for Python 3.13 and later: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1;; esac
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

test-oldest: .venv-oldest/.stamp
	.venv-oldest/bin/python -m pytest tests/mishax_lite tests/gemma $(PYTEST_FLAGS)

# pyproject.toml's options are for pytest-xdist, which is not there.
test-bare: .venv-bare/.stamp
	.venv-bare/bin/python -m pytest -o addopts="--import-mode=importlib --strict-markers -ra --durations 8" \
	  tests/mishax_lite $(PYTEST_FLAGS)

test-tpu: .venv-tpu/.stamp
	.venv-tpu/bin/python -m pytest tests/gemma/test_tpu.py tests/sae/trainer/test_tpu.py $(PYTEST_FLAGS)

locks: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip compile setup.py --extra test --resolution lowest-direct --universal --generate-hashes \
	  --python-version 3.11 --no-header --no-annotate --allow-unsafe --upgrade -o requirements-oldest.lock
	grep -oE '"(jax|pytest)[<=>][^"]*"' setup.py | tr -d '"' | $(VENV)/bin/uv pip compile - --universal \
	  --generate-hashes --python-version 3.11 --no-header --no-annotate --upgrade -o requirements-bare.lock
	grep -oE '"pytest(-xdist)?[<=>][^"]*"' setup.py | tr -d '"' | $(VENV)/bin/uv pip compile setup.py - --extra tpu \
	  --constraint requirements.lock --universal --generate-hashes --python-version 3.11 --no-header --no-annotate \
	  --upgrade -o requirements-tpu.lock

# torch and transformers, in an environment of their own. On Linux, PyPI's torch is the CUDA build, which is not importable
# without 3 GB of libraries. Where pip finds the CPU build (with a wheel in its find-links), that is taken instead.
PEERS := .venv-peers
PEERS_DIR ?= runs/peers
TORCH := torch==2.13.0
TORCH_CPU := $(TORCH)+cpu --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
PEERS_PIP := $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps
.PHONY: test-peers lock-peers

$(PEERS)/.stamp: requirements-peers.lock requirements-peers-cuda.lock
	$(PYTHON) -m venv --clear $(PEERS)
	echo '$(TORCH_CPU)' > $(PEERS)/torch-cpu.txt
	$(PEERS_PIP) -r $(PEERS)/torch-cpu.txt 2>/dev/null || echo "no CPU build of torch where pip looks: CUDA's follows"
	$(PEERS_PIP) -r requirements-peers.lock
	$(PEERS)/bin/python -c 'import torch' 2>/dev/null || $(PEERS_PIP) -r requirements-peers-cuda.lock
	$(PEERS)/bin/python -c 'import torch, transformers'
	@touch $@

test-peers: $(STAMP) $(PEERS)/.stamp
	rm -rf $(PEERS_DIR)
	mkdir -p $(PEERS_DIR)
	$(VENV)/bin/python -m tests.peers.ours write $(PEERS_DIR)
	$(PEERS)/bin/python tests/peers/theirs.py $(PEERS_DIR)
	$(VENV)/bin/python -m tests.peers.ours read $(PEERS_DIR)

# One resolution, split in two: entries of CUDA's libraries, and the others.
lock-peers: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet uv
	printf '%s\n' $(TORCH) transformers==5.23.0 | $(VENV)/bin/uv pip compile - --universal --generate-hashes \
	  --python-version 3.11 --no-header --no-annotate --allow-unsafe --quiet -o requirements-peers.lock
	awk '/^[a-z]/ {cuda = /^(nvidia-|cuda-|triton)/} cuda' requirements-peers.lock > requirements-peers-cuda.lock
	awk '/^[a-z]/ {cuda = /^(nvidia-|cuda-|triton)/} !cuda' requirements-peers.lock > requirements-peers.lock.new
	mv requirements-peers.lock.new requirements-peers.lock
