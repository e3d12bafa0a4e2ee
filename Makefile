# `make demo` and `make test` set everything up in .venv first; nothing is installed elsewhere.
PYTHON ?= python3
BIN := .venv/bin
# the committed studies, in the order of the front page's table; the published table of runs, for those that are compared with it, is not
# part of this repository: make report PUBLISHED=FILE
STUDIES := speed_94 speed_95 speed_90 modern_recipe published_resnet cnn_10_epochs resnet_24_epochs equal_compute
# those that are not in that table: their runs are shortened
OTHERS := speed_ingredients published_faults published_small

.PHONY: help setup demo test lab unpack report clean-demo

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

unpack:  ## lay out the records and histories of studies that are kept as one file
	for archive in $(wildcard executed/*/finished.tar.xz); do tar -xJf $$archive -C $$(dirname $$archive) --skip-old-files || exit; done

report: setup unpack  ## redraw the studies' charts and rewrite the pages' tables from the committed runs and measurements
	for study in $(STUDIES) $(OTHERS); do \
	  $(BIN)/python -m cifarlib results --runs executed/$$study/runs.csv --figures figures/$$study --readme executed/$$study/README.md || exit; \
	done
	$(BIN)/python -m cifarlib bench --no-measure --folder executed/throughput --readme executed/throughput/README.md
	$(BIN)/python -m cifarlib bench --no-measure --folder executed/throughput/without_bf16 --readme executed/throughput/README.md --section without_bf16
	$(BIN)/python -m cifarlib pages $(STUDIES) $(if $(PUBLISHED),--compare-with $(PUBLISHED))

lab: setup  ## open JupyterLab
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/explore.ipynb

clean-demo:  ## remove what the demo left
	rm -rf executed/demo
