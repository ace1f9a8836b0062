"""The command as a person meets it: exit codes, errors of one screen, JSON."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gemel_ray.cli.main import app
from gemel_ray.cli.render_demo import demo_tables

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
        (("gc", "nowhere", "--keep", "-7"), 2, "equal to 1, got"),
        (("search", EXAMPLE, "--store", "s", "--gate-margin", "5"), 2, "'5'"),
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


COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_fits_a_terminal(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_examples_that_the_command_takes(command):
    examples = re.findall(r"(?:^|Example: )(gemel .*)$", inspect.cleandoc(COMMANDS[command].help), re.MULTILINE)
    assert examples
    for example in examples:
        name, *arguments = shlex.split(example)[1:]
        assert name == command
        COMMANDS[command].make_context(command, arguments)


def test_the_help_tells_exit_codes_and_how_to_complete_commands():
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERM": "dumb"}).stdout.split())
    assert "Exit codes: 0 done, 1 failed, 2 the input is wrong" in text
    assert "gemel --install-completion" in text


def test_what_the_demonstration_proposes_can_be_pasted(capsys):
    cell = {key: 1.0 for key in ("original_accuracy", "merged_accuracy", "agreement", "lower_bound", "target", "fps")}
    pair = {"originals": 0.5, "merged": 1.0}
    query = cell | {"query": "q", "slo_ms": 200.0, "goodput": pair, "end_to_end_accuracy": pair}
    sizes = {"bytes_before": 4, "bytes_after": 2, "shareable_bytes": 2, "budget_bytes": 3, "seconds": 1.0}
    demo_tables(sizes | {"queries": [query], "store": "my demo/store", "workload": "my demo/w.yaml"})
    told = " ".join(capsys.readouterr().out.split())
    assert told.endswith("gemel show 'my demo/store' · gemel serve 'my demo/w.yaml' --store 'my demo/store'")
