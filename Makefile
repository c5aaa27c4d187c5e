# Two commands do everything on a fresh clone: `make demo` and `make test`.
# Each makes .venv with the pinned versions itself if that has not been done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# constraints-oldest.txt: the oldest version of each dependency; /dev/null: the newest
CONSTRAINTS ?= constraints.txt
TESTFLAGS ?=

# An environment in the folder $(1) that has what .venv has, and what is installed into it on top.
define venv_on_top
$(BIN)/python -m venv $(1)
$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ssmast.pth"
endef

.PHONY: demo test test-slow test-card test-others results harnesses check lint format docs figures package clean

demo: $(READY)
	$(BIN)/ssmast demo

# Spread over the cores; one file alone is quicker without: .venv/bin/python -m pytest FILE
test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow" $(TESTFLAGS)

# One after another: several measure memory or start processes of their own.
test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow $(TESTFLAGS)

# The fast suite on a machine with two cards: the stand-in of tests/gpu.
test-card: $(READY)
	$(BIN)/python -m tests.gpu.run cards=2 -m pytest -q -n auto --dist worksteal -m "not slow" $(TESTFLAGS)

# Tests against packages that few need beside ssmast: trackers, openSMILE, sed_eval, torchcodec with the FFmpeg in PyAV's wheel.
# None may be skipped.
OTHERS := .venv-others

test-others: $(OTHERS)/.ready
	LD_LIBRARY_PATH=$(CURDIR)/$(OTHERS)/ffmpeg $(OTHERS)/bin/python -m pytest -q --no-skips tests/training/test_trackers.py tests/test_events.py tests/evaluation/test_foreign.py tests/audio/test_bad_input.py $(TESTFLAGS)

# Without what they ask for: gradio, and mlflow's older protobuf; they run with ours, which lie in .venv.
$(OTHERS)/.ready: $(READY) tests/requirements_others.txt
	$(call venv_on_top,$(OTHERS))
	$(OTHERS)/bin/python -m pip install --quiet --no-deps -r tests/requirements_others.txt
	$(OTHERS)/bin/python -m tests.ffmpeg_of_pyav $(OTHERS)/ffmpeg
	@touch $@

# The tables of scores of RESULTS.md: make results DATA=SETS; without, on the built-in corpus, to be printed.
# With SPEED=true the benchmarks too, into runs/results: an hour of a machine that does nothing else.
TASKS ?= all
COMMA := ,
PARTS := frozen,few_shot$(if $(SPEED),$(COMMA)speed)

results: $(READY)
	$(BIN)/python benchmarks/results.py data="$(DATA)" tasks="$(TASKS)" parts="[$(PARTS)]" $(if $(DATA),page=RESULTS.md)

# What HEAR's, X-ARES', mteb's and timm's own tools and tests say of an encoder folder: make harnesses ENCODER=runs/demo/encoder
HARNESSES := .venv-harnesses

harnesses: $(HARNESSES)/.ready
	@test -n "$(ENCODER)" || { echo "make harnesses needs ENCODER=FOLDER, such as runs/demo/encoder"; exit 2; }
	$(HARNESSES)/bin/python tests/acceptance/harnesses.py $(ENCODER)

# The tools ask for versions of 2021 (numpy 1.19); they run with ours, which lie in .venv.
$(HARNESSES)/.ready: $(READY) tests/acceptance/requirements.txt tests/acceptance/requirements_only.txt
	$(call venv_on_top,$(HARNESSES))
	$(HARNESSES)/bin/python -m pip install --quiet --no-deps --ignore-requires-python -r tests/acceptance/requirements_only.txt
	$(HARNESSES)/bin/python -m pip install --quiet --constraint constraints.txt -r tests/acceptance/requirements.txt
	$(HARNESSES)/bin/python -m pip download --quiet --no-deps --no-binary timm --dest $(HARNESSES)/sdist timm==$$($(BIN)/python -c 'import timm; print(timm.__version__)')
	@touch $@

check: lint test

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documents as a site, in build/site; a broken link is an error. The extra `docs` alone, without PyTorch.
DOCS := .venv-docs

docs: $(DOCS)/.ready
	$(DOCS)/bin/mkdocs build --strict

$(DOCS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt -r $(DOCS)/requirements.txt
	@touch $@

# The figures of README and docs, drawn by the code they show.
figures: $(READY)
	$(BIN)/python docs/figures

# Wheel and sdist, in dist; the wheel is installed and run outside of the repository.
package: $(READY)
	.ci/package

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ssmast needs Python 3.11 or newer, found " + sys.version.split()[0] + "; run make with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf runs build dist .venv-harnesses .venv-others .venv-docs .pytest_cache .ruff_cache
