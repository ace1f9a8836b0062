"""The backend over engines on Ray Serve, one deployment a node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from gemel_ray.engine.status import EngineStatus
from gemel_ray.serving.backend import ElsewhereError
from gemel_ray.serving.changes import ChangeReply, Wish, change_nothing
from gemel_ray.serving.description import Description, reclassified
from gemel_ray.serving.drift_reports import DriftReport
from gemel_ray.serving.drift_status import with_drift
from gemel_ray.serving.events import ServiceEvent
from gemel_ray.serving.handles import LostError, SilentError, call
from gemel_ray.serving.pictures import Image
from gemel_ray.serving.routes import Routes
from gemel_ray.serving.status import ControlReply, ServiceStatus, service_status
from gemel_ray.spec.answers import FrameAnswer
from gemel_ray.spec.errors import GemelError, ServingError

log = logging.getLogger(__name__)

# Engines are asked so often what they serve, and what they do not answer by then is a sign that they are lost.
_LOOK_EVERY_S = 0.5
_LOOK_TIMEOUT_S = 2.0
# A store far away is read and written in between.
_CHANGE_TIMEOUT_S = 60.0
# Between two attempts of an inference that must not be dropped.
_RETRY_S = 0.1


class HandleBackend:
    """Implements backend.Backend; `engines` by node name. Every call ends in time: a lost engine never answers.

    Knows by itself who answers what; a controller, where there is one, only tells more of the fleet.
    """

    def __init__(
        self,
        engines: Mapping[str, DeploymentHandle],
        *,
        timeout_s: float,
        controller: DeploymentHandle | None = None,
        drift: DeploymentHandle | None = None,
    ) -> None:
        self._engines = dict(engines)
        self._controller = controller
        self._drift = drift
        self._timeout_s = timeout_s
        self._routes = Routes(engines)
        self._last: dict[str, FrameAnswer] = {}
        self._control: ControlReply | None = None
        self._watching: asyncio.Task[None] | None = None
        self._first_look = asyncio.Lock()

    async def describe(self) -> Description:
        """See Backend. What was known last stands in while no engine can be reached."""
        await self._watch()
        found = self._routes.description()
        if found is None:
            raise ServingError(f"none of the engines {sorted(self._engines)} answers yet; try again in a few seconds")
        return found

    async def infer(
        self, query: str, images: Sequence[Image], *, slo_ms: float | None, droppable: bool
    ) -> list[FrameAnswer]:
        """See Backend. A frame that may be dropped gets the last answer while nobody answers its query; one that may
        not waits for its node to come back, or for another one."""
        await self._watch()
        begun_s = time.monotonic()
        while True:
            left_s = self._timeout_s - (time.monotonic() - begun_s)
            try:
                return await self._asked(query, images, slo_ms, droppable, left_s)
            except ElsewhereError:
                await self._look()
            except (LostError, SilentError) as error:
                if droppable:
                    return self._repeated(query, len(images), str(error), begun_s)
                if left_s <= _RETRY_S:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def status(self) -> ServiceStatus:
        """See Backend."""
        await self._watch()
        found = dict(zip(self._engines, await asyncio.gather(*map(self._node_status, self._engines)), strict=True))
        description = self._routes.description()
        homes = {name: self._routes.last_home(name) for name in description.queries} if description else {}
        status = service_status(description, found, {name: home for name, home in homes.items() if home})
        pinned = self._control.pinned if self._control else None
        status = status.model_copy(update={"pinned": pinned, "control": self._control, "events": await self._events()})
        return with_drift(status, await self._drift_report())

    async def change(self, wish: Wish) -> ChangeReply:
        """See Backend. The controller does it, since it follows the store and writes down what happens."""
        if self._controller is None:
            return await change_nothing(wish)
        done: ChangeReply = await call(self._controller, "the controller", "change", wish, timeout_s=_CHANGE_TIMEOUT_S)
        return done

    # asking

    async def _asked(
        self, query: str, images: Sequence[Image], slo_ms: float | None, droppable: bool, timeout_s: float
    ) -> list[FrameAnswer]:
        node = self._routes.home(query)
        if node is None:
            raise LostError(self._why_not(query))
        # Given up by the caller or here, its frames are not to be computed.
        asked = self._call(
            node, "infer", query, list(images), slo_ms, droppable, timeout_s=max(timeout_s, _RETRY_S), cancels=True
        )
        try:
            found: list[FrameAnswer] = await _unless(asked, self._routes.lost_event(node), node)
        except LostError as error:
            self._routes.lost(node, str(error))
            raise
        if fresh := [answer for answer in found if answer.fresh]:
            self._last[query] = fresh[-1]
        return found

    def _why_not(self, query: str) -> str:
        unplaced = self._control.unplaced.get(query) if self._control else None
        return self._routes.why_not(query) if unplaced is None else f"query {query!r} has no node: {unplaced}"

    def _repeated(self, query: str, count: int, reason: str, begun_s: float) -> list[FrameAnswer]:
        """The last answer for each frame. ServingError where there is none."""
        last = self._last.get(query)
        if last is None:
            raise ServingError(reason)
        waited_ms = (time.monotonic() - begun_s) * 1e3
        return [replace(last, fresh=False, reason=f"failed: {reason}", latency_ms=waited_ms)] * count

    # watching

    async def _watch(self) -> None:
        """Keep an eye on the engines from now on; waits for their first answers only."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._keep_looking())
        # All who come before the first answer wait for it together.
        async with self._first_look:
            if self._routes.description() is None:
                await self._look()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self._look()
            except Exception:
                log.exception("the engines could not be looked at")

    async def _look(self) -> None:
        await asyncio.gather(self._look_at_controller(), *map(self._look_at, self._engines))

    async def _look_at(self, node: str) -> None:
        try:
            self._take_in(node, await self._call(node, "describe", timeout_s=_LOOK_TIMEOUT_S))
        except SilentError as error:
            self._routes.silent(node, str(error))
        except GemelError as error:
            self._routes.lost(node, str(error))

    def _take_in(self, node: str, told: Description | None) -> None:
        """What a node serves, and forget last answers in classes that their queries have no more."""
        before = self._routes.description()
        self._routes.told(node, told)
        for name in reclassified(before, self._routes.description()):
            self._last.pop(name, None)

    async def _look_at_controller(self) -> None:
        if self._controller is None:
            return
        try:
            self._control = await call(self._controller, "the controller", "reply", timeout_s=_LOOK_TIMEOUT_S)
        except GemelError as error:
            self._control = (self._control or ControlReply()).model_copy(update={"problem": str(error)})
            return
        for node in self._control.gone if self._control else ():
            self._routes.lost(node, "its machine has left the cluster")

    async def _node_status(self, node: str) -> EngineStatus | str | None:
        try:
            status: EngineStatus | None = await self._call(node, "status", timeout_s=_LOOK_TIMEOUT_S)
        except GemelError as error:
            return str(error)
        return status

    async def _events(self) -> tuple[ServiceEvent, ...]:
        if self._controller is None:
            return ()
        with contextlib.suppress(GemelError):
            found: tuple[ServiceEvent, ...] = await call(
                self._controller, "the controller", "events", timeout_s=_LOOK_TIMEOUT_S
            )
            return found
        return ()

    async def _drift_report(self) -> DriftReport:
        if self._drift is not None:
            with contextlib.suppress(GemelError):
                found: DriftReport = await call(self._drift, "the drift watch", "report", timeout_s=_LOOK_TIMEOUT_S)
                return found
        return DriftReport()

    async def _call(self, node: str, method: str, *args: object, timeout_s: float, cancels: bool = False) -> Any:  # noqa: ANN401
        who, timeout_s = f"node {node!r}", min(timeout_s, self._timeout_s)
        return await call(self._engines[node], who, method, *args, timeout_s=timeout_s, cancels=cancels)


async def _unless(asked: Any, lost: asyncio.Event, node: str) -> Any:  # noqa: ANN401 - any coroutine and its result
    """What was asked for; LostError as soon as whom it was asked of is lost, since no answer will come."""
    answer, loss = asyncio.ensure_future(asked), asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait((answer, loss), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise LostError(f"node {node!r} was lost while it was asked; try again")
    finally:
        answer.cancel()
        loss.cancel()
