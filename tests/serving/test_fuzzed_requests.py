"""Broken requests to the real application over a real engine: told what is wrong, and never an error of the service."""

import asyncio
import io
import json
import socket
from urllib.parse import quote_from_bytes, urlsplit

import numpy as np
import pytest
import requests
import schemathesis
from fuzz_kit import ODD_TEXTS, Tally, damage, damaged, examples, twisted, twists
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_release import noise

from gemel_ray.serving.backend import Limits
from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.wire import InferRequest

# Imports the rest of it while no thread runs: Python 3.11 cannot compile in two threads at once (gh-106905).
schemathesis.openapi.from_dict({"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {}})
QUERIES = ("north_cars", "south_cars")
LIMITS = Limits(max_body_bytes=200_000, max_pixels=10_000, max_frames=4, request_timeout_s=20)
FRAME = noise(1)


class Caller:
    """Speaks ASGI itself: HTTP clients send nothing that is quite wrong."""

    def __init__(self, api, tally):
        self.api, self.tally = api, tally
        self._runner = asyncio.Runner()

    def close(self):
        self._runner.close()
        self.tally.write()

    def __call__(self, method, path, headers=(), body=b"", query=b""):
        """The status, headers and body of an answer; what the application raises is raised here."""
        return self._runner.run(self._call(method, path, list(headers), body, query))

    async def _call(self, method, path, headers, body, query):
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path.decode("utf-8", "replace"), "raw_path": path, "query_string": query, "root_path": "",
            "headers": headers, "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        coming = [{"type": "http.request", "body": body, "more_body": False}]
        sent = []

        async def receive():
            # Streams of results end as soon as the caller has gone.
            return coming.pop() if coming else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await self.api(scope, receive, send)
        start = next(message for message in sent if message["type"] == "http.response.start")
        whole = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
        return start["status"], dict(start["headers"]), whole

    def check(self, *request, **more):
        """The answer tells what is wrong, and nothing of how the service is made."""
        status, headers, body = self(*request, **more)
        self.tally.counts[str(status)] += 1
        assert b"Traceback" not in body
        assert b"gemel_ray/" not in body
        if status >= 400:
            told = json.loads(body)
            assert told["error"]
            assert told["request_id"] == headers[b"x-request-id"].decode("ascii")
            assert len(body) < 20_000, "an error does not repeat a body"
        # A frame may have no answer within slo_ms, not even an earlier one; 501 is what this kind of service cannot do.
        assert status < 500 or status == 501 or (status == 503 and "has no answer yet" in json.loads(body)["error"]), (
            body
        )
        return status


@pytest.fixture(scope="module")
def api(engine, tiny):
    return build_api(EngineBackend(engine, tiny.manifest), LIMITS)


@pytest.fixture(scope="module")
def caller(api):
    """After all that it was sent, the service answers as if nothing had been."""
    caller = Caller(api, Tally("requests"))
    before = _answers(caller)
    yield caller
    assert _answers(caller) == before
    assert caller("GET", b"/v1/status")[0] == 200
    caller.close()


def _answers(caller):
    body = json.dumps({"inputs": [_tensor(FRAME[None])]}).encode()
    answers = [caller("POST", f"/v2/models/{query}/infer".encode(), body=body) for query in QUERIES]
    assert [status for status, _, _ in answers] == [200, 200]
    return [json.loads(body)["outputs"] for _, _, body in answers]


def _tensor(frames):
    return {"name": "image", "datatype": "UINT8", "shape": list(frames.shape), "data": frames.reshape(-1).tolist()}


def _picture(form):
    stream = io.BytesIO()
    Image.fromarray(FRAME).save(stream, form)
    return stream.getvalue()


def _binary(datatype, shape, data):
    image = {"name": "image", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    return {"inputs": [image], "outputs": outputs}, data


PICTURES = {form: _picture(form) for form in ("JPEG", "PNG", "GIF", "TIFF")}
SMALL = noise(2, 4, 5)
ELEMENT = len(PICTURES["PNG"]).to_bytes(4, "little") + PICTURES["PNG"]
MESSAGES = (
    ({"inputs": [_tensor(SMALL)]}, b""),
    ({"id": "a", "inputs": [_tensor(np.stack([SMALL, SMALL]))], "outputs": [{"name": "label"}]}, b""),
    _binary("UINT8", list(FRAME.shape), FRAME.tobytes()),
    _binary("BYTES", [1], ELEMENT),
)
MULTIPART = b"".join(
    b'--f\r\nContent-Disposition: form-data; name="a"\r\n\r\n%s\r\n' % PICTURES[form] for form in ("PNG", "JPEG")
)
HEADER_VALUES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([text.encode("utf-8", "surrogatepass") for text in ODD_TEXTS]),
    st.sampled_from([b"image/png", b"image/\xff", b"multipart/mixed", b"multipart/mixed; boundary=f", b"text/plain",
                     b"multipart/form-data; boundary=\"\xe9\"", b"multipart/mixed; boundary*=utf-8''%00", b"gzip",
                     b"application/json; charset=\xff", b"0", b"-1", b"1_0", b"9" * 40, b"Bearer x", b"Basic !!"]),
)  # fmt: skip
HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"content-type", b"inference-header-content-length", b"content-length", b"x-request-id",
                         b"content-encoding", b"authorization", b"accept", b"host", b"cookie", b"x-odd"]),
        HEADER_VALUES,
    ),
    max_size=3,
)  # fmt: skip
SLO = st.sampled_from([b"", b"slo_ms=80", b"slo_ms=1e-9", b"slo_ms=NaN", b"slo_ms=%00", b"slo_ms=1&slo_ms=2", b"\xff"])
QUERY = st.sampled_from([query.encode() for query in (*QUERIES, *QUERIES, *QUERIES)]) | st.binary(max_size=12).map(
    lambda name: quote_from_bytes(name).encode()
)
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "\xff", "")
PARTS = (b"v1", b"v2", b"queries", b"models", b"north_cars", b"frames", b"results", b"infer", b"ready", b"versions",
         b"1", b"status", b"events", b"metrics", b"..", b"", b"%2e%2e", b"\x00")  # fmt: skip


