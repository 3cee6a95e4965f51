# Every target stands alone: it needs a Python of at least 3.11 and makes its own environment.
#
#   make demo        upload against the local devserver and show what happens
#   make test        lint, types and the tests that take seconds
#   make test-all    the same with the slow tests
#   make lint        ruff and mypy only
#   make coverage    the quick tests again, measured; fails below the gates
#   make mutants     small wrongs in the core, and whether a test notices (hours)
#   make fuzz        the readers of foreign text, guided by coverage (SECONDS=60 each)
#   make audit       bandit, bill of materials, vulnerabilities, licences, locks
#   make test-random the quick tests in random order (SEED=n repeats one)
#   make test-versions  the quick tests on Python 3.11 to 3.13, and with the lowest and
#                    the latest versions of what vodup needs (VERSIONS="3.12 lowest")
#   make test-portable  the quick tests of the engine, state, sources and command line without
#                    what Windows and macOS lack
#   make bench       the short benchmarks; bench-all runs them all
#   make clients     clients of others in an environment of their own, for slow tests
#   make lock        resolve the dependencies again (LOCK_ARGS=--upgrade for newer versions)
#   make clean       remove the environments, caches and build results
#
# ARGS goes to the command at the end of a target: make test ARGS='-k plan'

PYTHON ?= python3
ARGS ?=
LOCK_ARGS ?=
TEST_JOBS ?= 2
SECONDS ?= 60
SEED ?= $(shell date +%s)
VERSIONS ?= 3.11 3.12 3.13 lowest latest

DEV := .venv
DEMO := .venv-demo
AUDIT := .venv-audit
CLIENTS := .venv-clients
LOCK := .venv-lock
DEV_READY := $(DEV)/.ready
# A developer's environment can run the demo too; nobody else has to wait for the test tools.
DEMO_READY := $(if $(wildcard $(DEV_READY)),$(DEV_READY),$(DEMO)/.ready)

PIP := -m pip --disable-pip-version-check --no-input --quiet
TYPED := uploader tests $(wildcard benchmarks)

# What must be covered whole, line and branch: `CORE` in tests/test_architecture.py.
CORE_PERCENT := 100
OVERALL_PERCENT := 92

.DEFAULT_GOAL := test
.DELETE_ON_ERROR:
.PHONY: clients demo test test-all test-random test-versions test-portable lint coverage mutants \
	fuzz audit bench bench-all lock clean

demo: $(DEMO_READY)
	@$(dir $<)bin/vodup demo $(ARGS)

lint: $(DEV_READY)
	@echo "lint: ruff check"
	@$(DEV)/bin/ruff check --quiet .
	@echo "lint: ruff format"
	@$(DEV)/bin/ruff format --quiet --diff .
	@echo "lint: mypy"
	@$(DEV)/bin/mypy --no-error-summary $(TYPED)

test: lint
	@echo "test: pytest, without the slow ones"
	@$(DEV)/bin/python -m pytest -q -n $(TEST_JOBS) -m "not slow" $(ARGS)

test-all: lint
	@echo "test-all: pytest, all of it"
	@$(DEV)/bin/python -m pytest -q -n $(TEST_JOBS) $(ARGS)

test-random: $(AUDIT)/.ready
	@echo "test-random: pytest, without the slow ones, SEED=$(SEED)"
	@$(AUDIT)/bin/python -m pytest -q -n $(TEST_JOBS) -m "not slow" \
		--random-order --random-order-seed=$(SEED) $(ARGS)

test-versions: $(DEV_READY) $(LOCK)/.ready
	@$(DEV)/bin/python -m tests.gates.versions $(VERSIONS) --jobs $(TEST_JOBS) -- $(ARGS)

PORTABLE ?= tests/engine tests/state tests/sources tests/cli tests/bulk

test-portable: $(DEV_READY)
	@echo "test-portable: pytest, quick, on a system without file modes, flock, preadv, signals …"
	@PYTHONPATH=$(CURDIR)/tests/portable $(DEV)/bin/python -m pytest -q -n $(TEST_JOBS) \
		-m "not slow and not posix" -k "not postgres" $(PORTABLE) $(ARGS)

# Processes that the tests start are measured too; those that are killed leave nothing.
coverage: $(DEV_READY)
	@echo "coverage: pytest, without the slow ones, lines and branches of uploader/"
	@rm -f .coverage .coverage.*
	@$(DEV)/bin/python -m coverage run -m pytest -q -n $(TEST_JOBS) -m "not slow" $(ARGS)
	@$(MAKE) --no-print-directory coverage-report

.PHONY: coverage-report
coverage-report:
	@$(DEV)/bin/python -W ignore -m coverage combine -q
	@echo "coverage: overall, at least $(OVERALL_PERCENT) %"
	@$(DEV)/bin/python -m coverage report --skip-covered --fail-under=$(OVERALL_PERCENT)
	@echo "coverage: the core, $(CORE_PERCENT) %"
	@$(DEV)/bin/python -m coverage report --show-missing --fail-under=$(CORE_PERCENT) \
		--include="$$($(DEV)/bin/python -m tests.gates.modules core)"

