#!/usr/bin/env bash
# Set up, then run the tests: bash scripts/test.sh [pytest arguments]
source "$(dirname "$0")/env.sh"
ruff check .
ruff format --check .
# A process a core, of one thread each: the tests are many and small.
OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
