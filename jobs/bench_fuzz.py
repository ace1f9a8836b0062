"""Benchmark: many broken requests, releases and workload files, by the tests that send some at every run.

    python jobs/bench_fuzz.py --requests 10000 --releases 2000 --workloads 2000

Every example must be answered as the tests say (an error of the input, never one of the service, no traceback to a
caller, the last good release served on). The record counts what came of them: statuses of requests, where 0 is a
connection that the caller closed before its message was whole, and the errors that releases and files were told of.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import records

TESTS = Path(__file__).parent.parent / "tests"
# The file of each kind of example, and how many of its tests share them.
KINDS = {
    "requests": (TESTS / "serving" / "test_fuzzed_requests.py", 6),
    "releases": (TESTS / "serving" / "test_fuzzed_releases.py", 4),
    "workloads": (TESTS / "pure" / "test_fuzzed_files.py", 2),
}


def fuzzed(kind: str, count: int, folder: Path) -> dict[str, Any]:
    """Run one file's tests with so many examples in all."""
    path, tests = KINDS[kind]
    wanted = {"GEMEL_FUZZ": str(math.ceil(count / tests)), "GEMEL_FUZZ_TALLIES": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "0", str(path)]
    begun = time.perf_counter()
    done = subprocess.run(command, env=os.environ | wanted, check=False)
    tally = folder / f"{kind}.json"
    counts = json.loads(tally.read_text(encoding="utf-8")) if tally.exists() else {}
    row = {"what": kind, "examples": sum(counts.values()), "passed": done.returncode == 0, "came_of_them": counts}
    print(row)
    return row | {"seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    """Run what is asked for, write the record; exit with 1 where an example failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in {"requests": 10_000, "releases": 2_000, "workloads": 2_000}.items():
        parser.add_argument(f"--{kind}", type=int, default=count)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [fuzzed(kind, getattr(options, kind), Path(folder)) for kind in KINDS]
    print(records.write(records.heading("bench_fuzz") | {"rows": rows}, "cpu"))
    sys.exit(0 if all(row["passed"] for row in rows) else 1)


if __name__ == "__main__":
    main()
