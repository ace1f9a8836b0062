"""`gemel edge`: a real process without Ray, a real client, and a store that comes and goes."""

import contextlib
import functools
import http.server
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from certificate_kit import self_signed
from commands import run_gemel
from drift_kit import BAD, publish_drifting
from newcomer import gemel_environment
from tiny_release import noise, publish_tiny_release

from gemel_ray.spec.workload import load_workload
from gemel_ray.weights.store import open_store

# Whoever imports Ray in this process fails.
WITHOUT_RAY = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from gemel_ray.cli.main import main
main()
"""
WORKLOAD = """
name: tiny-street
feeds: {f: {kind: streets}}
queries:
  - {name: north_cars, feed: f, model: {architecture: squeezenet1_1, classes: [background, car, person]}}
nodes: [{name: box, memory: 64MiB, device: cpu}]
"""
PAIR = ("north_cars", "south_cars")
START_S = 180
pytestmark = pytest.mark.slow
TOKEN, READ_TOKEN = "a-token-that-is-long-enough", "another-token-to-read-with"


class StoreHandler(http.server.SimpleHTTPRequestHandler):
    """Static files; the server's `held` blob is sent by half, and then no further."""

    def do_GET(self):
        held = self.server.held
        if held is None or held not in self.path:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.server.half_sent.set()
        self.server.let_go.wait(START_S)

    def log_message(self, *_arguments):
        pass


class WebStore:
    """A store's folder behind a web server that can go away and come back at the same address."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = None

    def __enter__(self):
        handler = functools.partial(StoreHandler, directory=self.folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.held, self.server.half_sent, self.server.let_go = None, threading.Event(), threading.Event()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.let_go.set()
        self.server.shutdown()
        self.server.server_close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Box:
    """One run of `gemel edge`, and the client that asks it."""

    def __init__(self, folder, store, *more, certificate=None):
        self.port = free_port()
        (folder / "workload.yaml").write_text(WORKLOAD)
        if not (folder / "edge.yaml").exists():
            (folder / "edge.yaml").write_text("{poll_every_s: 0.2, poll_most_s: 1, threads: 1}")
        command = [sys.executable, "-c", WITHOUT_RAY, "edge", "workload.yaml", "--store", store]
        command += ["--cache", "disk", "--options", "edge.yaml", "--port", str(self.port), *more]
        if certificate is not None:
            command += ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1])]
        self._log = (folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            command, cwd=folder, env=gemel_environment(), stdout=self._log, stderr=self._log
        )
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}"
        trusted = ssl.create_default_context(cafile=certificate[0]) if certificate else True
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=trusted)

    def __enter__(self):
        self.wait_for(lambda: self.client.get("/v2/health/ready").status_code == 200)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.client.close()
        self._log.close()
        assert self.process.wait(60) == 0

    def kill(self):
        self.process.kill()
        self.process.wait(60)
        self.client.close()
        self._log.close()

    def wait_for(self, happens):
        until = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, "the box ended"
            with contextlib.suppress(httpx.TransportError):
                if happens():
                    return
            assert time.monotonic() < until
            time.sleep(0.05)

    def answer(self, query="north_cars", seed=7, **headers):
        """The class and the release of one frame's answer."""
        frame = noise(seed)
        image = {"name": "image", "shape": frame.shape, "datatype": "UINT8", "data": frame.flatten().tolist()}
        found = self.client.post(f"/v2/models/{query}/infer", json={"inputs": [image]}, headers=headers)
        found.raise_for_status()
        document = found.json()
        label = next(output["data"][0] for output in document["outputs"] if output["name"] == "label")
        return label, document["parameters"]["release"]

    def release(self):
        return self.client.get("/v1/status").json()["release"]

    def problem(self):
        return self.client.get("/v1/status").json()["nodes"][0]["release_problem"]


