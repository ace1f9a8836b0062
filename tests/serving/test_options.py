"""The application's arguments: strict, and helpful when wrong."""

import pytest

from gemel_ray.serving.options import parse_options
from gemel_ray.spec.errors import InputError

NODE = {"name": "box-a", "memory": "64MiB"}


def test_an_unknown_argument_is_named_with_the_nearest_known_one():
    with pytest.raises(InputError, match="stor: unknown key; did you mean 'store'"):
        parse_options({"stor": "x"})
    with pytest.raises(InputError, match=r"nodes\.0\.memmory: unknown key; did you mean 'memory'"):
        parse_options({"store": "x", "nodes": [{"memmory": "1GiB"}]})


def test_a_size_without_a_unit_is_refused_with_an_example():
    with pytest.raises(InputError, match="'2GiB'"):
        parse_options({"store": "x", "nodes": [{"memory": "much"}]})


def test_two_nodes_of_one_name_are_refused():
    with pytest.raises(InputError, match="box-a"):
        parse_options({"store": "x", "nodes": [NODE, NODE]})


def test_a_relative_store_is_found_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMEL_HOME", str(tmp_path))
    assert parse_options({"store": "demo/store"}).store == str(tmp_path / "demo" / "store")


def test_a_relative_store_is_found_from_the_working_directory_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("GEMEL_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert parse_options({"store": "demo/store"}).store == str(tmp_path / "demo" / "store")


def test_a_store_elsewhere_keeps_its_address():
    assert parse_options({"store": "s3://bucket/store"}).store == "s3://bucket/store"


def test_a_node_may_be_told_ways_to_compute_and_a_wrong_one_is_named():
    (node,) = parse_options({"store": "x", "nodes": [NODE | {"ways": ["channels_last", "bfloat16"]}]}).nodes
    assert node.ways == ("channels_last", "bfloat16")
    with pytest.raises(InputError, match=r"nodes\.0\.ways\.0.*bfloat16.*'bf16'"):
        parse_options({"store": "x", "nodes": [NODE | {"ways": ["bf16"]}]})
