# Every job by name. RESULTS and DATA say where; ARGS goes to the script: make q1a ARGS="--seed 1"
PYTHON  ?= python3
RESULTS ?= results
DATA    ?= data
ARGS    ?=
BUDGET  ?= 10m

PY      := .venv/bin/python
DEMO    := $(RESULTS)/demo
SMOKE   := $(RESULTS)/smoke
DIRS     = --data-dir "$(DATA)" --results-dir "$(RESULTS)"

# Timings want the machine to themselves, and the report its inputs.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup data smoke demo q1a record race tuned photos q1b q2 flops best bench report all test gpu lint clean distclean

# Of what goes on by itself no step says what to type next.
smoke demo photos all: export BAKEOFF_NEXT = no

help: ## print this list
	@echo 'New here? Type: make demo    (the study in small: five to seven minutes once installed)'
	@echo '            or: make smoke   (every script on 1,797 small digits: 2 to 3 minutes, no download)'
	@echo 'Then open results/demo/report/report.html (or results/smoke/...) in a browser.'
	@echo
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.stamp ## create .venv and install what running needs
.venv/.stamp: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade -r requirements.txt
	@touch $@

.venv/.stamp-dev: .venv/.stamp requirements-dev.txt
	$(PY) -m pip install --quiet --upgrade -r requirements-dev.txt
	@touch $@

data: .venv/.stamp ## fetch and verify MNIST and FashionMNIST
	$(PY) -m common.data mnist fashion --data-dir "$(DATA)"

smoke: .venv/.stamp ## every script on the embedded digits, no network, two or three minutes
	$(PY) train.py --preset smoke --results-dir "$(SMOKE)" $(ARGS)
	$(PY) svm.py --preset smoke --results-dir "$(SMOKE)"
	$(PY) flops.py --preset study --results-dir "$(SMOKE)"
	$(PY) hw_bench.py --preset smoke --results-dir "$(SMOKE)"
	$(PY) train.py --preset smoke --best --export torchscript onnx --results-dir "$(SMOKE)"
	$(PY) hw_bench.py --mode infer --preset smoke --results-dir "$(SMOKE)"
	$(PY) report.py --results-dir "$(SMOKE)"
	@echo 'next: open $(SMOKE)/report/report.html in a browser; then make demo'

demo: data ## the study at reduced scale on the real data, five to seven minutes
	$(PY) train.py --preset record --seed 0 --data-dir "$(DATA)" --results-dir "$(DEMO)"
	$(PY) train.py --preset demo --data-dir "$(DATA)" --results-dir "$(DEMO)"
	$(PY) svm.py --preset demo --data-dir "$(DATA)" --results-dir "$(DEMO)"
	$(PY) flops.py --preset study --results-dir "$(DEMO)"
	$(PY) hw_bench.py --preset demo --data-dir "$(DATA)" --results-dir "$(DEMO)"
	$(PY) train.py --preset record --dataset fashion --seed 0 --best --export onnx onnx-int8 --data-dir "$(DATA)" --results-dir "$(DEMO)"
	$(PY) hw_bench.py --mode infer --preset demo --data-dir "$(DATA)" --results-dir "$(DEMO)"
	$(PY) report.py --data-dir "$(DATA)" --results-dir "$(DEMO)"
	@echo 'next: open $(DEMO)/report/report.html in a browser; then make record (ten seeds of the'
	@echo 'small network: minutes), make q1a (the study: hours), or train on your own images (README.md)'

q1a: data ## the 64 training configurations; hours; run again to continue
	$(PY) train.py --preset q1a $(DIRS) $(ARGS)

record: data ## the study's accuracies in seconds each, ten seeds
	$(PY) train.py --preset record $(DIRS) $(ARGS)

race: data ## the best of two optimisers and six learning rates, in ten minutes; BUDGET=2h: in two hours
	$(PY) train.py --preset race --budget $(BUDGET) $(DIRS) $(ARGS)

tuned: data ## ResNet-18 by a better recipe, five epochs, three seeds; an hour or two
	$(PY) train.py --preset tuned $(DIRS) $(ARGS)

photos: .venv/.stamp ## which network for your own photos: make photos IMAGES=folder (one folder a class)
	$(PY) svm.py --preset photos --dataset "folder:$(IMAGES)" $(DIRS) $(ARGS)
	$(PY) train.py --preset photos --dataset "folder:$(IMAGES)" $(DIRS) $(ARGS)
	$(PY) train.py --preset photos --dataset "folder:$(IMAGES)" --best --export onnx $(DIRS) $(ARGS)
	$(PY) report.py $(DIRS)

q1b: data ## the support vector machines
	$(PY) svm.py --preset q1b $(DIRS) $(ARGS)

q2: data ## training speed by device, or by CPU variant where there is only a CPU
	$(PY) hw_bench.py --preset q2 $(DIRS) $(ARGS)

flops: .venv/.stamp ## MACs, parameters and activations in three conventions
	$(PY) flops.py --preset study --results-dir "$(RESULTS)" $(ARGS)

best: data ## export each data set's best configuration, chosen on validation
	$(PY) train.py --preset q1a --best --export torchscript onnx onnx-int8 $(DIRS) $(ARGS)

bench: data ## inference speed of the exported models, behind the parity gate
	$(PY) hw_bench.py --mode infer $(DIRS) $(ARGS)

report: .venv/.stamp ## report.html, .md, .tex, .pdf, CSVs and figures from the log
	$(PY) report.py $(DIRS) $(ARGS)

all: q1a q1b q2 flops best bench report ## the whole study

test: .venv/.stamp-dev ## the full test suite, offline
	$(PY) -m pytest -n 2 $(ARGS)

gpu: .venv/.stamp-dev ## what needs an accelerator, in half an hour; rows in results/gpu
	$(PY) -m pytest -m gpu $(ARGS)

lint: .venv/.stamp-dev ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean: ## remove caches; never results or data
	rm -rf .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## also remove .venv; never results or data
	rm -rf .venv
