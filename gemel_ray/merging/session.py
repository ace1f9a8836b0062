"""Using the Ray that is there, or a local one for as long as it is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from gemel_ray.spec.errors import InputError
from gemel_ray.weights.reaching import check_ray_address, ray_address


@contextmanager
def ray_session() -> Iterator[bool]:
    """Connect to the cluster RAY_ADDRESS names (inside `ray job submit` it is set), else start one on this machine.

    Whether one was started, and so has no more than this machine. InputError where RAY_ADDRESS names nothing.
    """
    if ray.is_initialized():
        yield False
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tune's own tables; the search has progress lines of its own.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # TensorBoard, CSV and JSON logs go to a folder that is removed afterwards; the store keeps what matters.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    address = ray_address()
    check_ray_address(address)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield address == "local"
    finally:
        ray.shutdown()


def check_room(cpus: float, gpus: float, *, is_own: bool, report: Callable[[str], None]) -> None:
    """Whether any node could ever run a trial of so many CPUs and GPUs.

    Raises InputError where Ray `is_own`: it will never have more. A cluster's next node may; that it is waited for is
    told.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    most = " or ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes[:4])
    asked = f"--cpus {cpus:g} --gpus {gpus:g}"
    if is_own:
        raise InputError(f"{asked}: this machine has {most}, so no trial could ever begin; ask for less")
    report(f"{asked}: no node has that (they have {most}); trials wait for one that does")