def expected(made, seed=7):
    return made.direct("north_cars", [noise(seed)])[0].label, made.manifest.release


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_a_store_over_http_is_followed_and_its_loss_survived(folder):
    first = publish_tiny_release(folder / "store", PAIR)
    web = WebStore(folder / "store")
    with web, Box(folder, web.url) as box:
        assert box.answer() == expected(first)
        second = publish_tiny_release(folder / "store", PAIR, seed=8)
        box.wait_for(lambda: box.release() == 2)
        assert box.answer() == expected(second)
        web.__exit__()
        box.wait_for(lambda: "cannot be reached" in (box.problem() or ""))
        assert box.answer() == expected(second)
        web.__enter__()
        box.wait_for(lambda: box.problem() is None)
    with Box(folder, web.url) as restarted:
        assert restarted.answer() == expected(second), "started without the store, from its own disk"


def test_killed_in_the_middle_of_a_fetch_it_starts_with_the_release_it_had(folder):
    first = publish_tiny_release(folder / "store", PAIR)
    web = WebStore(folder / "store")
    with web:
        box = Box(folder, web.url).__enter__()
        second = publish_second(folder, web, first)
        assert web.server.half_sent.wait(START_S)
        assert box.answer() == expected(first), "it goes on answering while a blob hangs"
        box.kill()
    with Box(folder, web.url) as box:
        assert box.answer() == expected(first)
        with web:
            box.wait_for(lambda: box.release() == 2)
            assert box.answer() == expected(second)
    assert not damaged(folder / "disk")


def publish_second(folder, web, first):
    """Publish another release, of which the server sends the largest new blob by half."""
    aside = folder / "aside"
    shutil.copytree(folder / "store", aside)
    second = publish_tiny_release(aside, PAIR, seed=8)
    new = second.manifest.blobs.keys() - first.manifest.blobs.keys()
    web.server.held = max(new, key=lambda sha: second.manifest.blobs[sha].file_bytes)
    shutil.copytree(aside, folder / "store", dirs_exist_ok=True)
    return second


def damaged(disk):
    """Blobs of a box's cache that do not hash to their names."""
    caches = [open_store(cache, create=True) for cache in disk.glob("stores/*")]
    return [problem for cache in caches for problem in cache.verify() if "hash" in problem.what]


def test_a_corrupted_release_is_refused_over_http_and_the_old_one_stays(folder):
    first = publish_tiny_release(folder / "store", PAIR)
    web = WebStore(folder / "store")
    with web, Box(folder, web.url) as box:
        store = open_store(folder / "store")
        aside = folder / "aside"
        shutil.copytree(folder / "store", aside)
        second = publish_tiny_release(aside, PAIR, seed=8)
        sha = min(second.manifest.blobs.keys() - first.manifest.blobs.keys())
        blob = Path(open_store(aside).locate_blob(sha))
        data = blob.read_bytes()
        blob.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        shutil.copytree(aside, folder / "store", dirs_exist_ok=True)
        box.wait_for(lambda: "is damaged" in (box.problem() or ""))
        assert box.answer() == expected(first)
        store.put_blob(data)
        box.wait_for(lambda: box.release() == 2)
        assert box.answer() == expected(second)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process by Linux's prlimit")
