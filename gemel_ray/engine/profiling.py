"""Measuring a release's profile on the device at hand: load time, run time by batch size, workspace bytes."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from gemel_ray.engine.blobs import BlobFile, Fetch, open_blobs
from gemel_ray.engine.contending import forget, measure_contention, took_ms, typical
from gemel_ray.engine.copying import ReloadFrom
from gemel_ray.engine.devices import device_name, find_device, use_threads
from gemel_ray.engine.load_times import Sample, fit_loads, load_in_turn
from gemel_ray.engine.models import Skeleton, build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.ways import fastest
from gemel_ray.engine.workspace import peak_bytes
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


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement found: costs of queries, and of the device what may be put together with other ones'."""

    device: str
    queries: Mapping[str, QueryProfile]
    loads: tuple[Sample, ...]
    contentions: tuple[Contention, ...]

    def profile(self) -> DeviceProfile:
        """All of it."""
        return rates_of(self.device, self.loads, self.contentions).model_copy(update={"queries": dict(self.queries)})


def rates_of(device: str, loads: Sequence[Sample], contentions: Sequence[Contention]) -> DeviceProfile:
    """The profile of a device and of no queries: how fast it loads, and how loads and inferences slow each other."""
    fixed_ms, bytes_per_ms = fit_loads(loads)
    contention = typical(contentions)
    return DeviceProfile(
        device=device,
        estimated=False,
        load_fixed_ms=fixed_ms,
        load_bytes_per_ms=bytes_per_ms,
        run_slowdown=contention.run_slowdown,
        load_slowdown=contention.load_slowdown,
        queries={},
    )


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
    ).profile()


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
    if threads is not None and threads > MOST_THREADS:
        raise InputError(f"--threads {threads}: must be at most {MOST_THREADS}; about as many as there are cores")
    use_threads(threads)
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
) -> Measured:
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
    loads, first_run_ms = load_in_turn(skeletons, frames, blobs, residence, repeats)
    if residence.device.type == "cpu":
        queries = {name: _after_loading(found, first_run_ms[name]) for name, found in queries.items()}
    log.info("profiled %d queries on %s, %d loads", len(queries), residence.device, len(loads))
    return Measured(device_name(residence.device), queries, tuple(loads), tuple(contentions))


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
        run_ms[size] = statistics.median(took_ms(work) for _ in range(repeats))
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


def _noise(manifest: Manifest, query: str, height_width: tuple[int, int] | None) -> Image:
    spec = manifest.queries[query].query.model
    own = (spec.input_size, spec.input_size) if task_of(spec) == "classification" else DETECTOR_FRAME
    return np.random.default_rng(0).integers(0, 256, (*(height_width or own), 3), dtype=np.uint8)
