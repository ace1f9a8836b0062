"""A service on real Ray Serve that follows its store: releases and reverts under load, over real HTTP."""

import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx
import pytest
from PIL import Image
from ray.serve.context import _get_global_client
from test_serving import free_port
from tiny_release import CLASSES, CLASSIFIERS, noise, publish_tiny_release, publish_variant

from gemel_ray.serving.local import serve_release
from gemel_ray.serving.options import NodeOptions
from gemel_ray.serving.tokens import TokenSource
from gemel_ray.weights.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 120
GEMEL = (sys.executable, "-c", "from gemel_ray.cli.main import main; main()")
TOKEN = secrets.token_hex(16)
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
FRAMES = [noise(seed) for seed in range(3)]


def png(frame):
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "png")
    return stream.getvalue()


class Camera(threading.Thread):
    """Asks one query after the other over HTTP, all the time; keeps every answer, fails on none."""

    def __init__(self, url):
        super().__init__()
        self.replies, self.ended = [], threading.Event()
        self._url = url

    def run(self):
        bodies = [png(frame) for frame in FRAMES]
        with httpx.Client(base_url=self._url, headers=ADMIN, timeout=PATIENCE_S) as client:
            turn = 0
            while not self.ended.is_set():
                query, frame = CLASSIFIERS[turn % len(CLASSIFIERS)], turn % len(bodies)
                path = f"/v1/queries/{query}/frames?slo_ms=60000"
                reply = client.post(path, content=bodies[frame], headers={"content-type": "image/png"})
                self.replies.append((query, frame, reply))
                turn += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("following") / "store"
    first = publish_tiny_release(folder)
    second = publish_variant(first)
    open_store(folder).set_head(1)
    return first, second


@pytest.fixture(scope="module")
def service(ray_session, published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("following-service")
    shutil.copytree(published[0].store, folder / "store")
    memory = int(0.4 * published[0].manifest.bytes_after) + (8 << 20)
    nodes = [NodeOptions(name=name, memory=memory, device="cpu", threads=1) for name in ("box-a", "box-b")]
    os.environ["GEMEL_TEST_ADMIN"] = TOKEN
    with serve_release(
        folder / "store",
        nodes=nodes,
        cache=folder / "cache",
        port=free_port(),
        watch=True,
        canary_s=0.5,
        name="fleet",
        tokens={"admin": TokenSource(env="GEMEL_TEST_ADMIN")},
    ) as service:
        yield replace(service, url=service.url), folder / "store"


def status_of(url):
    return httpx.get(f"{url}/v1/status", headers=ADMIN, timeout=PATIENCE_S).json()


def wait_for(url, release, pinned=None):
    begun, pause = time.monotonic(), threading.Event()
    while True:
        status = status_of(url)
        at = {node["release"] for node in status["nodes"] if node["release"]}
        control = status["control"]
        if at == {release} and control["is_settled"] and (control["target"], status["pinned"]) == (release, pinned):
            return time.monotonic() - begun
        assert time.monotonic() - begun < PATIENCE_S, status["control"]
        pause.wait(0.05)


def assert_right(published, replies):
    known = {(n, q): made.direct(q, FRAMES) for n, made in ((1, published[0]), (2, published[1])) for q in CLASSIFIERS}
    for query, frame, reply in replies:
        assert reply.status_code == 200, reply.text
        found = reply.json()
        assert found["fresh"], found["reason"]
        wanted = known[found["release"], query][frame]
        assert [found["answer"]["scores"][name] for name in CLASSES] == pytest.approx(wanted.scores, abs=1e-4)


def test_releases_and_reverts_under_load_reach_all_nodes_within_seconds(published, service):
    service, folder = service
    with Camera(service.url) as camera:
        open_store(folder).set_head(2)
        forward_s = wait_for(service.url, 2)
        reverted = subprocess.run([*GEMEL, "revert", str(folder)], capture_output=True, text=True)
        assert reverted.returncode == 0, reverted.stderr
        back_s = wait_for(service.url, 1)
    assert_right(published, camera.replies)
    assert {reply.json()["release"] for *_, reply in camera.replies} == {1, 2}
    print(f"forward {forward_s:.1f} s, back {back_s:.1f} s, {len(camera.replies)} answers")
    events = httpx.get(f"{service.url}/v1/events", headers=ADMIN, timeout=PATIENCE_S).json()
    assert any("release 1 instead of 2" in event["text"] for event in events)


def test_an_admin_pins_a_release_over_http_and_lets_it_go(service):
    service, folder = service
    with httpx.Client(base_url=service.url, headers=ADMIN, timeout=PATIENCE_S) as admin:
        assert admin.post("/v1/pin").json() == {"release": 1, "pinned": 1, "told": "release 1 is pinned"}
        open_store(folder).set_head(2)
        refused = admin.post("/v1/queries/north_cars/revert")
        assert refused.status_code == 409, refused.text
        assert "release 1 is pinned and stays; `gemel unpin` first" in refused.json()["error"]
        wait_for(service.url, 1, pinned=1)
        assert admin.delete("/v1/pin").json()["release"] == 2
        wait_for(service.url, 2)
        assert any("an admin's wish: release 1 is pinned" in event["text"] for event in admin.get("/v1/events").json())
        admin.post("/v1/pin?release=1").raise_for_status()
        wait_for(service.url, 1, pinned=1)
        open_store(folder).set_head(1)
        admin.delete("/v1/pin").raise_for_status()


def replica_pid(deployment):
    application = _get_global_client().get_serve_details()["applications"]["fleet"]
    (replica,) = application["deployments"][deployment]["replicas"]
    return replica["pid"]


def test_a_killed_controller_is_missed_by_nobody_and_goes_on_where_it_was(published, service):
    service, folder = service
    before = httpx.get(f"{service.url}/v1/events", headers=ADMIN, timeout=PATIENCE_S).json()
    with Camera(service.url) as camera:
        os.kill(replica_pid("controller"), signal.SIGKILL)
        open_store(folder).set_head(2)
        wait_for(service.url, 2)
    assert_right(published, camera.replies)
    events = httpx.get(f"{service.url}/v1/events", headers=ADMIN, timeout=PATIENCE_S).json()
    assert events[: len(before)] == before


def test_the_status_command_tells_people_and_programs(service):
    service, _ = service
    command = [*GEMEL, "status", service.url, "--token-env", "GEMEL_TEST_ADMIN"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "box-a" in told.stdout
    assert "north_cars" in told.stdout
    document = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert {node["name"] for node in json.loads(document.stdout)["nodes"]} == {"box-a", "box-b"}
