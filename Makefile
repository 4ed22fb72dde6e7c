# make env    the environment alone: .venv, this project installed editable. Python 3.11 takes requirements.lock; 3.12 and
#             later take requirements-newest.lock: make env PYTHON=python3.13
# make scope  text to features: harvest, store, SAEs, evaluation, pages; with the shipped model, or MODEL=gemma3-270m
# make test   the tests
# make test-slow  the tests that take long: whole launches, large texts, whole runs of training
# make test-killed  harvests and training in processes that are killed again and again, and in several; minutes
# make fuzz   hooks on thousands of random programs and nestings of transformations; an hour (FUZZ_SEEDS=0:500: a part)
# make test-gpu  the tests marked gpu, on a GPU; GPU_PYTHON has jax[cuda12] or jax[cuda13], flax, jaxtyping,
#                orbax-checkpoint, pytest
# make lint   ruff's lint and format checks
# make types  the type checker over the packages and the launches
# make build-files  rewrite BUILD, for Bazel, from the tree and its imports: after a Python file is added or removed
# make mutation  a sample of 300 small faults put into the library, one at a time, to see whether tests notice; an hour
# make docs   a browsable reference in runs/docs, from docstrings and READMEs; it fails on a link that leads nowhere
# make notebooks  rewrite the notebooks in experiments/notebooks from the Python files beside them
# make lock   rewrite requirements.lock from setup.py's ranges: the newest versions for Python 3.11
#
# make test-newest  all but the slow tests with the newest versions, which need Python 3.12 or later (.venv-newest)
# make test-oldest  mishax_lite and gemma with the oldest versions that setup.py admits (.venv-oldest)
# make test-bare    mishax_lite with nothing but jax and pytest (.venv-bare); what needs more is skipped, and says so
# make test-tpu     gemma compiled ahead of time for TPUs, no TPU needed; x86-64 Linux alone (.venv-tpu, with libtpu)
# make test-peers-transformers  transformers and PEFT: they load what gemma.save writes, and the other way round
#                   (.venv-peers); make test-peers is the same
# make test-peers-saelens, -sparsify, -dictionary-learning, -circuit-tracer, -saebench  programs that have files of
#                   autoencoders load ours, and the other way round (.venv-peers-NAME); make test-peers-files: all of them
# make locks        rewrite all locks from setup.py's ranges
# make lock-peers   rewrite requirements-peers.lock and requirements-peers-cuda.lock alone
# make lock-peers-saelens, ...  rewrite tests/peers/saelens.lock, ... alone
VENV := .venv
MODEL ?= gemma2-tiny
# The shipped model has runs/scope, another one a folder of its own.
SCOPE_DIR ?= runs/scope$(if $(filter-out gemma2-tiny,$(MODEL)),-$(notdir $(MODEL)))

# $(call find_python,CONDITION,NAMES): a shell command that prints the path of the first interpreter of these names that
# runs and whose minor version (`minor`) satisfies the condition, or nothing. A name that pyenv has, but not for this
# folder, counts too.
find_python = try() { "$$@" -c 'import sys; minor = sys.version_info[1]; \
  print(sys.executable) if sys.version_info[0] == 3 and $(1) else sys.exit(1)' 2>/dev/null; }; \
  for name in $(2); do \
    try $$name && break; \
    for version in $$(pyenv whence $$name 2>/dev/null | sort -rV); do \
      try env PYENV_VERSION=$$version $$name && break 2; \
    done; \
  done

# An environment that exists keeps its Python, unless PYTHON names another one.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell $(VENV)/bin/python -c 'import sys; print(sys._base_executable)' 2>/dev/null || echo python3)
endif
INTERPRETER := $(shell $(call find_python,minor >= 11,$(PYTHON)))
MINOR := $(if $(INTERPRETER),$(shell $(INTERPRETER) -c 'import sys; print(sys.version_info[1])'))
LOCK := $(if $(filter 11,$(MINOR)),requirements.lock,requirements-newest.lock)
STAMP := $(VENV)/.stamp-3.$(MINOR)
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: env scope test test-slow test-killed fuzz test-gpu lint types format build-files notebooks docs lock
.DELETE_ON_ERROR:

