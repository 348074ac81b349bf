# make demo: the whole path, from videos to a prediction, in a few minutes on a laptop CPU (METHOD=aim: another method; BACKBONE=dinov2-like: another trunk)
# make test: all tests; make test-fast: those that together take less than a minute
# make lint: style and common mistakes
# All set up a virtual environment in .venv first, and use it again afterwards.

PYTHON ?= python3
METHOD ?= st_adapter
BACKBONE ?= clip
VENV := .venv
INSTALLED := $(VENV)/installed

.PHONY: demo test test-fast lint clean

demo: $(INSTALLED)
	$(VENV)/bin/python benchmarks/demo.py --out runs/demo --method $(METHOD) --backbone $(BACKBONE)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

test-fast: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile -m "not slow"

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[cuda13,test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
