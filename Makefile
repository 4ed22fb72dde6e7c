# make env    the environment alone: .venv from requirements.lock, this project installed editable
# make scope  text to features with the shipped model: harvest, store, SAEs, evaluation, pages
# make test   the tests
# make lint   ruff's lint and format checks
# make lock   rewrite requirements.lock from setup.py's ranges
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.stamp
SCOPE_DIR ?= runs/scope

.PHONY: env scope test lint format lock
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
	$(VENV)/bin/python -m experiments.scope --out_dir=$(SCOPE_DIR) $(SCOPE_FLAGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

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
