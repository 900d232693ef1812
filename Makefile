# What this repository can do, each by one command on a machine that has only python3 (3.11 or newer, with venv) and make.
# Every target sets up what it needs first; `.venv` is rebuilt when pyproject.toml or constraints.txt have changed.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TOWERS := .venv-towers
TOWERS_RUN := $(TOWERS)/bin/python
TOWERS_INSTALLED := $(TOWERS)/.installed
PEERS := .venv-peers
PEERS_RUN := $(PEERS)/bin/python
PEERS_INSTALLED := $(PEERS)/.installed
BROWSER := .venv-browser
BROWSER_RUN := $(BROWSER)/bin/python
BROWSER_INSTALLED := $(BROWSER)/.installed
DOCS := .venv-docs
DOCS_RUN := $(DOCS)/bin/python
DOCS_INSTALLED := $(DOCS)/.installed
NOTEBOOKS ?= off
BENCH := .venv-bench
BENCH_RUN := $(BENCH)/bin/python
BENCH_INSTALLED := $(BENCH)/.installed
PAGE := tests/mechvis/models/test_families.py::test_page_is_drawn_from_the_measurements_and_lists_every_family
DEMO := demo
TESTS ?=
WORKERS ?= 2
BENCH_OPTIONS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test towers peers slow families bench browser notebooks docs lint format clean

help:            ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1@/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "  make %-8s %s\n", $$1, $$2 }'

setup: $(INSTALLED)   ## create .venv and install everything that the other targets need

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "error: no '$(PYTHON)' here. Install Python 3.11 or newer, or name it: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: mechvis needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "error: '$(PYTHON)' lacks the module venv (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -m pip install --quiet -c constraints.txt -e . --group test
	@touch $@

demo: $(INSTALLED)    ## the main job: CIGMA head sweep of the bundled classifier; table, pruned model and report in demo/
	$(RUN) -m mechvis cigma --model scenes-vit --images scenes --out $(DEMO) --save-model $(DEMO)/pruned-model

# Two processes with one thread each: on two cores that takes half the time of one process with two threads.
test: $(INSTALLED)    ## the tests, without the slow ones (one file: make test TESTS=tests/test_package.py)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(TESTS)

# timm, open_clip and torchvision live in an environment of their own, laid over the first one: a torchvision that does
# not fit the build of torch breaks `import transformers`, and must not do so where everything else is tested. Triton
# is there too: it is large, and without a GPU its kernels run in an interpreter.
$(TOWERS_INSTALLED): $(INSTALLED)
	$(PYTHON) -m venv $(TOWERS)
	@$(RUN) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(TOWERS_RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(RUN) -m pip --python $(TOWERS_RUN) install --quiet -c constraints.txt --group towers
	@touch $@

towers: $(TOWERS_INSTALLED)   ## tests of timm, open_clip and torchvision models and of Triton kernels, in a second environment
	OMP_NUM_THREADS=1 $(TOWERS_RUN) -m pytest -m "not slow" -n $(WORKERS) --dist load tests/towers tests/mechvis/kernels $(TESTS)

# Other libraries of dictionaries, in an environment of their own: they want an older transformer_lens than we do, and one of
# them brings a torchvision that breaks `import transformers` beside a CPU build of torch.
$(PEERS_INSTALLED): constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS_RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(PEERS_RUN) -m pip install --quiet -r constraints-peers.txt
	$(PEERS_RUN) -m pip uninstall --quiet --yes torchvision
	@touch $@

peers: $(PEERS_INSTALLED)     ## files exchanged with sae-lens and others, each checked by the library itself, in a third environment
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PEERS_RUN) -m pytest --noconftest -p no:cacheprovider tests/peers
	PYTHONPATH=. OMP_NUM_THREADS=1 $(PEERS_RUN) tests/sae/formats/check_with_libraries.py

slow: $(INSTALLED) $(TOWERS_INSTALLED)   ## the slow tests of both environments
	$(RUN) -m pytest -m slow $(TESTS)
	$(TOWERS_RUN) -m pytest -m slow tests/towers tests/mechvis/kernels

families: $(INSTALLED) $(TOWERS_INSTALLED)   ## measure every model family anew and write docs/families.md
	$(RUN) -m pytest tests/mechvis/models/test_families.py --families-table --deselect $(PAGE)
	$(TOWERS_RUN) -m pytest -m "not slow" tests/towers -k "family or trunks" --families-table

# ViT-Prisma needs timm, and its release asks for an old plotly that is not used here: it comes alone, into an environment
# laid over the other two. Where it does not install, the benchmark says so and goes on without it.
$(BENCH_INSTALLED): $(TOWERS_INSTALLED)
	$(PYTHON) -m venv $(BENCH)
	@for below in $(VENV) $(TOWERS); do \
		$$below/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))'; \
	done > "$$($(BENCH_RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	-$(RUN) -m pip --python $(BENCH_RUN) install --quiet --no-deps vit-prisma==0.1.4
	@touch $@

bench: $(BENCH_INSTALLED)   ## timings side by side with transformer_lens, nnsight, ViT-Prisma: 40 minutes; BENCH_OPTIONS=--quick: 6
	$(BENCH_RUN) -W ignore -m benchmarks $(BENCH_OPTIONS)

# Pages opened in a real browser: needs Debian's chromium (apt install chromium), or MECHVIS_CHROMIUM=path.
$(BROWSER_INSTALLED): $(INSTALLED)
	$(PYTHON) -m venv $(BROWSER)
	@$(RUN) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(BROWSER_RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(RUN) -m pip --python $(BROWSER_RUN) install --quiet -c constraints.txt --group browser
	@touch $@

browser: $(BROWSER_INSTALLED)   ## reports, dashboards and explorers opened in a headless chromium, hostile strings in every field
	OMP_NUM_THREADS=1 $(BROWSER_RUN) -m pytest tests/mechvis/explorer $(TESTS)

notebooks: $(INSTALLED)   ## the manual as Jupyter notebooks in build/notebooks
	$(RUN) notebooks/convert.py build/notebooks

# Sphinx lives in an environment of its own, laid over the first one: only the site needs it.
$(DOCS_INSTALLED): $(INSTALLED)
	$(PYTHON) -m venv $(DOCS)
	@$(RUN) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(DOCS_RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(RUN) -m pip --python $(DOCS_RUN) install --quiet -c constraints.txt --group docs
	@touch $@

docs: $(DOCS_INSTALLED)   ## the documentation site in build/site; NOTEBOOKS=cache runs the notebooks and shows their figures
	MECHVIS_NOTEBOOKS=$(NOTEBOOKS) OMP_NUM_THREADS=1 $(DOCS_RUN) -m sphinx -W --keep-going -q -j $(WORKERS) -c docs -d build/doctrees -b html . build/site

lint: $(INSTALLED)    ## style, imports and layers
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports

format: $(INSTALLED)  ## rewrite files in the house style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:           ## remove what the other targets made, the environment included
	rm -rf $(VENV) $(TOWERS) $(BENCH) $(BROWSER) $(DOCS) $(DEMO) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
