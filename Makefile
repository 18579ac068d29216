# What a newcomer needs: make demo, make test. Everything else: make help.
#   PYTHON=python3.12 chooses the interpreter of .venv; PYTEST_ARGS=... goes to pytest.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
BIN := .venv/bin
CAPTURES := $(or $(CONSENTRY_CAPTURES),../shared/data)

.PHONY: help venv demo test test-long fuzz test-unit check format lock bench mutants test-matrix test-vm bench-vm wheel clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

venv: ## Make .venv with everything; .venv/bin/consentry runs then.
	@scripts/venv .venv

demo: venv ## Play a drive through broker, agent and two recipients.
	@$(BIN)/consentry demo

test: venv ## Run all tests (system packages are installed when run as root).
	@scripts/system-packages
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(PYTEST_ARGS) tests

test-unit: venv ## Run the unit tests: seconds.
	$(BIN)/python -m pytest -q -n 2 $(PYTEST_ARGS) tests/unit

check: venv ## Format, lint, types, import rules, unit tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -n 2 $(PYTEST_ARGS) tests/unit

format: venv ## Format, and mend what the linter can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: venv ## Pin what pyproject.toml asks for; UPGRADE=1 takes the newest releases.
	@scripts/lock $(if $(UPGRADE),--upgrade)

bench: venv ## Measure speed, size and writes; then, in the guest, reading a full bus (bench-vm).
	$(BIN)/python -m tests.bench.bench_pipeline --captures $(CAPTURES)
	$(BIN)/python -m tests.bench.bench_ledger
	$(BIN)/python -m tests.bench.bench_spool
	$(BIN)/python -m tests.bench.bench_revocation
	$(BIN)/python -m tests.bench.bench_process --captures $(CAPTURES)
	@$(MAKE) bench-vm

test-long: venv ## Kill a vehicle a thousand times, cut its power, drive a day, be offline for hours; account for all.
	$(BIN)/python -m tests.crash --kills $(or $(KILLS),1000) --seed $(or $(SEED),1) --report docs/reports/crash.md
	$(BIN)/python -m tests.powercut --cuts $(or $(CUTS),50) --seed $(or $(SEED),1) --report docs/reports/powercut.md
	$(BIN)/python -m tests.soak --hours $(or $(HOURS),24) --seed $(or $(SEED),1) --report docs/reports/soak.md
	$(BIN)/python -m tests.outage --seed $(or $(SEED),1) --report docs/reports/outage.md
	@VMKIT_TIMEOUT=2400 tests/vm/run uml -m long tests/vm/guest

fuzz: venv ## Mutate a million documents, envelopes, files and frames, sign them again, and judge what is taken.
	$(BIN)/python -m tests.fuzz --executions $(or $(EXECUTIONS),1100000) --seed $(or $(SEED),1) --report docs/reports/fuzz.md

mutants: venv ## Put small faults into the consent code; see whether a unit test notices.
	nice $(BIN)/python tools/mutants.py --seed $(or $(SEED),1) --most $(or $(MOST),300) --report docs/reports/mutants.md $(MODULES)

bench-vm: venv ## Measure reading a full bus against candump and python-can, in the guest.
	@for engine in uml qemu; do echo "$$engine:"; tests/vm/run $$engine bench || exit 1; done

test-matrix: ## Run the unit tests on every installed Python of 3.11, 3.12, 3.13.
	@scripts/test-matrix $(PYTEST_ARGS)

test-vm: venv ## Run the tests that need a kernel with CAN and systemd, in a guest (root builds it once).
	@failed=0; for engine in uml qemu; do \
	  tests/vm/run $$engine $(PYTEST_ARGS) || failed=1; done; exit $$failed

wheel: venv ## Build the wheel into dist.
	@$(BIN)/python -m hatchling build -t wheel

clean: ## Remove what was made here.
	rm -rf .venv .venv-3.* .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis dist build
