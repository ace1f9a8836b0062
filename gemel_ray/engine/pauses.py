"""Keeps Python's garbage collector from stopping all cameras at once.

A full collection holds every thread: 240 ms with torch and a release in memory (500,000 objects, 2 cores), in which six
frames of every camera at 25 fps were lost, every ten seconds or so. While something is served, what was there before is
set aside: collections look at what came since, which is little.
"""

from __future__ import annotations

import gc
import threading

_lock = threading.Lock()
_serving = 0


def begin() -> None:
    """Something is about to be served. Takes one last full collection; `end` belongs to it."""
    global _serving
    # What is garbage now would stay for as long as anything is served. Not under the lock: what is collected may be an
    # engine that ends.
    gc.collect()
    with _lock:
        _serving += 1
        gc.freeze()


def end() -> None:
    """It is served no more; when nothing is, all is collected as before."""
    global _serving
    with _lock:
        _serving -= 1
        if not _serving:
            gc.unfreeze()
