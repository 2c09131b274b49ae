# `make help` lists what there is. Everything below works from a fresh clone: each target makes the environment first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
CORES ?= 2
PROFILE ?= pocket
# a profile in configs/ that sends the workflow's jobs to a cluster: CLUSTER=slurm
CLUSTER ?=
# extra words for the installation of torch, such as the index of CPU builds on Linux: TORCH_ARGS="--index-url ..."
TORCH_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.complete
SLURM := .venv/.slurm
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --progress-bar off

# One thread a process, and no thread that spins while it waits: two busy cores slow each other down a hundredfold otherwise.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export TOKENIZERS_PARALLELISM := false
# The pocket world is committed: nothing on these paths may reach for a model hub.
reproduce ablation pilot cells beyond lr base test docs bench faults audit cluster: export HF_HUB_OFFLINE := 1

.PHONY: help venv publish reproduce ablation pilot cells beyond lr base test docs bench faults audit cluster report gpu paper readme lab lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## make .venv with the exact versions of requirements.lock

$(STAMP): requirements.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 11) else "make venv: $(PYTHON) is Python %d.%d, mcft needs 3.11 or newer; name another one, such as: make venv PYTHON=python3.12" % v)'
	@echo "Installing into .venv (a few minutes the first time) ..."
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(PIP) $(TORCH_ARGS) "$$(grep '^torch==' requirements.lock)"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(SLURM): $(STAMP)
	@$(PIP) -c requirements.lock --no-build-isolation -e '.[slurm]'
	@touch $@

# A killed run leaves Snakemake's own lock behind; flock, where there is one, goes with its process.
OWN = $(if $(filter beyond%,$(PROFILE)),--snakefile beyond.smk)
SNAKEMAKE = $(if $(shell command -v flock),mkdir -p runs && flock -o -n -E 75 runs/.lock $(BIN)/snakemake --nolock,$(BIN)/snakemake) \
	$(OWN) --configfile configs/$(PROFILE).yaml --quiet rules host $(if $(CLUSTER),--profile configs/$(CLUSTER),--cores $(CORES)) --rerun-incomplete
BUSY = || { [ $$? -ne 75 ] || echo "make $@: another run is going on in this clone; wait for it, or stop it" >&2; exit 1; }

reproduce ablation pilot beyond lr: $(if $(CLUSTER),$(SLURM))

reproduce: venv ## problems to tables and figures, PROFILE=pocket (CLUSTER=slurm: as jobs of a Slurm cluster)
	@$(SNAKEMAKE) $(BUSY)
	@$(BIN)/python docs/results.py --tables runs/$(PROFILE)/{results,06_ablation,02_critique} --figures runs/$(PROFILE)/figures --out runs/$(PROFILE)/results.md
	@echo "tables:       runs/$(PROFILE)/results/"
	@echo "figures:      runs/$(PROFILE)/figures/"
	@echo "results page: runs/$(PROFILE)/results.md"

report: venv ## Snakemake's HTML report of a finished run, with its figures: runs/pocket/report.html (PROFILE=pocket)
	@$(BIN)/snakemake $(if $(wildcard runs/$(PROFILE)/13_experiment/run.json),experiment) $(OWN) --nolock --configfile configs/$(PROFILE).yaml --cores 1 --quiet rules host --report runs/$(PROFILE)/report.html

# The grid's own targets: PROFILE is ablation unless another one is named.
ablation pilot: PROFILE = ablation
ablation: venv ## the ablation as an experiment, all of its grid: hours on two cores; goes on where it stopped
	@$(SNAKEMAKE) experiment $(BUSY)
	@echo "what was found: runs/$(PROFILE)/13_experiment/found.md"

pilot: venv ## the pilot on the dev split that the experiment's power calculation rests on
	@$(SNAKEMAKE) pilot $(BUSY)

cells: venv ## three random runs of the experiment's grid made again from nothing, and compared with their committed rows
	@$(BIN)/python -m measure.cells $(CELLS)

# Its own workflow, beyond.smk: other jobs, the same ways to run them.
beyond: PROFILE = beyond
beyond: venv ## what comes after critique fine-tuning: DPO and GRPO from four starts, Phi-4-Mini's stages; goes on where it stopped
	@$(SNAKEMAKE) all $(BUSY)
	@echo "what was found: runs/$(PROFILE)/15_beyond/found_beyond.md"

lr: venv ## choose each arm's learning rate on the dev split
	@$(SNAKEMAKE) lr $(BUSY)

