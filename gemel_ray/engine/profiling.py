"""Measuring a release's profile on the device at hand: load time, run time by batch size, workspace bytes."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from gemel_ray.engine.blobs import BlobFile, Fetch, open_blobs
from gemel_ray.engine.contending import forget, measure_contention, typical
from gemel_ray.engine.copying import ReloadFrom
from gemel_ray.engine.devices import device_name, find_device
from gemel_ray.engine.models import Skeleton, build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.ways import fastest
from gemel_ray.engine.workspace import Work, peak_bytes
from gemel_ray.spec.errors import InputError
from gemel_ray.spec.plan import Contention
from gemel_ray.spec.profile import MOST_THREADS, DeviceProfile, QueryProfile, Way
from gemel_ray.spec.release import Manifest
from gemel_ray.vision.models import task_of
from gemel_ray.vision.tasks import Image
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import open_store

log = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8)
# Detectors are measured on frames of this size unless told otherwise; classifiers on frames of their input size.
DETECTOR_FRAME = (360, 640)
# Larger batch sizes are left out of a query's profile once its measurement has taken so long.
SECONDS_PER_QUERY = 2.0
# How loading and computing slow each other down is measured on so many queries.
_CONTENDED_QUERIES = 3
# Beside loads of so many weight sets, one after the other: more than caches hold, mostly.
_CONTENDING_BLOBS = 12

Sample = tuple[int, float]


def measure_profile(
    manifest: Manifest,
    fetch: Fetch,
    device: str | torch.device = "cpu",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 3,
    *,
    frame_height_width: tuple[int, int] | None = None,
    budget_bytes: float = math.inf,
    allow_factories: bool = False,
    reload_from: ReloadFrom = "memory",
    ways: Sequence[Way] = (),
) -> DeviceProfile:
    """Load and run every query by itself, one after the other, on frames of noise; medians of `repeats`.

    Takes about SECONDS_PER_QUERY for each query: batch sizes whose turn comes later are left out, and so are those
    that look too large for the budget beside their own query's weights; the smallest never. `ways` of computing are
    tried beside the plain one, and the fastest is measured and told.
    """
    place = torch.device(device)
    blobs = open_blobs(manifest, fetch)
    skeletons = build_skeletons(manifest, blobs, place, allow_factories=allow_factories)
    return profile_skeletons(
        manifest,
        skeletons,
        blobs,
        Residence(place, reload_from),
        batch_sizes,
        repeats,
        frame_height_width=frame_height_width,
        budget_bytes=budget_bytes,
        ways=ways,
    )


def profile_store(
    uri: str,
    release: int | None,
    *,
    device: str = "auto",
    repeats: int = 3,
    reload_from: ReloadFrom = "memory",
    allow_factories: bool = False,
    ways: Sequence[Way] = (),
    threads: int | None = None,
) -> DeviceProfile:
    """`measure_profile` for a release in a store; its blobs are copied to a local folder first, and forgotten.

    `threads` are those of an inference on a CPU, as an engine's; from then on this process's. Raises InputError for
    more of them than any machine has cores.
    """
    if threads is not None:
        if threads > MOST_THREADS:
            raise InputError(f"--threads {threads}: must be at most {MOST_THREADS}; about as many as there are cores")
        torch.set_num_threads(threads)
    store = open_store(uri)
    with tempfile.TemporaryDirectory(prefix="gemel-profile-") as folder:
        cache = LocalCache(store, folder)
        return measure_profile(
            cache.pull(release),
            cache.fetch,
            find_device(device),
            repeats=repeats,
            reload_from=reload_from,
            allow_factories=allow_factories,
            ways=ways,
        )


def profile_skeletons(
    manifest: Manifest,
    skeletons: Mapping[str, Skeleton],
    blobs: Mapping[str, BlobFile],
    residence: Residence,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 3,
    *,
    frame_height_width: tuple[int, int] | None = None,
    budget_bytes: float = math.inf,
    ways: Sequence[Way] = (),
) -> DeviceProfile:
    """`measure_profile` for models that are built already, through an empty residence."""
    frames = {name: _noise(manifest, name, frame_height_width) for name in skeletons}
    queries: dict[str, QueryProfile] = {}
    contentions: list[Contention] = []
    for name, skeleton in skeletons.items():
        _bring(skeleton, blobs, residence)
        room_bytes = budget_bytes - residence.allocated_bytes()
        skeleton.way = _fastest_way(skeleton, frames[name], residence, ways, repeats)
        queries[name] = _query_profile(skeleton, frames[name], residence, batch_sizes, repeats, room_bytes)
        beside_bytes = room_bytes - min(queries[name].workspace_bytes.values())
        if len(contentions) < _CONTENDED_QUERIES:
            contentions += _contention(skeleton, frames[name], blobs, residence, repeats, beside_bytes)
        forget(skeleton.weights, residence)
    loads, first_run_ms = _in_turn(skeletons, frames, blobs, residence, repeats)
    if residence.device.type == "cpu":
        queries = {name: _after_loading(found, first_run_ms[name]) for name, found in queries.items()}
    fixed_ms, bytes_per_ms = fit_loads(loads)
    contention = typical(contentions)
    log.info("profiled %d queries on %s: %.0f bytes a ms loaded", len(queries), residence.device, bytes_per_ms)
    return DeviceProfile(
        device=device_name(residence.device),
        estimated=False,
        load_fixed_ms=fixed_ms,
        load_bytes_per_ms=bytes_per_ms,
        run_slowdown=contention.run_slowdown,
        load_slowdown=contention.load_slowdown,
        queries=queries,
    )


def fit_loads(samples: Sequence[Sample]) -> tuple[float, float]:
    """(fixed ms, bytes per ms) of measured loads (bytes, ms), by least squares; neither is ever negative.

    Where all loads weigh about the same, or the fit would make larger ones cheaper, all time counts by the byte.
    """
    count_bytes, took_ms = zip(*samples, strict=True)
    whole_rate = max(sum(count_bytes), 1) / max(sum(took_ms), 1e-6)
    if min(count_bytes) == max(count_bytes):
        return 0.0, whole_rate
    ms_per_byte, fixed_ms = statistics.linear_regression(count_bytes, took_ms)
    if fixed_ms < 0 or ms_per_byte <= 0:
        return 0.0, whole_rate
    return fixed_ms, 1 / ms_per_byte


def _in_turn(
    skeletons: Mapping[str, Skeleton],
    frames: Mapping[str, Image],
    blobs: Mapping[str, BlobFile],
    residence: Residence,
    repeats: int,
) -> tuple[list[Sample], dict[str, float]]:
    """Medians of each weight's loads, and of one frame's run with weights that have just come.

    One model after the other, round after round, loads in a thread of their own, as while serving: what is loaded or
    computed with again and again stays in the processor's caches (11 MB, five models in turn: a run of 3.6 ms, 3.1 with
    one model alone; a load of 8.5 ms, 9.7 by the thread that computes; 2 cores).
    """
    load_ms: dict[str, list[float]] = defaultdict(list)
    run_ms: dict[str, list[float]] = defaultdict(list)
    with ThreadPoolExecutor(1, "gemel-profile") as copying:
        for _ in range(repeats):
            for name, skeleton in skeletons.items():
                for weight in skeleton.weights:
                    load = partial(residence.load, weight, blobs[weight], blobs[weight].data_bytes)
                    load_ms[weight].append(copying.submit(_took_ms, load).result())
                run_ms[name].append(_took_ms(partial(skeleton.answers, [frames[name]], residence)))
                forget(skeleton.weights, residence)
    loads = [(blobs[weight].data_bytes, statistics.median(took)) for weight, took in load_ms.items()]
    return loads, {name: statistics.median(took) for name, took in run_ms.items()}


def _query_profile(
    skeleton: Skeleton,
    frame: Image,
    residence: Residence,
    batch_sizes: Sequence[int],
    repeats: int,
    room_bytes: float,
) -> QueryProfile:
    run_ms: dict[int, float] = {}
    workspace_bytes: dict[int, int] = {}
    begun = time.perf_counter()
    for size in sorted(batch_sizes):
        foreseen_bytes = max((held / at * size for at, held in workspace_bytes.items()), default=0)
        if run_ms and (foreseen_bytes > room_bytes or time.perf_counter() - begun > SECONDS_PER_QUERY):
            log.info("query %s: batch sizes from %d on not measured: too slow or too large here", skeleton.name, size)
            break
        work = partial(skeleton.answers, [frame] * size, residence)
        # Before the timing, so that it warms the model up as well.
        workspace_bytes[size] = peak_bytes(work, skeleton.device)
        # What a first pass has to set up, seconds on a busy machine, says nothing about the next sizes.
        begun = begun if run_ms else time.perf_counter()
        run_ms[size] = statistics.median(_took_ms(work) for _ in range(repeats))
    first_use = skeleton.first_uses([frame], residence)
    return QueryProfile(run_ms=run_ms, workspace_bytes=workspace_bytes, first_use=first_use, way=skeleton.way)


def _after_loading(found: QueryProfile, first_run_ms: float) -> QueryProfile:
    """The same, with the time that weights take from memory which have just been loaded, or which other models have
    pushed out of a processor's caches: the same at any batch size."""
    more_ms = max(first_run_ms - found.run_ms[1], 0.0) if 1 in found.run_ms else 0.0
    return found.model_copy(update={"run_ms": {size: ms + more_ms for size, ms in found.run_ms.items()}})


