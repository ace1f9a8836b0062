"""Token files that change while a service runs."""

import logging

import httpx
import pytest

from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.token_files import TokenFiles, token_files
from gemel_ray.serving.tokens import Guard, Tokens, TokenSource, read_tokens
from gemel_ray.spec.errors import InputError

OLD, NEW, ADMIN = "old-" + "o" * 32, "new-" + "n" * 32, "admin-" + "a" * 32


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "read").write_text(OLD + "\n")
    return tmp_path / "read"


@pytest.fixture
def live(file, clock, monkeypatch):
    """Tokens of a file for one role, of a variable for another."""
    monkeypatch.setenv("GEMEL_TEST_ADMIN", ADMIN)
    sources = {"read": TokenSource(file=str(file)), "admin": TokenSource(env="GEMEL_TEST_ADMIN")}
    return TokenFiles(read_tokens(sources), token_files(sources), now_s=clock)


def later(clock):
    clock.now_s += 1


def roles(live):
    return [live().role_of(token) for token in (OLD, NEW, ADMIN)]


def test_a_token_that_was_replaced_ends_and_the_new_one_counts(live, file, clock):
    assert roles(live) == ["read", None, "admin"]
    # As long as the old one, and maybe within the file system's tick.
    file.write_text(NEW + "\n")
    assert roles(live) == ["read", None, "admin"], "nobody looks twice within a second"
    later(clock)
    assert roles(live) == [None, "read", "admin"]


def test_both_count_while_one_takes_the_other_s_place(live, file, clock):
    file.write_text(f"{OLD}\n{NEW}\n")
    assert roles(live) == ["read", "read", "admin"]
    file.write_text(NEW)
    later(clock)
    assert roles(live) == [None, "read", "admin"]


@pytest.mark.parametrize("content", [None, "", "short", f"{ADMIN}\n"])
def test_a_file_that_makes_no_sense_changes_nothing_and_is_told_once(live, file, clock, content, caplog):
    file.unlink()
    if content is not None:
        file.write_text(content)
    for _ in range(3):
        assert roles(live) == ["read", None, "admin"]
        later(clock)
    (told,) = caplog.messages
    assert told.endswith("the former tokens stay")
    assert ADMIN not in told
    file.write_text(NEW)
    assert roles(live) == [None, "read", "admin"]


def test_files_are_found_from_another_folder_too(file, clock, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(file.parent)
    sources = {"read": TokenSource(file="read")}
    live = TokenFiles(read_tokens(sources), token_files(sources), now_s=clock)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    file.write_text(NEW)
    assert roles(live) == [None, "read", None]


def test_what_stayed_the_same_is_not_told(live, clock, caplog):
    with caplog.at_level(logging.INFO):
        live()
        later(clock)
        live()
    assert caplog.messages == []


def test_a_role_does_not_get_another_one_s_token():
    tokens = Tokens.of(read=[OLD], admin=[ADMIN])
    with pytest.raises(InputError, match="given twice"):
        tokens.with_role("read", Tokens.of(read=[ADMIN]))


def test_a_running_service_refuses_a_token_that_was_taken_out(server_of, engine, tiny, live, file, clock):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), guard=Guard(live)))

    def answered(token):
        return httpx.get(f"{url}/v1/status", headers={"Authorization": f"Bearer {token}"}, timeout=60).status_code

    assert (answered(OLD), answered(NEW)) == (200, 401)
    file.write_text(NEW)
    later(clock)
    assert (answered(OLD), answered(NEW)) == (401, 200)
    file.unlink()
    later(clock)
    assert (answered(OLD), answered(NEW), answered(ADMIN)) == (401, 200, 200)