env: $(STAMP)

$(STAMP): $(LOCK) setup.py
	@test -n "$(INTERPRETER)" || \
	  { echo "make: $(PYTHON) is not a Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(INTERPRETER) -c 'import venv, ensurepip' || \
	  { echo "make: $(PYTHON) lacks the venv module (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(INTERPRETER) -m venv --clear $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) --require-hashes -r $(LOCK)
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

scope: $(STAMP)
	$(VENV)/bin/python -m experiments.scope --model=$(MODEL) --out_dir=$(SCOPE_DIR) $(SCOPE_FLAGS)

test: $(STAMP)
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

test-slow: $(STAMP)
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest -m 'slow and not killed' $(PYTEST_FLAGS)

test-killed: $(STAMP)
	$(VENV)/bin/python -m pytest tests/sae -m killed $(PYTEST_FLAGS)

fuzz: $(STAMP)
	$(VENV)/bin/python -m pytest tests/mishax_lite -m fuzz $(PYTEST_FLAGS)

# Only these files are imported: others need packages that this environment may lack. One process: each would take most
# of the GPU's memory. JAX_PLATFORMS is an error where the environment sees no GPU.
GPU_PYTHON ?= python3
GPU_PLATFORM ?= cuda
test-gpu:
	JAX_PLATFORMS=$(GPU_PLATFORM) $(GPU_PYTHON) -m pytest -m gpu $$(grep -rl "mark\.gpu" tests --include=test_*.py) \
	  -o addopts="--import-mode=importlib --strict-markers -ra --durations 8" $(PYTEST_FLAGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP)
	$(VENV)/bin/pyrefly check --python-interpreter-path $(VENV)/bin/python

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

build-files: $(STAMP)
	$(VENV)/bin/python -m tests.bazel

notebooks: $(STAMP)
	$(VENV)/bin/python -m experiments.notebooks.convert

docs: $(STAMP)
	$(VENV)/bin/python -m tests.reference.build runs/docs

UV = $(VENV)/bin/uv pip compile --universal --generate-hashes --no-header --no-annotate --upgrade --no-python-downloads
# One version of each package for all Pythons: the newest that Python 3.11 can take.
UV_3_11 = $(UV) --python-version 3.11 --fork-strategy fewest
# setup.py's line for each package of a pattern.
bounds = grep -oE '"($(1))[<=>][^"]*"' setup.py | tr -d '"'

lock: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet uv
	$(UV_3_11) setup.py --extra test -o requirements.lock

# Environments beside the main one. Nothing of this project is installed in them: pytest has the checkout on its path.
# The oldest versions have no wheels for Python 3.13 and later, the newest none for 3.11: the first of these that fits.
PYTHONS_OLDEST ?= $(PYTHON) python3.11 python3.12
PYTHONS_NEWEST ?= python3.13 python3.12 $(PYTHON)
.PHONY: test-newest test-oldest test-bare test-tpu mutation locks

.venv-newest/.stamp: find = $(call find_python,minor >= 12,$(PYTHONS_NEWEST))
.venv-newest/.stamp: missing = none of $(PYTHONS_NEWEST) is Python 3.12 or later; name one: PYTHONS_NEWEST=python3.13
.venv-oldest/.stamp: find = $(call find_python,10 < minor < 13,$(PYTHONS_OLDEST))
.venv-oldest/.stamp: missing = none of $(PYTHONS_OLDEST) is Python 3.11 or 3.12; name one: PYTHONS_OLDEST=python3.12
.venv-bare/.stamp .venv-tpu/.stamp .venv-mutation/.stamp: find = echo $(INTERPRETER)
.venv-bare/.stamp .venv-tpu/.stamp .venv-mutation/.stamp: missing = $(PYTHON) is not a Python 3.11 or newer; name one: PYTHON=python3.12

$(patsubst %,.venv-%/.stamp,newest oldest bare tpu mutation): .venv-%/.stamp: requirements-%.lock
	@interpreter=$$($(find)); \
	test -n "$$interpreter" || { echo "make: $(missing)" >&2; exit 1; }; \
	echo "$$interpreter -m venv --clear .venv-$*"; \
	$$interpreter -m venv --clear .venv-$*
	.venv-$*/bin/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

test-newest: .venv-newest/.stamp
	.venv-newest/bin/python -m pytest -m 'not killed and not slow and not fuzz' $(PYTEST_FLAGS)

# Without random programs: with 0.8.2 some derivatives of captures in shard_map end in an error of JAX, psum_invariant.
test-oldest: .venv-oldest/.stamp
	.venv-oldest/bin/python -m pytest tests/mishax_lite tests/gemma --ignore tests/mishax_lite/test_fuzz.py $(PYTEST_FLAGS)

# pyproject.toml's options are for pytest-xdist, which is not there. Random programs run in `make test` alone.
test-bare: .venv-bare/.stamp
	.venv-bare/bin/python -m pytest -o addopts="--import-mode=importlib --strict-markers -ra --durations 8" \
	  tests/mishax_lite --ignore tests/mishax_lite/test_fuzz.py --ignore tests/mishax_lite/test_nestings.py $(PYTEST_FLAGS)

test-tpu: .venv-tpu/.stamp
	.venv-tpu/bin/python -m pytest tests/gemma/test_tpu.py tests/sae/trainer/test_tpu.py $(PYTEST_FLAGS)

# Which functions a test enters is seen by Python's monitoring, which 3.12 and later have.
mutation: .venv-newest/.stamp .venv-mutation/.stamp
	.venv-newest/bin/python -m tests.mutation.run --mutmut=.venv-mutation/bin/python $(MUTATION_FLAGS)

locks: lock lock-peers
	$(UV) setup.py --extra test --python-version 3.12 -o requirements-newest.lock
	$(UV) setup.py --extra test --python-version 3.11 --resolution lowest-direct -o requirements-oldest.lock
	$(call bounds,jax|pytest) | $(UV_3_11) - -o requirements-bare.lock
	$(call bounds,pytest(-xdist)?) | $(UV_3_11) setup.py - --extra tpu --extra launch --constraint requirements.lock -o requirements-tpu.lock
	echo mutmut==3.8.1 | $(UV_3_11) - -o requirements-mutation.lock
	@echo "TESTED in mishax_lite/_versions.py has to name these versions of JAX:"
	@grep -h '^jax==' requirements-oldest.lock requirements.lock requirements-newest.lock

# torch and transformers, in an environment of their own. On Linux, PyPI's torch is the CUDA build, which is not importable
# without 3 GB of libraries. Where pip finds the CPU build (with a wheel in its find-links), that is taken instead.
PEERS := .venv-peers
PEERS_DIR ?= runs/peers
TORCH := torch==2.13.0
TORCH_CPU := $(TORCH)+cpu --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
PEERS_PIP := $(PEERS)/bin/python $(PIP_INSTALL) --require-hashes --no-deps
.PHONY: test-peers test-peers-transformers lock-peers

$(PEERS)/.stamp: requirements-peers.lock requirements-peers-cuda.lock
	$(INTERPRETER) -m venv --clear $(PEERS)
	echo '$(TORCH_CPU)' > $(PEERS)/torch-cpu.txt
	$(PEERS_PIP) -r $(PEERS)/torch-cpu.txt 2>/dev/null || echo "no CPU build of torch where pip looks: CUDA's follows"
	$(PEERS_PIP) -r requirements-peers.lock
	$(PEERS)/bin/python -c 'import torch' 2>/dev/null || $(PEERS_PIP) -r requirements-peers-cuda.lock
	$(PEERS)/bin/python -c 'import torch, transformers, peft'
	@touch $@

test-peers: test-peers-transformers

test-peers-transformers: $(STAMP) $(PEERS)/.stamp
	rm -rf $(PEERS_DIR)
	mkdir -p $(PEERS_DIR)
	$(VENV)/bin/python -m tests.peers.ours write $(PEERS_DIR)
	$(PEERS)/bin/python tests/peers/theirs.py $(PEERS_DIR)
	$(VENV)/bin/python -m tests.peers.ours read $(PEERS_DIR)
	$(VENV)/bin/python -m tests.peers.ours_text write $(PEERS_DIR)
	$(PEERS)/bin/python tests/peers/theirs_text.py $(PEERS_DIR)
	$(VENV)/bin/python -m tests.peers.ours_text read $(PEERS_DIR)

# One resolution, split in two: entries of CUDA's libraries, and the others.
lock-peers: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet uv
	printf '%s\n' $(TORCH) transformers==5.23.0 peft==0.21.2 | $(VENV)/bin/uv pip compile - --universal --generate-hashes \
	  --python-version 3.11 --no-header --no-annotate --quiet --no-python-downloads -o requirements-peers.lock
	awk '/^[a-z]/ {cuda = /^(nvidia-|cuda-|triton)/} cuda' requirements-peers.lock > requirements-peers-cuda.lock
	awk '/^[a-z]/ {cuda = /^(nvidia-|cuda-|triton)/} !cuda' requirements-peers.lock > requirements-peers.lock.new
	mv requirements-peers.lock.new requirements-peers.lock

# Programs that have files of autoencoders, each in an environment of its own (.venv-peers-NAME), since their requirements
# exclude one another; see tests/peers/README.md. CI runs none of these.
FILE_PEERS := saelens sparsify dictionary-learning circuit-tracer saebench
peer-saelens := sae-lens==6.54.12
peer-sparsify := eai-sparsify==1.3.3
peer-dictionary-learning := dictionary-learning==0.1.0
peer-circuit-tracer := circuit-tracer==0.5.0
peer-saebench := sae-bench==0.6.0
PEER_PIP = $(@D)/bin/python $(PIP_INSTALL) --require-hashes --no-deps
# $(call entries,cuda) and $(call entries,!cuda): of a lock, the entries that go with CUDA's build of torch, and the others.
entries = awk '/^[a-z]/ {cuda = /^(nvidia-|cuda-|triton|torchvision)/} $(1)'
.PHONY: test-peers-files $(patsubst %,test-peers-%,$(FILE_PEERS)) $(patsubst %,lock-peers-%,$(FILE_PEERS))

$(patsubst %,.venv-peers-%/.stamp,$(FILE_PEERS)): .venv-peers-%/.stamp: tests/peers/%.lock
	$(INTERPRETER) -m venv --clear $(@D)
	echo '$(TORCH_CPU)' > $(@D)/torch-cpu.txt
	$(call entries,cuda) $< > $(@D)/cuda.txt
	$(call entries,!cuda) $< > $(@D)/others.txt
	$(PEER_PIP) -r $(@D)/torch-cpu.txt 2>/dev/null || echo "no CPU build of torch where pip looks: CUDA's follows"
	$(PEER_PIP) -r $(@D)/others.txt
	$(@D)/bin/python -c 'import torch' 2>/dev/null || $(PEER_PIP) -r $(@D)/cuda.txt
	$(@D)/bin/python -c 'import torch'
	@touch $@

test-peers-files: $(patsubst %,test-peers-%,$(FILE_PEERS))

# Nothing is fetched: what a peer would take from the hub is not needed. One thread, since the sizes are tiny: with two, on
# cores that others use, they wait for each other, and what takes seconds takes minutes.
$(patsubst %,test-peers-%,$(FILE_PEERS)): test-peers-%: $(STAMP) .venv-peers-%/.stamp
	rm -rf $(PEERS_DIR)-$*
	mkdir -p $(PEERS_DIR)-$*
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.peers.$(subst -,_,$*)_ours write $(PEERS_DIR)-$*
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 OMP_NUM_THREADS=1 .venv-peers-$*/bin/python tests/peers/$(subst -,_,$*)_theirs.py $(PEERS_DIR)-$*
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.peers.$(subst -,_,$*)_ours read $(PEERS_DIR)-$*

$(patsubst %,lock-peers-%,$(FILE_PEERS)): lock-peers-%: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet uv
	printf '%s\n' $(TORCH) '$(peer-$*)' | $(UV_3_11) - --quiet -o tests/peers/$*.lock
