"""Benchmark: what several queries of one feed gain by computing their first layers once a frame, on the real device.

    python jobs/bench_stems.py                              # on this machine's processor, one thread
    python jobs/bench_stems.py --device cuda --machine NAME

One frame is asked of all queries, with stems of several depths and with none, in turn: what is told is the median of
the ratios of neighbours. Answers are compared bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import records
import torch
from untrained import release

from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.devices import device_name, find_device
from gemel_ray.engine.models import Skeleton, build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.stems import KeptStem, StemmedModel
from gemel_ray.engine.tracing import TracedForm, trace

_FRAMES = 8


def bench(model: str, queries: int, input_size: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """One row for each depth: times of one frame asked of all queries, with the stem and without."""
    with release([model] * queries, input_size=input_size, fps=1, slo_ms=1, merged=True) as (manifest, cache):
        blobs, residence = open_blobs(manifest, cache.fetch), Residence(device)
        skeletons = list(build_skeletons(manifest, blobs, device).values())
        forms = [trace(each.model, (1, 3, input_size, input_size)) for each in skeletons]
        for weight, blob in blobs.items():
            residence.load(weight, blob, blob.data_bytes)
    cuts = {"none": 0} | cut_places(forms[0])
    took_ms: dict[str, list[float]] = {name: [] for name in cuts}
    frames = np.random.default_rng(0).integers(0, 256, (_FRAMES, input_size, input_size, 3), dtype=np.uint8)
    for repeat in range(repeats + 1):
        answers = set()
        for name, steps in cuts.items():
            _cut(skeletons, forms, steps)
            begun = time.perf_counter()
            answers.add(str([each.answers([frames[repeat % _FRAMES]], residence) for each in skeletons]))
            took_ms[name].append((time.perf_counter() - begun) * 1e3)
        assert len(answers) == 1, "answers differ"
    # The first of each warms up.
    return [{"stem": name, "took_ms": [round(each, 3) for each in times[1:]]} for name, times in took_ms.items()]


def cut_places(form: TracedForm | None) -> dict[str, int]:
    """Steps up to the ends of a resnet's parts."""
    assert form is not None, "a resnet can be traced"
    nodes = list(form.graph.nodes)
    ends = {str(nodes[end].target): place for place, end in enumerate(form.ends)}
    return {name: ends[name] for name in ("conv1", "maxpool", "layer1.1.relu", "layer2.1.relu")}


def _cut(skeletons: Sequence[Skeleton], forms: Sequence[TracedForm | None], steps: int) -> None:
    kept = KeptStem(1)
    for skeleton, form in zip(skeletons, forms, strict=True):
        assert form is not None, "a resnet can be traced"
        skeleton.stemmed = StemmedModel(*form.cut(skeleton.model, steps), kept) if steps else None


def ratio(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> float:
    """Of the time without a stem, which is the first row's."""
    return statistics.median(own / plain for own, plain in zip(row["took_ms"], rows[0]["took_ms"], strict=True))


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--queries", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    record = records.heading("bench_stems") | {"device": device_name(device), "options": vars(options), "runs": []}
    for queries in options.queries:
        rows = bench(options.model, queries, options.input_size, device, options.repeats)
        record["runs"].append({"queries": queries, "rows": rows})
        for row in rows:
            median_ms = statistics.median(row["took_ms"])
            print(f"{queries} queries, stem {row['stem']:15} {median_ms:7.1f} ms, {ratio(rows, row):.3f} of none")
    print(records.write(record, options.machine))


if __name__ == "__main__":
    main()
