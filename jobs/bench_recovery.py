"""Benchmark: what cameras notice when parts of a fleet are killed, and while releases come and go.

    gemel demo --quick && python jobs/bench_recovery.py gemel-demo/store

Starts a cluster of real raylets on this machine (a head and two edge nodes), serves a store that has a release and
its parent, and asks all queries over HTTP all the time: one request after the other, on each of several threads.
Every answer is held against what an engine of this process says of the same frame and release.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import records
from PIL import Image

from gemel_ray.engine.engine import Engine
from gemel_ray.spec.answers import Classified
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.store import Store, open_store

# Ray reads these while it is imported: a lost machine is noticed within a second or two, and its workers do not give
# way to whatever else runs here.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
    RAY_health_check_initial_delay_ms="0",
    RAY_health_check_period_ms="500",
    RAY_health_check_timeout_ms="1000",
    RAY_health_check_failure_threshold="3",
    RAY_worker_niceness="0",
)
NODES = ("box-a", "box-b")
FRAMES = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8) for seed in range(3)]
PATIENCE_S = 180.0
# Everybody is well once every query has been answered freshly, and nothing else has come, for so long.
CALM_S = 2.0
Known = Mapping[tuple[int, str, int], Sequence[float]]


@dataclass(frozen=True)
class Reply:
    """One request: when its answer came, and what it was worth."""

    at_s: float
    query: str
    kind: str
    latency_ms: float


class Cameras:
    """Threads that ask without a pause; every answer is judged at once."""

    def __init__(self, url: str, queries: Sequence[str], known: Known, threads: int) -> None:
        self.replies: list[Reply] = []
        self.reasons: Counter[str] = Counter()
        self._url, self._queries, self._known = url, queries, known
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(place,)) for place in range(threads)]

    def __enter__(self) -> Cameras:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, turn: int) -> None:
        bodies = [png(frame) for frame in FRAMES]
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while not self._ended.is_set():
                query, frame = self._queries[turn % len(self._queries)], turn % len(bodies)
                begun_s = time.monotonic()
                kind = self._judged(client, query, frame, bodies[frame])
                now_s = time.monotonic()
                self.replies.append(Reply(now_s, query, kind, (now_s - begun_s) * 1e3))
                turn += 1
                # Where nobody listens, asking takes no time at all.
                if kind == "failed":
                    self._ended.wait(0.05)

    def _judged(self, client: httpx.Client, query: str, frame: int, body: bytes) -> str:
        path, headers = f"/v1/queries/{query}/frames?slo_ms=60000", {"content-type": "image/png"}
        try:
            reply = client.post(path, content=body, headers=headers)
        except httpx.HTTPError as error:
            self.reasons[f"failed: {type(error).__name__}"] += 1
            return "failed"
        if reply.status_code != 200:
            # Ours is JSON with a reason, but while Serve starts its proxy answers by itself.
            self.reasons[f"failed: {reply.status_code} {reply.text[:200]}"] += 1
            return "failed"
        found = reply.json()
        wanted = [self._known[found["release"], query, other] for other in range(len(FRAMES))]
        scores = list(found["answer"]["scores"].values())
        if not found["fresh"]:
            self.reasons[f"stale: {found['reason']}"] += 1
            return "stale" if any(np.allclose(scores, each, atol=1e-4) for each in wanted) else "wrong"
        return "fresh" if np.allclose(scores, wanted[frame], atol=1e-4) else "wrong"

    def wait_until_calm(self, since_s: float) -> float:
        """Seconds from `since_s` to the last answer that was not fresh, once there has been none for a while."""
        until_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while time.monotonic() < until_s:
            recent = [reply for reply in list(self.replies) if reply.at_s > max(since_s, time.monotonic() - CALM_S)]
            is_calm = {reply.query for reply in recent if reply.kind == "fresh"} >= set(self._queries)
            if is_calm and all(reply.kind == "fresh" for reply in recent) and time.monotonic() > since_s + CALM_S:
                bad = [reply.at_s for reply in self.replies if reply.at_s > since_s and reply.kind != "fresh"]
                return max(bad, default=since_s) - since_s
            pause.wait(0.05)
        raise TimeoutError(f"not calm within {PATIENCE_S:g} s; of late: {self.reasons.most_common(3)}")


def png(frame: np.ndarray) -> bytes:
    """A frame as a picture without loss."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "png")
    return stream.getvalue()


def right_answers(store: Store, releases: Sequence[int], folder: Path) -> dict[tuple[int, str, int], Sequence[float]]:
    """By release, query and frame, from an engine of this process with memory for everything."""
    known = {}
    for number in releases:
        manifest, cache = store.manifest(number), LocalCache(store, folder)
        cache.bring(manifest)
        engine = Engine(budget_bytes=4 << 30, device="cpu", threads=1)
        engine.start(manifest, cache.fetch)
        for query in manifest.queries:
            for place, frame in enumerate(FRAMES):
                answer = engine.submit(query, frame, droppable=False).result(timeout=PATIENCE_S).answer
                assert isinstance(answer, Classified), "this benchmark is for classifiers"
                known[number, query, place] = answer.scores
        engine.stop()
    return known


