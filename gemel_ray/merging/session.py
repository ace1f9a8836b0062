"""Using the Ray that is there, or a local one for as long as it is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster RAY_ADDRESS names (inside `ray job submit` it is set), else start one on this machine."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tune's own tables; the search has progress lines of its own.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # TensorBoard, CSV and JSON logs go to a folder that is removed afterwards; the store keeps what matters.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Left to itself, Ray joins whatever cluster was started last on this machine, or waits for one that is gone.
    address = os.environ.get("RAY_ADDRESS", "local")
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