publish: ## commit-ready copies of a finished run: rows, tables, figures, small artifacts (PROFILE=pocket)
	@test -f runs/$(PROFILE)/06_ablation/run.json || test -f runs/$(PROFILE)/13_experiment/run.json || test -f runs/$(PROFILE)/15_beyond/run.json || { echo "make publish: runs/$(PROFILE) is not complete; run make $(if $(filter ablation% beyond%,$(PROFILE)),$(firstword $(subst _, ,$(PROFILE))),reproduce) PROFILE=$(PROFILE) first" >&2; exit 1; }
	@mkdir -p data/results figures
	@cp runs/$(PROFILE)/figures/* figures/
	@if test -f runs/$(PROFILE)/13_experiment/run.json; then \
	    cp runs/$(PROFILE)/results/ablation.parquet runs/$(PROFILE)/results/*.csv runs/$(PROFILE)/13_experiment/*.csv data/results/; cp runs/$(PROFILE)/13_experiment/found.md docs/; \
	    $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level WARN nbs/13_experiment.ipynb; $(BIN)/nbdev_clean --fname nbs/13_experiment.ipynb; \
	    $(BIN)/python docs/provenance.py --run runs/$(PROFILE) --command 'make ablation'; \
	elif test -f runs/$(PROFILE)/15_beyond/run.json; then \
	    cp runs/$(PROFILE)/results/beyond*.{parquet,csv} runs/$(PROFILE)/15_beyond/*.csv data/results/; cp runs/$(PROFILE)/15_beyond/found_beyond.md docs/; \
	    $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level WARN nbs/15_beyond.ipynb; $(BIN)/nbdev_clean --fname nbs/15_beyond.ipynb; \
	    $(BIN)/python docs/provenance.py --run runs/$(PROFILE) --command 'make beyond'; else \
	    cp runs/$(PROFILE)/results/*.{csv,md,tex} runs/$(PROFILE)/06_ablation/{loss_curves.csv,contrasts_pocket.csv,findings.md} runs/$(PROFILE)/02_critique/funnel.csv data/results/; \
	    cp runs/$(PROFILE)/01_data/rollouts.jsonl runs/$(PROFILE)/02_critique/critiques.jsonl runs/$(PROFILE)/03_masking/encoded.jsonl data/pocket/; \
	    $(BIN)/python docs/provenance.py --run runs/$(PROFILE) --command 'make reproduce'; fi
	@$(BIN)/python docs/readme.py
	@$(BIN)/python docs/results.py

base: venv ## train the pocket base from nothing and put it into data/pocket/base
	@mkdir -p runs/base
	@$(BIN)/papermill nbs/00_pocket.ipynb runs/base/00_pocket.ipynb -p build_base True -p publish True --log-level WARNING

test: venv ## the nbdev gates, the docs build, pytest
	@tests/gates.sh
	@$(MAKE) --no-print-directory docs
	@$(BIN)/python -m pytest -q tests

docs: venv ## build the site into _docs/
	@$(BIN)/python docs/build.py

bench: venv ## speed and memory against named peers: data/results/benchmarks.csv (NAMES="grading generation" for some)
	@$(BIN)/python -m measure bench $(NAMES)

faults: venv ## fault and kill tests at full size: data/results/faults.csv (NAMES=eval for some)
	@$(BIN)/python -m measure faults $(NAMES)

cluster: venv $(SLURM) ## the smoke workflow on a Slurm of one node, with kills and lost nodes: data/results/slurm*.csv (root, Debian or Ubuntu)
	@tests/cluster/slurm.sh
	@$(BIN)/python docs/provenance.py data/results/slurm{,_jobs}.csv --command 'make cluster'

audit: venv ## the facts of the paper's release, their table and figures (data/results/audit.csv, figures/audit_*)
	@mkdir -p runs/audit
	@$(BIN)/papermill nbs/10_audit.ipynb runs/audit/10_audit.ipynb -p figures figures -p results data/results --log-level WARNING
	@$(BIN)/python docs/provenance.py data/results/audit.csv figures/audit_{paired,truncation}.{png,csv} --command 'make audit'

# One GPU job at a time, and the hub may be asked: variables given on the command line win over the exports above.
paper: venv ## the paper's setting on a GPU (configs/paper.yaml); shows the cost of the teacher and stops before it is paid
	@$(MAKE) --no-print-directory reproduce PROFILE=paper CORES=1 HF_HUB_OFFLINE=0

gpu: venv ## memory and speed of the 1.5B architecture on this machine's GPU: data/results/gpu.csv
	@$(BIN)/python -m measure.gpu_train

readme: venv ## README.md from nbs/index.ipynb
	@$(BIN)/python docs/readme.py

lab: venv ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs

lock: ## resolve settings.ini anew and rewrite requirements.lock
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) $(TORCH_ARGS) "$$(grep '^torch==' requirements.lock)"
	@$(PIP) -e '.[dev]'
	@{ echo '# Exact versions of everything `make venv` installs, torch before the rest. Written by `make lock` from settings.ini.'; \
	   $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed -E 's/\+[A-Za-z0-9.]+$$//'; } > requirements.lock
	@touch $(STAMP)

clean: ## remove what the targets made, except .venv
	@rm -rf runs _proc _docs .snakemake
