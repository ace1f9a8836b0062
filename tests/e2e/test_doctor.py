"""What `gemel doctor` finds on this machine, and what it says about it."""

import os
import socket
import subprocess
import sys

import pytest

from gemel_ray.cli.doctor import examine


@pytest.fixture
def taken():
    """A port of this machine that something listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def by_check(findings):
    return {finding.check: finding for finding in findings}


def test_a_doctor_that_finds_a_problem_says_the_way_out_and_fails(tmp_path, gemel, taken):
    found = gemel(tmp_path, "doctor", "--store", "store", "--port", taken, "--json", code=1)
    problems = [finding for finding in found if finding["state"] == "problem"]
    assert [(finding["check"], f"{taken}: " in finding["found"]) for finding in problems] == [("port", True)]
    assert "gemel serve --port" in problems[0]["remedy"]
    assert {finding["check"] for finding in found} >= {"python", "packages", "torch", "ray", "memory", "disk", "store"}


def test_only_what_must_be_mended_has_a_remedy():
    for finding in examine():
        assert (finding.state == "ok") == (finding.remedy == ""), finding


def test_a_cluster_that_answers_and_one_that_does_not_are_told_apart(monkeypatch, taken):
    monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{taken}")
    assert by_check(examine())["RAY_ADDRESS"].state == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    gone = by_check(examine())["RAY_ADDRESS"]
    assert (gone.state, "unset RAY_ADDRESS" in gone.remedy) == ("problem", True)


def test_a_folder_in_which_ray_could_not_name_its_sockets_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert "/tmp" in by_check(examine())["Ray's folder"].found
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    found = by_check(examine())["Ray's folder"]
    assert (found.state, "export RAY_TMPDIR" in found.remedy) == ("problem", True)


def test_a_torchvision_of_another_build_than_torch_is_a_problem(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    look = "from gemel_ray.cli.doctor import examine; print([f for f in examine() if f.check == 'torch'])"
    found = subprocess.run(
        [sys.executable, "-c", look], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert "state='problem'" in found.stdout
    assert "operator torchvision::nms does not exist" in found.stdout
    assert "pip install --force-reinstall torch torchvision" in found.stdout


def test_a_store_that_cannot_be_opened_is_a_problem():
    assert by_check(examine("nosuch://x"))["store"].state == "problem"


def test_a_store_that_is_yet_to_be_made_is_none(tmp_path):
    found = by_check(examine(str(tmp_path / "new" / "store")))
    assert (found["store"].state, found["disk"].found.endswith(str(tmp_path))) == ("ok", True)
    assert os.listdir(tmp_path) == []
