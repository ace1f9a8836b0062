"""How often the drift test is wrong, and how soon it is right: simulated answers, no models.

python jobs/bench_drift.py                 # 100 days' worth of frames without drift, then drops of several sizes

Without drift, agreement stays where it was; misses come one by one or in bursts (a hard scene that lasts for several
sampled frames: a two-state chain with that mean length of bursts and the same share of misses). A window's mean held
against the same floor, as a plain monitor would, stands beside ours. Delays are counted in sampled frames from the
drop on, after a day without drift.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import deque
from collections.abc import Iterator
from typing import Any

import records

from gemel_ray.policy.drift import Compared, DriftSettings, DriftState, blocks_between, observe

Frames = Iterator[Compared]


def answers(rng: random.Random, agreement: float, share: float, burst: float = 1.0) -> Frames:
    """Frames of two classes, `share` of them of the rarer one; misses come in bursts of that mean length."""
    # At length 1 the chain has no memory: the chance of a miss is the same after a miss and after a hit.
    stay = 1 - 1 / burst if burst > 1 else 1 - agreement
    start = (1 - agreement) * (1 - stay) / agreement if agreement > 0 else 1.0
    missed = False
    while True:
        missed = rng.random() < (stay if missed else start)
        yield Compared("car" if rng.random() < share else "background", float(not missed), float(missed))


def false_alarms(stream: Frames, settings: DriftSettings, frames: int) -> dict[str, Any]:
    """Alarms in so many frames, each followed by a fresh start; and the same of a plain window."""
    state, ours, window, plain = DriftState(), 0, deque[float](maxlen=200), 0
    for _ in range(frames):
        compared = next(stream)
        state = observe(state, compared, settings)
        if state.verdict == "drifted":
            ours, state = ours + 1, DriftState()
        window.append(compared.right)
        if len(window) == window.maxlen and sum(window) < settings.floor * len(window):
            plain += 1
            window.clear()
    return {"ours": ours, "window_of_200": plain}


def delay(seed: int, dropped: float, options: argparse.Namespace, settings: DriftSettings, share: float) -> int | None:
    """Sampled frames from a drop to its discovery; None when it is not found in `most_frames`."""
    rng = random.Random(seed)
    state = DriftState()
    # What matters of a quiet time is only that the evidence has settled; an hour or a month are alike.
    for stream, frames in (
        (answers(rng, options.usual, share), options.quiet_frames),
        (answers(rng, dropped, share), options.most_frames),
    ):
        for _ in range(frames):
            state = observe(state, next(stream), settings)
            if state.verdict == "drifted":
                return state.frames - options.quiet_frames if state.frames > options.quiet_frames else -1
    return None


def without_drift(options: argparse.Namespace, settings: DriftSettings) -> list[dict[str, Any]]:
    frames = round(options.days * 86_400 / options.sample_every_s)
    rows = []
    for name, agreement in (("floor", settings.floor), ("target", settings.target), ("usual", options.usual)):
        for share in (0.5, 0.1):
            for burst in (1.0, 3.0, 10.0):
                stream = answers(random.Random(f"{options.seed} {name} {share} {burst}"), agreement, share, burst)
                row = {"at": name, "agreement": agreement, "rarer_share": share, "burst_frames": burst}
                row |= {"sampled_frames": frames, "false_alarms": false_alarms(stream, settings, frames)}
                rows.append(row)
                print(
                    f"{options.days:g} days at {agreement:.3f} ({name}), {share:.0%} cars, bursts of {burst:g}: "
                    f"{row['false_alarms']}",
                    flush=True,
                )
    return rows


def with_drift(options: argparse.Namespace, settings: DriftSettings) -> list[dict[str, Any]]:
    rows = []
    for share in (0.5, 0.1):
        for dropped in (0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.25):
            found = [delay(options.seed + run, dropped, options, settings, share) for run in range(options.runs)]
            right = sorted(frames for frames in found if frames is not None and frames >= 0)
            row = {
                "dropped_to": dropped, "rarer_share": share, "delays_frames": found,
                "median_frames": statistics.median(right) if right else None,
                "p95_frames": right[min(len(right) - 1, int(0.95 * len(right)))] if right else None,
                "found": len(right), "runs": options.runs,
            }  # fmt: skip
            rows.append(row)
            print(
                f"{options.usual} drops to {dropped}, {share:.0%} cars: found {len(right)} of {options.runs}, after "
                f"{row['median_frames']} sampled frames (95 %: {row['p95_frames']})",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--usual", type=float, default=0.97, help="agreement while nothing has drifted")
    parser.add_argument("--days", type=float, default=100, help="without drift")
    parser.add_argument("--sample-every-s", type=float, default=10)
    parser.add_argument("--false-alarm-days", type=float, default=100)
    parser.add_argument("--runs", type=int, default=100, help="of each drop")
    parser.add_argument("--quiet-frames", type=int, default=8640)
    parser.add_argument("--most-frames", type=int, default=86_400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--machine", default="simulated")
    options = parser.parse_args()
    settings = DriftSettings(
        target=options.target,
        blocks_between=blocks_between(options.false_alarm_days, sample_every_s=options.sample_every_s),
    )
    record = records.heading("bench_drift") | {"options": vars(options), "blocks_between": settings.blocks_between}
    record |= {"without_drift": without_drift(options, settings), "with_drift": with_drift(options, settings)}
    print(f"raw numbers: {records.write(record, options.machine)}")


if __name__ == "__main__":
    main()
