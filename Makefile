# The commands of the project: `make help` lists them. Each target sets up what it needs on a machine
# with Python 3.11 or newer: a virtual environment in .venv, filled from requirements.lock.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export KEDRO_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = true
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: run test check bench results campaign-results lm-results notebooks planted-results ship transformers lm viz ui docs paper lock release-check clean help

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("HUSAI needs Python 3.11 or newer, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

run: $(READY)    ## the whole home study: kedro run
	$(BIN)/kedro run

test: $(READY)   ## the test suite, including all pipelines on a tiny study
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## ruff and mypy strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# as_csv: folder, tables in it, folder of the CSV files
as_csv = for table in $(2); do \
	test -f $(1)/$$table.parquet || { echo "$$table: not of this study, left out"; continue; }; \
	$(BIN)/python -c 'import sys, pandas; pandas.read_parquet(sys.argv[1]).round(5).to_csv(sys.argv[2], index=False)' \
		$(1)/$$table.parquet $(3)/$$(basename $$table).csv || exit 1; done

# the home study's tables that the documents of paper/ read
HOME_TABLES = $(addprefix consistency/,groups settings kinds coverage seeds_needed published \
		correlates trajectories geometry orderings) \
	$(addprefix consistency/tables/,saes covered retention comparisons strata truth seeds) \
	saes/table saes/loss_recovery activations/statistics activations/fourier_waves longer/moved \
	features/function features/reliability features/identifiability

results: $(READY) ## copy the last study's pages, with the pictures they show, to docs/results
	$(BIN)/python docs/copy_results.py data/reporting/home_study.md docs/results
	test ! -f data/reporting/structure.md || $(BIN)/python docs/copy_results.py data/reporting/structure.md docs/results
	mkdir -p docs/results/home
	$(call as_csv,data,$(HOME_TABLES),docs/results/home)
	cp data/transformer/training_summary.json data/transformer/evaluation.json docs/results/home/
	$(BIN)/python docs/run_costs.py docs/results/costs.csv data/mlflow.db
	test ! -f data/features/cards.parquet || $(BIN)/python docs/feature_maps.py data docs/results/maps

campaign-results: $(READY) ## copy the pages and tables of kedro run --env=campaign to docs/results/campaign
	$(BIN)/python docs/copy_results.py data/campaign/reporting/home_study.md docs/results/campaign/campaign.md
	$(call as_csv,data/campaign,saes/table saes/loss_recovery consistency/groups consistency/settings,docs/results/campaign)

lm-results: $(READY) ## copy the pages and tables of kedro run --env=lm to docs/results
	$(BIN)/python docs/copy_results.py data/lm/reporting/language_model.md docs/results/language_model
	test ! -f data/lm/reporting/language_function.md || $(BIN)/python docs/copy_results.py data/lm/reporting/language_function.md docs/results/language_model
	$(call as_csv,data/lm,consistency/groups language/metrics language/probe_summary language/untrained_groups language/function,docs/results/language_model)

notebooks: $(READY) ## run the notebooks on the last study and save their outputs
	$(BIN)/python notebooks/run.py

planted-results: $(READY) ## copy the page and tables of kedro run --pipelines=planted_truth to docs/results
	mkdir -p docs/results/planted_truth
	cp data/planted_truth/planted_truth.md data/planted_truth/calibration.png docs/results/planted_truth/
	$(call as_csv,data/planted_truth,settings planes calibration detectors gate,docs/results/planted_truth)

ship: results    ## ship the last study's SAEs with the project, and write the cards of what is shipped
	$(BIN)/python docs/ship.py --study data
	$(BIN)/python notebooks/run.py 5_shipped_saes.ipynb

transformers: $(READY) ## train the shipped transformers again (hours; weights differ between machines)
	$(BIN)/python benchmarks/ship_transformers.py data/shipped --shipped early_stop
	$(BIN)/python benchmarks/ship_transformers.py data/shipped --shipped cleaned_up

bench: $(READY)  ## time a training step of the transformer
	$(BIN)/python benchmarks/transformer_step.py

lm: $(READY)     ## the study of a small language model: kedro run --env=lm
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-lm.txt
	HF_HUB_OFFLINE=1 $(BIN)/kedro run --env=lm

viz: $(READY)    ## the pipelines, tables and figures in the browser (Kedro-Viz)
	$(BIN)/kedro viz run --host 127.0.0.1

ui: $(READY)     ## the tracked runs in the browser (MLflow)
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri "sqlite:///$${HUSAI_DATA_DIR:-$(CURDIR)/data}/mlflow.db"

lock: $(READY)   ## pin what is installed now
	$(BIN)/python -m pip freeze --exclude-editable | sed -e 's/+cpu$$//' > requirements.lock

.venv-docs/.ready: requirements-docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-docs.lock
	@touch $@

docs: .venv-docs/.ready ## build the documentation site: build/site/index.html, which opens from disk
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

paper: $(READY)  ## build the paper, supplement, slides and poster from the committed results: build/paper
	$(BIN)/python paper/figures.py
	$(BIN)/python paper/figures_talk.py
	$(BIN)/python paper/build.py --fonts $(VENV)/lib/python3*/site-packages/matplotlib/mpl-data/fonts/ttf

release-check: $(READY) ## build sdist and wheel, install each in a fresh environment, test it there
	$(BIN)/python .ci/release_check.py

clean:           ## remove the environment (data stays)
	rm -rf $(VENV)
