"""Serving a release from this machine: what `gemel serve`, `gemel demo` and the tests start."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from gemel_ray.engine.engine import check_fits
from gemel_ray.serving.app import application
from gemel_ray.serving.drift_options import DriftOptions
from gemel_ray.serving.ingress_deployment import CONTROLLER, engine_name
from gemel_ray.serving.machine import check_port, service_url
from gemel_ray.serving.options import NodeOptions, ServeOptions, parse_options
from gemel_ray.serving.releases import pull_release
from gemel_ray.serving.tls import Certificate, without_verification
from gemel_ray.serving.tokens import Role, TokenSource, check_host, read_tokens
from gemel_ray.spec.errors import ServingError
from gemel_ray.weights.reaching import check_ray_address, ray_address

log = logging.getLogger(__name__)

_APP = "gemel"
# Engines start, models are measured, releases come from afar.
_PLACING_S = 300.0


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: where it answers, and its engines by node name."""

    url: str
    engines: dict[str, DeploymentHandle]


@contextlib.contextmanager
def serve_release(
    store: str | Path,
    *,
    nodes: Sequence[NodeOptions],
    release: int | None = None,
    cache: str | Path | None = None,
    allow_factories: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    tls: Certificate | None = None,
    name: str = _APP,
    tokens: Mapping[Role, TokenSource] | None = None,
    allow_anonymous: bool = False,
    watch: bool = False,
    drift: DriftOptions | None = None,
    thumbnails: bool = True,
    canary_s: float = 5.0,
    grace_s: float = 10.0,
    front_labels: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """Serve a release until the block ends; Ray and Serve are started where they do not run, and only then ended.

    Where Serve runs already, its own host and port stay. Raises StoreError for a store that holds no such release,
    OverBudgetError for a query that fits no node, ServingError when the port is taken or an engine does not start,
    InputError for tokens that cannot be read, and for a host that others can reach without any.
    """
    given = {
        "store": str(store),
        "release": release,
        "nodes": list(nodes),
        "allow_factories": allow_factories,
        "tokens": dict(tokens or {}),
        "allow_anonymous": allow_anonymous,
        "watch": watch,
        "drift": drift,
        "thumbnails": thumbnails,
        "canary_s": canary_s,
        "grace_s": grace_s,
        "front_labels": dict(front_labels or {}),
    }
    options = parse_options(given | ({} if cache is None else {"cache": str(cache)}))
    check_host(host, has_tokens=bool(options.tokens), allow_anonymous=allow_anonymous)
    read_tokens(options.tokens)
    if not ray.is_initialized() and ray_address() == "local":
        # Told before all of Ray is started; where Serve may run already, its own port counts.
        check_port(host, port)
    _check_release(options)
    with _ray() as is_ours, serve_session(host, port, tls=tls, shut_down=not is_ours) as address:
        try:
            serve.run(application(options), name=name, route_prefix="/")
        except RuntimeError as error:
            raise ServingError(f"the service did not start: {_why(name) or error}") from error
        try:
            _wait_until_placed(options, name)
            _wait_until_ready(address)
            yield Service(address, _handles(options, name))
        finally:
            serve.delete(name)


def _check_release(options: ServeOptions) -> None:
    """Tell here what an engine's process could only tell in its log, after three attempts."""
    manifest, _ = pull_release(options.store, options.release, options.cache)
    if len(options.nodes) == 1:
        check_fits(manifest, options.nodes[0].memory)


def _wait_until_placed(options: ServeOptions, name: str) -> None:
    """Until every query has a node, or is known to have none. ServingError when that takes too long."""
    if not options.has_controller:
        return
    controller, until_s = serve.get_deployment_handle(CONTROLLER, name), time.monotonic() + _PLACING_S
    pause = threading.Event()
    while not (reply := controller.reply.remote().result(timeout_s=_PLACING_S)).is_settled:
        if time.monotonic() > until_s:
            raise ServingError(f"the fleet is not settled after {_PLACING_S:g} s: {reply.doing or reply.blocked}")
        pause.wait(0.1)


def _wait_until_ready(address: str) -> None:
    """Until the ingress has heard of every engine: the first calls in a new process take longest."""
    until_s, pause = time.monotonic() + _PLACING_S, threading.Event()
    while time.monotonic() < until_s:
        ready = f"{address}/v2/health/ready"
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(ready, timeout=_PLACING_S, context=without_verification()),
        ):
            return
        pause.wait(0.1)
    raise ServingError(f"{address} is not ready after {_PLACING_S:g} s; Ray's logs say more")


def _handles(options: ServeOptions, name: str) -> dict[str, DeploymentHandle]:
    return {node.name: serve.get_deployment_handle(engine_name(node.name), name) for node in options.nodes}


def _why(name: str) -> str:
    """What the application's deployments say of their failure."""
    app = serve.status().applications.get(name)
    return "; ".join(found.message for found in app.deployments.values() if found.message) if app else ""


@contextlib.contextmanager
def _ray() -> Iterator[bool]:
    """Ray, running: whether it was started here, and so ends afterwards."""
    if ray.is_initialized():
        yield False
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers give way to everything else on the machine, which an engine that answers cameras must not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    check_ray_address(ray_address())
    ray.init(ray_address(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield True
    finally:
        ray.shutdown()


@contextlib.contextmanager
def serve_session(
    host: str = "127.0.0.1", port: int = 8000, *, tls: Certificate | None = None, shut_down: bool = True
) -> Iterator[str]:
    """Serve at an address, or where it runs already: the URL. Started Serve is ended afterwards, unless the whole of
    Ray is about to be, which is quicker and quieter. ServingError when the port is taken."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        yield _running_address()
        return
    check_port(host, port)
    # One proxy, where callers find it; edge nodes listen to nobody.
    secured = {"ssl_certfile": str(tls.cert), "ssl_keyfile": str(tls.key)} if tls else {}
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, **secured})
    try:
        yield service_url(host, port, is_secure=tls is not None)
    finally:
        if shut_down:
            serve.shutdown()


def _running_address() -> str:
    # Serve has no public way to ask a running instance where it listens.
    client = _get_global_client()
    assert client is not None, "serve.status() has just told of proxies"
    options = client.http_config
    host = "127.0.0.1" if options.host == "0.0.0.0" else options.host
    return service_url(host, options.port, is_secure=bool(options.ssl_certfile))
