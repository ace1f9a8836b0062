"""The newcomer's first command, as a newcomer runs it."""

import json
import time

import pytest

from gemel_ray.demo.workloads import streets_document, write_workload

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def walked(tmp_path_factory, gemel):
    folder = tmp_path_factory.mktemp("newcomer")
    return folder, gemel(folder, "demo", "--quick", "--json")


def test_the_originals_do_not_fit_the_box_and_what_was_merged_keeps_its_promise(walked):
    _, document = walked
    assert document["bytes_before"] > document["budget_bytes"]
    assert document["bytes_after"] < document["bytes_before"]
    assert len({row["architecture"] for row in document["queries"]}) >= 2
    assert len(document["queries"]) >= 4
    for row in document["queries"]:
        assert row["agreement"] >= row["target"]


def test_both_services_stay_within_the_budget_and_only_one_has_to_swap(walked):
    _, document = walked
    for served in ("originals", "merged"):
        assert 0 < document[served]["peak_bytes"] <= document["budget_bytes"]
    # Originals that do not fit together are loaded again and again.
    assert document["originals"]["loaded_bytes"] > 2 * document["bytes_before"]
    if document["bytes_after"] < 0.8 * document["budget_bytes"]:
        assert document["merged"]["loaded_bytes"] == document["bytes_after"]


def test_everything_it_made_can_be_used_on(walked, gemel):
    folder, document = walked
    assert json.loads((folder / "gemel-demo" / "result.json").read_text()) == document
    assert gemel(folder, "verify", document["store"], "--json") == []
    releases = gemel(folder, "releases", document["store"], "--json")
    assert [row["release"] for row in releases if row["is_head"]] == [document["release"]]
    assert releases[0]["note"] == "originals"
    shown = gemel(folder, "show", document["store"], "--json")
    assert {name: query["accuracy"] is not None for name, query in shown["queries"].items()}


def test_a_second_walk_over_the_same_folder_uses_what_is_there(walked, gemel):
    folder, document = walked
    began_s = time.monotonic()
    again = gemel(folder, "demo", "--quick", "--json")
    assert (again["release"], again["bytes_after"]) == (document["release"], document["bytes_after"])
    # No training, no search: only services and frames are left.
    assert time.monotonic() - began_s < document["seconds"]


def test_a_folder_that_holds_no_cameras_is_told(tmp_path, gemel):
    assert "there is no cameras/intel-bottles/tiles.jsonl" in gemel(tmp_path, "demo", "--video", tmp_path, code=2)


def test_a_workload_that_was_changed_is_never_written_over(tmp_path, gemel):
    path = tmp_path / "gemel-demo" / "workload.yaml"
    write_workload(streets_document(quick=False), path)
    write_workload(streets_document(quick=True), path)
    changed = path.read_text().replace("seed: 0", "seed: 33")
    path.write_text(changed)
    printed = gemel(tmp_path, "demo", "--quick", code=2)
    assert "workload.yaml is not as this command writes it, and would be written over; give another --out" in printed
    assert path.read_text() == changed
    assert printed.count("gemel originals workload.yaml --out originals; gemel search workload.yaml") == 1


def test_a_place_for_the_demo_that_is_no_folder_is_told(tmp_path, gemel):
    (tmp_path / "gemel-demo").write_text("")
    assert "--out gemel-demo: is no folder to write to (File exists)" in gemel(tmp_path, "demo", code=2)
