"""Workload files: every error names the file, the field, the value and the way out."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.spec.errors import WorkloadError
from gemel_ray.spec.units import format_bytes, parse_bytes
from gemel_ray.spec.workload import Workload, load_workload, parse_workload

MODEL = {"architecture": "resnet18", "classes": ["background", "car"]}
QUERY = {"name": "cars", "feed": "f", "model": MODEL}
NODE = {"name": "box", "memory": "2GiB"}


def workload(**changes):
    return {"name": "w", "feeds": {"f": {"kind": "streets"}}, "queries": [QUERY], "nodes": [NODE]} | changes


def query(**changes):
    return workload(queries=[QUERY | changes])


def model(**changes):
    return query(model=MODEL | changes)


def feed(**fields):
    return workload(feeds={"f": fields})


def node(**changes):
    return workload(nodes=[NODE | changes])


def read(data):
    return parse_workload(data, source="w.yaml", base=Path("/base"))


def told(data):
    with pytest.raises(WorkloadError) as error:
        read(data)
    return str(error.value)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (workload(querys=[]), "querys: unknown key; did you mean 'queries'?"),
        (workload(defaults={"fpss": 3}), "defaults.fpss: unknown key; did you mean 'fps'?"),
        (feed(kind="streets", sed=1), "feeds.f.streets.sed: unknown key; did you mean 'seed'?"),
        (feed(kind="video", uri="a", url="b"), "feeds.f.video.url: unknown key; did you mean 'uri'?"),
        (feed(kind="image_folder", path="a", pth=1), "feeds.f.image_folder.pth: unknown key; did you mean 'path'?"),
        (feed(kind="tiles", path="a", frames=1), "feeds.f.tiles.frames: unknown key; known: fps, kind, path"),
        (
            feed(kind="coco", images="a", annotations="b", annotation="c"),
            "feeds.f.coco.annotation: unknown key; did you mean 'annotations'?",
        ),
        (query(slo=9), "queries.0 (cars).slo: unknown key; did you mean 'slo_ms'?"),
        (model(weight="a"), "queries.0 (cars).model.weight: unknown key; did you mean 'weights'?"),
        (node(mem=1), "nodes.0 (box).mem: unknown key; did you mean 'memory'?"),
    ],
)
def test_an_unknown_key_at_any_level_names_the_nearest_one(data, line):
    assert told(data) == f"w.yaml:\n  {line}"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (workload(name="a b"), "name: 'a b' is not a name; use up to 64 letters"),
        (workload(name=7), "name: must be text (quotes make it so), got 7"),
        (workload(defaults={"fps": -1}), "defaults.fps: must be more than 0.0, got -1"),
        (workload(defaults=[1]), "defaults: must be a mapping, such as {key: value}, got [1]"),
        (workload(feeds=None), "feeds: must be a mapping, such as {key: value}, got nothing"),
        (workload(feeds={1: {"kind": "streets"}}), "feeds.1.[key]: must be text (quotes make it so), got 1"),
        (feed(kind="streetz"), "feeds.f: unknown kind 'streetz'; did you mean 'streets'?"),
        (feed(path="a"), "feeds.f: 'kind' is missing; add it (coco, image_folder, streets, tiles, video)"),
        (feed(kind="streets", seed=-1), "feeds.f.streets.seed: must be at least 0, got -1"),
        (feed(kind="streets", frames=2.5), "feeds.f.streets.frames: must be a whole number, got 2.5"),
        (feed(kind="video", uri=""), "feeds.f.video.uri: must not be empty, got ''"),
        (feed(kind="video"), "feeds.f.video.uri: is missing; add it"),
        (workload(queries=[]), "queries: needs 1 or more entries, got []"),
        (workload(queries={"a": 1}), "queries: must be a list, such as [a, b], got {'a': 1}"),
        (workload(queries=["cars"]), "queries.0: must be a mapping, such as {key: value}, got 'cars'"),
        (workload(queries=[QUERY, QUERY]), "2 queries are named 'cars'; give each its own name"),
        (query(name="../x"), "queries.0 (../x).name: '../x' is not a name"),
        (query(feed="g"), "query 'cars': no feed 'g'; known: f"),
        (workload(feeds={}), "query 'cars': no feed 'f'; there are none"),
        (query(fps=0), "queries.0 (cars).fps: must be more than 0.0, got 0"),
        (query(fps="ten"), "queries.0 (cars).fps: must be a number, got 'ten'"),
        (query(slo_ms=float("inf")), "queries.0 (cars).slo_ms: must be a finite number, got inf"),
        (
            query(accuracy_target=95),
            "queries.0 (cars).accuracy_target: must be at most 1.0, got 95; it is a fraction, so 95 % is written 0.95",
        ),
        (query(accuracy_target=True), "queries.0 (cars).accuracy_target: must be a number, got True"),
        (workload(defaults={"fps": True}), "defaults.fps: must be a number, got True"),
        (feed(kind="streets", frames=True), "feeds.f.streets.frames: must be a number, got True"),
        (query(model=None), "queries.0 (cars).model: must be a mapping, such as {key: value}, got nothing"),
        (model(classes=["car"]), "queries.0 (cars).model.classes: needs 2 or more entries, got ['car']"),
        (model(classes="car"), "queries.0 (cars).model.classes: must be a list, such as [a, b], got 'car'"),
        (model(classes=["no", False]), "queries.0 (cars).model.classes.1: must be text (quotes make it so), got False"),
        (model(classes=["a", "a"]), "queries.0 (cars).model: classes repeat: ['a', 'a']; name each once"),
        (model(architecture=None), "queries.0 (cars).model: give either 'architecture'"),
        (model(factory="a:b", task="detection"), "queries.0 (cars).model: give either 'architecture'"),
        (model(architecture=None, factory="ab"), "queries.0 (cars).model: a factory is written 'pkg.module:function'"),
        (model(architecture=None, factory=":b", task="detection"), "model: a factory is written 'pkg.module:function'"),
        (model(architecture=None, factory=".a:b", task="detection"), "model: a factory is written 'pkg.module:func"),
        (model(classes=["", "car"]), "query 'cars': a class has no name (['', 'car']); give it one"),
        (model(input_size=0), "queries.0 (cars).model.input_size: must be more than 0, got 0"),
        (model(input_size=100000), "queries.0 (cars).model.input_size: must be at most 4096, got 100000"),
        (model(task="segment"), "queries.0 (cars).model.task: must be 'classification' or 'detection', got 'segment'"),
        (model(options={"a": [1]}), "queries.0 (cars).model.options.a: [1] is not an option"),
        (model(options={"a": float("nan")}), "queries.0 (cars).model.options.a: nan is not an option"),
        (
            model(options={"num_classes": 5}),
            "queries.0 (cars).model: options: 'num_classes' is how many 'classes' there are; name each of them there",
        ),
        (
            model(options={"weights_backbone": "DEFAULT"}),
            "queries.0 (cars).model: options: 'weights_backbone' would download weights; name a file, or",
        ),
        (model(weights="a\0b"), "query 'cars': model.weights: 'a\\x00b' cannot be used as a path"),
        (model(weights="~no-such-user/a"), "query 'cars': model.weights: '~no-such-user/a' cannot be used as a path"),
        (node(memory="2 apples"), "nodes.0 (box).memory: '2 apples' is not a size; write a number and a unit"),
        (node(memory=0), "nodes.0 (box).memory: 0 must be more than zero bytes"),
        (node(memory="9" * 400 + "GiB"), "is more than any machine holds"),
        (node(device="gpu"), "nodes.0 (box).device: must be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        (workload(nodes=[NODE, NODE]), "2 nodes are named 'box'; give each its own name"),
        ([], "holds list, not a mapping with name, feeds and queries"),
    ],
)
def test_a_bad_value_is_named_with_its_place_and_the_way_out(data, line):
    message = told(data)
    assert message.startswith("w.yaml")
    assert line in message
    assert len(message.splitlines()) <= 2, "one mistake, one line"


def test_all_mistakes_are_told_at_once():
    message = told(workload(name="a b", queries=[QUERY | {"fps": 0}, QUERY | {"name": "b", "slow_ms": 1}]))
    assert [line.split(":")[0].strip() for line in message.splitlines()] == [
        "w.yaml",
        "name",
        "queries.0 (cars).fps",
        "queries.1 (b).slow_ms",
    ]


def test_a_very_long_value_is_shown_in_part():
    assert len(told(query(fps="x" * 5000))) < 200


def test_defaults_fill_in_and_queries_override_them():
    queries = [QUERY, QUERY | {"name": "b", "fps": 5}]
    found = read(workload(defaults={"fps": 12, "slo_ms": 80}, queries=queries))
    assert [(query.fps, query.slo_ms, query.accuracy_target) for query in found.queries] == [
        (12, 80, 0.95),
        (5, 80, 0.95),
    ]


def test_an_unknown_query_asked_for_names_the_nearest_one():
    with pytest.raises(WorkloadError, match="no query 'car'; did you mean 'cars'"):
        read(workload()).query("car")


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    feeds = {
        "f": {"kind": "video", "uri": "clips/a.mp4"},
        "camera": {"kind": "video", "uri": "rtsp://camera/1"},
        "tiles": {"kind": "tiles", "path": "../tiles"},
        "boxes": {"kind": "coco", "images": "images", "annotations": "/far/boxes.json"},
    }
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "w.yaml").write_text(json.dumps(model(weights="w/a.safetensors") | {"feeds": feeds}))
    monkeypatch.chdir(tmp_path)
    found = load_workload("folder/w.yaml")
    assert found.feeds["f"].uri == str(tmp_path / "folder" / "clips" / "a.mp4")
    assert found.feeds["camera"].uri == "rtsp://camera/1"
    assert found.feeds["tiles"].path == str(tmp_path / "tiles")
    assert found.feeds["boxes"].images == str(tmp_path / "folder" / "images")
    assert found.feeds["boxes"].annotations == "/far/boxes.json"
    assert found.queries[0].model.weights == str(tmp_path / "folder" / "w" / "a.safetensors")


def test_named_weights_of_torchvision_are_no_path():
    assert read(model(weights="torchvision:DEFAULT")).queries[0].model.weights == "torchvision:DEFAULT"


def test_the_content_hash_ignores_where_a_workload_runs():
    found = read(workload()).content_hash()
    assert read(workload(nodes=[])).content_hash() == found
    assert read(workload(name="other")).content_hash() == found
    for other in (workload(defaults={"fps": 7}), model(input_size=64), feed(kind="streets", seed=1)):
        assert read(other).content_hash() != found


def test_the_content_hash_ignores_where_the_file_lies(tmp_path):
    """A job's working folder is unpacked at another place every time."""
    data = copy.deepcopy(feed(kind="image_folder", path="../pictures"))
    data["queries"][0]["model"]["weights"] = "originals/a.safetensors"
    here, there = (parse_workload(data, source="w", base=tmp_path / name / "job") for name in ("one", "other"))
    assert here.queries[0].model.weights != there.queries[0].model.weights
    assert here.content_hash() == there.content_hash()
    assert here.aimed_at(0.5).content_hash() == there.aimed_at(0.5).content_hash() != here.content_hash()
    data["queries"][0]["model"]["weights"] = str(tmp_path / "one" / "job" / "originals" / "a.safetensors")
    fixed = parse_workload(data, source="w", base=tmp_path / "other" / "job")
    assert fixed.content_hash() != there.content_hash()


