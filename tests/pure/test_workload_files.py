"""Workload files as YAML: what cannot be read is told, and what YAML allows is understood."""

import pytest

from gemel_ray.spec.errors import WorkloadError
from gemel_ray.spec.workload import load_workload


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WorkloadError, match=r"none\.yaml: cannot be read \(No such file"):
        load_workload(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text",
    [
        b"name: [",
        b"\xff\xfe\xff",
        b"name: 2026-99-99",
        b"a: !!python/object:os.system 1",
        b"[" * 1500,
        b"name: 0x" + b"F" * 6000,
    ],
    ids=["open bracket", "not UTF-8", "no date", "python object", "nested without end", "endless number"],
)
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "w.yaml").write_bytes(text)
    with pytest.raises(WorkloadError, match=r"w\.yaml: is not valid YAML"):
        load_workload(tmp_path / "w.yaml")


def test_a_key_written_twice_is_refused(tmp_path):
    (tmp_path / "w.yaml").write_text("feeds:\n  f: {kind: streets}\n  f: {kind: streets, seed: 1}\n")
    with pytest.raises(WorkloadError, match=r"the key 'f' is written 2 times in one mapping[^$]*line 2"):
        load_workload(tmp_path / "w.yaml")


def test_anchors_and_merge_keys_may_be_used(tmp_path):
    text = """
name: w
feeds: {f: &camera {kind: streets, seed: 1}, g: {<<: *camera, seed: 2}}
queries: [{name: a, feed: g, model: {architecture: resnet18, classes: [background, car]}}]
"""
    (tmp_path / "w.yaml").write_text(text)
    assert [feed.seed for feed in load_workload(tmp_path / "w.yaml").feeds.values()] == [1, 2]
