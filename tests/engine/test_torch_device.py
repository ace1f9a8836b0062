"""The real device by itself: its two lanes, its budget, and what it refuses."""

import threading
import weakref

import pytest
import torch

from gemel_ray.edge.ledger import Ledger
from gemel_ray.engine.blobs import open_blob, open_blobs
from gemel_ray.engine.device import TorchDevice
from gemel_ray.engine.models import build_skeletons
from gemel_ray.engine.residence import Residence
from gemel_ray.spec.actions import Arrived, Done, Evict, Frame, Infer, Load, Stopped
from gemel_ray.spec.errors import OverBudgetError

FOUR = {"a": "resnet18", "b": "resnet18", "c": "squeezenet1_1", "d": "mobilenet_v3_small"}
SHARED = [[("a", "layer4.1.conv2"), ("b", "layer4.1.conv2")]]
WORKSPACE_BYTES = 2**20


class ForgetfulLedger(Ledger):
    """Wrong on purpose: counts a weight only where there is no other."""

    def reserve(self, weight, count_bytes):
        super().reserve(weight, 0 if self.resident_bytes else count_bytes)


class StingyLedger(Ledger):
    """Wrong on purpose: counts nothing at all."""

    def reserve(self, weight, count_bytes):
        super().reserve(weight, 0)


@pytest.fixture(scope="module")
def four(tmp_path_factory, release_into):
    return release_into(tmp_path_factory.mktemp("four"), FOUR, SHARED)


@pytest.fixture
def device_for(device):
    """Devices that are closed after the test."""
    made_devices = []

    def make(made, budget_bytes, ledger=Ledger, **options):
        blobs = open_blobs(made.manifest, made.path)
        skeletons = build_skeletons(made.manifest, blobs, device)
        made_devices.append(TorchDevice(skeletons, blobs, Residence(device), ledger(budget_bytes), **options))
        return made_devices[-1]

    yield make
    for made_device in made_devices:
        made_device.close()


def load_of(made, weight):
    return Load(weight, made.manifest.blobs[weight].tensor_bytes, 1.0)


def load(device, made, weight):
    """Load and wait for it."""
    device.start(load_of(made, weight))
    return device.next_event()


def load_query(device, made, query):
    for weight in made.manifest.blobs_of(query):
        if weight not in device.residence.weights:
            assert load(device, made, weight).failure is None


def infer(device, query, image, number=0):
    """One frame's answer, or why there is none."""
    device.frames[number] = image
    device.start(Infer(query, (number,), WORKSPACE_BYTES, 1.0))
    done = device.next_event()
    del device.frames[number]
    return done.failure or device.answers.pop(number)


def swap_through(device, made, image):
    """Every query in turn, twice; evicts, oldest first, only where the device refuses. Checks bytes at every step."""
    for query in [*FOUR, *FOUR]:
        own = made.manifest.blobs_of(query)
        missing = [load_of(made, weight) for weight in own if weight not in device.residence.weights]
        for action in [*missing, Infer(query, (0,), WORKSPACE_BYTES, 1.0)]:
            device.frames[0] = image
            start_evicting(device, action, own)
            assert device.next_event().failure is None
            assert device.residence.allocated_bytes() <= device.budget_bytes
            assert device.usage().resident_bytes == device.residence.allocated_bytes()
        (expected,) = made.direct(query, [image])
        given = device.answers.pop(0)
        assert given.label == expected.label
        assert given.scores == pytest.approx(expected.scores, abs=1e-4)


def start_evicting(device, action, keep):
    """Start it, making room as long as the device refuses."""
    while True:
        try:
            return device.start(action)
        except OverBudgetError:
            device.start(Evict(next(weight for weight in device.residence.weights if weight not in keep)))


def test_models_take_turns_within_a_budget_that_holds_two_of_four(four, frame_of, device_for):
    device = device_for(four, four.bytes_of("a", "b") + WORKSPACE_BYTES)
    swap_through(device, four, frame_of())
    usage = device.usage()
    assert usage.peak_bytes <= device.budget_bytes
    assert usage.loaded_bytes > four.manifest.bytes_after


@pytest.mark.parametrize("wrong", [ForgetfulLedger, StingyLedger])
def test_a_wrong_ledger_is_found_out(four, frame_of, device_for, wrong):
    device = device_for(four, four.bytes_of("a", "b") + WORKSPACE_BYTES, ledger=wrong)
    with pytest.raises(AssertionError):
        swap_through(device, four, frame_of())


def test_a_load_above_the_budget_is_refused_before_anything_is_allocated(four, device_for):
    device = device_for(four, four.bytes_of("c"))
    load_query(device, four, "c")
    held = device.residence.allocated_bytes()
    with pytest.raises(OverBudgetError):
        device.start(load_of(four, four.manifest.blobs_of("d")[0]))
    assert device.residence.allocated_bytes() == held == device.usage().resident_bytes


def test_an_inference_whose_workspace_does_not_fit_is_refused(four, frame_of, device_for):
    device = device_for(four, four.bytes_of("c") + WORKSPACE_BYTES - 1)
    load_query(device, four, "c")
    with pytest.raises(OverBudgetError):
        device.start(Infer("c", (0,), WORKSPACE_BYTES, 1.0))
    assert device.usage().workspace_bytes == 0


def test_what_makes_no_sense_is_a_value_error(four, device_for):
    device = device_for(four, 10**9)
    (weight,) = four.manifest.blobs_of("c")
    with pytest.raises(ValueError, match="not fully arrived"):
        device.start(Evict(weight))
    with pytest.raises(ValueError, match="cannot run"):
        device.start(Infer("c", (0,), 0, 1.0))
    load(device, four, weight)
    with pytest.raises(ValueError, match=weight):
        device.start(load_of(four, weight))