def test_a_workload_survives_json():
    found = read(workload())
    assert Workload.model_validate_json(found.model_dump_json()).model_dump() == found.model_dump()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def accepted_or_refused(data):
    """Whatever is read is either refused as a WorkloadError or fit to be kept and hashed."""
    try:
        found = read(data)
    except WorkloadError:
        return
    assert Workload.model_validate_json(found.model_dump_json()).model_dump() == found.model_dump()
    assert len(found.content_hash()) == 64


@given(PLAIN)
def test_no_data_breaks_the_reader(data):
    accepted_or_refused(data)


WHOLE = workload(
    defaults={"accuracy_target": 0.9, "fps": 5, "slo_ms": 50},
    feeds={
        "f": {"kind": "streets", "seed": 1, "frames": 9, "fps": 2, "width": 64, "traffic": 1.0, "dusk": 0.5},
        "v": {"kind": "video", "uri": "a.mp4", "fps": 3, "frames": 7},
        "c": {"kind": "coco", "images": "a", "annotations": "b"},
    },
    queries=[QUERY | {"model": MODEL | {"weights": "w", "options": {"min_size": 160}}, "score_threshold": 0.3}],
)


def places(data, here=()):
    """The paths of all keys and entries in nested data."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield (*here, key)
        yield from places(value, (*here, key))


@given(st.sampled_from(list(places(WHOLE))), PLAIN)
def test_no_single_wrong_value_breaks_the_reader(place, value):
    data = copy.deepcopy(WHOLE)
    here = data
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    accepted_or_refused(data)


@given(st.integers(1, 2**50))
def test_sizes_go_there_and_back(count):
    assert parse_bytes(f"{count}B") == parse_bytes(count) == count
    assert abs(parse_bytes(format_bytes(count)) - count) <= 0.05 * count + 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2 * 2**30), ("512 MB", 512 * 10**6), (" 1.5kib ", 1536), ("7B", 7), ("1TiB", 2**40)],
)
def test_sizes_are_written_with_units(text, count):
    assert parse_bytes(text) == count


@given(PLAIN)
def test_a_size_is_positive_or_refused(value):
    try:
        count = parse_bytes(value)
    except ValueError:
        return
    assert count > 0
    assert format_bytes(count)
