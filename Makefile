# Two commands do everything on a machine with Python >= 3.11, make and a package index: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint soak bench venv clean

demo: $(STAMP)  ## make the synthetic iris set, train cross-entropy and SAGE, compare, write demo/report.html
	$(BIN)/lookhere demo --out demo

test: $(STAMP)  ## all tests but the long ones
	$(BIN)/python -m pytest -m "not soak"

soak: $(STAMP)  ## the long tests
	$(BIN)/python -m pytest -m soak

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## measure this machine, about 70 minutes on two idle cores, and show it beside the targets
	$(BIN)/python benchmarks/step_cost.py --backbones resnet18,resnet50 --repeats 25 --seconds 90 --save
	$(BIN)/python benchmarks/step_cost.py --backbones densenet121 --without-literal --repeats 25 --seconds 90 --save
	$(BIN)/python benchmarks/step_cost.py --backbones resnet50 --precision bfloat16 --repeats 25 --seconds 90 --save
	$(BIN)/python benchmarks/step_cost.py --cheaper --repeats 15 --seconds 60 --save
	$(BIN)/python benchmarks/step_cost.py --cheaper --backbones tf_efficientnet_lite0 --size 96 --repeats 15 --seconds 60 --save
	$(BIN)/python benchmarks/allocator.py --save
	$(BIN)/python benchmarks/memory.py --save
	$(BIN)/python benchmarks/epoch.py --save
	$(BIN)/python benchmarks/study_throughput.py --save
	$(BIN)/python benchmarks/decode.py --save
	$(BIN)/python benchmarks/floor.py --save
	$(BIN)/python benchmarks/growth.py step --save
	$(BIN)/python benchmarks/growth.py images --save
	$(BIN)/python benchmarks/growth.py plans --limit 300 --save
	$(BIN)/python benchmarks/targets.py

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lookhere needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[annotations,medical,ray]"
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
