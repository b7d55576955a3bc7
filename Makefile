# make demo   environment, then a video from a prompt, with the weights in the package
# make test   environment, then the tests
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test slow env clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: env
	mkdir -p out
	$(BIN)/mavlite generate "two and 4" --out out/two-and-4.mp4 out/two-and-4.gif

test: env
	$(BIN)/python -m pytest

slow: env
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) out
