"""Calls to engines on Ray Serve that end in time, and say in our own words what went wrong."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from gemel_ray.serving.backend import BusyError
from gemel_ray.spec.errors import GemelError, ServingError


class SilentError(ServingError):
    """No answer in time: lost, or busy."""


class LostError(ServingError):
    """The process died while it was asked, or before."""


async def call(
    handle: DeploymentHandle, who: str, method: str, *args: object, timeout_s: float, cancels: bool = False
) -> Any:  # noqa: ANN401
    """One method's result. Raises SilentError, LostError, BusyError, and every GemelError of the method itself.

    What takes too long goes on at the other end, unless it `cancels`.
    """
    try:
        return await asyncio.wait_for(_remote(handle, method, *args, cancels=cancels), timeout_s)
    except TimeoutError as error:
        raise SilentError(f"{who} gave no answer within {timeout_s:g} s; is it still running?") from error
    except RayTaskError as error:
        if isinstance(error.cause, GemelError):
            raise error.cause from error
        raise
    except BackPressureError as error:
        raise BusyError(f"{who} has more requests than it takes; try again shortly") from error
    except (RayError, RayServeException) as error:
        raise LostError(f"{who} has lost its process ({type(error).__name__}); it restarts, try again") from error


async def _remote(handle: DeploymentHandle, method: str, *args: object, cancels: bool) -> Any:  # noqa: ANN401
    asked = getattr(handle, method).remote(*args)
    try:
        return await asked
    except asyncio.CancelledError:
        # Ray itself lets it go on.
        if cancels:
            asked.cancel()
        raise
