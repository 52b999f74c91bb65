# make demo   set up, draw the demo dataset, train on it, validate, and predict one picture
# make test   set up, and run the tests but the long ones, in eight minutes on two cores
# make test-all   the same, then the long ones (a quarter of an hour on two cores): bits with threads, two hosts, kills
# make lint   ruff (check and format) over all of the code, mypy over all but the tests and benchmarks
# make test-fast   the tests but the slow and the long ones, in a minute and a half
# make test-oldest   the same on the oldest supported versions (requirements-oldest.txt), in an environment of its own
# All can be stopped and started again; VENV=/some/folder shares one environment between clones.

VENV ?= .venv
REQUIREMENTS = requirements.txt
PYTHON ?= python3
RUN = $(VENV)/bin/python
PYTEST = $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile
# --no-compile saves half a minute: Python compiles only what is imported, on its first import.
INSTALL = $(RUN) -m pip install --disable-pip-version-check --no-compile -q -r
VENV_OLDEST ?= .venv-oldest
PYTHON_OLDEST ?= python3.10

.PHONY: demo test test-all lint test-fast test-oldest setup clean-demo

demo: $(VENV)/.ready
	$(RUN) train.py --resume auto
	$(RUN) validation.py
	$(RUN) predict.py
	@echo "look at: predictions/*.png, save_weights/mAP.png, save_weights/loss_and_lr.png"

test: $(VENV)/.ready-test
	$(PYTEST) -m "not long"

test-all: test
	$(PYTEST) -m long

lint: $(VENV)/.ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test-fast: $(VENV)/.ready-test
	$(PYTEST) -m "not slow and not long"

test-oldest:
	$(MAKE) test VENV=$(VENV_OLDEST) PYTHON=$(PYTHON_OLDEST) REQUIREMENTS=requirements-oldest.txt

setup: $(VENV)/.ready

clean-demo:
	rm -rf demo_data save_weights predictions

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(REQUIREMENTS) | $(VENV)/bin/python
	@echo "setting up $(VENV): downloading PyTorch and the other packages (several GB) ..."
	$(INSTALL) $(REQUIREMENTS)
	touch $@

$(VENV)/.ready-test: requirements-test.txt $(VENV)/.ready
	$(INSTALL) requirements-test.txt
	touch $@
