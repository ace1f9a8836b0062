"""The ingress as a Serve deployment: HTTP in front of the engines. Its process never imports torch."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from ray import serve

from gemel_ray.serving.cluster_metrics import ClusterMetrics
from gemel_ray.serving.handle_backend import HandleBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.options import ServeOptions
from gemel_ray.serving.token_files import TokenFiles, token_files
from gemel_ray.serving.tokens import Guard, read_tokens

CONTROLLER = "controller"
DRIFT = "drift"


def engine_name(node: str) -> str:
    """The deployment that runs a node's engine."""
    return f"engine-{node}"


def ingress_builder(options: ServeOptions) -> Callable[[], FastAPI]:
    """What serve.ingress calls in the ingress process, where Serve knows the application that it is part of.

    Tokens are read here, where the application is built, and only their hashes reach the ingress; it reads the files
    again, since Serve does not build an application anew whose arguments stay the same. InputError for a source that
    cannot be read.
    """
    limits = options.limits()
    tokens, files, allow_anonymous = read_tokens(options.tokens), token_files(options.tokens), options.allow_anonymous
    nodes, has_controller = [node.name for node in options.nodes], options.has_controller
    has_drift = options.drift is not None

    def ingress() -> FastAPI:
        app_name = serve.get_replica_context().app_name
        engines = {node: serve.get_deployment_handle(engine_name(node), app_name) for node in nodes}
        guard = Guard(TokenFiles(tokens, files), allow_anonymous=allow_anonymous)
        controller = serve.get_deployment_handle(CONTROLLER, app_name) if has_controller else None
        drift = serve.get_deployment_handle(DRIFT, app_name) if has_drift else None
        backend = HandleBackend(engines, timeout_s=limits.request_timeout_s, controller=controller, drift=drift)
        # Serve's proxy names every request and puts the name on the answer itself.
        return build_api(backend, limits, guard, echo_request_ids=False, tell=ClusterMetrics().tell)

    return ingress
