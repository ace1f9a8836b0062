"""Workload files: every error names the file, the field, the value and the way out."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.spec.errors import WorkloadError
from gemel_ray.spec.units import format_bytes, parse_bytes
from gemel_ray.spec.workload import load_workload, parse_workload

EXAMPLES = Path(__file__).parents[2] / "serve_configs" / "workloads"
QUERY = {"name": "a", "feed": "f", "model": {"architecture": "resnet18", "classes": ["background", "car"]}}


def workload(**changes):
    return {"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": [QUERY]} | changes


def read(data):
    return parse_workload(data, source="w.yaml", base=Path("/base"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_workload_loads(path):
    assert load_workload(path).queries


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"querys": []}, "querys: unknown key; did you mean 'queries'?"),
        ({"feeds": {"f": {"kind": "streets", "sed": 1}}}, "feeds.f.streets.sed: unknown key; did you mean 'seed'?"),
        ({"feeds": {"f": {"kind": "streetz"}}}, "feeds.f: Input tag 'streetz'"),
        ({"queries": [QUERY | {"fps": 0}]}, "queries.0.fps: Input should be greater than 0, got 0"),
        ({"queries": [QUERY | {"feed": "g"}]}, "query 'a': no feed 'g'"),
        ({"queries": [QUERY, QUERY]}, "two queries are named 'a'"),
        ({"queries": []}, "queries: Tuple should have at least 1 item"),
        ({"nodes": [{"name": "n", "memory": "2 apples"}]}, "'2 apples' is not a size; write a number and a unit"),
        ({"defaults": {"fps": -1}}, "defaults.fps: Input should be greater than 0, got -1"),
        ({"queries": [QUERY | {"model": {"classes": ["a", "b"]}}]}, "give either 'architecture'"),
        ({"queries": [QUERY | {"name": "../x"}]}, "queries.0.name"),
    ],
)
def test_what_is_wrong_is_named_with_the_way_out(changes, told):
    with pytest.raises(WorkloadError) as error:
        read(workload(**changes))
    assert "w.yaml" in str(error.value)
    assert told in str(error.value)


def test_defaults_fill_in_and_queries_override_them():
    queries = [QUERY, QUERY | {"name": "b", "fps": 5}]
    found = read(workload(defaults={"fps": 12, "slo_ms": 80}, queries=queries))
    assert [(query.fps, query.slo_ms, query.accuracy_target) for query in found.queries] == [
        (12, 80, 0.95),
        (5, 80, 0.95),
    ]


def test_relative_paths_are_relative_to_the_file(tmp_path):
    model = QUERY["model"] | {"weights": "w/a.safetensors"}
    feeds = {"f": {"kind": "video", "uri": "clips/a.mp4"}, "r": {"kind": "video", "uri": "rtsp://camera/1"}}
    path = tmp_path / "w.yaml"
    path.write_text(json.dumps(workload(feeds=feeds, queries=[QUERY | {"model": model}])))
    found = load_workload(path)
    assert found.feeds["f"].uri == str(tmp_path / "clips" / "a.mp4")
    assert found.feeds["r"].uri == "rtsp://camera/1"
    assert found.queries[0].model.weights == str(tmp_path / "w" / "a.safetensors")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(WorkloadError, match=r"none\.yaml: cannot be read"):
        load_workload(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(WorkloadError, match="not valid YAML"):
        load_workload(tmp_path / "bad.yaml")


def test_the_content_hash_ignores_where_a_workload_runs():
    nodes = [{"name": "n", "memory": "2GiB"}]
    assert read(workload()).content_hash() == read(workload(nodes=nodes)).content_hash()
    assert read(workload()).content_hash() != read(workload(defaults={"fps": 7})).content_hash()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional={key: PLAIN for key in ("name", "defaults", "feeds", "queries", "nodes")}))
def test_no_data_breaks_the_reader(data):
    with pytest.raises(WorkloadError):
        read(data)


@given(st.integers(1, 2**50))
def test_sizes_go_there_and_back(count):
    assert parse_bytes(f"{count}B") == count
    assert abs(parse_bytes(format_bytes(count)) - count) <= 0.05 * count + 1
