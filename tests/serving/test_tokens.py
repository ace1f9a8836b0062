"""Who may call what, over a real server and without it."""

import asyncio
import contextlib
import os
import re
from importlib import resources

import httpx
import pytest

from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.options import parse_options
from gemel_ray.serving.tokens import Guard, Tokens, TokenSource, check_host, is_loopback, read_tokens
from gemel_ray.spec.errors import InputError

INFER, READ, ADMIN = "infer-" + "i" * 32, "read-" + "r" * 32, "admin-" + "a" * 32
TOKENS = Tokens.of(infer=[INFER], read=[READ], admin=[ADMIN])

# Path, method, and the roles that may.
FRAMES = ("POST", "/v1/queries/north_cars/frames", {INFER, ADMIN})
CLOSED = [
    FRAMES,
    ("POST", "/v2/models/north_cars/infer", {INFER, ADMIN}),
    ("POST", "/v2/models/north_cars/versions/1/infer", {INFER, ADMIN}),
    ("GET", "/v2", {INFER, READ, ADMIN}),
    ("GET", "/v2/models/north_cars", {INFER, READ, ADMIN}),
    ("GET", "/v2/models/north_cars/ready", {INFER, READ, ADMIN}),
    ("GET", "/v1/status", {READ, ADMIN}),
    ("GET", "/v1/events", {READ, ADMIN}),
    ("GET", "/v1/queries/north_cars/results", {READ, ADMIN}),
    ("GET", "/v1/queries/north_cars/thumbnail", {READ, ADMIN}),
    ("GET", "/metrics", {READ, ADMIN}),
    ("POST", "/v1/queries/north_cars/revert", {ADMIN}),
    ("POST", "/v1/revert", {ADMIN}),
    ("POST", "/v1/pin", {ADMIN}),
    ("DELETE", "/v1/pin", {ADMIN}),
]
OPEN = ["/", "/v2/health/live", "/v2/health/ready"]


@pytest.fixture(scope="module")
def api(engine, tiny):
    return build_api(EngineBackend(engine, tiny.manifest), guard=Guard(TOKENS))


@pytest.fixture
def guarded(server_of, api):
    return server_of(api)


def status_of(url, method, path, authorization=None):
    headers = {} if authorization is None else {"Authorization": authorization}
    with httpx.stream(method, url + path, headers=headers, timeout=60) as reply:
        streams = reply.headers.get("content-type", "").startswith("text/event-stream")
        return reply.status_code, reply.headers, "" if streams else reply.read().decode()


def test_every_endpoint_but_health_and_the_page_is_closed(api):
    routes = {(method, route.path) for route in walked(api.routes) for method in route.methods}
    listed = {(method, path.replace("north_cars", "{query}").replace("/1", "/{version}")) for method, path, _ in CLOSED}
    versions = {
        ("GET", "/v2/models/{query}/versions/{version}"),
        ("GET", "/v2/models/{query}/versions/{version}/ready"),
    }
    assert routes == listed | versions | {("GET", path) for path in OPEN}


