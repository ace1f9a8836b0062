"""Benchmark: what cameras notice when the head of a Ray cluster is lost, and what a box without Ray notices of it.

    gemel demo --quick && python jobs/bench_head_loss.py gemel-demo/store

A cluster of real raylets on this machine (a head and two edge nodes) and a box on its own (`gemel edge`) serve the same
store, and both are asked all the time. The control process of the head (GCS), or the whole head with ingress and
controller, is killed with SIGKILL, and started again after a while. With `redis-server` installed, all is done once
more with Ray's state kept in a Redis (RAY_REDIS_ADDRESS). Every answer is held against an engine of this process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import records
from bench_recovery import NODES, Cameras, Known, add_edge, right_answers

from gemel_ray.weights.store import open_store

GEMEL = (sys.executable, "-c", "from gemel_ray.cli.main import main; main()")
START_S = 180.0
# A lost head that is not back by then has lost its raylets: Ray's own setting, 60 s unless told otherwise.
RECONNECT_S = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60"))  # noqa: SIM112
WORKLOAD = """
name: {name}
feeds: {{f: {{kind: streets}}}}
queries: [{{name: {query}, feed: f, model: {{architecture: resnet18, classes: [a, b]}}}}]
nodes: [{{name: box, memory: {memory}, device: cpu}}]
"""


def free_port() -> int:
    """One that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def deploy(address: str, store: str, cache: str, port: int, memory_bytes: int) -> None:
    """Serve the store on a cluster and leave; in a process of its own, since a driver ends with its raylet."""
    import ray
    from ray import serve

    from gemel_ray.serving.app import build

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    nodes = [
        {"name": name, "memory": memory_bytes, "device": "cpu", "threads": 1, "labels": {"edge": name}}
        for name in NODES
    ]
    args = {"store": store, "cache": cache, "nodes": nodes, "watch": True, "canary_s": 0.5, "grace_s": 20}
    serve.run(build(args | {"front_labels": {"role": "head"}}), name="gemel", route_prefix="/")


class Fleet:
    """The cluster, what is served on it, and the processes of its engines."""

    def __init__(self, store: Path, folder: Path, memory_bytes: int) -> None:
        from ray.cluster_utils import Cluster

        self.port, self._gcs_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._deploying = [str(store), str(folder / "cache"), str(self.port), str(memory_bytes)]
        self.cluster = Cluster()
        self.start_head()
        for name in NODES:
            add_edge(self.cluster, name)
        self.deploy()

    def start_head(self) -> None:
        """A head at the address that the edge nodes know."""
        self.cluster.add_node(
            num_cpus=2, labels={"role": "head"}, object_store_memory=100_000_000, include_dashboard=False,
            gcs_server_port=self._gcs_port,
        )  # fmt: skip

    def deploy(self) -> None:
        """Returns once the engines answer."""
        command = [sys.executable, __file__, "--deploy", self.cluster.address, *self._deploying]
        subprocess.run(command, check=True, timeout=START_S, stdout=subprocess.DEVNULL)

    def lose_head(self) -> None:
        """All of it: GCS, raylet, proxy, ingress, controller."""
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)

    def lose_gcs(self) -> None:
        """Only the process that keeps the cluster's state."""
        self.cluster.head_node.kill_gcs_server()

    def start_gcs(self) -> None:
        """The same again."""
        self.cluster.head_node.start_gcs_server()

    def lose_everything(self) -> None:
        """All raylets, whatever is left of them."""
        for node in self.cluster.list_all_nodes():
            self.cluster.remove_node(node, allow_graceful=False)

    def start_anew(self) -> None:
        """What a supervisor would do: a new cluster at the old address, and the application on it."""
        self.lose_everything()
        self.start_head()
        for name in NODES:
            add_edge(self.cluster, name)
        self.deploy()

    def engines(self) -> set[int]:
        """Processes of engines of this cluster's application."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                title = (entry / "cmdline").read_bytes()
                if title.startswith(b"ray::ServeReplica:gemel:engine-") and self._is_ours(entry):
                    found.add(int(entry.name))
        return found

    def _is_ours(self, entry: Path) -> bool:
        # Other clusters on this machine have other tokens.
        token = os.environ["RAY_AUTH_TOKEN"].encode()
        return b"RAY_AUTH_TOKEN=" + token in (entry / "environ").read_bytes()

    def stop(self) -> None:
        """End all of its processes."""
        self.cluster.shutdown()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[None]:
    """Ray's state in a Redis of our own; nothing, and nobody is told, outside the block."""
    port = free_port()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{port}"
    try:
        yield
    finally:
        del os.environ["RAY_REDIS_ADDRESS"]
        server.kill()
        server.wait()


