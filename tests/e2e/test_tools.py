"""Measuring and simulating a release by command, on a real store."""

import json
import math

import pytest
from tiny_release import CLASSIFIERS, publish_tiny_release

from gemel_ray.engine.simulating import SimulationOptions, simulate_store
from gemel_ray.spec.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return publish_tiny_release(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="module")
def profiled(made, tmp_path_factory, gemel):
    folder = tmp_path_factory.mktemp("profile")
    options = (
        "--device",
        "cpu",
        "--repeats",
        "1",
        "--reload-from",
        "disk",
        "--way",
        "channels_last",
        "--threads",
        "1",
        "--out",
        "profile.json",
        "--json",
    )
    return folder / "profile.json", gemel(folder, "profile", made.store, *options)


def test_a_profile_names_every_query_and_is_marked_as_measured(profiled):
    path, document = profiled
    assert json.loads(path.read_text()) == document
    assert set(document["queries"]) == set(CLASSIFIERS)
    assert document["estimated"] is False
    assert document["device"].endswith(" 1 threads")
    assert {query["way"] for query in document["queries"].values()} <= {"plain", "channels_last"}
    assert all(took > 0 for query in document["queries"].values() for took in query["run_ms"].values())


def test_every_policy_is_simulated_at_every_budget(made, profiled, tmp_path, gemel):
    budgets = [made.bytes_of("north_people") + (16 << 20), made.manifest.bytes_before + (64 << 20)]
    rows = gemel(
        tmp_path, "simulate", made.store, "--profile", profiled[0], "--memory", ",".join(f"{b}B" for b in budgets),
        "--seconds", "3", "--trace", "trace.json", "--json",
    )  # fmt: skip
    assert {row["budget_bytes"] for row in rows} == set(budgets)
    assert {row["policy"] for row in rows} >= {"ours_merged", "time_space", "model_lru", "everything_resident"}
    for row in rows:
        assert 0 <= row["worst_goodput_fraction"] <= row["mean_goodput_fraction"] <= 1
        assert all(0 < goodput <= 1 for goodput in row["goodput_at_other_phases"])
        assert row["policy"] == "everything_resident" or row["peak_bytes"] <= row["budget_bytes"]
    assert json.loads((tmp_path / "trace.json").read_text())


def test_long_simulations_run_in_processes_of_their_own_and_give_the_same(made, profiled, tmp_path, gemel):
    asked = {"policy": "model_lru,time_space", "memory": f"{made.bytes_of('north_people') + (16 << 20)}B"}
    rows = gemel(
        tmp_path, "simulate", made.store, "--profile", profiled[0], "--policy", asked["policy"],
        "--memory", asked["memory"], "--seconds", "1300", "--json",
    )  # fmt: skip
    alone = simulate_store(str(made.store), SimulationOptions(profile=profiled[0], seconds=1300, **asked))
    assert rows == json.loads(json.dumps(alone))


def test_a_device_that_is_not_at_hand_is_estimated_and_said_so(made, tmp_path, gemel):
    rows = gemel(tmp_path, "simulate", made.store, "--rates", "t4", "--policy", "ours", "--seconds", "2", "--json")
    assert all(row["estimated"] and row["device"] == "NVIDIA T4" for row in rows)


