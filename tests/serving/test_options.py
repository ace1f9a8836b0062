"""The application's arguments: strict, and helpful when wrong."""

import pytest

from gemel_ray.serving.machine import check_port
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


def test_absurdly_many_threads_are_refused():
    with pytest.raises(InputError, match=r"nodes\.0\.threads: must be at most 1024, got 100000000"):
        parse_options({"store": "x", "nodes": [NODE | {"threads": 100_000_000}]})


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", "8000"), ("ü" * 70, 8000)])
def test_what_is_no_address_to_listen_at_is_wrong_input(host, port):
    with pytest.raises(InputError, match=r"is no address to listen at; ports are 1 to 65535"):
        check_port(host, port)


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
