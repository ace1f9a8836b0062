"""How much loading and computing slow each other down on the device at hand, measured."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gemel_ray.engine.blobs import BlobFile
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.plan import Contention

# The name under which a blob is loaded beside inferences: no blob's.
_BESIDE = "beside"
Load = tuple[BlobFile, float]
# A load that takes longer than so many inferences is not waited for.
_MOST_RUNS = 200


def measure_contention(
    infer: Callable[[], object], blobs: Sequence[BlobFile], residence: Residence, repeats: int
) -> Contention:
    """Medians of inferences and of loads of blobs at the same time, against the same one after the other.

    In turn, since either finds the processor's caches full of the other's bytes then, as a profile's times have it: an
    inference after inferences alone would make of that a slowdown, counted twice. One blob after the other, since what
    is loaded again and again comes from the caches. Ends as it began: blobs are loaded under a name of their own, as
    another query's weights would be.
    """
    cycle = itertools.cycle(blobs)

    def load() -> tuple[BlobFile, float]:
        blob = next(cycle)
        load_ms = took_ms(lambda: residence.load(_BESIDE, blob, blob.data_bytes))
        forget([_BESIDE], residence)
        return blob, load_ms

    in_turn = _in_turn(infer, load, (repeats + 1) * len(blobs))[len(blobs) :]
    run_ms, loads = _together(infer, load, repeats, len(blobs))
    return Contention(
        _slowdown(run_ms, [took for took, _ in in_turn]), _load_slowdown(loads, [one for _, one in in_turn])
    )


def forget(weights: Iterable[str], residence: Residence) -> None:
    """Evict weights; their memory stays at hand, as while serving."""
    for weight in weights:
        residence.evict(weight)


def typical(found: Sequence[Contention]) -> Contention:
    """Medians; none where nothing was measured."""
    if not found:
        return Contention()
    return Contention(
        statistics.median(each.run_slowdown for each in found), statistics.median(each.load_slowdown for each in found)
    )


def _in_turn(infer: Callable[[], object], load: Callable[[], Load], rounds: int) -> list[tuple[float, Load]]:
    """Times of an inference and of the load before it, which has a thread of its own as while serving."""
    found = []
    with ThreadPoolExecutor(1, "gemel-in-turn") as copying:
        for _ in range(rounds):
            loaded = copying.submit(load).result()
            found.append((took_ms(infer), loaded))
    return found


def _together(
    infer: Callable[[], object], load: Callable[[], Load], repeats: int, most_loads: int
) -> tuple[list[float], list[Load]]:
    """Times of inferences while another thread loads all the time, and of these loads."""
    loads: list[Load] = []
    ended, begun = threading.Event(), threading.Event()

    def keep_loading() -> None:
        while not ended.is_set():
            begun.set()
            loads.append(load())

    thread = threading.Thread(target=keep_loading, name="gemel-contend", daemon=True)
    thread.start()
    run_ms: list[float] = []
    try:
        begun.wait()
        while len(run_ms) < repeats or (len(loads) <= most_loads and len(run_ms) < _MOST_RUNS and thread.is_alive()):
            run_ms.append(took_ms(infer))
    finally:
        ended.set()
        thread.join()
    # The last load may have gone on alone.
    return run_ms, loads[:-1] or loads


def _load_slowdown(together: Sequence[Load], alone: Sequence[Load]) -> float:
    """The median over loads of what each took to what the same blob takes alone."""
    alone_ms = {blob.path: statistics.median(took for other, took in alone if other is blob) for blob, _ in alone}
    ratios = [beside_ms / max(alone_ms[blob.path], 1e-6) for blob, beside_ms in together]
    return max(1.0, statistics.median(ratios)) if ratios else 1.0


def _slowdown(together_ms: Sequence[float], alone_ms: Sequence[float]) -> float:
    if not together_ms:
        return 1.0
    return max(1.0, statistics.median(together_ms) / max(statistics.median(alone_ms), 1e-6))


def took_ms(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3