def walked(routes):
    """Routes with paths; newer FastAPI keeps included routers whole."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        yield from walked(inner) if inner else [route]


@pytest.mark.parametrize(("method", "path", "may"), CLOSED)
def test_a_role_may_do_what_is_its_own_and_nothing_else(guarded, method, path, may):
    for token in (INFER, READ, ADMIN):
        status, _, text = status_of(guarded, method, path, f"Bearer {token}")
        if token in may:
            # What is wrong beyond the token is found out only behind its check: an empty body, a service that follows
            # no store and cannot be changed, a query of which no frame has come yet.
            changes = may == {ADMIN}
            wanted = 501 if changes else 400 if method == "POST" else 204 if path.endswith("thumbnail") else 200
            assert status == wanted, text
        else:
            assert status == 403
            assert f"a token for '{token.partition('-')[0]}' may not do this; send one for " in text


@pytest.mark.parametrize(("method", "path", "may"), CLOSED)
@pytest.mark.parametrize(
    ("authorization", "told", "challenge"),
    [
        (None, "no bearer token", 'Bearer realm="gemel_ray"'),
        (f"Basic {READ}", "no bearer token", 'Bearer realm="gemel_ray"'),
        ("Bearer", "no bearer token", 'Bearer realm="gemel_ray"'),
        (f"Bearer {ADMIN}x", "not known here", 'Bearer realm="gemel_ray", error="invalid_token"'),
        (f"Bearer {ADMIN[:-1]}", "not known here", 'Bearer realm="gemel_ray", error="invalid_token"'),
    ],
)
def test_without_a_known_token_nothing_is_told(guarded, method, path, may, authorization, told, challenge):
    status, headers, text = status_of(guarded, method, path, authorization)
    assert (status, headers["www-authenticate"]) == (401, challenge)
    assert told in text
    assert "north" not in text
    assert "request_id" in text


@pytest.mark.parametrize("path", OPEN)
def test_health_and_the_page_stay_open(guarded, path):
    assert status_of(guarded, "GET", path)[0] == 200


def test_the_scheme_may_be_written_in_any_case(guarded):
    assert status_of(guarded, "GET", "/v2", f"bEARER  {READ}")[0] == 200


def test_the_schema_is_not_published(guarded):
    assert status_of(guarded, "GET", "/openapi.json", f"Bearer {ADMIN}")[0] == 404


@pytest.mark.parametrize(
    ("caller", "status"),
    [
        ("127.0.0.1", 200),
        ("::1", 200),
        ("192.0.2.7", 403),
        ("::ffff:127.0.0.1", 200),
        ("::ffff:192.0.2.7", 403),
        ("camera", 403),
    ],
)
def test_without_tokens_callers_of_this_machine_only_are_answered(engine, tiny, caller, status):
    reply = asked_by(caller, build_api(EngineBackend(engine, tiny.manifest)), "/v1/status")
    assert reply.status_code == status
    assert status == 200 or "other machines need a token" in reply.json()["error"]


def test_everybody_is_answered_when_that_was_said(engine, tiny):
    guard = Guard(allow_anonymous=True)
    reply = asked_by("192.0.2.7", build_api(EngineBackend(engine, tiny.manifest), guard=guard), "/v1/status")
    assert reply.status_code == 200


@pytest.mark.parametrize("guard", [None, Guard(allow_anonymous=True)])
@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, may in CLOSED if may == {ADMIN}])
def test_without_tokens_nobody_changes_the_service_not_even_from_this_machine(engine, tiny, guard, method, path):
    reply = asked_by("127.0.0.1", build_api(EngineBackend(engine, tiny.manifest), guard=guard), path, method)
    assert reply.status_code == 403
    assert "takes an admin's token, and none is set" in reply.json()["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("192.0.2.7", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_without_tokens_a_page_of_another_name_reads_nothing_through_a_browser_here(engine, tiny, host, status):
    api = build_api(EngineBackend(engine, tiny.manifest))
    assert asked_by("127.0.0.1", api, "/v1/status", headers={"Host": host}).status_code == status
    guarded = build_api(EngineBackend(engine, tiny.manifest), guard=Guard(TOKENS))
    headers = {"Host": host, "Authorization": f"Bearer {READ}"}
    assert asked_by("127.0.0.1", guarded, "/v1/status", headers=headers).status_code == 200


def asked_by(caller, api, path, method="GET", headers=None):
    """What somebody at another address is answered; the server tells the application the address."""

    async def ask():
        transport = httpx.ASGITransport(api, client=(caller, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


def test_tokens_come_from_files_and_variables_and_may_be_several(tmp_path, monkeypatch):
    (tmp_path / "infer").write_text(f"{INFER}\n{INFER}2\n")
    monkeypatch.setenv("GEMEL_READ", READ)
    tokens = read_tokens({"infer": TokenSource(file=str(tmp_path / "infer")), "read": TokenSource(env="GEMEL_READ")})
    assert [tokens.role_of(token) for token in (INFER, INFER + "2", READ, ADMIN, "")] == [
        "infer",
        "infer",
        "read",
        None,
        None,
    ]


def test_only_hashes_are_kept():
    assert all(token not in repr(TOKENS) for token in (INFER, READ, ADMIN))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"tokens\.infer: file .*/token cannot be read \(.*No such file"),
        ("", "is empty; write a token into it: openssl rand"),
        (" \n", "is empty"),
        ("short-secret", "token 0 has 12 characters; it needs 16 or more"),
        (f"{INFER}\n{'ü' * 40}", "token 1 has 40 characters; .* letters, digits and"),
        (f"{INFER} {INFER}", "the same token is given twice"),
    ],
)
def test_a_file_without_a_sound_token_is_refused_without_telling_it(tmp_path, content, told):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=told) as refused:
        read_tokens({"infer": TokenSource(file=str(file))})
    assert "secret" not in str(refused.value)
    assert "ü" not in str(refused.value)


def test_a_variable_that_is_not_set_is_named():
    assert "GEMEL_NOWHERE" not in os.environ
    with pytest.raises(InputError, match=r"tokens\.read: environment variable GEMEL_NOWHERE is not set"):
        read_tokens({"read": TokenSource(env="GEMEL_NOWHERE")})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"tokens": {"reed": {"env": "X"}}}, "tokens.reed"),
        ({"tokens": {"read": READ}}, "tokens.read: name either a 'file' or .* never a token"),
        ({"tokens": {"read": {}}}, "name either a 'file' or an environment variable"),
        ({"tokens": {"read": {"env": "X", "file": "y"}}}, "name either a 'file' or an environment variable"),
        ({"tokens": {"read": {"env": "X"}}, "allow_anonymous": True}, "choose one"),
    ],
)
def test_options_that_make_no_sense_are_refused(more, told):
    with pytest.raises(InputError, match=told):
        parse_options({"store": "x"} | more)


@pytest.mark.parametrize("tokens", [{"read": READ}, READ, [READ], {"read": [READ]}, None])
def test_a_token_in_the_options_is_refused_without_telling_it(tokens):
    with pytest.raises(InputError, match="never a token") as refused:
        parse_options({"store": "x", "tokens": tokens})
    assert READ not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "box-a.example", ""])
@pytest.mark.parametrize(("has_tokens", "allowed"), [(False, False), (True, False), (False, True)])
def test_a_public_host_needs_tokens_or_the_word_that_none_are_wanted(host, has_tokens, allowed):
    assert not is_loopback(host)
    refused = pytest.raises(InputError, match="can be reached from other machines")
    with contextlib.nullcontext() if has_tokens or allowed else refused:
        check_host(host, has_tokens=has_tokens, allow_anonymous=allowed)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "::ffff:127.0.0.1"])
def test_this_machine_s_own_addresses_need_neither(host):
    check_host(host, has_tokens=False, allow_anonymous=False)


def test_the_readme_tells_the_roles_of_every_endpoint():
    readme = resources.files("gemel_ray.serving").joinpath("README.md").read_text()
    rows = re.findall(r"^\| `(GET|POST|DELETE) (\S+?)`.*? \| ([a-z, ]+) \|", readme, re.MULTILINE)
    told = {(method, re.sub(r"\[.*?\]", "", path)): set(roles.split(", ")) for method, path, roles in rows}
    names = {INFER: "infer", READ: "read"}
    for method, path, may in CLOSED:
        if "/versions/" not in path and not path.endswith("/ready"):
            wanted = {names[token] for token in may - {ADMIN}} or {"admin"}
            assert told[method, path.replace("north_cars", "{query}")] == wanted
