# make demo: from nothing to a trained model. make check: lint and the quick tests, for every commit. make test: lint and
# the tests of one machine. make test-cluster: jobs on several machines, which are made on this one; needs root and
# iproute2, and uses groups of processes without them. make soak MINUTES=30: random kills of real processes, then a
# comparison with undisturbed runs. make soak-cluster MINUTES=60: the same with machines. make bench: speed compared with
# peers and the machine's limits, in about 15 minutes on two cores; make bench-full: more sizes. All set up the
# environment first. make lock: other versions of the dependencies, within the bounds of pyproject.toml.

# The first interpreter that runs (a pyenv shim can exist and fail), is 3.11 or 3.12 and can create environments.
CHECK := import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do $$p -c '$(CHECK)' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 30

.PHONY: setup demo check test test-cluster lint soak soak-cluster bench bench-full lock clean

setup:
	@test -n "$(PYTHON)" || { echo "No working Python 3.11 or 3.12 was found (tried python3, python3.11, python3.12)." >&2; \
	  echo "Install one, on Debian and Ubuntu: sudo apt install python3 python3-venv" >&2; \
	  echo "Or choose one: make PYTHON=/path/to/python3.12 setup" >&2; exit 2; }
	@$(PYTHON) -m cluster.install $(VENV)

demo: setup
	@$(BIN)/python -m jobs.demo

# All tests of a file run in one process, so that they share its fixtures.
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not whole_run and not machines"

test: check
	$(BIN)/python -m pytest -m "ray or whole_run"

test-cluster: setup
	$(BIN)/python -m pytest -m machines tests/machines

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: setup
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

soak-cluster: setup
	$(BIN)/python -m benchmarks.soak_cluster --minutes $(MINUTES)

bench: setup
	$(BIN)/python -m benchmarks.bench

bench-full: setup
	$(BIN)/python -m benchmarks.bench --full

# uv is used for nothing else, so it has an environment of its own.
lock:
	@test -x build/uv/bin/uv || { $(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv; }
	@$(PYTHON) -m cluster.lock build/uv/bin/uv

clean:
	rm -rf $(VENV) .venv-peers build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
