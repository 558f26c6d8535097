# The two commands of this repository are `make demo` and `make test`; both do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := fl_core client_sdk services cli

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: demo test setup lint types contracts proto check format clean

demo: setup  ## ten sites train one model over mTLS with secure aggregation while three are killed
	$(BIN)/tacit demo $(ARGS)

test: setup  ## all tests
	$(BIN)/pytest -n auto --dist worksteal $(ARGS)

setup: $(INSTALLED)  ## virtual environment with everything in it; a second run does nothing

# torch comes first and alone: any other order lets a dependency pull the build with gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

BENCH_VENV := .venv-bench
.PHONY: bench-setup
bench-setup: $(BENCH_VENV)/.installed  ## Flower in an environment of its own, for the side-by-side benchmarks

# Only what the extra `bench` names, without our pins: the two sets of them do not fit together.
$(BENCH_VENV)/.installed: export PIP_CONSTRAINT :=
$(BENCH_VENV)/.installed: pyproject.toml
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' > $(BENCH_VENV)/requirements.txt
	$(BENCH_VENV)/bin/python -m pip install --quiet --requirement $(BENCH_VENV)/requirements.txt
	touch $@

check: lint types contracts proto-current  ## everything that is checked without running the tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/mypy tests/typing_api.py

contracts: setup
	$(BIN)/lint-imports

.PHONY: proto-current
proto-current: setup
	$(BIN)/python proto/generate.py --check

proto: setup  ## generate fl_core/wire/v1 again after a change of a .proto file
	$(BIN)/python proto/generate.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(BENCH_VENV) .mypy_cache .ruff_cache .hypothesis
