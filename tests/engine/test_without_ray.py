"""What is measured where there is a GPU and no Ray runs without it."""

import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.parametrize("job", ["bench_gate", "bench_merge", "bench_serving", "bench_stems", "bench_swap"])
def test_a_benchmark_needs_no_ray(tmp_path, monkeypatch, job):
    (tmp_path / "ray.py").write_text("raise ImportError('there is no Ray')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = subprocess.run([sys.executable, JOBS / f"{job}.py", "--help"], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert "usage" in asked.stdout
