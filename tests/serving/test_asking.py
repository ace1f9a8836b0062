"""Asking a running service from outside, and naming tokens on a command line."""

import contextlib
import json
import socketserver
import subprocess
import sys
import threading

import pytest

from gemel_ray.serving.asking import ask_status
from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.tokens import Guard, Tokens, TokenSource, token_sources
from gemel_ray.spec.errors import InputError, ServingError

READ = "read-" + "r" * 32


@pytest.fixture
def guarded(engine, tiny, server_of):
    return server_of(build_api(EngineBackend(engine, tiny.manifest), guard=Guard(Tokens.of(read=[READ]))))


def gemel(*arguments):
    command = [sys.executable, "-c", "from gemel_ray.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_status_command_shows_nodes_and_queries(url, tiny):
    told = gemel("status", url)
    assert told.returncode == 0, told.stderr
    assert all(name in told.stdout for name in ("local", *tiny.models))
    document = json.loads(gemel("status", url, "--json").stdout)
    assert document["release"] == 1
    assert document["events"] == []


def test_a_token_comes_from_a_file_or_a_variable_and_its_lack_is_told(guarded, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(f"{READ}\n")
    monkeypatch.setenv("GEMEL_TEST_READ", READ)
    assert ask_status(guarded, token_file=tmp_path / "token")["release"] == 1
    assert ask_status(guarded, token_env="GEMEL_TEST_READ")["release"] == 1
    with pytest.raises(InputError, match=r"no bearer token came.*--token FILE"):
        ask_status(guarded)
    with pytest.raises(InputError, match="GEMEL_NOT_SET is not set"):
        ask_status(guarded, token_env="GEMEL_NOT_SET")
    with pytest.raises(InputError, match="choose one"):
        ask_status(guarded, token_file=tmp_path / "token", token_env="GEMEL_TEST_READ")


def test_a_service_that_is_not_there_and_what_is_no_url_are_told():
    with pytest.raises(ServingError, match="no service answers"):
        ask_status("http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"give one such as http://127\.0\.0\.1:8000"):
        ask_status("127.0.0.1:8000")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:abc",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:8100/a b",
        "http://[::1",
        "http://",
        "http://ö",
    ],
)
def test_what_only_looks_like_a_url_is_wrong_input(url):
    told = gemel("status", url)
    assert told.returncode == 2
    assert told.stderr == f"error: {url!r} is not the URL of a service; give one such as http://127.0.0.1:8000\n"


def as_http(body, length=None):
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n", as_http(b'{"release"', length=500), as_http(b"[1, 2]"), as_http(b"5"),
        as_http(b"null"), as_http(b"{}"), as_http(b'{"release": 1, "nodes": 5, "queries": []}'),
        as_http(b"<html></html>"), as_http(b"\xff"),
    ],
)  # fmt: skip
def test_what_answers_and_is_no_service_is_told(reply):
    with always_replying(reply) as url:
        told = gemel("status", url, "--json")
    assert told.returncode == 1
    assert told.stderr.startswith(f"error: {url}: answers, but is no gemel service (")
    assert told.stderr.count("\n") == 1
    assert told.stdout == ""


@contextlib.contextmanager
def always_replying(reply):
    """A server at a free port that says the same to everybody."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65_536)
            self.request.sendall(reply)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_tokens_are_named_by_role():
    assert token_sources(["infer=a/file"], ["read=A_VARIABLE"]) == {
        "infer": TokenSource(file="a/file"),
        "read": TokenSource(env="A_VARIABLE"),
    }


@pytest.mark.parametrize("given", ["secret-secret-secret", "infer=", "admins=file", "=file"])
def test_what_does_not_name_a_role_and_a_file_is_refused_without_being_quoted(given):
    with pytest.raises(InputError, match=r"write ROLE=FILE.*infer.*read.*admin") as refused:
        token_sources([given], [])
    assert "secret" not in str(refused.value)


def test_one_source_a_role():
    with pytest.raises(InputError, match="two sources"):
        token_sources(["read=file"], ["read=VARIABLE"])
