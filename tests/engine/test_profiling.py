"""Profiles measured on real models: complete, plausible, quick."""

import threading

import pytest
import torch

from gemel_ray.engine.blobs import open_blobs
from gemel_ray.engine.contending import measure_contention
from gemel_ray.engine.profiling import fit_loads, measure_profile
from gemel_ray.engine.residence import Residence
from gemel_ray.engine.workspace import peak_bytes

MIB = 2**20


def test_a_profile_covers_every_query_and_batch_size(release_of, device):
    made = release_of({"a": "resnet18", "b": "squeezenet1_1"})
    profile = measure_profile(made.manifest, made.path, device, batch_sizes=(1, 2), repeats=1)
    assert profile.queries.keys() == {"a", "b"}
    for query in profile.queries.values():
        assert query.batch_sizes == (1, 2)
        assert all(took > 0 for took in query.run_ms.values())
        assert 0 < query.workspace_bytes[1] < query.workspace_bytes[2]
    assert not profile.estimated
    assert profile.load_ms(made.bytes_of("a")) > 0


def test_workspace_holds_the_largest_layer_at_least(release_of):
    made = release_of({"a": "resnet18"})
    profile = measure_profile(made.manifest, made.path, "cpu", batch_sizes=(1,), repeats=1)
    # At 32 x 32 pixels: the first convolution's output, 64 channels of 16 x 16, and its normalised copy.
    assert 2 * 64 * 16 * 16 * 4 <= profile.queries["a"].workspace_bytes[1] < 10 * MIB


def test_batch_sizes_too_large_for_the_budget_are_left_out(release_of):
    made = release_of({"a": "resnet18"})
    one = measure_profile(made.manifest, made.path, "cpu", batch_sizes=(1,), repeats=1)
    budget = made.bytes_of("a") + 2 * one.queries["a"].workspace_bytes[1]
    tight = measure_profile(made.manifest, made.path, "cpu", (1, 64), repeats=1, budget_bytes=budget)
    assert tight.queries["a"].batch_sizes == (1,)


def test_peak_counts_what_is_held_at_once_and_not_what_was_freed(device):
    def work():
        for _ in range(5):
            torch.ones(MIB // 4, device=device)
        first = torch.ones(MIB // 4, device=device)
        return (first + 1).sum().item()

    assert 2 * MIB <= peak_bytes(work, device) < 3 * MIB


def test_loads_are_split_into_a_fixed_part_and_a_part_by_the_byte():
    fixed_ms, bytes_per_ms = fit_loads([(1000, 2.1), (2000, 2.2), (3000, 2.3)])
    assert fixed_ms == pytest.approx(2)
    assert bytes_per_ms == pytest.approx(10_000)


@pytest.mark.parametrize("samples", [[(500, 2.0)], [(500, 2.0), (500, 4.0)], [(100, 4.0), (900, 1.0)], [(0, 0.0)]])
def test_loads_that_tell_no_slope_give_a_plain_rate(samples):
    fixed_ms, bytes_per_ms = fit_loads(samples)
    assert fixed_ms == 0
    assert bytes_per_ms > 0


def test_work_that_waits_for_what_a_load_holds_is_told_as_slowed_down(release_of):
    made = release_of({"a": "resnet18"})
    (blob,) = open_blobs(made.manifest, made.path).values()
    loaded, residence = threading.Condition(), Residence(torch.device("cpu"))
    matrix = torch.ones(8, 8)

    def infer():
        # Where loads go on all the time, whole ones are waited for: a lock would leave it to chance which of them.
        if "gemel-contend" in {thread.name for thread in threading.enumerate()}:
            with loaded:
                loaded.wait(timeout=10)
        return matrix @ matrix

    class Slow(Residence):
        """Says when each load has ended."""

        def load(self, *arguments):
            super().load(*arguments)
            with loaded:
                loaded.notify_all()

    slow = measure_contention(infer, [blob], Slow(torch.device("cpu")), 20)
    assert slow.run_slowdown > 1
    measure_contention(lambda: matrix @ matrix, [blob], residence, 3)
    assert residence.weights == ()
    assert residence.allocated_bytes() == 0


def test_a_profile_says_how_loads_and_inferences_slow_each_other_down(release_of):
    made = release_of({"a": "resnet18"})
    profile = measure_profile(made.manifest, made.path, "cpu", batch_sizes=(1,), repeats=3)
    assert 1 <= profile.run_slowdown < 100
    assert 1 <= profile.load_slowdown < 100
    # Not a byte more than the weights and one workspace: there is no room to measure it in.
    tight = made.bytes_of("a") + profile.queries["a"].workspace_bytes[1]
    told = measure_profile(made.manifest, made.path, "cpu", batch_sizes=(1,), repeats=1, budget_bytes=tight)
    assert (told.run_slowdown, told.load_slowdown) == (1, 1)
