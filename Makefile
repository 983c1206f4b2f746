# Everything here builds .venv by itself the first time. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pinned PyTorch; a GPU machine may ask for another build, for example
#   make demo TORCH="torch==2.13.0 --index-url ADDRESS_OF_A_CUDA_BUILD"
TORCH ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo demo-tensorflow test lint bench docs clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Each stamp is younger than the files it depends on, so a second `make` installs nothing.
$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.tensorflow: $(VENV)/.base
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tensorflow]"
	@touch $@

$(VENV)/.dev: $(VENV)/.tensorflow
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tensorflow,postgresql,parquet,operations,dev]"
	@touch $@

demo: $(VENV)/.base  ## Get MNIST, train it on two workers, draw the curve
	$(BIN)/lepton data get mnist
	$(BIN)/lepton train examples/mnist/job.py --cluster examples/mnist/cluster.yaml

demo-tensorflow: $(VENV)/.tensorflow  ## The same with a Keras model
	$(BIN)/lepton data get mnist
	$(BIN)/lepton train examples/mnist_tensorflow/job.py --cluster examples/mnist/cluster.yaml

test: lint  ## Lint, types, import contract and all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## Lint, types and import contract only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.dev  ## Run the benchmarks (an hour and a half; peers install themselves)
	$(BIN)/python -m benchmarks.sync_training
	$(BIN)/python -m benchmarks.time_to_accuracy
	$(BIN)/python -m benchmarks.sdk_ten_epochs
	$(BIN)/python -m benchmarks.parameter_server
	$(BIN)/python -m benchmarks.consistency
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.private_training
	$(BIN)/python -m benchmarks.privacy_accounting
	$(BIN)/python -m benchmarks.private_accuracy
	$(BIN)/python -m benchmarks.privacy_audit
	$(BIN)/python -m benchmarks.planner_accuracy
	$(BIN)/python -m benchmarks.planner_local
	$(BIN)/python -m benchmarks.planner_speed
	$(BIN)/python -m benchmarks.nab
	$(BIN)/python -m benchmarks.operator_alarms
	$(BIN)/python -m benchmarks.agent_cost
	$(BIN)/python -m benchmarks.training_watch
	$(BIN)/python -m benchmarks.remaining_life

docs: $(VENV)/.dev  ## Write the generated pages of docs/ anew
	$(BIN)/python -m leptonai.compute.reference > docs/cluster-file.md
	$(BIN)/python -m leptonai.cli.reference > docs/commands.md

clean:  ## Remove what was built, not what was trained
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
