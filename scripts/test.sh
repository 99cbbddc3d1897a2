#!/usr/bin/env bash
# Set up, then check the style and the types, and run the tests: bash scripts/test.sh [--fast] [pytest arguments]
# --fast: without the types, and without the tests that are slow, start other programs or drive a browser.
# ASYRP_RESOLUTION=lowest-direct bash scripts/test.sh: with the oldest versions that are allowed (see env.sh).
extras=dev
source "$(dirname "$0")/env.sh"
fast=()
if [ "${1:-}" = --fast ]; then
  shift
  fast=(-m "not slow and not subprocess and not browser")
fi
ruff check .
ruff format --check .
# Half a minute the first time. The types of the oldest versions differ.
[ ${#fast[@]} -gt 0 ] || [ "${ASYRP_RESOLUTION:-}" = lowest-direct ] || mypy
# A process a core, of one thread each: the tests are many and small.
OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 8 --dist loadfile ${fast[@]+"${fast[@]}"} "$@"