def _bring(skeleton: Skeleton, blobs: Mapping[str, BlobFile], residence: Residence) -> None:
    for weight in skeleton.weights:
        residence.load(weight, blobs[weight], blobs[weight].data_bytes)


def _contention(
    skeleton: Skeleton,
    frame: Image,
    blobs: Mapping[str, BlobFile],
    residence: Residence,
    repeats: int,
    room_bytes: float,
) -> list[Contention]:
    """Of one frame beside loads of the release's largest weight sets that fit one by one; none on a GPU, which has
    engines of its own for copies, and where nothing fits."""
    fitting = sorted((blob for blob in blobs.values() if blob.data_bytes <= room_bytes), key=lambda b: -b.data_bytes)
    if residence.device.type != "cpu" or not fitting:
        return []
    work = partial(skeleton.answers, [frame], residence)
    return [measure_contention(work, fitting[:_CONTENDING_BLOBS], residence, repeats)]


def _fastest_way(skeleton: Skeleton, frame: Image, residence: Residence, ways: Sequence[Way], repeats: int) -> Way:
    def compute(way: Way) -> None:
        skeleton.way = way
        skeleton.answers([frame], residence)

    return fastest(compute, ways, repeats) if ways else "plain"


def _took_ms(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


def _noise(manifest: Manifest, query: str, height_width: tuple[int, int] | None) -> Image:
    spec = manifest.queries[query].query.model
    own = (spec.input_size, spec.input_size) if task_of(spec) == "classification" else DETECTOR_FRAME
    return np.random.default_rng(0).integers(0, 256, (*(height_width or own), 3), dtype=np.uint8)
