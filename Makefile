# Few verbs. Each installs what it needs into .venv first, and starts at once the second time.
#   make serve    install, build the demo vFMs where they are missing, serve until Ctrl-C
#   make check    validate model_repository/ without a server
#   make test     install, build the demo vFMs where they are missing, pass the tests
#   make lint     ruff and strict mypy

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
ARGS   ?=

.PHONY: serve check test lint format clean

serve: $(VENV)/.installed
	@$(BIN)/fmplex serve --demo $(ARGS)

check: $(VENV)/.installed
	@$(BIN)/fmplex check $(ARGS)

test: $(VENV)/.installed-test
	@$(BIN)/fmplex demo build
	@$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 13) else "FMplex needs Python 3.10 to 3.12 (3.11 is what it is tested on), this is " + sys.version.split()[0] + "; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV); the first time this takes a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tools,embedded]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV); the first time this takes a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tools,embedded,fleet,dashboard,test]'
	@touch $@ $(VENV)/.installed

# Removes what these verbs made here; the fetched packages in the user's cache stay.
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
