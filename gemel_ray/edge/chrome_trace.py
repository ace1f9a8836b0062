"""A trace as chrome://tracing and Perfetto show it: one lane for loads, one for inferences, marks for lost frames."""

from __future__ import annotations

from typing import Any

from gemel_ray.edge.trace import Trace
from gemel_ray.spec.actions import Done, Dropped, Infer

# Processes and threads of the viewer.
_PROCESS = 1
_LANES = {"load": 1, "infer": 2, "dropped frames": 3}

ChromeEvent = dict[str, Any]


def chrome_trace(trace: Trace) -> list[ChromeEvent]:
    """Events in the Trace Event Format, for `json.dump`; times in microseconds, as the format demands.

    Loads and inferences are complete events ("X") at the time they really took, dropped frames instants ("i").
    """
    lanes = [_lane(name, number) for name, number in _LANES.items()]
    works = [_work(done) for done in trace.done]
    drops = [_drop(verdict) for verdict in trace.verdicts if isinstance(verdict, Dropped)]
    return [*lanes, *works, *drops]


def _lane(name: str, number: int) -> ChromeEvent:
    return {"name": "thread_name", "ph": "M", "pid": _PROCESS, "tid": number, "args": {"name": name}}


def _work(done: Done) -> ChromeEvent:
    action = done.action
    args: dict[str, Any] = {"predicted_ms": action.predicted_ms}
    if isinstance(action, Infer):
        lane, name = "infer", f"{action.query} x{len(action.frames)}"
        args |= {"frames": list(action.frames), "workspace_bytes": action.workspace_bytes}
    else:
        lane, name = "load", action.weight
        args |= {"bytes": action.bytes}
    if done.failure is not None:
        args["failure"] = done.failure
    began_us, took_us = (done.now_ms - done.took_ms) * 1000, done.took_ms * 1000
    return {
        "name": name, "cat": lane, "ph": "X", "pid": _PROCESS, "tid": _LANES[lane],
        "ts": began_us, "dur": took_us, "args": args,
    }  # fmt: skip


def _drop(verdict: Dropped) -> ChromeEvent:
    return {
        "name": f"{verdict.frame.query}: {verdict.reason}",
        "cat": "dropped frames",
        "ph": "i",
        "s": "t",
        "pid": _PROCESS,
        "tid": _LANES["dropped frames"],
        "ts": verdict.now_ms * 1000,
        "args": {"frame": verdict.frame.frame, "arrived_ms": verdict.frame.arrived_ms},
    }
