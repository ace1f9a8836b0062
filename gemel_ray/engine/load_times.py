"""How long weight sets take to load: a fixed time each and a time by the byte, fitted to loads of all sizes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from gemel_ray.engine.blobs import BlobFile, one_tensor
from gemel_ray.engine.contending import forget, took_ms
from gemel_ray.engine.models import Skeleton
from gemel_ray.engine.residence import Residence
from gemel_ray.vision.tasks import Image

# Bytes and milliseconds.
Sample = tuple[int, float]
# Of the tensors of a large blob, in order of size: loaded by themselves, as a release that shares them may store them.
_LAYERS_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
# Named so while they are: no blob's name.
_LAYER = "layer"


def fit_loads(samples: Sequence[Sample]) -> tuple[float, float]:
    """(fixed ms, bytes per ms) of measured loads (bytes, ms), by least squares; neither is ever negative.

    Errors weigh by what they are of the load, halfway: by themselves the largest loads would leave the fixed part to
    chance, relative ones the rate. Where all loads weigh about the same, or the fit would make larger ones cheaper, all
    time counts by the byte.
    """
    count_bytes, took = zip(*samples, strict=True)
    whole_rate = max(sum(count_bytes), 1) / max(sum(took), 1e-6)
    if min(count_bytes) == max(count_bytes):
        return 0.0, whole_rate
    weights = np.maximum(took, 1e-6) ** -0.5
    ms_per_byte, fixed_ms = map(float, np.polyfit(count_bytes, took, 1, w=weights))
    if fixed_ms < 0 or ms_per_byte <= 0:
        return 0.0, whole_rate
    return fixed_ms, 1 / ms_per_byte


def load_in_turn(
    skeletons: Mapping[str, Skeleton],
    frames: Mapping[str, Image],
    blobs: Mapping[str, BlobFile],
    residence: Residence,
    repeats: int,
) -> tuple[list[Sample], dict[str, float]]:
    """Medians of each weight's loads, and of one frame's run with weights that have just come.

    One model after the other, round after round, loads in a thread of their own, as while serving: what is loaded or
    computed with again and again stays in the processor's caches (11 MB, five models in turn: a run of 3.6 ms, 3.1 with
    one model alone; a load of 8.5 ms, 9.7 by the thread that computes; 2 cores). So are some layers of each, since what
    comes as one file now may come layer by layer with the next release.
    """
    load_ms: dict[BlobFile, list[float]] = defaultdict(list)
    run_ms: dict[str, list[float]] = defaultdict(list)
    layers = {name: tuple(_some_layers(skeleton, blobs)) for name, skeleton in skeletons.items()}

    def load(weight: str, blob: BlobFile) -> None:
        work = partial(residence.load, weight, blob, blob.data_bytes)
        load_ms[blob].append(copying.submit(took_ms, work).result())

    with ThreadPoolExecutor(1, "gemel-profile") as copying:
        for _ in range(repeats):
            for name, skeleton in skeletons.items():
                # Before the whole of it, which would leave them in the caches.
                for layer in layers[name]:
                    load(_LAYER, layer)
                    forget([_LAYER], residence)
                for weight in skeleton.weights:
                    load(weight, blobs[weight])
                run_ms[name].append(took_ms(partial(skeleton.answers, [frames[name]], residence)))
                forget(skeleton.weights, residence)
    loads = [(blob.data_bytes, statistics.median(took)) for blob, took in load_ms.items()]
    return loads, {name: statistics.median(took) for name, took in run_ms.items()}


def _some_layers(skeleton: Skeleton, blobs: Mapping[str, BlobFile]) -> Iterator[BlobFile]:
    """Tensors of a model's largest weight set, small and large, each as if it were a blob."""
    largest = max((blobs[weight] for weight in skeleton.weights), key=lambda blob: blob.data_bytes)
    by_size = sorted(largest.tensors, key=lambda name: largest.tensors[name].bytes)
    for place in dict.fromkeys(round(at * (len(by_size) - 1)) for at in _LAYERS_AT):
        yield one_tensor(largest, by_size[place])