def test_with_the_workload_end_to_end_accuracy_is_told_from_answers_recorded_once(made, tmp_path, gemel):
    model = {"architecture": "squeezenet1_1", "classes": ["background", "car", "person"], "input_size": 32}
    names = CLASSIFIERS
    queries = [{"name": name, "feed": "f", "model": model, "fps": 10, "slo_ms": 100} for name in names]
    feeds = {"f": {"kind": "streets", "seed": 0, "frames": 100}}
    (tmp_path / "w.yaml").write_text(json.dumps({"name": "tiny", "feeds": feeds, "queries": queries}))
    command = (
        "simulate", "w.yaml", "--store", made.store, "--rates", "t4", "--policy", "ours,ours_merged,model_lru",
        "--seconds", "2", "--frames", "15", "--answers", "answers.json", "--json",
    )  # fmt: skip
    rows = gemel(tmp_path, *command)
    for row in rows:
        assert row["accuracy"].keys() == set(names)
        assert 0 <= row["mean_accuracy"] <= 1
        # The release is its own ancestor, so that only stale answers cost accuracy.
        assert row["mean_accuracy"] == 1 or sum(row["stale_fraction"].values()) > 0
    recorded = json.loads((tmp_path / "answers.json").read_text())
    assert all(len(query["original"]) <= 15 for query in recorded["queries"].values())
    assert gemel(tmp_path, *command) == rows
    assert "looks like a workload" in gemel(tmp_path, "simulate", "w.yaml", "--rates", "t4", code=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "give either --profile"),
        (("--rates", "t5"), "no rates of a device 't5'; did you mean 't4'?"),
        (("--rates", "t4", "--policy", "our"), "no policy 'our'; did you mean 'ours'?"),
        (("--rates", "t4", "--memory", "lots"), "--memory: 'lots' is not a size"),
        (("--profile", "none.json"), "none.json: cannot be read"),
        (("--rates", "t4", "--policy", ""), "no policy ''"),
        (("--rates", "t4", "--seconds", "1e300"), "--seconds 1e+300: must be from 1 to 86400 (a day)"),
        (("--rates", "t4", "--answers", "a.json"), "--answers a.json: is for end-to-end accuracy; also give the"),
        (("--rates", "t4", "--frames", "5"), "--frames 5: is for end-to-end accuracy; also give the workload"),
    ],
    ids=["nothing", "device", "policy", "memory", "file", "no policy", "seconds", "answers", "frames"],
)
def test_bad_options_are_told(made, tmp_path, gemel, options, told):
    assert told in gemel(tmp_path, "simulate", made.store, *options, code=2)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 0, -1])
def test_traffic_of_no_length_and_without_end_is_refused(made, seconds):
    with pytest.raises(InputError, match=r"--seconds .*must be from 1 to 86400"):
        simulate_store(str(made.store), SimulationOptions(rates="t4", seconds=seconds))


def test_absurdly_many_threads_are_refused_before_torch_ends_the_process(made, tmp_path, gemel):
    told = gemel(tmp_path, "profile", made.store, "--threads", 100_000_000, code=2)
    assert "--threads 100000000: must be at most 1024" in told


COST = {"run_ms": {"1": 2.0}, "workspace_bytes": {"1": 1000}}
PROFILE = {"device": "d", "estimated": False, "load_fixed_ms": 1.0, "load_bytes_per_ms": 1e6}


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        (PROFILE | {"queries": {"north": COST}}, "lacks query 'north_cars' (did you mean 'north'?); profile this"),
        (PROFILE | {"load_fixed_ms": math.inf, "queries": {}}, "load_fixed_ms: must be a finite number"),
        (PROFILE | {"queries": {"a": COST | {"run_ms": {"1": math.inf}}}}, "run_ms.1: must be a finite number"),
        (PROFILE | {"queries": {"a": COST | {"workspace_bytes": {"1": -1}}}}, "workspace_bytes.1: must be at least 0"),
        (PROFILE | {"queries": {"a": {"run_ms": {"0": 1}, "workspace_bytes": {"0": 1}}}}, "must be more than 0"),
        (b"\xff\xfe{}", "is no profile; make one with `gemel profile STORE --out FILE`"),
    ],
    ids=["other queries", "load", "run", "workspace", "batch", "no text"],
)  # fmt: skip
def test_a_profile_that_does_not_suit_is_wrong_input(made, tmp_path, profile, told):
    path = tmp_path / "p.json"
    path.write_bytes(profile if isinstance(profile, bytes) else json.dumps(profile).encode())
    with pytest.raises(InputError) as refused:
        simulate_store(str(made.store), SimulationOptions(profile=path))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("budgets", "told"),
    [("1MiB,64MiB", "t.json: the last run, ours in 64.0 MiB"), ("64MiB,1MiB", "--trace t.json: nothing was written")],
)
def test_which_run_was_traced_is_said(made, tmp_path, gemel, budgets, told):
    options = ("--memory", budgets, "--policy", "ours", "--seconds", "1", "--trace", "t.json")
    assert told in gemel(tmp_path, "simulate", made.store, "--rates", "t4", *options)
    assert (tmp_path / "t.json").exists() == told.startswith("t.json")


def test_a_budget_for_not_even_one_model_is_said_in_its_row(made, tmp_path, gemel):
    rows = gemel(
        tmp_path, "simulate", made.store, "--rates", "t4", "--memory", "1MiB", "--policy", "ours,model_lru", "--json"
    )
    assert all("alone needs" in row["problem"] for row in rows)
