# Needs Python 3.11 on the machine; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
ROLE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
UV := 0.13.9

.PHONY: setup lock train reproduce test test-quick test-chaos lint format bench-data clean

setup:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make setup needs Python 3.11, and there is no '$(PYTHON)' here."; \
	  echo "Install it, or name it: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "make setup needs Python 3.11; $(PYTHON) is $$($(PYTHON) --version)."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m uv --version 2>/dev/null | grep -qF "uv $(UV) " || $(BIN)/python -m pip install --quiet uv==$(UV)
	$(BIN)/python -m uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements/$(ROLE).txt
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@echo "Ready. Next: make train"

lock:  # after a change of the requirements in setup.cfg
	for role in cpu gpu; do \
	  $(BIN)/python -m uv pip compile --quiet --no-header --generate-hashes --python-version 3.11 \
	    --override requirements/override.txt --extra $$role --extra dev pyproject.toml -o requirements/$$role.txt || exit 1; \
	done

train:
	$(BIN)/msjoe train $(ARGS)

reproduce:  # hours; goes on where it was stopped
	$(BIN)/python -m benchmarks.reproduction $(ARGS)

test:
	$(BIN)/python -m pytest -m "not chaos" $(ARGS)

test-quick:  # neither an engine nor Ray
	$(BIN)/python -m pytest -m "not heavy" $(ARGS)

test-chaos:  # commands killed in every phase; up to an hour
	$(BIN)/python -m pytest -m chaos $(ARGS)

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-data:  # decoding, embedding and the caches, each beside its floor
	$(BIN)/python -m benchmarks.video
	$(BIN)/python -m benchmarks.embedding
	$(BIN)/python -m benchmarks.caches

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