@examples(250)
@given(
    query=QUERY,
    slo=SLO | st.binary(max_size=12),
    name=st.sampled_from(sorted(PICTURES)),
    harm=damage() | st.just([]),
    headers=HEADERS,
)
def test_damaged_pictures(caller, query, slo, name, harm, headers):
    body = damaged(PICTURES[name], harm)
    headers = headers or [(b"content-type", f"image/{name.lower()}".encode())]
    caller.check("POST", b"/v1/queries/" + query + b"/frames", headers, body, query=slo)


@examples(150)
@given(slo=SLO, harm=damage(), ending=st.sampled_from([b"--f--", b"--f--\r\n", b""]), headers=HEADERS)
def test_damaged_multipart_bodies(caller, slo, harm, ending, headers):
    headers = [(b"content-type", b"multipart/form-data; boundary=f"), *headers]
    body = damaged(MULTIPART + ending, harm)
    caller.check("POST", b"/v1/queries/north_cars/frames", headers, body, query=slo)


@examples(250)
@given(
    message=st.sampled_from(MESSAGES),
    changes=twists() | st.just([]),
    harm=damage() | st.just([]),
    headers=HEADERS,
    off=st.sampled_from([0, 0, 0, 1, -1]),
)
def test_twisted_tensors(caller, message, changes, harm, headers, off):
    document, behind = message
    head = json.dumps(twisted(document, changes)).encode()
    length = [(b"inference-header-content-length", str(len(head) + off).encode())] if behind else []
    body = head + damaged(behind, harm) if behind else damaged(head, harm)
    caller.check("POST", b"/v2/models/north_cars/infer", [*headers, *length], body)


@pytest.mark.parametrize("opening", [b"[", b'{"inputs":', b'{"inputs":[{"name":"image","shape":[1,1,3],"data":['])
def test_brackets_without_end(caller, opening):
    for count in (1, 500, 50_000):
        body = opening + b"[" * count + b"]" * count
        assert caller.check("POST", b"/v2/models/north_cars/infer", body=body) == 400


@examples(150)
@given(
    method=st.sampled_from(METHODS),
    parts=st.lists(st.sampled_from(PARTS) | st.binary(max_size=6), max_size=6),
    headers=HEADERS,
    body=st.binary(max_size=30),
    query=st.binary(max_size=20),
)
def test_odd_paths(caller, method, parts, headers, body, query):
    caller.check(method, b"/" + b"/".join(parts), headers, body, query=query)


@pytest.fixture(scope="module")
def cases(api):
    """What schemathesis makes of the OpenAPI document, with the bodies that it does not tell of."""
    document = api.openapi()
    schema = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= schema.pop("$defs")
    pictures = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png")}
    for path, methods in document["paths"].items():
        if path.endswith("/infer"):
            methods["post"]["requestBody"] = {"content": {"application/json": {"schema": schema}}}
        if path.endswith("/frames"):
            methods["post"]["requestBody"] = {"content": pictures}
    described = schemathesis.openapi.from_dict(document)
    return st.one_of(*(described.as_strategy(mode) for mode in schemathesis.GenerationMode))


@pytest.fixture(scope="module")
def address(url):
    return "127.0.0.1", urlsplit(url).port


def _message(path, kind, body):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


WHOLE = (
    _message("/v1/queries/north_cars/frames", "image/png", PICTURES["PNG"]),
    _message("/v2/models/north_cars/infer", "application/json", json.dumps(MESSAGES[0][0]).encode()),
    b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
)


@examples(60)
@given(place=st.sampled_from(range(len(WHOLE))), head_only=st.booleans(), harm=damage())
def test_damaged_messages_on_a_real_connection(address, caller, place, head_only, harm):
    head, blank, body = WHOLE[place].partition(b"\r\n\r\n")
    sent = damaged(head, harm) + blank + body if head_only else damaged(WHOLE[place], harm)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        found = b"".join(iter(lambda: connection.recv(65536), b""))
    # Nothing at all to a caller that has left before its message was whole.
    status = int(found.split(b" ", 2)[1]) if found else 0
    caller.tally.counts[str(status)] += 1
    assert status < 500
    assert b"Traceback" not in found


@examples(200)
@given(data=st.data(), query=st.sampled_from([None, *QUERIES]))
def test_what_schemathesis_makes_of_the_api(cases, caller, data, query):
    case = data.draw(cases)
    if query is not None and "query" in case.path_parameters:
        case.path_parameters["query"] = query
    try:
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://test")).prepare()
    except (requests.exceptions.RequestException, UnicodeError, TypeError):
        # What no client could put on the wire.
        return
    body = sent.body.encode() if isinstance(sent.body, str) else sent.body or b""
    url = urlsplit(sent.url)
    headers = [
        (_latin(name).lower(), _latin(value))
        for name, value in sent.headers.items()
        if name.lower() != "content-length"
    ]
    caller.check(sent.method, url.path.encode(), headers, body, query=url.query.encode())


def _latin(value):
    return value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")
