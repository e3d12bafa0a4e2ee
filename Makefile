# `make demo` and `make test` set everything up in .venv first; nothing is installed elsewhere.
PYTHON ?= python3
BIN := .venv/bin
# the committed studies that README.md reports
STUDIES := published_resnet cnn_10_epochs resnet_24_epochs equal_compute

.PHONY: help setup demo test lab report clean-demo

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.done  ## make .venv with everything in it

.venv/.done: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cifarlib needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: setup  ## train a mini-grid of all three models and draw its charts
	$(BIN)/python -m cifarlib grid parameters/demo.yaml --study demo
	$(BIN)/python -m cifarlib results --runs executed/demo/runs.csv
	@echo 'executed notebooks: executed/demo/*/experiment.ipynb'
	@echo 'table of runs:      executed/demo/runs.csv'
	@echo 'figures:            executed/demo/figures/'

test: setup  ## run all tests
	$(BIN)/python -m pytest

report: setup  ## redraw the studies' charts and rewrite the README from the committed runs and measurements
	for study in $(STUDIES); do \
	  $(BIN)/python -m cifarlib results --runs executed/$$study/runs.csv --figures figures/$$study --readme README.md --section $$study || exit; \
	done
	$(BIN)/python -m cifarlib bench --no-measure --readme README.md

lab: setup  ## open JupyterLab
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/explore.ipynb

clean-demo:  ## remove what the demo left
	rm -rf executed/demo
