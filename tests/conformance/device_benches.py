"""Two devices to put on the bench, and an account of their bytes that neither of them keeps."""

import threading
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from tiny_release import noise

from gemel_ray.edge.ledger import Ledger
from gemel_ray.edge.simulated import SimulatedDevice
from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.actions import Done, Evict, Infer, Load, Withdrawn
from gemel_ray.spec.plan import EdgePlan, PlannedQuery

WAIT_S = 60
WORKSPACE_BYTES = 2**20


def plan_of_release(manifest, *, budget_bytes=10**9, batch=2, overlap=True):
    """All queries of a release with invented costs, in the order of the manifest."""
    sizes = range(1, batch + 1)
    queries = tuple(
        PlannedQuery(
            name=name,
            weights=manifest.blobs_of(name),
            batch_size=batch,
            run_ms={size: 4.0 * size for size in sizes},
            workspace_bytes={size: WORKSPACE_BYTES * size for size in sizes},
        )
        for name in manifest.queries
    )
    weight_bytes = {weight: manifest.blobs[weight].tensor_bytes for query in queries for weight in query.weights}
    load_ms = {weight: count_bytes / 1e6 for weight, count_bytes in weight_bytes.items()}
    return EdgePlan(queries, weight_bytes, load_ms, budget_bytes, overlap)


class SimulatedBench:
    """Simulated devices that hold a release."""

    def __init__(self, release):
        self.plan = plan_of_release(release.manifest)

    def device(self, budget_bytes, frames=(), *, broken=None, ledger=Ledger, withdrawn=()):
        """A device that knows these frames, all of which arrive before it stops; the weight `broken` cannot load.

        Nobody waits any more for those `withdrawn` once all have arrived.
        """
        known = {frame.frame for frame in frames}

        def failure_of(action):
            if isinstance(action, Load):
                return "broken" if action.weight == broken else None
            return None if known.issuperset(action.frames) else "no such frame"

        withdrawals = [Withdrawn(frame, 0.0) for frame in withdrawn]
        return SimulatedDevice(
            self.plan, frames, ledger=ledger(budget_bytes), failure_of=failure_of, withdrawals=withdrawals
        )

    def peak_bytes(self, device):
        return device.peak_bytes

    def held_bytes(self, device):
        """Nothing but the ledger knows."""
        return None

    def computing_held_up(self, device):
        # Time stands still here until the next event is asked for.
        return nullcontext()

    copying_held_up = computing_held_up

    def close(self):
        pass


class TorchBench:
    """Real devices that hold a release, on a CPU or a GPU."""

    def __init__(self, release, fetch, torch_device):
        self.plan = plan_of_release(release.manifest)
        self._blobs = open_blobs(release.manifest, fetch)
        self._torch_device = torch_device
        self._manifest = release.manifest
        self._devices = []

    def device(self, budget_bytes, frames=(), *, broken=None, ledger=Ledger, withdrawn=()):
        """See SimulatedBench."""
        blobs = dict(self._blobs)
        if broken is not None:
            blobs[broken] = replace(blobs[broken], path=blobs[broken].path.with_suffix(".gone"))
        skeletons = build_skeletons(self._manifest, blobs, self._torch_device)
        device = TorchDevice(skeletons, blobs, Residence(self._torch_device), ledger(budget_bytes), threads=1)
        self._devices.append(device)
        device.frames.update({frame.frame: noise(frame.frame) for frame in frames})
        for frame in frames:
            device.arrive(frame)
        for frame in withdrawn:
            device.withdraw(frame)
        device.stop()
        return device

    def peak_bytes(self, device):
        return device.usage().peak_bytes

    def held_bytes(self, device):
        """What the tensors on the device really take."""
        return device.residence.allocated_bytes()

    def computing_held_up(self, device):
        return _held_up(device._computing)

    def copying_held_up(self, device):
        return _held_up(device._copying)

    def close(self):
        for device in self._devices:
            device.close()


@contextmanager
def _held_up(lane):
    """Nothing that is put on the lane begins before the end of this."""
    go_on = threading.Event()
    lane.put(lambda: go_on.wait(WAIT_S) and None)
    try:
        yield
    finally:
        go_on.set()


class Audit:
    """A device that wraps another one, counts every byte by itself, and objects to the first one too many.

    A weight counts from the start of its load until its eviction or failure, workspace while its inference runs.
    """

    def __init__(self, device, bench=None):
        self._device = device
        self._bench = bench
        self._weights = {}
        self._workspace = Counter()
        self.peak_bytes = 0
        self.last_ms = device.now_ms()
        self.actions = []

    @property
    def budget_bytes(self):
        return self._device.budget_bytes

    @property
    def used_bytes(self):
        return sum(self._weights.values()) + sum(infer.workspace_bytes for infer in self._workspace.elements())

    def now_ms(self):
        return self._device.now_ms()

    def start(self, action):
        self._device.start(action)
        self.actions.append(action)
        if isinstance(action, Load):
            self._weights[action.weight] = action.bytes
        elif isinstance(action, Infer):
            self._workspace[action] += 1
        else:
            del self._weights[action.weight]
        self._check()

    def next_event(self):
        event = self._device.next_event()
        if event is not None:
            assert event.now_ms >= 0
        now_ms = self._device.now_ms()
        assert now_ms >= self.last_ms
        self.last_ms = now_ms
        if isinstance(event, Done):
            self._end(event)
        self._check()
        return event

    def _end(self, done):
        if isinstance(done.action, Infer):
            self._workspace[done.action] -= 1
        elif done.failure is not None:
            del self._weights[done.action.weight]

    def _check(self):
        assert self.used_bytes <= self.budget_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        if self._bench is not None and (held_bytes := self._bench.held_bytes(self._device)) is not None:
            assert held_bytes <= self.budget_bytes


def loads_of(plan, query, without=()):
    """Loads of all of a query's weights, in order."""
    (planned,) = (each for each in plan.queries if each.name == query)
    return [
        Load(weight, plan.weight_bytes[weight], plan.load_ms[weight])
        for weight in planned.weights
        if weight not in without
    ]


def infer_of(plan, query, *frames):
    """An inference on these frames."""
    (planned,) = (each for each in plan.queries if each.name == query)
    size = len(frames)
    return Infer(query, frames, planned.workspace_bytes[size], planned.run_ms[size])


def ends_of(device, count):
    """The next so many ends of loads or inferences, in order; arrivals in between are passed over."""
    ends = []
    while len(ends) < count:
        event = device.next_event()
        assert event is not None, f"only {len(ends)} of {count} actions ended"
        if isinstance(event, Done):
            ends.append(event)
    return ends


def do(device, *actions):
    """Start loads and inferences and wait for all of them; evictions take effect at once."""
    for action in actions:
        device.start(action)
    return ends_of(device, sum(not isinstance(action, Evict) for action in actions))


def bytes_of(plan, *queries):
    """Bytes of the weights that these queries need together."""
    needed = {weight for query in plan.queries if query.name in queries for weight in query.weights}
    return sum(plan.weight_bytes[weight] for weight in needed)