@contextlib.contextmanager
def fleet(store: Path, folder: Path, memory_bytes: int) -> Iterator[tuple[Any, Any, str, str]]:
    """The cluster, its edge nodes by name, the application's name, and where it answers."""
    import ray
    from ray.cluster_utils import Cluster

    from gemel_ray.serving.local import serve_release
    from gemel_ray.serving.options import NodeOptions

    head = {"num_cpus": 2, "labels": {"role": "head"}, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    edges = {name: add_edge(cluster, name) for name in NODES}
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    # No other service on this machine has that name: processes are found by it.
    name = f"recovery-{os.getpid()}"
    nodes = [
        NodeOptions(name=edge, memory=memory_bytes, device="cpu", threads=1, labels={"edge": edge}) for edge in NODES
    ]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        with serve_release(
            store, nodes=nodes, cache=folder, port=port, name=name, watch=True, canary_s=0.5, grace_s=20,
            front_labels={"role": "head"},
        ) as service:  # fmt: skip
            yield cluster, edges, name, service.url
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_edge(cluster: Any, name: str) -> Any:  # noqa: ANN401 - Ray names no type
    """One more raylet, with the label of an edge box."""
    return cluster.add_node(num_cpus=1, labels={"edge": name}, object_store_memory=100_000_000)


def kill_replica(app: str, deployment: str) -> None:
    """SIGKILL the process of one of our deployments."""
    title = f"ray::ServeReplica:{app}:{deployment}"
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().decode(errors="replace").startswith(title):
                os.kill(int(folder.name), signal.SIGKILL)
                return
    raise LookupError(f"no process is called {title}")


def wait_for(url: str, is_so: Callable[[dict[str, Any]], bool]) -> float:
    """Seconds until the service's status is as wanted."""
    begun_s, pause, status = time.monotonic(), threading.Event(), {}
    while time.monotonic() - begun_s < PATIENCE_S:
        status = httpx.get(f"{url}/v1/status", timeout=PATIENCE_S).json()
        if is_so(status):
            return time.monotonic() - begun_s
        pause.wait(0.05)
    raise TimeoutError(f"not within {PATIENCE_S:g} s: {status.get('control')}, {status.get('events')}")


def settled(status: dict[str, Any]) -> bool:
    """Whether nothing is left to be done, all nodes answering."""
    return bool(status["control"]["is_settled"]) and all(node["problem"] is None for node in status["nodes"])


def without_box_b(status: dict[str, Any]) -> bool:
    """Whether its loss is known, and nothing is left to be done."""
    return bool(status["control"]["is_settled"]) and "box-b" in status["control"]["gone"]


def serving(release: int) -> Callable[[dict[str, Any]], bool]:
    """Whether a release is served everywhere."""

    def is_so(status: dict[str, Any]) -> bool:
        at = {node["release"] for node in status["nodes"] if node["release"]}
        return at == {release} == {status["control"]["target"]} and bool(status["control"]["is_settled"])

    return is_so


def incident(cameras: Cameras, what: str, act: Callable[[], None], until: Callable[[], float]) -> dict[str, Any]:
    """Do something to the fleet, wait until it is well again, and count what came meanwhile."""
    begun_s = time.monotonic()
    cameras.reasons.clear()
    act()
    until()
    recovered_s = cameras.wait_until_calm(begun_s)
    kinds = Counter(reply.kind for reply in cameras.replies if reply.at_s > begun_s)
    row = {"what": what, "last_not_fresh_s": round(recovered_s, 2), "settled_s": round(time.monotonic() - begun_s, 2)}
    row |= {kind: kinds[kind] for kind in ("fresh", "stale", "failed", "wrong")}
    slowest = max((reply.latency_ms for reply in cameras.replies if reply.at_s > begun_s), default=0.0)
    print(row)
    return row | {"slowest_ms": round(slowest), "reasons": dict(cameras.reasons)}


def rollouts(cameras: Cameras, store: Store, url: str, releases: Sequence[int], count: int) -> dict[str, Any]:
    """Another release, again and again, each followed until it is served everywhere."""
    begun_s, took_s = time.monotonic(), []
    cameras.reasons.clear()
    for turn in range(count):
        number = releases[turn % 2]
        store.set_head(number)
        took_s.append(round(wait_for(url, serving(number)), 2))
    kinds = Counter(reply.kind for reply in cameras.replies if reply.at_s > begun_s)
    row = {"what": f"{count} rollouts and reverts", "took_s": took_s}
    row |= {kind: kinds[kind] for kind in ("fresh", "stale", "failed", "wrong")}
    print(row)
    return row | {"reasons": dict(cameras.reasons)}


def measured(store: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All incidents, one after the other, under the same load."""
    opened = open_store(store)
    head = opened.manifest()
    assert head.parent is not None, "HEAD needs a parent to go back to"
    releases = (head.parent, head.release)
    known = right_answers(opened, releases, folder / "direct")
    with (
        fleet(store, folder / "cache", options.memory_bytes) as (cluster, edges, app, url),
        Cameras(url, tuple(head.queries), known, options.threads) as cameras,
    ):
        cameras.wait_until_calm(time.monotonic())

        def back() -> None:
            edges["box-b"] = add_edge(cluster, "box-b")

        def lose() -> None:
            cluster.remove_node(edges["box-b"], allow_graceful=False)

        def everywhere() -> float:
            return wait_for(url, settled)

        return [
            rollouts(cameras, opened, url, releases, options.rollouts),
            incident(cameras, "engine process killed", lambda: kill_replica(app, "engine-box-a"), everywhere),
            incident(cameras, "controller killed", lambda: kill_replica(app, "controller"), everywhere),
            incident(cameras, "node lost", lose, lambda: wait_for(url, without_box_b)),
            incident(cameras, "node back", back, everywhere),
        ]


def main() -> None:
    """Copy the store, kill what can be killed, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the record here instead of into jobs/results")
    parser.add_argument("--memory-bytes", type=int, default=64 << 20)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gemel-recovery-"))
    try:
        shutil.copytree(options.store, folder / "store")
        rows = measured(folder / "store", folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = records.heading("bench_recovery") | {"incidents": rows}
    print(records.write(record, "cpu-raylets", options.out))


if __name__ == "__main__":
    main()
