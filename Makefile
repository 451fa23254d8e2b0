# make demo   runs the main job: killed at half, resumed, published; installs the core alone
# make test   sets up and passes the tests
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
DEMO   ?= .venv-demo

.PHONY: help setup system demo lint numbers test test-main test-core test-newest test-oldest test-engines test-long test-distributed test-buckets bench bench-many hashes docs docs-serve clean

help:
	@grep -E '^# make' Makefile | sed 's/^# //'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs,prefect,dask,ray]"
	touch $(STAMP)

# The crash tests kill at system calls, by strace; the tests of Prefect's UI look at it with
# Chromium; those of database columns start a PostgreSQL of their own (the package is told to make none),
# and those of rates that hosts share a Redis.
# Without them those tests say so and are passed over.
system:
	@{ command -v strace && command -v chromium && command -v redis-server && ls /usr/lib/postgresql/*/bin/postgres; } \
		>/dev/null 2>&1 \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
		&& { [ -e /etc/postgresql-common ] || { mkdir -p /etc/postgresql-common && echo \
		"create_main_cluster = false" >/etc/postgresql-common/createcluster.conf; }; } \
		&& apt-get install -y -qq --no-install-recommends strace chromium postgresql redis-server; } || true

# The core and nothing else: no Prefect, no Ray, no tools of development.
$(DEMO)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

demo: $(DEMO)/.installed
	$(DEMO)/bin/python -m flows.demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# make numbers  what only ever shrinks: excused arrows, functions and sizes, and lines
numbers: setup
	@$(BIN)/python -m tests.package.numbers

# Each of these waits for a network, processes and disks much of the time, and so they run side by side.
test:
	$(MAKE) --no-print-directory -j 2 setup system
	$(MAKE) --no-print-directory -j 2 -O test-main lint test-engines

test-main: setup
	@# What a module sets up at some cost (xdist_group), one worker sets up.
	@# What fails is tried once more, and said, but where that could hide a loss (tests/conftest.py).
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not long and not buckets" --reruns 1 --durations=30

# A process of its own: Dask and Ray stay loaded. The rest: make test-distributed.
ENGINES = $(patsubst %,tests/prefect/distributed/test_%.py,engines crash_points)
test-engines: setup
	$(BIN)/python -m pytest -p no:cacheprovider -n 0 -m "not long" $(ENGINES) --reruns 1

# make test-core  jobs of every kind where no extra is installed; CI does so on the newest Python
# What these prove besides, the rest of the suite proves: what they show here is that nothing of an
# extra is imported. So they are those that between them call all of the core.
CORE_VENV ?= .venv-core
CORE_PYTHON ?= $(PYTHON)
CORE = tests/package/test_package.py tests/package/test_errors.py tests/items tests/results \
	$(patsubst %,tests/runners/test_%.py,encoding failures matching processes retries values) \
	$(patsubst %,tests/checkpoint/directory/test_%.py,fingerprints old outbox redo schema) \
	tests/checkpoint/importing/test_import_forms.py
test-core: $(CORE_VENV)/.installed
	$(CORE_VENV)/bin/python -m pytest -p no:cacheprovider -n 0 -m "not long and not timing" $(CORE)

$(CORE_VENV)/.installed: pyproject.toml constraints.txt
	$(CORE_PYTHON) -m venv $(CORE_VENV)
	$(CORE_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . \
		pytest hypothesis pytest-xdist pytest-timeout pytest-rerunfailures
	touch $(CORE_VENV)/.installed

# make test-newest  the same on the newest Python, which comes from Debian where it is missing
test-newest:
	@newest=$$(.ci/newest-python); if [ -n "$$newest" ]; then \
		$(MAKE) --no-print-directory test-core CORE_VENV=.venv-newest CORE_PYTHON=$$newest; \
	else echo "NOT RUN: the core suite on the newest Python"; $(MAKE) --no-print-directory test-core; fi

# make test-oldest  tests of flows on the oldest Prefect that is supported, over what setup installs
OLDEST_PREFECT = 3.8.8
OLDEST ?= $(patsubst %,tests/prefect/test_%.py,cancels failing signals task_runs)
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -p no:cacheprovider -n 0 -m "not long and not buckets" $(OLDEST) --reruns 1

.venv-oldest/.installed: $(STAMP) Makefile
	$(PYTHON) -m venv --without-pip .venv-oldest
	for site in .venv-oldest/lib/python3*/site-packages; do \
		ls -d $(abspath $(VENV))/lib/python3*/site-packages >$$site/setup.pth; done
	$(BIN)/pip --python .venv-oldest/bin/python install --quiet --disable-pip-version-check \
		--no-deps --ignore-installed prefect==$(OLDEST_PREFECT) -e .
	touch $@

# The long form of the crash and scale suites: minutes, not seconds.
# make test-long  every crash point, every seed, every seeded fault, a million items
test-long: setup system
	@# On a disk: in memory no flush takes its time (tests/conftest.py).
	TMPDIR=$${TMPDIR:-/tmp} $(BIN)/python -m pytest -n auto --dist loadgroup -m long --timeout 3600
	RESUMABLE_TASKS_PROFILE=long TMPDIR=$${TMPDIR:-/tmp} \
		$(BIN)/python -m pytest -n auto -m "not long" --timeout 3600 \
		tests/proof/properties tests/engine/test_failing_simulated.py

# make test-distributed  the same flow on Dask and on Ray, with workers that are killed
test-distributed: setup
	@# A process has one Ray: the one whose node is killed is not that of the other tests.
	$(BIN)/python -m pytest -n 0 tests/prefect/distributed/test_lost_for_good.py
	$(BIN)/python -m pytest -n 0 tests/prefect/distributed \
		--ignore tests/prefect/distributed/test_lost_for_good.py

# Azurite comes by npm; where that is missing, its tests say so and are passed over.
SERVERS = build/servers/.installed
$(SERVERS): pyproject.toml constraints.txt $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[servers]"
	mkdir -p build/servers
	if command -v npm >/dev/null; then npm install --prefix build/servers --no-audit --no-fund \
		--loglevel=error azurite@3.35; else echo "npm is missing: without Azurite"; fi
	touch $@

# make test-buckets  the store of buckets on moto, SeaweedFS and Azurite
test-buckets: setup $(SERVERS)
	$(BIN)/python -m pytest -n 0 -m buckets tests/buckets

# make hashes  deployments/requirements.txt once more, after a change of constraints.txt
# All files of a version, so that the image can be built for each of its platforms.
hashes: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	{ echo '# What the image installs, by hash: made by make hashes, from constraints.txt.'; \
		echo 'hatchling' | $(BIN)/uv pip compile --quiet pyproject.toml - --extra prefect --extra object \
		--constraint constraints.txt --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate; } >deployments/requirements.txt.new
	mv deployments/requirements.txt.new deployments/requirements.txt

# make bench  the numbers of docs/performance.md, as ratios within one run
bench: setup
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.on_prefect
	$(BIN)/python -m tests.benchmarks.table
	$(BIN)/python -m tests.benchmarks.tokens
	$(BIN)/python -m tests.benchmarks.whole_process

# make bench-many  a complete job of 10,000,000 keys, run again
bench-many: setup
	$(BIN)/python -m tests.benchmarks.many --keys 10000000

# Material announces its successor at each build; warnings that count end the build.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

# make docs  builds the site of docs/ into build/site, with warnings as errors
docs: setup
	$(MKDOCS) build --strict

# make docs-serve  shows the site at http://127.0.0.1:8000 while you write
docs-serve: setup
	$(MKDOCS) serve --strict

clean:
	rm -rf $(VENV) $(DEMO) .resumable build dist
