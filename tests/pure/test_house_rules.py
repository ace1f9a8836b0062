"""The house itself: what may be imported by what, and what importing costs."""

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
