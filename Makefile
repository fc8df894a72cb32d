# What people run. Every target gets what it needs by itself: see scripts/setup.sh.

VENV := .venv/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test soak bench lint

help: ## say what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1 \2/p' Makefile | awk '{ printf "%s %-8s", $$1, $$2; $$1 = $$2 = ""; print }'

setup: ## install what is missing (apt, .venv, the demo's guest); quick when nothing is
	@scripts/setup.sh

demo: setup ## carry one virtual machine through the whole product, in under five minutes
	@$(call require-root,mounting)
	@$(VENV)/python -m demo.run

test: setup lint ## check style and types, run every test but the long ones
	@$(call require-root,mounting)
	@$(VENV)/pytest -m "not soak"

soak: setup ## run the long randomised tests (hours)
	@$(call require-root,mounting)
	@$(VENV)/pytest -m soak --timeout=0

bench: setup ## measure, and write docs/benchmarks.md
	@$(call require-root,mounting)
	@for runner in $$(grep -l __main__ benchmarks/*.py); do echo "$$runner"; PYTHONPATH=. $(VENV)/python "$$runner"; done

lint: setup ## check style and types only
	@$(VENV)/ruff check
	@$(VENV)/mypy

require-root = [ "$$(id -u)" = 0 ] || { echo "make $@: $(1) needs root; run 'sudo make $@'" >&2; exit 1; }