@contextlib.contextmanager
def edge_box(store: Path, folder: Path, memory_bytes: int) -> Iterator[str]:
    """`gemel edge` on the same store: where it answers."""
    port, manifest = free_port(), open_store(store).manifest()
    folder.mkdir(exist_ok=True)
    (folder / "workload.yaml").write_text(
        WORKLOAD.format(name=manifest.workload_name, query=next(iter(manifest.queries)), memory=memory_bytes)
    )
    command = [*GEMEL, "edge", "workload.yaml", "--store", str(store), "--cache", "disk", "--port", str(port)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(url: str) -> None:
    """Until every node answers."""
    until_s, pause = time.monotonic() + START_S, threading.Event()
    while time.monotonic() < until_s:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/v2/health/ready", timeout=10).status_code == 200:
                return
        pause.wait(0.1)
    raise TimeoutError(f"{url} is not ready within {START_S:g} s")


def counted(cameras: Cameras, since_s: float, until_s: float) -> dict[str, float]:
    """What was answered in an interval, and the longest time in which some query had no fresh answer."""
    replies = [reply for reply in list(cameras.replies) if since_s < reply.at_s <= until_s]
    kinds = Counter(reply.kind for reply in replies)
    gaps = []
    for query in {reply.query for reply in cameras.replies}:
        fresh = [reply.at_s for reply in replies if reply.query == query and reply.kind == "fresh"]
        ends = [since_s, *fresh, until_s]
        gaps.append(max(later - earlier for earlier, later in pairwise(ends)))
    row: dict[str, float] = {kind: kinds[kind] for kind in ("fresh", "stale", "failed", "wrong")}
    return row | {"seconds": round(until_s - since_s, 1), "longest_without_s": round(max(gaps), 1)}


def incident(
    what: str, fleet: Fleet, on_ray: Cameras, alone: Cameras, lose: Callable[[], None],
    mend: Callable[[], None], down_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Lose something for a while, then mend it: what was answered meanwhile, and afterwards until all was well."""
    engines, begun_s = fleet.engines(), time.monotonic()
    on_ray.reasons.clear()
    lose()
    threading.Event().wait(down_s)
    left, mended_s = fleet.engines(), time.monotonic()
    mend()
    (alone if mend == fleet.lose_everything else on_ray).wait_until_calm(mended_s)
    ended_s = time.monotonic()
    row = {
        "what": what,
        "engines_before": len(engines),
        "engines_left_when_mended": len(engines & left),
        "engines_left_at_the_end": len(engines & fleet.engines()),
        "while_lost": counted(on_ray, begun_s, mended_s),
        "after": counted(on_ray, mended_s, ended_s),
        "box_on_its_own": counted(alone, begun_s, ended_s),
        "reasons": dict(on_ray.reasons.most_common(3)),
    }
    print(json.dumps(row))
    return row


def measured(
    store: Path, folder: Path, known: Known, alone: Cameras, options: argparse.Namespace, kept: str
) -> list[dict[str, Any]]:
    """All incidents of one cluster; `kept` says where Ray's state is."""
    fleet = Fleet(store, folder, options.memory_bytes)
    queries = tuple(open_store(store).manifest().queries)
    try:
        wait_until_ready(fleet.url)
        with Cameras(fleet.url, queries, known, options.threads) as on_ray:
            on_ray.wait_until_calm(time.monotonic())
            if kept == "memory":
                what = "GCS killed, state in memory; then " + ("all else" if options.stay_lost else "a new cluster")
                mend = fleet.lose_everything if options.stay_lost else fleet.start_anew
                return [incident(what, fleet, on_ray, alone, fleet.lose_gcs, mend, RECONNECT_S + options.down_s)]
            gcs = (fleet.lose_gcs, fleet.start_gcs, options.down_s)
            head = (fleet.lose_head, fleet.start_head, options.down_s)
            return [
                incident("GCS killed and started again, state in Redis", fleet, on_ray, alone, *gcs),
                incident("whole head killed and started again, state in Redis", fleet, on_ray, alone, *head),
            ]
    finally:
        fleet.stop()


def main() -> None:
    """Copy the store, kill heads, write the record."""
    if sys.argv[1:2] == ["--deploy"]:
        address, store, cache, port, memory_bytes = sys.argv[2:]
        return deploy(address, store, cache, int(port), int(memory_bytes))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--down-s", type=float, default=15, help="seconds until what was killed is started again")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("memory", "redis"), help="where Ray keeps its state; both by default")
    parser.add_argument("--stay-lost", action="store_true", help="kill the rest instead of starting a new cluster")
    parser.add_argument("--out", type=Path, help="write the record here instead of into jobs/results")
    parser.add_argument("--memory-bytes", type=int, default=64 << 20)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gemel-head-"))
    rows = []
    try:
        store = Path(shutil.copytree(options.store, folder / "store"))
        opened = open_store(store)
        head = opened.manifest()
        known = right_answers(opened, (head.release,), folder / "direct")
        with (
            edge_box(store, folder / "box", options.memory_bytes) as url,
            Cameras(url, tuple(head.queries), known, 1) as alone,
        ):
            if options.only != "redis":
                rows += measured(store, folder, known, alone, options, "memory")
            if options.only != "memory" and shutil.which("redis-server"):
                with redis(folder):
                    rows += measured(store, folder, known, alone, options, "redis")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = records.heading("bench_head_loss") | {"reconnect_timeout_s": RECONNECT_S, "incidents": rows}
    print(records.write(record, "cpu-raylets", options.out))


if __name__ == "__main__":
    main()
