#!/usr/bin/env bash
# check: format, lint, import contracts, types · test: everything this machine can run · test-pure: seconds only
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
check)
    ruff format --check gemel_ray tests
    ruff check gemel_ray tests
    lint-imports
    mypy
    ;;
test) python -m pytest ;;
test-pure) python -m pytest tests/pure ;;
*)
    echo "usage: tests/run.sh check|test|test-pure" >&2
    exit 2
    ;;
esac
