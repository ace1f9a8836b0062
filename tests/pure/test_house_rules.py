"""The house itself: what may be imported by what, and what importing costs."""

import re
import subprocess
import sys
from pathlib import Path

import gemel_ray

_BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "torch", "torchvision"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import gemel_ray, importlib, pkgutil
for room in ("spec", "policy", "edge"):
    package = importlib.import_module(f"gemel_ray.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"gemel_ray.{room}.{module.name}")
import gemel_ray.cli.main
print("fine")
"""


def test_the_pure_rooms_and_the_command_need_neither_torch_nor_ray():
    result = subprocess.run([sys.executable, "-c", _BLOCKED], capture_output=True, text=True)
    assert result.stdout == "fine\n", result.stderr


def test_every_public_name_is_really_there():
    assert all(hasattr(gemel_ray, name) for name in gemel_ray.__all__)
    assert set(gemel_ray._HOMES) | {"__version__"} == set(gemel_ray.__all__)


def test_the_licence_is_apache():
    assert "Apache License" in (Path(gemel_ray.__file__).parents[1] / "LICENSE").read_text()


# What people read, and files that outlive the process. Durations and orders are by clocks that nobody sets.
_WALL_CLOCK = {
    "merging/progress.py": "when a trial ended, for the report's timeline",
    "serving/drift_response.py": "when a query drifted, for people",
    "serving/drift_watch.py": "names of kept frames, which never go back",
    "serving/event_log.py": "when something happened, for people; the order is that of the log",
    "training/releases.py": "when a release was made, for people",
    "weights/files.py": "how long ago another process wrote a file",
    "weights/garbage.py": "how long ago another process wrote a file",
    "weights/maintenance.py": "when a release was made, for people",
}


def test_only_what_outlives_a_process_looks_at_the_clock_on_the_wall():
    root = Path(gemel_ray.__file__).parent
    looks = re.compile(
        r"\btime\.time(_ns)?\(|\bdatetime\.now\(|\butcnow\(|\bdate\.today\(|\blocaltime\(|from time import"
    )
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if looks.search(path.read_text())}
    assert found == set(_WALL_CLOCK)
