"""A call that is given up ends at the other end too, where it is to."""

import asyncio

import pytest
from ray import serve

from gemel_ray.serving.handles import SilentError, call

WAIT_S = 60


@pytest.fixture
def patient(ray_session):
    """A handle of something that takes its time."""

    # Defined here, so that it travels by value.
    @serve.deployment(max_ongoing_requests=10, ray_actor_options={"num_cpus": 0})
    class Patient:
        def __init__(self):
            self._begun, self._ended = [], []

        async def wait(self, name):
            self._begun.append(name)
            try:
                await asyncio.sleep(WAIT_S)
            finally:
                self._ended.append(name)

        async def told(self):
            return self._begun, self._ended

    yield serve.run(Patient.bind(), name="patient", route_prefix=None)
    serve.shutdown()


def test_what_nobody_waits_for_any_more_is_cancelled_where_it_is_asked_for(patient):
    async def ask():
        until_s = asyncio.get_running_loop().time() + WAIT_S
        await patient.told.remote()
        with pytest.raises(SilentError, match=r"the engine gave no answer within 0\.5 s"):
            await call(patient, "the engine", "wait", "goes on", timeout_s=0.5)
        with pytest.raises(SilentError):
            await call(patient, "the engine", "wait", "ends", timeout_s=0.5, cancels=True)
        while (told := await patient.told.remote()) != (["goes on", "ends"], ["ends"]):
            assert asyncio.get_running_loop().time() < until_s, told
            await asyncio.sleep(0.05)

    asyncio.run(ask())
