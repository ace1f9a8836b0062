"""The HTTP server of a box on its own: uvicorn in front of an EdgeBox, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import uvicorn

from gemel_ray.serving.edge_box import EdgeBox, options_for
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.machine import check_port, service_url
from gemel_ray.serving.options import EdgeOptions, NodeOptions, absolute_store
from gemel_ray.serving.tls import Certificate
from gemel_ray.serving.token_files import TokenFiles, token_files
from gemel_ray.serving.tokens import Guard, check_host, read_tokens
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.workload import Workload

_KEEP_ALIVE_S = 75

# Streams of results never end by themselves.
_GRACE_S = 5


def serve_edge(
    store: str,
    node: NodeOptions,
    options: EdgeOptions,
    *,
    release: int | None = None,
    workload: Workload | None = None,
    cache: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    tls: Certificate | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve until the process is told to end.

    Raises StoreError where neither the store nor this box's disk has a release, OverBudgetError for a query that does
    not fit, ServingError when the port is taken and when the engine failed for good, InputError for tokens that cannot
    be read and for a host that others can reach without any.
    """
    check_host(host, has_tokens=bool(options.tokens), allow_anonymous=options.allow_anonymous)
    tokens = TokenFiles(read_tokens(options.tokens), token_files(options.tokens))
    guard = Guard(tokens, allow_anonymous=options.allow_anonymous)
    check_port(host, port)
    box = EdgeBox(
        absolute_store(store, Path.cwd()), node, options_for(options, cache), release=release, workload=workload
    )
    manifest = box.start()
    try:
        server = _server(box, options, guard, host, port, tls)
        box.give_up = lambda: setattr(server, "should_exit", True)
        # From here on, not only once it runs: a signal in between would be lost. uvicorn raises them again when it has
        # ended, which must not end us before the engine.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, server.handle_exit)
        url = service_url(host, port, is_secure=tls is not None)
        report(f"serving release {manifest.release} at {url}, Ctrl-C ends it")
        server.run()
    finally:
        box.stop()
    if box.failure is not None:
        # A supervisor starts another process, which may have more luck with the device.
        raise ServingError(f"the engine could not be started again: {box.failure}")


def _server(
    box: EdgeBox, options: EdgeOptions, guard: Guard, host: str, port: int, tls: Certificate | None
) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            build_api(box, options.limits(), guard),
            host=host,
            port=port,
            log_level="warning",
            lifespan="off",
            server_header=False,
            # Who calls is told by the connection, not by a header that anybody can write.
            proxy_headers=False,
            # Longer than clients keep idle connections (httpx 5 s, as uvicorn itself would): else one is now and then
            # closed here at the moment it is used again there, and a camera's request fails.
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=tls.cert if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
    )
