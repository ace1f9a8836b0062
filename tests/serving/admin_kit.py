"""A box on its own over a store that tests may change, behind tokens: what admins and the status page talk to."""

import contextlib
import io

import httpx
from local_server import serving
from PIL import Image
from tiny_release import noise, publish_merged

from gemel_ray.serving.edge_box import EdgeBox
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.options import EdgeOptions, NodeOptions
from gemel_ray.serving.tokens import Guard, Tokens

QUERIES = ("north_cars", "south_cars")
INFER, READ, ADMIN = "infer-" + "i" * 32, "read-" + "r" * 32, "admin-" + "a" * 32
PATIENCE_S = 60


class Service:
    """A running box: `store` is what it follows, `url` where it answers."""

    def __init__(self, store, box, url):
        self.store, self.box, self.url = store, box, url

    def ask(self, path, method="GET", token=ADMIN, **more):
        headers = {"Authorization": f"Bearer {token}"} | more.pop("headers", {})
        return httpx.request(method, self.url + path, headers=headers, timeout=PATIENCE_S, **more)

    def status(self):
        return self.ask("/v1/status", token=READ).json()

    def send(self, query, seed=0, more=""):
        stream = io.BytesIO()
        Image.fromarray(noise(seed, 60, 80)).save(stream, "PNG")
        reply = self.ask(f"/v1/queries/{query}/frames{more}", "POST", INFER, content=stream.getvalue())
        assert reply.status_code in (200, 503), reply.text


@contextlib.contextmanager
def service(folder, *, release=None, thumbnails=True, tokens=True):
    """Two merged queries and their originals in a store, served until the block ends."""
    store, _, _ = publish_merged(folder, QUERIES)
    options = EdgeOptions(cache=str(folder / "disk"), poll_every_s=80_000, threads=1, thumbnails=thumbnails)
    box = EdgeBox(store.locate(), NodeOptions(memory=1 << 26, device="cpu"), options, release=release)
    box.start()
    try:
        guard = Guard(Tokens.of(infer=[INFER], read=[READ], admin=[ADMIN]) if tokens else None)
        with serving(build_api(box, options.limits(), guard)) as url:
            yield Service(store, box, url)
    finally:
        box.stop()
