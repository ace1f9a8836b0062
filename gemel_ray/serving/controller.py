"""The controller as a Serve deployment: one small process that holds nothing it could not find out again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from gemel_ray.policy.rollout import Change, NodeReport, Rules
from gemel_ray.serving.changes import ChangeReply, StoreChanges, Wish
from gemel_ray.serving.control import Control
from gemel_ray.serving.event_log import EventLog
from gemel_ray.serving.events import ServiceEvent
from gemel_ray.serving.handles import call
from gemel_ray.serving.ingress_deployment import engine_name
from gemel_ray.serving.options import NodeOptions, ServeOptions
from gemel_ray.serving.releases import cache_folder
from gemel_ray.serving.status import ControlReply
from gemel_ray.spec.errors import GemelError, ServingError
from gemel_ray.spec.profile import DeviceProfile

log = logging.getLogger(__name__)

_STEP_EVERY_S = 0.5
_REPORT_TIMEOUT_S = 2.0
_COSTS_TIMEOUT_S = 30.0


class HandleEngines:
    """Implements control.Engines over Serve's handles."""

    def __init__(self, engines: Mapping[str, DeploymentHandle]) -> None:
        self._engines = engines

    async def report(self, node: str) -> NodeReport:
        """See Engines."""
        found: NodeReport = await self._call(node, "report", timeout_s=_REPORT_TIMEOUT_S)
        return found

    async def assign(self, change: Change) -> None:
        """See Engines."""
        what = change.release, change.queries, change.refuse
        await self._call(change.node, "assign", *what, timeout_s=_REPORT_TIMEOUT_S)

    async def costs(self, node: str, release: int) -> DeviceProfile:
        """See Engines."""
        found: DeviceProfile = await self._call(node, "costs", release, timeout_s=_COSTS_TIMEOUT_S)
        return found

    async def _call(self, node: str, method: str, *args: object, timeout_s: float) -> Any:  # noqa: ANN401
        return await call(self._engines[node], f"node {node!r}", method, *args, timeout_s=timeout_s)


class ControllerReplica:
    """Serve makes one of these, and a new one when its process dies; engines go on answering meanwhile."""

    async def __init__(self, options: dict[str, Any]) -> None:  # type: ignore[misc] # Serve awaits it
        """`options` is a dumped ServeOptions."""
        service = ServeOptions.model_validate(options)
        app_name = serve.get_replica_context().app_name
        names = [node.name for node in service.nodes]
        engines = {name: serve.get_deployment_handle(engine_name(name), app_name) for name in names}
        self._control = Control(
            service.store,
            {node.name: node.memory for node in service.nodes},
            HandleEngines(engines),
            release=service.release,
            follow=service.watch,
            rules=Rules(canary_s=service.canary_s, grace_s=service.grace_s),
            events=EventLog(cache_folder(service.store, service.cache) / f"events-{app_name}.json"),
            now_s=time.monotonic,
            gone=Machines(service.nodes).gone,
        )
        self._changes = StoreChanges(service.store, follows=service.watch)
        self._stepping = asyncio.get_running_loop().create_task(self._keep_stepping())

    async def reply(self) -> ControlReply:
        """How it stands."""
        return self._control.reply

    async def events(self) -> tuple[ServiceEvent, ...]:
        """What has happened of late, oldest first."""
        return self._control.events.all

    async def change(self, wish: Wish) -> ChangeReply:
        """For the ingress: what an admin asks for. Raises what StoreChanges.do raises."""
        done = await asyncio.to_thread(self._changes.do, wish, self._control.served)
        self._control.events.add("release", f"an admin's wish: {done.told}")
        return done

    async def check_health(self) -> None:
        """Serve asks every few seconds and replaces the process when this raises."""
        if self._stepping.done():
            raise ServingError("the controller has stopped looking at its fleet; it restarts")

    async def _keep_stepping(self) -> None:
        while True:
            try:
                await self._control.step()
            except GemelError as error:
                log.warning("no step: %s", error)
            except Exception:
                log.exception("no step")
            await asyncio.sleep(_STEP_EVERY_S)


class Machines:
    """Ray's view of the machines that nodes run on, told apart by their labels."""

    def __init__(self, nodes: tuple[NodeOptions, ...]) -> None:
        self._labels = {node.name: node.labels for node in nodes if node.labels}

    async def gone(self) -> frozenset[str]:
        """Nodes whose labels no living machine of the cluster carries."""
        if not self._labels:
            return frozenset()
        alive = [found["Labels"] for found in await asyncio.to_thread(ray.nodes) if found["Alive"]]
        return frozenset(
            name for name, labels in self._labels.items() if not any(labels.items() <= found.items() for found in alive)
        )
