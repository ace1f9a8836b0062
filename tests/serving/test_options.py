"""The application's arguments: strict, and helpful when wrong."""

import socket

import pytest

from gemel_ray.serving.machine import check_port, service_url
from gemel_ray.serving.options import parse_options
from gemel_ray.spec.errors import InputError, ServingError

NODE = {"name": "box-a", "memory": "64MiB"}


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


WITH_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


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


@pytest.mark.parametrize(
    ("host", "family", "url"),
    [
        ("127.0.0.1", socket.AF_INET, "http://127.0.0.1:{}"),
        pytest.param("::1", socket.AF_INET6, "http://[::1]:{}", marks=WITH_IPV6),
    ],
)
def test_an_address_of_either_kind_may_be_listened_at_unless_it_is_taken(host, family, url):
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        assert service_url(host, port, is_secure=False) == url.format(port)
        with pytest.raises(ServingError, match=f"{host}:{port} cannot be used .*; choose another port"):
            check_port(host, port)
    check_port(host, port)


@WITH_IPV6
def test_a_port_that_is_taken_over_ipv4_alone_is_free_over_ipv6():
    with socket.create_server(("0.0.0.0", 0)) as taken:
        check_port("::", taken.getsockname()[1])


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
