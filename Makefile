# Everything lives in .venv; nothing is installed elsewhere.
#
#   make demo                 see `make help`
#   make demo SEED=1
#   make test PYTEST_ARGS="tests/rl -x"
#
# Variables for special machines:
#   PYTHON       interpreter for the virtual environment, 3.11 or newer
#   TORCH_INDEX  package index that torch alone is taken from. On CPU-only Linux the default index serves the CUDA
#                build, gigabytes larger: name PyTorch's index of CPU wheels here.
#   PIP_EXTRA    further options for every pip call, for example --find-links or --proxy
PYTHON ?= python3
TORCH_INDEX ?=
PIP_EXTRA ?=
PYTEST_ARGS ?=
SEED ?= 0
DEMO ?= runs/demo-$(SEED)

VENV := .venv
BIN := $(VENV)/bin
DVLA := $(BIN)/dvla
PIP_INSTALL := $(BIN)/python -m pip install -c constraints.txt $(PIP_EXTRA)
INSTALLED := $(VENV)/.installed
LIBERO_INSTALLED := $(VENV)/.libero

.DEFAULT_GOAL := help
.PHONY: help demo test lint libero clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## SFT, then RL on the built-in environment: table, learning curve and pictures (two CPU cores)
	rm -rf $(DEMO)
	$(DVLA) collect --config configs/collect.yaml --out $(DEMO)/data --seed $(SEED)
	$(DVLA) fit --config configs/sft.yaml --seed_everything $(SEED) \
		--data.path $(DEMO)/data --trainer.default_root_dir $(DEMO)/sft
	$(DVLA) validate --config configs/rl.yaml --data.evaluation.num_episodes 400 \
		--model.policy.pretrained $(DEMO)/sft/policy --trainer.default_root_dir $(DEMO)/sft
	$(DVLA) fit --config configs/rl.yaml --seed_everything $(SEED) \
		--model.policy.pretrained $(DEMO)/sft/policy --trainer.default_root_dir $(DEMO)/rl
	$(DVLA) validate --config configs/rl.yaml --data.evaluation.num_episodes 400 \
		--model.policy.pretrained $(DEMO)/rl/policy --trainer.default_root_dir $(DEMO)/rl
	$(DVLA) report --before $(DEMO)/sft --after $(DEMO)/rl --run $(DEMO)/rl --out $(DEMO)/report.png

test: $(INSTALLED) ## run the tests; those of simulators that are not installed are skipped
	$(BIN)/python -m pytest -q -ra $(PYTEST_ARGS)

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

libero: $(LIBERO_INSTALLED) ## add the LIBERO simulator (the system needs EGL or OSMesa; assets: $LIBERO_ASSETS)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone: TORCH_INDEX must not serve anything else.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

# --no-deps leaves out what only LIBERO's own training code imports, torchvision above all: beside a CPU-only torch it
# breaks transformers. The first line is what the environments do import. `pip check` complains about the rest.
$(LIBERO_INSTALLED): $(INSTALLED)
	$(PIP_INSTALL) 'mujoco>=3.0,<3.9' numba scipy opencv-python-headless matplotlib easydict cloudpickle termcolor \
		pyyaml future huggingface-hub tqdm pillow gymnasium
	$(PIP_INSTALL) --no-deps hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1
	@touch $@
