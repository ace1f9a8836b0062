"""The Serve application: one engine deployment a node, and the ingress in front of them.

`import_path: gemel_ray.serving.app:build` in a Serve YAML file; its `args` are those of options.ServeOptions.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from gemel_ray.serving.controller import ControllerReplica
from gemel_ray.serving.drift import DriftReplica
from gemel_ray.serving.engine_deployment import EngineReplica
from gemel_ray.serving.ingress_deployment import CONTROLLER, DRIFT, engine_name, ingress_builder
from gemel_ray.serving.options import NodeOptions, ServeOptions, parse_options
from gemel_ray.serving.releases import with_release

# Requests wait in the engine, where a newer frame can take an older one's place, not in front of it.
_ONGOING_REQUESTS = 256


def build(args: dict[str, Any]) -> Application:
    """Called by `serve run` and `serve deploy`. InputError names the argument that is wrong."""
    return application(parse_options(args))


def application(options: ServeOptions) -> Application:
    """The application for checked options; the store's path must be absolute."""
    options = with_release(options)
    engines = [_engine(options, node) for node in options.nodes]
    if options.has_controller:
        engines.append(_helper(CONTROLLER, ControllerReplica, options))
    if options.drift:
        engines.append(_helper(DRIFT, DriftReplica, options))
    deployment = serve.deployment(
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=_ONGOING_REQUESTS,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        ray_actor_options=_front(options),
    )
    return deployment(serve.ingress(ingress_builder(options))()).bind(*engines)


def _front(options: ServeOptions) -> dict[str, Any]:
    """What ingress and controller ask of Ray: little, and where they outlive the edge nodes."""
    return {"num_cpus": 0.1} | ({"label_selector": options.front_labels} if options.front_labels else {})


def _helper(name: str, replica: type, options: ServeOptions) -> Application:
    deployment = serve.deployment(
        name=name,
        num_replicas=1,
        max_ongoing_requests=_ONGOING_REQUESTS,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=1,
        ray_actor_options=_front(options),
    )
    return deployment(replica).bind(options.model_dump(mode="json"))


def _engine(options: ServeOptions, node: NodeOptions) -> Application:
    actor: dict[str, Any] = {"num_cpus": node.num_cpus, "num_gpus": node.num_gpus}
    if node.labels:
        actor["label_selector"] = node.labels
    deployment = serve.deployment(
        name=engine_name(node.name),
        num_replicas=1,
        max_ongoing_requests=_ONGOING_REQUESTS,
        max_queued_requests=_ONGOING_REQUESTS,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=5,
        ray_actor_options=actor,
    )
    return deployment(EngineReplica).bind(options.model_dump(mode="json"), node.name)
