#!/usr/bin/env bash
# Set up, then run the tests: bash scripts/test.sh [pytest arguments]
source "$(dirname "$0")/env.sh"
ruff check .
ruff format --check .
python -m pytest "$@"
