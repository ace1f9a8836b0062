"""The drift test on real answers: a merged release against its originals, at home, on another camera, and at dusk.

python jobs/bench_drift_answers.py WORKLOAD STORE      # after gemel originals and gemel search

`home`: frames of the query's own gate split, which neither training nor choosing has seen, drawn at random (a clip of
seconds cannot be sampled every ten seconds). `swapped`: frames of every other query's feed, drawn likewise. `dusk`: the
query's own procedural street, getting darker from the first frame to the last, each frame one sample, in order.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import records

from gemel_ray.engine.originals import Originals
from gemel_ray.policy.drift import Compared, DriftSettings, DriftState, observe
from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.drift_watch import compared
from gemel_ray.spec.feeds import StreetsFeed
from gemel_ray.spec.workload import Workload, load_workload
from gemel_ray.training.data import read_query_data
from gemel_ray.vision.feeds.opening import open_feed
from gemel_ray.vision.metrics import compare
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.maintenance import originals_of
from gemel_ray.weights.store import open_store

_BATCH = 64


class Pair:
    """One query's original and its merged model."""

    def __init__(self, query: str, original: Originals, merged: Originals) -> None:
        self._query, self._original, self._merged = query, original, merged

    def answers(self, images: Sequence[Any]) -> tuple[list[Compared], float]:
        """Each frame compared, and the agreement of all by the release's own measure."""
        reference, given = [], []
        for begin in range(0, len(images), _BATCH):
            batch = list(images[begin : begin + _BATCH])
            reference += self._original.answers(self._query, batch)
            given += self._merged.answers(self._query, batch)
        return [compared(*pair) for pair in zip(reference, given, strict=True)], compare(reference, given).estimate


def drawn(frames: Sequence[Compared], rng: random.Random) -> Iterator[Compared]:
    while True:
        yield rng.choice(frames)


def found_at(stream: Iterable[Compared], settings: DriftSettings, most: int) -> int | None:
    """The sample at which drift is found; None when it is not by then."""
    state = DriftState()
    for compared_frame, _ in zip(stream, range(most), strict=False):
        state = observe(state, compared_frame, settings)
        if state.drifted_at is not None:
            return state.drifted_at
    return None


def at_home(pair: Pair, images: Sequence[Any], settings: DriftSettings, options: argparse.Namespace) -> dict[str, Any]:
    frames, agreement = pair.answers(images)
    found = [found_at(drawn(frames, random.Random(run)), settings, options.most) for run in range(options.runs)]
    return {"frames": len(images), "agreement": agreement} | told(found)


def told(found: Sequence[int | None]) -> dict[str, Any]:
    right = [at for at in found if at is not None]
    return {
        "found": len(right),
        "runs": len(found),
        "median_samples": statistics.median(right) if right else None,
        "samples": list(found),
    }


def at_dusk(pair: Pair, spec: StreetsFeed, settings: DriftSettings) -> dict[str, Any]:
    """By how dark it is when drift is found, and the agreement before and after half of the dusk."""
    dark = spec.model_copy(update={"dusk": 1.0, "seed": spec.seed})
    frames, agreement = pair.answers([frame.image for frame in open_feed("dusk", dark).frames()])
    at = found_at(frames, settings, len(frames))
    return {
        "frames": len(frames),
        "agreement": agreement,
        "found_at_frame": at,
        "dusk_fraction": None if at is None else at / len(frames),
    }


def rows_of(workload: Workload, uri: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    store = open_store(uri)
    manifest = store.manifest(options.release)
    cache = LocalCache(store, options.cache)
    originals = Originals(originals_of(store, manifest), cache.fetch, most_bytes=1 << 30)
    merged = Originals(manifest, cache.fetch, most_bytes=1 << 30)
    gates = {
        query.name: list(read_query_data(query, workload.feeds[query.feed]).splits["gate"].images)
        for query in workload.queries
    }
    rows = []
    for query in workload.queries:
        settings = DriftOptions().settings(query.accuracy_target)
        pair, feed = Pair(query.name, originals, merged), workload.feeds[query.feed]
        row: dict[str, Any] = {"query": query.name, "target": query.accuracy_target, "floor": settings.floor}
        row["home"] = at_home(pair, gates[query.name], settings, options)
        row["swapped"] = {
            other: at_home(pair, images, settings, options) for other, images in gates.items() if other != query.name
        }
        row["dusk"] = at_dusk(pair, feed, settings) if isinstance(feed, StreetsFeed) else None
        rows.append(row)
        tell(row, options)
    return rows


def tell(row: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"{row['query']}: drift is agreement below {row['floor']:.3f}")
    for name, seen in (("home", row["home"]), *row["swapped"].items()):
        print(
            f"  {name:>22}: agreement {seen['agreement']:.3f}, found in {seen['found']} of {seen['runs']} runs of "
            f"{options.most} samples, median {seen['median_samples']}"
        )
    if dusk := row["dusk"]:
        where = "not found" if dusk["found_at_frame"] is None else f"found at {dusk['dusk_fraction']:.0%} of it"
        print(f"  {'dusk':>22}: agreement {dusk['agreement']:.3f}, {where}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", type=Path)
    parser.add_argument("store")
    parser.add_argument("--release", type=int, default=None)
    parser.add_argument("--cache", type=Path, default=Path("drift-cache"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--most", type=int, default=8640, help="samples of a run: one a ten seconds is a day")
    parser.add_argument("--machine", default="cpu")
    options = parser.parse_args()
    record = records.heading("bench_drift_answers") | {
        "options": {key: str(value) for key, value in vars(options).items()}
    }
    record["queries"] = rows_of(load_workload(options.workload), options.store, options)
    # Where it was run is nobody's business.
    record["command"] = "python jobs/bench_drift_answers.py WORKLOAD STORE"
    record["options"] |= {"workload": options.workload.name, "store": "", "cache": ""}
    print(f"raw numbers: {records.write(record, options.machine)}")


if __name__ == "__main__":
    main()