mutants: $(AUDIT)/.ready
	@$(AUDIT)/bin/python -m tests.gates.mutants $(ARGS)

fuzz: $(AUDIT)/.ready
	@$(AUDIT)/bin/python -m tests.fuzz_atheris --seconds $(SECONDS) $(ARGS)

audit: $(AUDIT)/.ready
	@$(AUDIT)/bin/python -m tests.gates.audit

bench: $(DEV_READY)
	@$(DEV)/bin/python -m benchmarks $(ARGS)

bench-all: $(DEV_READY)
	@$(DEV)/bin/python -m benchmarks --all $(ARGS)

# $(call ready,directory,lock): an environment with what the lock names and this project. The lock
# is complete, so nothing is resolved again: pip would look at releases newer than the lock's.
define ready
	@$(call ensure_venv,$(1))
	@echo "$(1): install $(2)"
	@$(1)/bin/python $(PIP) install --require-hashes --no-deps -r $(2)
	@$(1)/bin/python $(PIP) install --no-deps -e .
	@touch $@
endef

# An environment that works is kept; one that was left half-made is made again.
define ensure_venv
if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	for python in $(PYTHON) python3.13 python3.12 python3.11; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		echo "$(1): make it with $$("$$python" --version) ($$python)"; \
		"$$python" -m venv --clear $(1) && exit 0; \
		echo "$(1): $$python cannot make it (Debian, Ubuntu: apt install python3-venv)" >&2; \
	done; \
	rm -rf $(1); \
	echo "vodup needs Python 3.11 or newer, with venv; $(PYTHON) and python3.11 to 3.13 on PATH" >&2; \
	echo "do not give one. Install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1; \
fi
endef

$(DEV_READY): requirements-dev.lock pyproject.toml
	$(call ready,$(DEV),requirements-dev.lock)

$(DEMO)/.ready: requirements.lock pyproject.toml
	$(call ready,$(DEMO),requirements.lock)

# The tools that audit stand beside what the tests need.
$(AUDIT)/.ready: requirements-audit.lock requirements-dev.lock pyproject.toml
	@$(call ensure_venv,$(AUDIT))
	@echo "$(AUDIT): install requirements-dev.lock and requirements-audit.lock"
	@$(AUDIT)/bin/python $(PIP) install --require-hashes --no-deps -r requirements-dev.lock
	@$(AUDIT)/bin/python $(PIP) install --require-hashes --no-deps -r requirements-audit.lock
	@$(AUDIT)/bin/python $(PIP) install --no-deps -e .
	@touch $@

# Clients of OSS and VOD that others wrote, for the slow tests of the devserver.
$(CLIENTS)/.ready: requirements-clients.lock
	$(call ensure_venv,$(CLIENTS))
	@echo "$(CLIENTS): install requirements-clients.lock"
	@$(CLIENTS)/bin/python $(PIP) install --require-hashes --no-deps -r requirements-clients.lock
	@touch $@

clients: $(CLIENTS)/.ready

$(LOCK)/.ready:
	@$(call ensure_venv,$(LOCK))
	@$(LOCK)/bin/python $(PIP) install uv
	@touch $@

# The locks name no index and no path: whoever installs chooses where packages come from.
COMPILE := $(LOCK)/bin/uv pip compile --quiet --no-config --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	--no-emit-find-links --no-strip-extras --custom-compile-command "make lock" $(LOCK_ARGS)

DEV_EXTRAS := cluster credentials devserver fsspec metrics otel parquet postgres uvloop watch

lock: $(LOCK)/.ready
	@echo "lock: requirements-dev.lock"
	@$(COMPILE) pyproject.toml --group dev $(DEV_EXTRAS:%=--extra %) \
		-o requirements-dev.lock >/dev/null
	@echo "lock: requirements.lock"
	@$(COMPILE) pyproject.toml --extra devserver -c requirements-dev.lock \
		-o requirements.lock >/dev/null
	@echo "lock: requirements-audit.lock"
	@$(COMPILE) --group audit -c requirements-dev.lock -o requirements-audit.lock >/dev/null
	@echo "lock: requirements-clients.lock"
	@$(COMPILE) --group clients -o requirements-clients.lock >/dev/null
	@echo "lock: requirements-lowest.lock"
	@$(COMPILE) pyproject.toml --group paired --resolution lowest-direct $(DEV_EXTRAS:%=--extra %) \
		-o requirements-lowest.lock >/dev/null
	@if grep -nE '://|^-|file:' requirements*.lock; then \
		echo "lock: these lines name a place; the locks must not" >&2; exit 1; \
	fi

clean:
	@echo "clean: environments, caches, build results"
	@rm -rf $(DEV) $(DEMO) $(AUDIT) $(CLIENTS) $(LOCK) .venv-[3lb]* build dist .coverage* htmlcov \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find uploader tests -name __pycache__ -type d -prune -exec rm -rf {} +
