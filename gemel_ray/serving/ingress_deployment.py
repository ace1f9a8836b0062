"""The ingress as a Serve deployment: HTTP in front of the engines. Its process never imports torch."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from ray import serve

from gemel_ray.serving.backend import Limits
from gemel_ray.serving.handle_backend import HandleBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.options import ServeOptions


def engine_name(node: str) -> str:
    """The deployment that runs a node's engine."""
    return f"engine-{node}"


def ingress_builder(options: ServeOptions) -> Callable[[], FastAPI]:
    """What serve.ingress calls in the ingress process, where Serve knows the application that it is part of."""
    limits = Limits(max_body_bytes=options.max_body, request_timeout_s=options.request_timeout_s)
    nodes = [node.name for node in options.nodes]

    def ingress() -> FastAPI:
        app_name = serve.get_replica_context().app_name
        engines = {node: serve.get_deployment_handle(engine_name(node), app_name) for node in nodes}
        return build_api(HandleBackend(engines, timeout_s=limits.request_timeout_s), limits)

    return ingress
