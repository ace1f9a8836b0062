"""How much loading and computing slow each other down on the device at hand, measured."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence

from gemel_ray.engine.blobs import BlobFile
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.plan import Contention

# The name under which a blob is loaded beside inferences: no blob's.
_BESIDE = "beside"
# A load that takes longer than so many inferences is not waited for.
_MOST_RUNS = 200


def measure_contention(infer: Callable[[], object], blob: BlobFile, residence: Residence, repeats: int) -> Contention:
    """Medians of inferences and of loads of a blob together, against each alone.

    Ends as it began: the blob is loaded under a name of its own, as another query's weights would be.
    """

    def load() -> None:
        residence.load(_BESIDE, blob, blob.data_bytes)
        residence.evict(_BESIDE)

    alone_ms = [_took_ms(infer) for _ in range(repeats + 1)][1:]
    load_alone_ms = [_took_ms(load) for _ in range(repeats + 1)][1:]
    run_ms, load_ms = _together(infer, load, repeats)
    alone_ms += [_took_ms(infer) for _ in range(repeats)]
    return Contention(_slowdown(run_ms, alone_ms), _slowdown(load_ms, load_alone_ms))


def typical(found: Sequence[Contention]) -> Contention:
    """Medians; none where nothing was measured."""
    if not found:
        return Contention()
    return Contention(
        statistics.median(each.run_slowdown for each in found), statistics.median(each.load_slowdown for each in found)
    )


def _together(infer: Callable[[], object], load: Callable[[], None], repeats: int) -> tuple[list[float], list[float]]:
    """Times of inferences while another thread loads all the time, and of these loads."""
    load_ms: list[float] = []
    ended, begun = threading.Event(), threading.Event()

    def keep_loading() -> None:
        while not ended.is_set():
            begun.set()
            load_ms.append(_took_ms(load))

    thread = threading.Thread(target=keep_loading, name="gemel-contend", daemon=True)
    thread.start()
    run_ms: list[float] = []
    try:
        begun.wait()
        while len(run_ms) < repeats or (len(load_ms) <= repeats and len(run_ms) < _MOST_RUNS and thread.is_alive()):
            run_ms.append(_took_ms(infer))
    finally:
        ended.set()
        thread.join()
    # The last load may have gone on alone.
    return run_ms, load_ms[:-1] or load_ms


def _slowdown(together_ms: Sequence[float], alone_ms: Sequence[float]) -> float:
    if not together_ms:
        return 1.0
    return max(1.0, statistics.median(together_ms) / max(statistics.median(alone_ms), 1e-6))


def _took_ms(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3
