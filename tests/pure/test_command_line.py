"""The command as a person meets it: exit codes, errors of one screen, JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "serve_configs" / "workloads" / "streets.yaml"


def gemel(*arguments):
    command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("analyze", "none.yaml"), 2, "none.yaml: cannot be read"),
        (("analyze", EXAMPLE, "--rule", "same"), 2, "choose exact or shape"),
        (("releases", "nowhere"), 1, "holds no releases"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_what_goes_wrong_is_said_without_a_traceback(arguments, code, told):
    result = gemel(*arguments)
    assert result.returncode == code
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_analysis_comes_as_json():
    result = gemel("analyze", EXAMPLE, "--json")
    document = json.loads(result.stdout)
    assert len(document["models"]) == 5
    assert document["shareable_bytes"] == sum(group["saved_bytes"] for group in document["groups"])
