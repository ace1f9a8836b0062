"""Merge vision models until they fit the edge box, and serve them from it.

Importing this package is cheap: nothing starts Ray or touches a GPU before it is asked to.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemel_ray.spec.errors import GemelError as GemelError
    from gemel_ray.spec.workload import Workload as Workload
    from gemel_ray.spec.workload import load_workload as load_workload
    from gemel_ray.vision.inspection import analyze as analyze
    from gemel_ray.weights.store import open_store as open_store

__version__ = "0.1.0"

_HOMES = {
    "GemelError": "gemel_ray.spec.errors",
    "Workload": "gemel_ray.spec.workload",
    "load_workload": "gemel_ray.spec.workload",
    "analyze": "gemel_ray.vision.inspection",
    "open_store": "gemel_ray.weights.store",
}
__all__ = ["GemelError", "Workload", "__version__", "analyze", "load_workload", "open_store"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in _HOMES:
        raise AttributeError(f"module 'gemel_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
