#!/usr/bin/env bash
# check: format, lint, import contracts, types · test: all that this machine can run · test-pure: decisions and formats only
# test-ray: what starts a Ray cluster · test-gpu: what needs a CUDA device. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
command=${1:-}
shift || true
case "$command" in
check)
    ruff format --check gemel_ray jobs tests
    ruff check gemel_ray jobs tests
    lint-imports
    mypy
    ;;
# Two files at a time: much of a Ray test is waiting for processes to start.
test) python -m pytest -n 2 --dist loadfile "$@" ;;
test-pure) python -m pytest tests/pure "$@" ;;
test-ray) python -m pytest -m ray "$@" ;;
# Folders that need no Ray: a GPU may be found where there is none.
test-gpu) python -m pytest -m gpu tests/conformance tests/engine "$@" ;;
*)
    echo "usage: tests/run.sh check|test|test-pure|test-ray|test-gpu [pytest arguments]" >&2
    exit 2
    ;;
esac
