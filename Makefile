# One environment, built from the lock file; every target makes it first.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: demo up test check long format lint types lock bench clean

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/hedge demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not long"

up: $(STAMP)
	$(BIN)/hedge up

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not long"

# clocks that jump, a disk that fills, a restore, the compose file: minutes of waiting each
long: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long

bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra s3 --extra postgres --extra dask --generate-hashes --no-strip-extras --python-version 3.11 --no-header -o requirements.lock
	sed -E -n 's/^([A-Za-z0-9._-]+)(\[[^]]*\])?(==[^ ]+).*/\1\3/p' requirements.lock > deploy/.constraints
	$(BIN)/uv pip compile pyproject.toml deploy/extra.in --extra s3 --extra postgres --extra dask -c deploy/.constraints --no-emit-package xgboost --no-emit-package nvidia-nccl-cu12 --generate-hashes --no-strip-extras --python-version 3.11 --no-header --no-annotate -o deploy/requirements.lock
	rm deploy/.constraints

clean:
	rm -rf .venv demo
