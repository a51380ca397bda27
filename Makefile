# make prune   set everything up from nothing, then prune a ResNet-50 and a LeNet and train the LeNet
# make test    set everything up from nothing, then run the tests
# The others: make setup | lint | sanitize | wheel-test | bench | clean.  PYTHON=python3.12 and VENV=folder choose where.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SPREAD := --numprocesses auto --maxprocesses 4
SOURCES := setup.py pyproject.toml $(wildcard csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh csrc/*/*.h csrc/include/sparseprune/*.h csrc/include/sparseprune/*/*.h)

.PHONY: setup prune test wheel-test sanitize lint bench clean

setup: $(INSTALLED)

# torch first and no build isolation: the libraries are compiled against the torch that will run them, and
# nothing is downloaded twice.
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0" "setuptools>=77" wheel "pybind11>=2.13" ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

prune: setup
	$(BIN)/sparseprune prune resnet50 --criterion synflow --density 0.01 --steps 100 --input 3x224x224 --out runs/resnet50-synflow
	$(BIN)/sparseprune prune lenet_300_100 --criterion snip --sparsity 0.95 --data digits --out runs/lenet-snip
	$(BIN)/sparseprune train lenet_300_100 --masks runs/lenet-snip/masks.safetensors --data digits --epochs 40 --resume --out runs/lenet-snip
	$(BIN)/sparseprune report runs/resnet50-synflow --out runs/resnet50-synflow/report.png
	$(BIN)/sparseprune report runs/lenet-snip --out runs/lenet-snip/report.png

# A file's tests share what they compile, so a process gets whole files; in their own order, as by number of tests the files
# of few but long ones would be left for the end, where a process works alone.
test: setup
	$(BIN)/python -m pytest tests $(SPREAD) --dist loadfile --no-loadscope-reorder

# The wheel as a stranger gets it: built, installed into a fresh environment, tested from another folder.
wheel-test: setup
	rm -rf build/wheel build/wheel-venv
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install --quiet "torch==2.13.0"
	build/wheel-venv/bin/python -m pip install --quiet build/wheel/*.whl pytest hypothesis
	cd / && $(CURDIR)/build/wheel-venv/bin/python -m pytest -q -p no:cacheprovider --rootdir $(CURDIR)/tests \
	    -c $(CURDIR)/pyproject.toml $(CURDIR)/tests/ops/test_packed.py $(CURDIR)/tests/test_pruning.py
	cd / && $(CURDIR)/build/wheel-venv/bin/sparseprune info

# The CPU kernels under AddressSanitizer and UBSan: the tests of the ops again, on a build in a folder of its own.
# (Under ThreadSanitizer they run in tests/test_cpu_races.py, which needs no torch: it reports torch's own threads.)
sanitize: setup
	rm -rf build/sanitize
	SPARSEPRUNE_SANITIZE=address,undefined SPARSEPRUNE_CUDA=0 $(BIN)/python setup.py -q build --build-lib build/sanitize
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize $(BIN)/pytest -q -p no:cacheprovider $(SPREAD) \
	    tests/ops/test_native_blocks.py tests/ops/test_topk_mask.py tests/ops/test_topk_shards.py \
	    tests/ops/test_packed.py tests/ops/test_sparse_rows.py tests/ops/test_dense_scores.py tests/ops/test_position_maps.py \
	    tests/ops/test_contract.py -k "not triton and not opcheck"

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

bench: setup
	mkdir -p runs
	$(BIN)/python -m benchmarks --out runs/bench.json
	$(BIN)/python -m benchmarks.report runs/bench.json --name cpu

clean:
	rm -rf $(VENV) build dist runs sparseprune/lib *.egg-info
	rm -f sparseprune/_C*.so
