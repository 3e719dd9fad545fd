# `make` lists the targets. Every variable of the first block can be given: make demo DETECTOR=DETR-ENACT
DETECTOR ?= Anchor-DETR-ENACT
PYTHON   ?= python3
VENV     ?= .venv
JOBS     ?= 2

RUN       := $(VENV)/bin/python
STAMP     := $(VENV)/.installed
PARTIAL   := $(VENV)/.partial
TESTS     := tests $(patsubst %/main.py,%/tests,$(wildcard */main.py))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-gpu data vendor figures tables lint $(TESTS)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s%s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  make DETR-ENACT/tests runs one folder's tests; make tests runs those of enact/, common/ and tools/."
	@echo "  DETECTOR=$(DETECTOR)  PYTHON=$(PYTHON)  VENV=$(VENV)  JOBS=$(JOBS) (test processes)"

demo: $(STAMP) ## train DETECTOR on the built-in shapes, on the CPU or a GPU, without a download; writes runs/demo
	$(RUN) $(DETECTOR)/main.py --demo --output_dir runs/demo

# One thread for each of the JOBS test processes: torch would otherwise start as many threads as there are cores in every one.
test $(TESTS): export OMP_NUM_THREADS ?= 1
test: lint ## lint, then run every test
	$(RUN) -m pytest -n $(JOBS) --dist loadfile

$(TESTS): $(STAMP)
	$(RUN) -m pytest -n $(JOBS) --dist loadfile $@

test-gpu: $(STAMP) ## run the tests that need a GPU
	$(RUN) -m pytest -m gpu tests/gpu

data: $(STAMP) ## draw the built-in shapes dataset, in COCO's layout, into data/shapes
	$(RUN) -m common.data.shapes --output data/shapes

vendor: ## copy common/ (and enact/ where used) into every detector's vendor/
	$(PYTHON) tools/vendor.py

figures: $(STAMP) ## draw the pictures of the demo in images/ anew
	$(RUN) tools/figures.py --draw demo_detections scans detector

tables: ## write the tables of the Markdown files anew from benchmarks/results
	$(PYTHON) tools/tables.py

lint: $(STAMP) ## check the style with ruff
	$(RUN) -m ruff check

# The stamp is written last, so an install that fails or is interrupted is run again by the next make. PARTIAL marks a
# folder made here whose first install has not ended: what it holds may be broken, so it is emptied (its dot files stay).
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "ENACT needs Python 3.10 or newer: name one, for example make PYTHON=python3.11" >&2; exit 1; }
	@if [ -e $(PARTIAL) ]; then rm -rf $(VENV)/*; fi
	@if [ ! -e $(VENV) ]; then mkdir -p $(VENV) && touch $(PARTIAL); fi
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install "pip>=21.3"
	$(RUN) -m pip install -e ".[dev]"
	@rm -f $(PARTIAL)
	@touch $@
