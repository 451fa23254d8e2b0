# make demo   sets up and runs the main job: killed at half, resumed, published
# make test   sets up and passes the tests
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: help setup system demo lint test test-long test-distributed bench clean

help:
	@grep -E '^# make' Makefile | sed 's/^# //'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,prefect,dask,ray]"
	touch $(STAMP)

# The crash tests kill at system calls, by strace; the tests of Prefect's UI look at it with
# Chromium; those of database columns start a PostgreSQL of their own (the package is told to make none).
# Without them those tests say so and are passed over.
system:
	@{ command -v strace && command -v chromium && ls /usr/lib/postgresql/*/bin/postgres; } \
		>/dev/null 2>&1 \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
		&& { [ -e /etc/postgresql-common ] || { mkdir -p /etc/postgresql-common && echo \
		"create_main_cluster = false" >/etc/postgresql-common/createcluster.conf; }; } \
		&& apt-get install -y -qq --no-install-recommends strace chromium postgresql; } || true

demo: setup
	$(BIN)/python -m flows.demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup system lint
	@# What fails is tried once more, and said, but where that could hide a loss (tests/conftest.py).
	$(BIN)/python -m pytest -n auto -m "not long" --reruns 1
	@# Clusters and parallel tests do not share cores well. The rest: make test-distributed.
	$(BIN)/python -m pytest -n 0 tests/prefect/distributed/test_engines.py --reruns 1

# The long form of the crash and scale suites: minutes, not seconds.
# make test-long  every crash point, every seed, a million items
test-long: setup system
	$(BIN)/python -m pytest -n auto -m long --timeout 3600

# make test-distributed  the same flow on Dask and on Ray, with workers that are killed
test-distributed: setup
	$(BIN)/python -m pytest -n 0 tests/prefect/distributed

# make bench  the numbers of docs/performance.md, as ratios within one run
bench: setup
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.on_prefect
	$(BIN)/python -m tests.benchmarks.table

clean:
	rm -rf $(VENV) .resumable build dist
