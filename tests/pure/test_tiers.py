"""The tiers of the tests, what each room may import, and the files we ship."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from gemel_ray.spec.workload import load_workload

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SHIPPED = sorted((ROOT / "serve_configs" / "workloads").rglob("*.yaml"))

# What the tests of a folder may need. A new folder is classed here, or this fails.
PURE = {"pure"}
TORCH = {"api", "conformance", "engine", "report", "training", "vision", "weights"}
RAY_INSTALLED = {"merging", "serving"}
RAY_RUNNING = {"e2e", "ray"}
FOLDERS = PURE | TORCH | RAY_INSTALLED | RAY_RUNNING


def imported(file):
    """Top-level names of all packages a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def test_every_folder_of_tests_is_classed():
    assert {file.parent.name for file in TESTS.rglob("test_*.py")} <= FOLDERS


def test_the_names_of_test_files_are_unique():
    # pytest imports them by their bare names.
    names = Counter(file.name for file in TESTS.rglob("*.py") if file.name != "conftest.py")
    assert {name for name, count in names.items() if count > 1} == set()
    assert not list(TESTS.rglob("__init__.py"))


@pytest.mark.parametrize(
    ("folders", "forbidden"),
    [(PURE, {"ray", "torch", "torchvision"}), (TORCH, {"ray"})],
    ids=["pure", "torch"],
)
def test_a_tier_imports_no_more_than_it_may(folders, forbidden):
    files = [file for folder in folders for file in (TESTS / folder).rglob("*.py")]
    assert [(file.name, name) for file in files for name in imported(file) if name in forbidden] == []


def test_tests_that_start_ray_are_marked():
    for folder in RAY_RUNNING:
        for file in (TESTS / folder).glob("test_*.py"):
            text = file.read_text(encoding="utf-8")
            assert "ray.init" not in text or "mark.ray" in text, f"{file.name} starts Ray without the marker"


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_rooms_import_downwards_only():
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = run(sys.executable, "-c", lint)
    assert result.returncode == 0, result.stdout + result.stderr


WITHOUT_RAY = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
for room in ("weights", "vision", "training", "engine"):
    package = importlib.import_module(f"gemel_ray.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"gemel_ray.{room}."):
        importlib.import_module(module.name)
"""


def test_only_merging_and_serving_need_ray():
    result = run(sys.executable, "-c", WITHOUT_RAY)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_takes_neither_torch_nor_ray_nor_pyarrow():
    code = "import sys, gemel_ray; print(sorted({'torch', 'ray', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).stdout == "[]\n"


def test_the_licence_is_the_one_declared():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
    title = (ROOT / "LICENSE").read_text().split()[:4]
    assert title == ["Apache", "License", "Version", "2.0,"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_workload_loads_and_is_explained(path):
    assert load_workload(path).queries
    assert path.read_text().startswith("# "), "say what it shows, for somebody who meets it first"


def test_workloads_are_shipped():
    assert {path.name for path in SHIPPED} >= {"streets.yaml", "cameras.yaml", "torchvision.yaml"}


def test_the_tables_in_the_readme_are_those_of_the_records():
    result = run(sys.executable, "jobs/render_results.py", "--check")
    assert result.returncode == 0, result.stderr


def test_continuous_integration_runs_what_the_readme_says():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert sum(line.endswith("&& gemel demo") for line in lines) == 1
    assert sum(line.endswith("&& tests/run.sh test") for line in lines) == 1
    assert "grep -m 1 '&& tests/run.sh test$' README.md" in (ROOT / ".ci" / "run").read_text()