def test_a_box_whose_disk_is_full_keeps_its_release_and_goes_on_when_there_is_room(folder):
    first = publish_tiny_release(folder / "store", PAIR)
    with Box(folder, "store") as box:
        # No file of the box may grow beyond that: what it sees is a write that fails in the middle.
        resource.prlimit(box.process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        second = publish_tiny_release(folder / "store", PAIR, seed=8)
        box.wait_for(lambda: box.problem() is not None)
        assert "free space" in box.problem()
        assert box.answer() == expected(first)
        resource.prlimit(box.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        box.wait_for(lambda: box.release() == 2)
        assert box.answer() == expected(second)


def test_tokens_are_asked_for_and_nobody_reads_along(folder):
    publish_tiny_release(folder / "store", PAIR)
    (folder / "token").write_text(TOKEN)
    (folder / "read").write_text(READ_TOKEN)
    (folder / "edge.yaml").write_text("{threads: 1, tokens: {infer: {file: token}, read: {file: read}}}")
    certificate = self_signed(folder)
    with Box(folder, "store", "--host", "0.0.0.0", certificate=certificate) as box:
        assert box.client.get("/v1/status").status_code == 401
        for url, problem in ((box.url, "CERTIFICATE_VERIFY_FAILED"), (box.url.replace("https", "http"), None)):
            with pytest.raises(httpx.TransportError, match=problem):
                httpx.get(f"{url}/v2/health/live", trust_env=False)
        status = [sys.executable, "-c", WITHOUT_RAY, "status", box.url, "--token", str(folder / "read"), "--json"]
        environment = gemel_environment(SSL_CERT_FILE=str(certificate[0]))
        told = subprocess.run(status, env=environment, capture_output=True, text=True, timeout=300)
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["release"] == 1
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            box.answer()
        assert box.answer(Authorization=f"Bearer {TOKEN}")[1] == 1
        reading = {"Authorization": f"Bearer {READ_TOKEN}"}
        (folder / "read").write_text("t" * 32)
        box.wait_for(lambda: box.client.get("/v1/status", headers=reading).status_code == 401)


def test_what_is_wrong_is_told_before_anything_is_served(folder):
    def run(*more):
        (folder / "workload.yaml").write_text(WORKLOAD)
        done = run_gemel(folder, "edge", "workload.yaml", "--cache", "disk", *more, environment=gemel_environment())
        return done.returncode, done.stderr

    code, told = run("--store", "nowhere")
    assert (code, "holds no releases" in told) == (1, True), told
    publish_tiny_release(folder / "store", PAIR)
    code, told = run("--store", "store", "--host", "0.0.0.0")
    assert (code, "no tokens are given" in told) == (2, True), told
    code, told = run("--store", "store", "--memory", "1MiB")
    assert (code, "raise the budget" in told) == (1, True), told
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, told = run("--store", "store", "--port", str(taken.getsockname()[1]))
        assert (code, "choose another port" in told) == (1, True), told
    assert "Traceback" not in told
    assert os.listdir(folder / "disk") == ["stores"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_box_as_soon_as_it_says_so(folder, number):
    publish_tiny_release(folder / "store", PAIR)
    for pause_s in (0, 0.1):
        told = folder / "log.txt"
        before = told.stat().st_size if told.exists() else 0
        box = Box(folder, "store")
        try:
            while b"Ctrl-C ends it" not in told.read_bytes()[before:]:
                assert box.process.poll() is None, told.read_text()
                time.sleep(0.001)
            time.sleep(pause_s)
            box.process.send_signal(number)
            assert box.process.wait(30) == 0, told.read_text()
        finally:
            box.kill()
    assert "Traceback" not in told.read_text()


def test_drift_is_found_and_reverted_by_a_box_of_its_own(folder):
    publish_drifting(folder / "store")
    (folder / "edge.yaml").write_text(
        "{poll_every_s: 0.5, threads: 1, drift: {sample_every_s: 0.01, false_alarm_days: 0.001}}"
    )
    with Box(folder, "store") as box:

        def drifted():
            for seed in range(12):
                box.answer(BAD, seed)
            return box.client.get("/v1/status").json()["drift_events"]

        box.wait_for(drifted)
        (event,) = box.client.get("/v1/status").json()["drift_events"]
        assert (event["query"], event["reverted_in"]) == (BAD, 3)
        box.wait_for(lambda: box.release() == 3)
        assert 'gemel_node_release_number{node="box"} 3.0' in box.client.get("/metrics").text
    original = open_store(folder / "store").manifest(1)
    assert open_store(folder / "store").manifest().queries[BAD].weights == original.queries[BAD].weights
    assert load_workload(f"{event['folder']}/workload.yaml").query(BAD).feed == f"{BAD}_drift"
