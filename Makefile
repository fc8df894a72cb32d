# What people run. Every target gets what it needs by itself: see scripts/setup.sh.

VENV := .venv/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test soak bench lint as-root

help: ## say what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1 \2/p' Makefile | awk '{ printf "%s %-8s", $$1, $$2; $$1 = $$2 = ""; print }'

setup: ## install what is missing (apt, .venv, the demo's guest); quick when nothing is
	@scripts/setup.sh

demo: as-root setup ## carry one virtual machine through the whole product, in under five minutes
	@$(VENV)/python -m demo.run

test: as-root setup lint ## check style and types, run every test but the long ones
	@$(VENV)/pytest -m "not soak"

soak: as-root setup ## run the long randomised tests (hours)
	@$(VENV)/pytest -m soak --timeout=0

bench: as-root setup ## measure, and write docs/benchmarks.md
	@for runner in $$(grep -l __main__ benchmarks/*.py); do echo "$$runner"; PYTHONPATH=. $(VENV)/python "$$runner"; done

lint: setup ## check style and types only
	@$(VENV)/ruff check
	@$(VENV)/mypy

# Asked first: nobody should wait for a setup to be told then.
as-root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS): mounting needs root; run 'sudo make $(MAKECMDGOALS)'" >&2; exit 1; }
