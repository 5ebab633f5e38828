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

# Seconds for each fuzz target.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS := $(notdir $(wildcard csrc/fuzz/corpus/*))
SANITIZED_TESTS := tests/cross tests/malformed tests/property/test_rans.py tests/property/test_bitpack.py
FUZZ_FLAGS = -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=30 \
  -artifact_prefix=build/fuzz/findings/
ASAN = $(shell c++ -print-file-name=libasan.so) $(shell c++ -print-file-name=libstdc++.so)

.PHONY: demo test lint sanitize fuzz wheel clean

demo: $(VENV)/.installed
	$(BIN)/flyweight demo --out $(OUT) --seed $(SEED)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.cpp' 'csrc/*.hpp' | xargs $(BIN)/clang-format --dry-run --Werror

# The kernels under address and undefined-behavior sanitizers, called by the tests; then the fuzz corpus.
sanitize: $(VENV)/.installed-fuzz
	$(BIN)/cmake -S . -B build/sanitize -DFLYWEIGHT_SANITIZE=address,undefined -DFLYWEIGHT_CUDA=OFF \
	  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" -DSKBUILD_PROJECT_VERSION_FULL=0 \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/sanitize --target _core --parallel 2
	rm -rf build/sanitize/python && mkdir build/sanitize/python
	cp -r python/flyweight build/sanitize/python/ && rm -f build/sanitize/python/flyweight/_core*.so
	cp build/sanitize/_core*.so build/sanitize/python/flyweight/
	LD_PRELOAD="$(ASAN)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	  PYTHONPATH=build/sanitize/python $(BIN)/python -m pytest $(SANITIZED_TESTS)
	$(BIN)/cmake -S . -B build/replay -DFLYWEIGHT_FUZZ=REPLAY -DFLYWEIGHT_SANITIZE=address,undefined
	$(BIN)/cmake --build build/replay --parallel 2
	for target in $(FUZZ_TARGETS); do \
	  build/replay/csrc/fuzz/fuzz_$$target csrc/fuzz/corpus/$$target || exit 1; done

# New inputs go to build/fuzz/new/, findings to build/fuzz/findings/; the corpus is left alone.
fuzz: $(VENV)/.installed-fuzz
	CXX=clang++ $(BIN)/cmake -S . -B build/fuzz -DFLYWEIGHT_FUZZ=LIBFUZZER \
	  -DFLYWEIGHT_SANITIZE=address,undefined
	$(BIN)/cmake --build build/fuzz --parallel 2
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p build/fuzz/new/$$target build/fuzz/findings && \
	  build/fuzz/csrc/fuzz/fuzz_$$target $(FUZZ_FLAGS) -max_len=3000 \
	    build/fuzz/new/$$target csrc/fuzz/corpus/$$target || exit 1; done
	mkdir -p build/fuzz/new/container
	$(BIN)/python tests/fuzz/fuzz_container.py $(FUZZ_FLAGS) -max_len=2500 \
	  build/fuzz/new/container tests/fuzz/corpus

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

$(VENV)/.installed-fuzz: $(VENV)/.installed-test
	$(PIP) 'pybind11>=2.13' 'atheris>=3'
	touch $@
