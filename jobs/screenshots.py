"""Pictures of the status page and of the report, taken from a real run: see the README.

gemel demo --quick --out gemel-demo && python jobs/screenshots.py gemel-demo --report report.html --out pictures

Serves the demonstration's store on this machine, sends its cameras' frames at their own speed, and looks with Chromium.
Only drawn cameras: what real ones see does not belong in a repository.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from gemel_ray.serving.edge_box import EdgeBox
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.machine import node_options
from gemel_ray.serving.options import EdgeOptions
from gemel_ray.spec.workload import Query, Workload, load_workload
from gemel_ray.vision.feeds.opening import open_feed

SIZES = {"narrow": (390, 844), "wide": (1000, 680)}
SCHEMES = ("light", "dark")


def main() -> None:
    """Take every picture that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what `gemel demo` made: workload.yaml and store")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--report", type=Path, help="what `gemel report` wrote")
    parser.add_argument("--seconds", type=float, default=12, help="of traffic before the pictures are taken")
    parser.add_argument("--fps", type=float, help="frames a second of each camera; its query's own without it")
    parser.add_argument("--full", action="store_true", help="the whole length of the pages")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    workload = load_workload(given.demo / "workload.yaml")
    with (
        served(workload, given.demo / "store") as url,
        traffic(workload, url, given.fps),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        time.sleep(given.seconds)
        look(browser, url, "status", given.out, full=given.full)
        if given.report:
            look(browser, given.report.absolute().as_uri(), "report", given.out, full=given.full)
        browser.close()


def look(browser: Browser, url: str, name: str, out: Path, *, full: bool) -> None:
    """One picture for each size and scheme."""
    for (size, (width, height)), scheme in itertools.product(SIZES.items(), SCHEMES):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(url)
        # Rates and newest frames come with the second look of the page at the service.
        page.wait_for_timeout(2500)
        # What is out of sight fetches no frames.
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(1500)
        page.evaluate("scrollTo(0, 0)")
        path = out / f"{name}_{size}_{scheme}.png"
        page.screenshot(path=path, full_page=full)
        compact(path)
        page.close()
        print(path, path.stat().st_size, "bytes")


def compact(path: Path) -> None:
    """The same picture in fewer bytes."""
    Image.open(path).convert("RGB").save(path, optimize=True)


@contextlib.contextmanager
def served(workload: Workload, store: Path) -> Iterator[str]:
    """A box on its own, at a free port of this machine."""
    with tempfile.TemporaryDirectory() as cache, socket.create_server(("127.0.0.1", 0)) as listening:
        options = EdgeOptions(cache=cache, threads=1)
        box = EdgeBox(str(store.absolute()), node_options(workload, None, None), options, workload=workload)
        box.start()
        server = uvicorn.Server(uvicorn.Config(build_api(box, options.limits()), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            box.stop()


@contextlib.contextmanager
def traffic(workload: Workload, url: str, fps: float | None) -> Iterator[None]:
    """Every camera's frames, each camera from a thread of its own."""
    ended = threading.Event()
    threads = [
        threading.Thread(target=send, args=(workload, query, fps or query.fps, url, ended))
        for query in workload.queries
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def send(workload: Workload, query: Query, fps: float, url: str, ended: threading.Event) -> None:
    """Frames of a query's feed over HTTP until the end, over and over."""
    found = itertools.islice(open_feed(query.feed, workload.feeds[query.feed]).frames(), 300)
    pictures = [encoded(frame.image) for frame in found]
    for picture in itertools.cycle(pictures):
        if ended.wait(1 / fps):
            return
        request = urllib.request.Request(
            f"{url}/v1/queries/{query.name}/frames", picture, {"Content-Type": "image/jpeg"}
        )
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=30) as reply:
            reply.read()


def encoded(image: object) -> bytes:
    """A frame as a camera sends it."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG")  # type: ignore[arg-type]
    return stream.getvalue()


if __name__ == "__main__":
    main()
