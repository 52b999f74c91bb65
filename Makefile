# make demo   set up, draw the demo dataset, train on it, validate, and predict one picture
# make test   set up, and run the tests
# Both can be stopped and started again; VENV=/some/folder shares one environment between clones.

VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python

.PHONY: demo test setup clean-demo

demo: $(VENV)/.ready
	$(RUN) train.py --resume auto
	$(RUN) validation.py
	$(RUN) predict.py
	@echo "look at: predictions/*.png, save_weights/mAP.png, save_weights/loss_and_lr.png"

test: $(VENV)/.ready-test
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

setup: $(VENV)/.ready

clean-demo:
	rm -rf demo_data save_weights predictions

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

$(VENV)/.ready-test: requirements-test.txt $(VENV)/.ready
	$(RUN) -m pip install --disable-pip-version-check -q -r requirements-test.txt
	touch $@
