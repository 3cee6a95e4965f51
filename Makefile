# Every target stands alone: it needs a Python of at least 3.11 and makes its own environment.
#
#   make demo        upload against the local devserver and show what happens
#   make test        lint, types and the tests that take seconds
#   make test-all    the same with the slow tests
#   make lint        ruff and mypy only
#   make bench       the short benchmarks; bench-all runs them all
#   make lock        resolve the dependencies again (LOCK_ARGS=--upgrade for newer versions)
#   make clean       remove the environments, caches and build results
#
# ARGS goes to the command at the end of a target: make test ARGS='-k plan'

PYTHON ?= python3
ARGS ?=
LOCK_ARGS ?=
TEST_JOBS ?= 2

DEV := .venv
DEMO := .venv-demo
DEV_READY := $(DEV)/.ready
# A developer's environment can run the demo too; nobody else has to wait for the test tools.
DEMO_READY := $(if $(wildcard $(DEV_READY)),$(DEV_READY),$(DEMO)/.ready)

PIP := -m pip --disable-pip-version-check --no-input --quiet
TYPED := uploader tests $(wildcard benchmarks)

.DEFAULT_GOAL := test
.DELETE_ON_ERROR:
.PHONY: demo test test-all lint bench bench-all lock clean

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

# The locks name no index and no path: whoever installs chooses where packages come from.
COMPILE := .venv-lock/bin/uv pip compile pyproject.toml --quiet --no-config --universal \
	--python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	--no-emit-find-links --no-strip-extras --custom-compile-command "make lock" $(LOCK_ARGS)

DEV_EXTRAS := cluster credentials devserver fsspec metrics otel parquet postgres uvloop

lock:
	@$(call ensure_venv,.venv-lock)
	@.venv-lock/bin/python $(PIP) install uv
	@echo "lock: requirements-dev.lock"
	@$(COMPILE) --group dev $(DEV_EXTRAS:%=--extra %) -o requirements-dev.lock >/dev/null
	@echo "lock: requirements.lock"
	@$(COMPILE) --extra devserver -c requirements-dev.lock -o requirements.lock >/dev/null
	@if grep -nE '://|^-|file:' requirements.lock requirements-dev.lock; then \
		echo "lock: these lines name a place; the locks must not" >&2; exit 1; \
	fi

clean:
	@echo "clean: environments, caches, build results"
	@rm -rf $(DEV) $(DEMO) .venv-lock build dist .coverage htmlcov \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find uploader tests -name __pycache__ -type d -prune -exec rm -rf {} +
