# make demo   sets up and runs the main job: killed at half, resumed, published
# make test   sets up and passes the tests
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: help setup system demo lint test test-long bench clean

help:
	@grep -E '^# make' Makefile | sed 's/^# //'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# The crash tests kill at system calls, by strace. Without it they say so and are passed over.
system:
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq strace; } || true

demo: setup
	$(BIN)/python -m flows.demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup system lint
	@# Seldom a child that the crash suites fork hangs at its start on a busy machine. What has
	@# failed is run once more, alone: a real failure fails again.
	$(BIN)/python -m pytest -n auto -m "not long" \
		|| $(BIN)/python -m pytest -n 0 -m "not long" --last-failed --last-failed-no-failures none

# The long form of the crash and scale suites: minutes, not seconds.
# make test-long  every crash point, every seed, a million items
test-long: setup system
	$(BIN)/python -m pytest -n auto -m long --timeout 3600

# make bench  the numbers of docs/performance.md, as ratios within one run
bench: setup
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .resumable build dist
