"""One engine for the room: a budget that holds some of the models, never all."""

import asyncio
import contextlib

import httpx
import pytest
from local_server import serving
from tiny_release import publish_tiny_release

from gemel_ray.engine.engine import Engine
from gemel_ray.serving.backend import Limits
from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.releases import pull_release


class Client:
    """Calls an application in this process; every call has an event loop of its own."""

    def __init__(self, api):
        self._api = api

    def request(self, method, path, **request):
        return asyncio.run(self._request(method, path, request))

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **request):
        return self.request("POST", path, **request)

    async def _request(self, method, path, request):
        transport = httpx.ASGITransport(self._api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **request)


LIMITS = Limits(max_body_bytes=200_000, max_pixels=10_000, max_frames=4)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start an engine on a release, by default with a budget that holds most of its weights but not all."""
    cache = tmp_path_factory.mktemp("cache")

    def started(release, budget_bytes=None):
        manifest, fetch = pull_release(str(release.store), None, str(cache))
        engine = Engine(budget_bytes=budget_bytes or int(0.8 * manifest.bytes_after), device="cpu", threads=1)
        engine.start(manifest, fetch)
        return engine

    return started


@pytest.fixture(scope="session")
def engine(start, tiny):
    engine = start(tiny)
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def client(engine, tiny):
    return Client(build_api(EngineBackend(engine, tiny.manifest), LIMITS))


@pytest.fixture(scope="session")
def url(engine, tiny):
    """Where a real server answers over the room's engine."""
    with serving(build_api(EngineBackend(engine, tiny.manifest), LIMITS)) as url:
        yield url


@pytest.fixture
def server_of():
    """Serve an application at an address of its own until the test ends."""
    with contextlib.ExitStack() as servers:
        yield lambda api: servers.enter_context(serving(api))


@pytest.fixture(scope="session")
def client_of():
    """A client of any backend."""
    return lambda backend: Client(build_api(backend))