def test_weights_in_use_are_not_evicted(four, frame_of, device_for):
    device = device_for(four, 10**9)
    load_query(device, four, "c")
    running, go_on = threading.Event(), threading.Event()

    def hold(module, inputs):
        running.set()
        go_on.wait(60)

    device.skeleton("c", 0)._model.register_forward_pre_hook(hold)
    device.frames[0] = frame_of()
    device.start(Infer("c", (0,), WORKSPACE_BYTES, 1.0))
    running.wait(60)
    (weight,) = four.manifest.blobs_of("c")
    try:
        assert device.usage().workspace_bytes == WORKSPACE_BYTES
        with pytest.raises(ValueError, match="in use"):
            device.start(Evict(weight))
    finally:
        go_on.set()
    assert device.next_event().failure is None
    assert device.usage().workspace_bytes == 0
    device.start(Evict(weight))
    assert device.residence.allocated_bytes() == 0


def test_a_load_goes_on_while_the_other_lane_computes(four, frame_of, device_for):
    device = device_for(four, 10**9)
    load_query(device, four, "c")
    go_on = threading.Event()
    device.skeleton("c", 0)._model.register_forward_pre_hook(lambda *_: go_on.wait(60) and None)
    device.frames[0] = frame_of()
    device.start(Infer("c", (0,), WORKSPACE_BYTES, 1.0))
    device.start(load_of(four, four.manifest.blobs_of("d")[0]))
    try:
        assert isinstance(device.next_event().action, Load)
    finally:
        go_on.set()
    assert isinstance(device.next_event().action, Infer)


def test_a_weight_on_its_way_cannot_be_evicted(four, device_for):
    device = device_for(four, 10**9)
    go_on = threading.Event()
    device._copying.put(lambda: go_on.wait(60) and None)
    (weight,) = four.manifest.blobs_of("c")
    try:
        device.start(load_of(four, weight))
        assert device.usage().resident_bytes == four.bytes_of("c")
        with pytest.raises(ValueError, match="not fully arrived"):
            device.start(Evict(weight))
    finally:
        go_on.set()
    assert device.next_event().failure is None


def test_a_failed_load_gives_its_bytes_back_and_may_be_tried_again(release_of, device_for):
    made = release_of({"q": "squeezenet1_1"})
    (weight,) = made.manifest.blobs_of("q")
    device = device_for(made, 10**9)
    whole = made.path(weight).read_bytes()
    made.path(weight).write_bytes(whole[:-10])
    done = load(device, made, weight)
    assert "CorruptBlobError" in done.failure
    assert device.usage().resident_bytes == 0 == device.residence.allocated_bytes()
    made.path(weight).write_bytes(whole)
    assert load(device, made, weight).failure is None
    assert device.usage().loads == 1


def test_a_failed_inference_gives_its_workspace_back_and_the_lane_goes_on(four, frame_of, device_for):
    device = device_for(four, 10**9)
    load_query(device, four, "c")
    device.start(Infer("c", (77,), WORKSPACE_BYTES, 1.0))
    assert device.next_event().failure == "KeyError: 77"
    assert device.usage().workspace_bytes == 0
    assert infer(device, "c", frame_of()).label == four.direct("c", [frame_of()])[0].label


def test_events_end_once_stopped_and_nothing_is_in_flight(four, device_for):
    device = device_for(four, 10**9)
    frame = Frame("c", 5, 0.0, 100.0)
    device.arrive(frame)
    device.start(load_of(four, four.manifest.blobs_of("c")[0]))
    device.stop()
    events = [device.next_event() for _ in range(4)]
    assert events[-1] is None
    assert {type(event) for event in events[:3]} == {Arrived, Done, Stopped}
    assert device.now_ms() >= max(event.now_ms for event in events[:3])
    assert next(event for event in events if isinstance(event, Arrived)).frame == frame


def test_closing_frees_all_weights(four, device_for):
    device = device_for(four, 10**9)
    load_query(device, four, "a")
    device.close()
    assert device.residence.allocated_bytes() == 0
    assert device.usage().resident_bytes == 0


def test_threads_of_an_inference_are_bounded_on_its_own_lane(four, device_for):
    device, seen = device_for(four, 10**9, threads=1), []
    device._computing.put(lambda: seen.append(torch.get_num_threads()))
    device.close()
    assert seen == [1]


def test_files_of_models_that_are_kept_no_more_are_forgotten(four, device_for):
    device = device_for(four, 10**9)
    blobs = open_blobs(four.manifest, four.path)
    known, new = weakref.WeakSet(blobs.values()), {"f" * 64: next(iter(blobs.values()))}
    device.take_blobs(blobs, four.path)
    device.take_blobs(new, four.path)
    del blobs, new
    # What was known already stays as it is; of further files there was but one name.
    assert len(known) == 1
    device.keep(0, ["a", "b"])
    assert not known
    load_query(device, four, "a")
    with pytest.raises(KeyError):
        device.start(load_of(four, four.manifest.queries["c"].weights[""]))


def test_a_damaged_file_is_told_in_one_line_and_fetched_anew(four, device_for, caplog):
    weight = four.manifest.blobs_of("c")[0]
    path, whole = four.path(weight), four.path(weight).read_bytes()

    def refetch(sha):
        path.write_bytes(whole)
        return open_blob(path)

    device = device_for(four, four.bytes_of("c"), refetch=refetch)
    path.write_bytes(whole[:-100])
    try:
        assert load(device, four, weight).failure is None
    finally:
        path.write_bytes(whole)
    (record,) = caplog.records
    assert "is fetched anew: " in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None
