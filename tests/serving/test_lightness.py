"""The process in front of the engines stays light."""

import subprocess
import sys

from gemel_ray.engine import frames
from gemel_ray.serving import backend

WITHOUT_TORCH_AND_RAY = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "torch", "torchvision", "av", "pyarrow"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import gemel_ray.serving.ingress
"""


def test_the_http_application_needs_neither_torch_nor_ray():
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH_AND_RAY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_ingress_takes_frames_as_large_as_the_engine_does():
    assert backend.MOST_PIXELS == frames.MOST_PIXELS
