"""A soak through the real endpoint: `gemel edge` in a process of its own, and cameras that send more than it answers.

The sustainable rate is found first: so many frames are answered while each camera waits for its answer before it sends
the next. Then cameras send at a multiple of that, whether answers come or not. Minute by minute: what became of the
frames, the latency of those that were answered, and the size of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import mmap
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bench_head_loss import free_port, wait_until_ready
from PIL import Image

GEMEL = (sys.executable, "-c", "from gemel_ray.cli.main import main; main()")
WORKLOAD = """
name: untrained
feeds: {{noise: {{kind: streets}}}}
queries: [{{name: {query}, feed: noise, model: {{architecture: resnet18, classes: [background, car]}}}}]
nodes: [{{name: box, memory: {memory}, device: {device}}}]
"""
FINDING_S = 15.0
# More than the service lets in at once, so that its own limit is met too.
MOST_OPEN = 256
PERCENTILES = (50, 95, 99, 99.9)


@dataclass
class Minute:
    """What was sent in one minute; latencies of fresh answers as the engine and as the camera measured them."""

    kinds: Counter[str] = field(default_factory=Counter)
    latency_ms: list[float] = field(default_factory=list)
    round_trip_ms: list[float] = field(default_factory=list)
    process_bytes: list[int] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """As a row of the record."""
        row: dict[str, Any] = dict(self.kinds) | {"process_bytes": round(statistics.median(self.process_bytes))}
        return row | {"latency_ms": percentiles(self.latency_ms), "round_trip_ms": percentiles(self.round_trip_ms)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By name; nothing where there are no values."""
    if not values:
        return {}
    found = np.percentile(values, PERCENTILES)
    told = {f"p{wanted:g}": round(float(value), 1) for wanted, value in zip(PERCENTILES, found, strict=True)}
    return told | {"most": round(max(values), 1)}


@contextlib.contextmanager
def box(folder: Path, query: str, budget_bytes: int, device: str, threads: int) -> Iterator[tuple[str, int]]:
    """`gemel edge` on the store in a folder: where it answers, and its process."""
    port = free_port()
    (folder / "workload.yaml").write_text(WORKLOAD.format(query=query, memory=budget_bytes, device=device))
    (folder / "edge.yaml").write_text(f"{{threads: {threads}, poll_every_s: 5}}")
    command = [*GEMEL, "edge", "workload.yaml", "--store", "store", "--cache", "box", "--options", "edge.yaml"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=folder, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(30)


def pictures(size: int) -> list[bytes]:
    """Frames of noise as JPEG."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(8):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(stream, "jpeg")
        found.append(stream.getvalue())
    return found


class Cameras:
    """One for each query, all in one thread."""

    def __init__(self, url: str, pid: int, queries: Sequence[str], size: int) -> None:
        self._queries, self._pictures, self._pid = list(queries), pictures(size), pid
        limits = httpx.Limits(max_connections=MOST_OPEN, max_keepalive_connections=MOST_OPEN)
        self._client = httpx.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False)
        self._open: set[asyncio.Task[None]] = set()

    async def sustainable_fps(self) -> float:
        """Frames a second of all cameras together that are answered, none of them sent before the last answer."""
        minute, until_s = Minute(), time.monotonic() + FINDING_S

        async def ask(query: str) -> None:
            turn = 0
            while time.monotonic() < until_s:
                await self._send(query, turn, minute)
                turn += 1

        await asyncio.gather(*map(ask, self._queries))
        return minute.kinds["fresh"] / FINDING_S

    async def overload(self, fps: float, minutes: float) -> list[Minute]:
        """Send at that rate in all, each camera in turn."""
        found: list[Minute] = []
        begun_s, sent = time.monotonic(), 0
        while (due_s := sent / fps) < 60 * minutes:
            await asyncio.sleep(max(0.0, begun_s + due_s - time.monotonic()))
            if int(due_s // 60) == len(found):
                found.append(Minute())
            if sent % max(round(fps), 1) == 0:
                found[-1].process_bytes.append(self._process_bytes())
            self._spawn(self._queries[sent % len(self._queries)], sent, found[-1])
            sent += 1
        await asyncio.gather(*self._open)
        await self._client.aclose()
        return found

    def _spawn(self, query: str, turn: int, minute: Minute) -> None:
        if len(self._open) >= MOST_OPEN:
            minute.kinds["not sent"] += 1
            return
        task = asyncio.get_running_loop().create_task(self._send(query, turn, minute))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _send(self, query: str, turn: int, minute: Minute) -> None:
        begun_s, body = time.monotonic(), self._pictures[turn % len(self._pictures)]
        try:
            reply = await self._client.post(
                f"/v1/queries/{query}/frames", content=body, headers={"content-type": "image/jpeg"}
            )
        except httpx.HTTPError:
            minute.kinds["failed"] += 1
            return
        found = reply.json()
        kind = "fresh" if found.get("fresh") else "stale" if reply.status_code == 200 else str(reply.status_code)
        minute.kinds[kind] += 1
        if kind == "fresh":
            minute.latency_ms.append(found["latency_ms"])
            minute.round_trip_ms.append((time.monotonic() - begun_s) * 1e3)

    def _process_bytes(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * mmap.PAGESIZE


async def _soaked(url: str, pid: int, queries: Sequence[str], size: int, over: float, minutes: float) -> Any:  # noqa: ANN401
    cameras = Cameras(url, pid, queries, size)
    fps = await cameras.sustainable_fps()
    print(f"{fps:.1f} frames a second are sustained; sending {over * fps:.1f} for {minutes:g} minutes", flush=True)
    return fps, await cameras.overload(over * fps, minutes)


def soak(
    folder: Path, queries: Sequence[str], *, budget_bytes: int, size: int, slo_ms: float, over: float, minutes: float,
    device: str, threads: int,
) -> dict[str, Any]:  # fmt: skip
    """The release in `folder`/store at `over` times what can be sustained: rows by minute, and all together."""
    with box(folder, queries[0], budget_bytes, device, threads) as (url, pid):
        fps, found = asyncio.run(_soaked(url, pid, queries, size, over, minutes))
        nodes = httpx.get(f"{url}/v1/status", timeout=60).json()["nodes"]
    latency_ms = [value for minute in found for value in minute.latency_ms]
    settled = [statistics.median(minute.process_bytes) for minute in found[len(found) // 5 :]]
    return {
        "sustainable_fps": round(fps, 2),
        "sent_fps": round(over * fps, 2),
        "came_of_them": dict(sum((minute.kinds for minute in found), Counter())),
        "slo_ms": slo_ms,
        "latency_ms": percentiles(latency_ms),
        "round_trip_ms": percentiles([value for minute in found for value in minute.round_trip_ms]),
        "within_slo_fraction": sum(value <= slo_ms for value in latency_ms) / max(len(latency_ms), 1),
        # Of medians of minutes, the first fifth left out, in which it warms up.
        "process_growth_fraction": settled[-1] / settled[0] - 1,
        "process_bytes_most": max(value for minute in found for value in minute.process_bytes),
        "memory": nodes[0]["memory"],
        "minutes": [minute.told() for minute in found],
    }
