"""A search on a store that has releases already: whose they are, and which one is served."""

import subprocess
import sys

import pytest
import torch
from progress_kit import outcome_for, workload

from gemel_ray.api.calls import analyze, search
from gemel_ray.merging.options import SearchOptions, choices
from gemel_ray.merging.progress import Progress
from gemel_ray.merging.searching import _resumed, search_name
from gemel_ray.merging.session import ray_session
from gemel_ray.policy.grouping import group_layers
from gemel_ray.policy.search import begin
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.errors import InputError, SearchError, StoreError
from gemel_ray.training.releases import publish_originals
from gemel_ray.vision.inspection import analyze as inspected
from gemel_ray.vision.models import build_model
from gemel_ray.weights.searches import claimed
from gemel_ray.weights.store import open_store


def models_of(found, seed=0):
    torch.manual_seed(seed)
    return {query.name: build_model(query.model) for query in found.queries}


def begun(store, found, *, models=None, options=None, gate_margin=0.1):
    """A search of all that squeezenets share, from a release of its own of the originals."""
    root = publish_originals(store, found, models or models_of(found), seed=0)
    settings = SearchSettings(max_trials=12, max_steps=5, gate_margin=gate_margin)
    state = begin(group_layers(inspected(found).inventories), release=root.release, settings=settings)
    return Progress(store, search_name(found), [state], root=root.release, options=choices(options or SearchOptions()))


def won(store, progress, found, *, whole=True, lower_bound=0.9):
    """The search's first improvement: the whole, or all but its hardest layers."""
    first, second = iter(progress.next_candidate, None)
    for candidate, passed in ((first, whole), (second, not whole)):
        outcome = outcome_for(store, models_of(found), candidate, passed=passed, lower_bound=lower_bound)
        progress.take(candidate, outcome)
    return progress.latest()


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", create=True)


def test_another_search_of_the_same_originals_leaves_what_is_served(store):
    found = workload()
    merged = won(store, begun(store, found), found)
    again = begun(store, found)
    assert (again.root, store.head()) == (3, merged.release)
    less = won(store, again, found, whole=False)
    assert less.bytes_after > merged.bytes_after
    assert (again.latest(), store.head()) == (less, merged.release)


def test_what_takes_no_less_memory_is_not_served_instead(store):
    found = workload()
    merged, same = (won(store, begun(store, found), found) for _ in range(2))
    assert merged.bytes_after == same.bytes_after
    assert (same.release, store.head()) == (4, merged.release)


@pytest.mark.parametrize("change", ["originals", "question"])
def test_other_originals_and_other_questions_are_served_at_once(store, change):
    found = workload()
    won(store, begun(store, found), found)
    if change == "question":
        found = found.model_copy(update={"queries": tuple(q.model_copy(update={"fps": 5.0}) for q in found.queries)})
    again = begun(store, found, models=models_of(found, seed=int(change == "originals")))
    assert store.head() == again.root == 3


def test_a_stricter_target_is_served_though_it_saves_less(store):
    found = workload().aimed_at(0.9)
    won(store, begun(store, found), found)
    strict = found.aimed_at(0.95)
    less = won(store, begun(store, strict), strict, whole=False)
    assert store.head() == less.release


def test_a_stricter_gate_is_served_though_it_saves_less(store):
    found = workload()
    won(store, begun(store, found), found, lower_bound=0.85)
    less = won(store, begun(store, found, gate_margin=0.0), found, whole=False)
    assert store.head() == less.release


def test_two_searches_of_a_workload_do_not_take_each_others_releases(store):
    """One begins while the other runs: the first one's next release has a higher number than the second one's root."""
    found = workload()
    one, other = begun(store, found), begun(store, found)
    assert (one.root, other.root) == (1, 2)
    first = won(store, one, found)
    assert other.latest().release == 2
    second = won(store, other, found, whole=False)
    assert (first.parent, second.parent) == (1, 2)
    assert (one.latest(), other.latest()) == (first, second)


def test_one_search_at_a_time_runs_on_a_store(store):
    claim = "import time; from gemel_ray.weights.searches import claimed\n"
    claim += "from gemel_ray.weights.store import open_store\n"
    claim += (
        f"with claimed(open_store({store.locate()!r}, create=True), 's'): print('mine', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", claim], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        with pytest.raises(StoreError, match="a search of the same workload is running"), claimed(store, "s"):
            pytest.fail("two at once")
        with claimed(store, "other"):
            process.kill()
    with claimed(store, "s"):
        assert store.searches() == []


def test_resume_says_what_it_does_not_do(store):
    found, told = workload(), []
    progress = begun(store, found, options=SearchOptions(settings=SearchSettings(gate_margin=0.1)))
    while (candidate := progress.next_candidate()) is not None:
        progress.take(candidate, outcome_for(store, models_of(found), candidate, passed=True))
    now = SearchOptions(paper=True)
    assert _resumed(found, store, now, told.append).latest() == progress.latest()
    assert told == [
        "--resume goes on as it was begun: --gate-margin 0.1, not 0.0",
        "--resume goes on as it was begun: --paper False, not True",
        "this search had ended: nothing is left to try; without --resume it begins anew",
    ]


def test_a_search_whose_releases_were_removed_says_so(store):
    found = workload()
    progress = begun(store, found)
    while (candidate := progress.next_candidate()) is not None:
        progress.take(candidate, outcome_for(store, models_of(found), candidate, passed=False))
    won(store, begun(store, found.aimed_at(0.5)), found.aimed_at(0.5))
    store.remove_releases([1])
    with pytest.raises(SearchError, match=r"release 1, which search .* had come to, was removed.*leave out --resume"):
        Progress.resume(store, search_name(found)).latest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, "--cpus 0: a trial needs some"),
        ({"cpus": float("nan")}, "--cpus nan"),
        ({"gpus": -1}, "--gpus -1 is too little; give 0 or more"),
        ({"seed": -1}, "--seed -1"),
        ({"minutes": float("nan")}, "--minutes nan"),
        ({"parallel": 0}, "--parallel 0 is too little; give 1 or more"),
    ],
)
def test_options_that_no_search_could_go_by_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SearchOptions(**options)


def test_the_functions_refuse_what_the_commands_do(tmp_path):
    with pytest.raises(InputError, match="gate_margin"):
        search(workload(), tmp_path / "store", gate_margin=5)
    with pytest.raises(InputError, match="max_trials"):
        search(workload(), tmp_path / "store", trials=0)
    with pytest.raises(InputError, match="rule 'foo' is not a signature rule; choose exact or shape"):
        analyze(workload(), rule="foo")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "foo.invalid", "127.0.0.1:port"])
def test_an_address_where_no_cluster_answers_is_told_at_once(monkeypatch, address):
    # Whatever other tests in this process have joined.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"RAY_ADDRESS {address} cannot be reached"), ray_session():
        pytest.fail("no cluster")
