# Two commands: `make demo` runs the main job, `make test` the tests. Each makes its own virtual
# environment on first use and starts at once afterwards.
#
# People without an NVIDIA GPU can spare themselves gigabytes of CUDA packages by pointing pip at
# PyTorch's CPU wheel index (its URL is on pytorch.org, "Get started"):
#     make demo TORCH_INDEX_URL=https://...
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
SEED ?= 1337
OUT ?= demo

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc python -name '*.[ch]pp' -o -name '*.py' -o -name '*.toml')

.PHONY: demo test lint wheel clean

demo: $(VENV)/.installed
	$(BIN)/flyweight demo --out $(OUT) --seed $(SEED)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.hpp' | xargs $(BIN)/clang-format --dry-run --Werror

wheel: $(VENV)/.installed
	$(PIP) build
	$(BIN)/python -m build

clean:
	rm -rf build dist $(VENV)

# PyTorch first and by itself, so that nothing after it asks for another build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	touch $@

$(VENV)/.installed: EXTRAS = train
$(VENV)/.installed-test: EXTRAS = train,test
$(VENV)/.installed-lint: EXTRAS = train,test,lint
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-lint: $(VENV)/.torch $(SOURCES)
	$(PIP) --constraint constraints.txt '.[$(EXTRAS)]'
	touch $@
