"""Merge vision models until they fit the edge box, and serve them from it.

Importing this package is cheap: nothing starts Ray or touches a GPU before it is asked to.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemel_ray.api.calls import analyze as analyze
    from gemel_ray.api.calls import load_workload as load_workload
    from gemel_ray.api.calls import open_store as open_store
    from gemel_ray.api.calls import search as search
    from gemel_ray.api.calls import serve as serve
    from gemel_ray.api.calls import simulate as simulate
    from gemel_ray.spec.errors import GemelError as GemelError
    from gemel_ray.spec.workload import Workload as Workload

__version__ = "0.1.0"

_HOMES = {
    "GemelError": "gemel_ray.spec.errors",
    "Workload": "gemel_ray.spec.workload",
    "load_workload": "gemel_ray.api.calls",
    "analyze": "gemel_ray.api.calls",
    "search": "gemel_ray.api.calls",
    "open_store": "gemel_ray.api.calls",
    "simulate": "gemel_ray.api.calls",
    "serve": "gemel_ray.api.calls",
}
__all__ = [
    "GemelError",
    "Workload",
    "__version__",
    "analyze",
    "load_workload",
    "open_store",
    "search",
    "serve",
    "simulate",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in _HOMES:
        raise AttributeError(f"module 'gemel_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
