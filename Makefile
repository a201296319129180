# `make` lists the targets. Each does its own set-up; a second call finds it done.
#
#   STOP_AFTER=5, ALPHA=0.7, ...  any configuration key can stand on the make line: make hands it on in the environment
#   CONF=FILE.conf                the experiment of local-test
#   STAGE=bbox                    the stage of local-test (default attn_map)
#   VENV=DIR                      use or make the virtual environment DIR (default .venv)
#   PYTHON=python3.12             the Python that makes it (default: the first of python3, 3.13 ... 3.10 that fits)
#   BASE_IMAGE=IMAGE, TAG=NAME    what docker-build builds on, and the image's name
#   TORCH_INDEX=URL               take torch and torchvision from this package index, e.g. PyTorch's own index of
#                                 CPU builds: a tenth of the download where no GPU is wanted

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup local-test test soak quality bench demo docker-build cluster-test

CONF ?= configs/demo/exp_00_phantom.conf
STAGE ?= attn_map
VENV ?= .venv
PYTHON ?=
TORCH_INDEX ?=
KILLS ?= 200
# Paths travel in the environment, so that blanks and quotes in them mean nothing to make.
export CONF VENV PYTHON TORCH_INDEX KILLS BASE_IMAGE TAG

# The submit script of every stage.
SUBMIT_attn_map = Attention_Map/submit_heatmap_gen.sh
SUBMIT_bbox = Bounding_Box/submit_bbox_gen.sh
SUBMIT = $(or $(SUBMIT_$(STAGE)),$(error STAGE=$(STAGE): allowed are attn_map and bbox))

# Shell text at the start of a recipe: $py is the environment's Python, and this checkout is what it imports.
ENTER = set -euo pipefail; venv=$$(cd -- "$$VENV" && pwd); export PATH="$$venv/bin:$$PATH" PYTHONPATH="$$PWD/src"; py="$$venv/bin/python";

help: ## list the targets
	@printf 'usage: make TARGET [KEY=value ...]\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
	@printf '\n'
	@awk '/^#   [A-Z]/ || /^#    +[a-zA-Z]/ { print substr($$0, 2) } !/^#/ { exit }' Makefile

setup: ## make the virtual environment and install heatlens with its test and quality tools
	@bash .ci/setup.sh

local-test: setup ## run the demo experiment (STAGE=..., CONF=..., STOP_AFTER=...), without scheduler, container or GPU
	@$(ENTER) cd $(dir $(SUBMIT)); HEATLENS_PYTHON="$$py" bash $(notdir $(SUBMIT)) "$$CONF"

test: setup ## run the tests
	@$(ENTER) "$$py" -m pytest -n 2 --dist loadgroup tests

soak: setup ## kill the demo experiment 200 times at random moments (KILLS=...); every run must end byte-identical
	@$(ENTER) PYTHONPATH="$$PWD/src:$$PWD" "$$py" -m tests.batch.soak --kills "$$KILLS"

docker-build: ## build the container image heatlens:latest (BASE_IMAGE=..., TAG=...) with docker or podman
	@bash docker/build.sh $${BASE_IMAGE:+--base "$$BASE_IMAGE"} $${TAG:+--tag "$$TAG"}

cluster-test: setup ## prove submit scripts and containers on a private Slurm and Docker (root on Debian, 20 minutes)
	@$(ENTER) HEATLENS_PYTHON="$$py" bash .ci/cluster-test.sh

quality: setup ## lint, formatting, types and shell scripts
	@$(ENTER) ruff check .; ruff format --check .; mypy; \
	find . \( -name '.?*' ! -name .ci -o -name build -o -name results \) -prune -o \
	    \( -name '*.sh' -o -path './.ci/run' \) -type f -print0 | xargs -0 shellcheck -x; \
	printf 'quality: no complaints\n'

bench: setup ## measure: speed, dense CRF, pointing, the held-out demo against its truth, sanity checks (an hour, alone)
	@$(ENTER) HEATLENS_PYTHON="$$py" bash .ci/bench.sh

demo: ## run the demo experiment with all its questions, and make a figure of one
	@$(MAKE) --no-print-directory local-test CONF=configs/demo/exp_00_phantom.conf STOP_AFTER=
	@$(ENTER) "$$py" -m heatlens.cli figure Attention_Map/results/demo/exp_00_phantom
