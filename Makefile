PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-peers test-gpu docs bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Each stamp says that an extra is installed as pyproject.toml now asks for it.
$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

demo: $(VENV)/examples.stamp
	$(BIN)/python examples/char_rnn.py

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests --ignore=tests/peers -n auto --dist loadgroup

test-peers: $(VENV)/peers.stamp
	$(BIN)/python -m pytest tests/peers

# On a machine with an NVIDIA GPU, with the extra that fits its CUDA version: make test-gpu CUDA=cuda13
CUDA ?= cuda12
test-gpu: $(VENV)/test.stamp $(VENV)/$(CUDA).stamp
	$(BIN)/python -m pytest tests --ignore=tests/peers --backend cupy

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: $(VENV)/peers.stamp
	$(BIN)/python benchmarks/eager.py
	$(BIN)/python benchmarks/lengths.py
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/scan.py --engine array unrolled --rows LSTM
	$(BIN)/python benchmarks/scan_extra.py --tax --lengths --decayed --accuracy --cold --memory
	$(BIN)/python benchmarks/stream.py

clean:
	rm -rf $(VENV)
