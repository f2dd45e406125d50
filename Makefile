# itmkit: `make demo` trains a small model and shows its recall, `make test` runs the tests,
# `make test-long` those that take minutes, `make test-extras` those of optional parts; `make docs`
# makes the documentation, `make links` asks the web addresses in it, `make bench` measures the speed
# of itmkit (docs/performance.md). All make their own environment in .venv, once; VENV= and PYTHON=
# choose others.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto --dist worksteal
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.itmkit-installed

# `make photos DATA=folder`: its images/ and dataset_*.json (Karpathy's form); weights are fetched, or
# local: IMAGE_WEIGHTS="--checkpoint FILE --checkpoint_by_order true" TEXT_MODEL=FOLDER.
SYSTEM ?= mate
VIEWS ?= 3
FEATURES ?= runs/photos-features
IMAGE_WEIGHTS ?= --pretrained true
TEXT_MODEL ?= sentence-transformers/all-MiniLM-L6-v2
ANNOTATIONS = $(firstword $(wildcard $(DATA)/dataset_*.json))

.PHONY: env demo photos test test-long test-extras docs links bench lint types build clean

env: $(INSTALLED)

# Made again when the dependencies change, or the version.
$(INSTALLED): pyproject.toml itmkit/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "itmkit needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --editable . --group dev
	touch $@

demo: env
	$(BIN)/python -m pip install --quiet "matplotlib>=3.9"
	$(BIN)/itmkit fit --config mate/shapes --name demo
	$(BIN)/itmkit test --config mate/shapes --name demo --untrained true \
		--ckpt_path runs/demo/latest/checkpoints/best.ckpt
	$(BIN)/python examples/hits_of_shapes.py runs/demo/latest

# From captioned photos to recall (docs/results.md): features of frozen models, then a system on them.
photos: env
	test -f "$(ANNOTATIONS)"  # DATA=folder, with dataset_*.json in it
	$(BIN)/itmkit extract --annotations "$(ANNOTATIONS)" --images "$(DATA)/images" --split train \
		--model tf_efficientnet_lite0 $(IMAGE_WEIGHTS) --text_model "$(TEXT_MODEL)" \
		--views $(VIEWS) --mirror_mean true --output "$(FEATURES)"
	$(BIN)/itmkit extract --annotations "$(ANNOTATIONS)" --images "$(DATA)/images" --split val \
		--model tf_efficientnet_lite0 $(IMAGE_WEIGHTS) --text_model "$(TEXT_MODEL)" \
		--mirror_mean true --output "$(FEATURES)"
	$(BIN)/itmkit fit --config $(SYSTEM)/karpathy --captions "$(ANNOTATIONS)" \
		--features "$(FEATURES)" --text_features "$(FEATURES)" --name photos

test: env
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What takes minutes: 2,000 steps of each system (ITMKIT_LONG_STEPS), many kills and resumes.
test-long: env
	$(BIN)/python -m pytest -m long -rA --disable-warnings $(PYTEST_ARGS) tests

# What needs packages that itmkit does not: skipped in `make test` where they are not installed.
test-extras: env
	$(BIN)/python -m pip install --quiet --group extras
	$(BIN)/python -m pytest -m extras -rs $(PYTEST_ARGS) tests

# The documentation site, in docs/_build/html; tutorials that changed are run.
docs: env
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# Every web address of the documentation is asked, which needs a network.
links: env
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -m sphinx -b linkcheck docs docs/_build/links

bench: env
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks $(TOPICS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

build: env
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
