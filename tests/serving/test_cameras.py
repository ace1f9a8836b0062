"""Several pictures in one request, results as they come, and the names of requests: over a real server."""

import asyncio
import io
import json
import re
import socket
import time

import httpx
import pytest
from PIL import Image
from tiny_release import CLASSES, noise

from gemel_ray.serving.backend import Limits
from gemel_ray.serving.engine_backend import EngineBackend
from gemel_ray.serving.ingress import build_api
from gemel_ray.serving.replies import FrameReply
from gemel_ray.serving.results import MOST_WAITING, Results

PATIENCE_S = 60


def picture(seed, height=40, width=56):
    stream = io.BytesIO()
    Image.fromarray(noise(seed, height, width)).save(stream, "PNG")
    return stream.getvalue()


def multipart(*pictures, boundary="cut"):
    parts = [f"--{boundary}\r\nContent-Type: image/png\r\n\r\n".encode() + data + b"\r\n" for data in pictures]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def ask(url, content, kind="multipart/mixed; boundary=cut", query="north_cars", more=""):
    headers = {"content-type": kind}
    return httpx.post(f"{url}/v1/queries/{query}/frames{more}", content=content, headers=headers, timeout=PATIENCE_S)


def assert_like_direct(tiny, query, reply, frames):
    wanted = tiny.direct(query, frames)
    assert reply.status_code == 200, reply.text
    found = reply.json()["frames"]
    assert [frame["fresh"] for frame in found] == [True] * len(frames)
    assert [frame["answer"]["label"] for frame in found] == [answer.label for answer in wanted]
    for frame, answer in zip(found, wanted, strict=True):
        assert [frame["answer"]["scores"][name] for name in CLASSES] == pytest.approx(answer.scores, abs=1e-5)


@pytest.mark.parametrize("kind", ["multipart/mixed", "multipart/form-data", 'Multipart/Mixed; x="y"'])
def test_several_pictures_are_each_answered_in_order_like_direct_forward_passes(url, tiny, kind):
    reply = ask(url, multipart(*map(picture, range(4))), f"{kind}; boundary=cut", "south_people")
    assert_like_direct(tiny, "south_people", reply, [noise(seed) for seed in range(4)])
    assert reply.json()["query"] == "south_people"


def test_a_form_with_files_is_understood_as_any_client_writes_it(url, tiny):
    files = [("frame", (f"{seed}.png", picture(seed), "image/png")) for seed in range(2)]
    reply = httpx.post(f"{url}/v1/queries/north_cars/frames", files=files, timeout=PATIENCE_S)
    assert_like_direct(tiny, "north_cars", reply, [noise(0), noise(1)])


def test_preamble_epilogue_padding_and_parts_without_headers_are_fine(url, tiny):
    content = b"for people\r\n--cut \t\r\n\r\n" + picture(2) + b"\r\n--cut--\r\nthe end"
    assert_like_direct(tiny, "north_cars", ask(url, content), [noise(2)])


def test_pictures_of_one_request_do_not_replace_each_other_however_late_they_are(url, tiny):
    reply = ask(url, multipart(*map(picture, range(4))), more="?slo_ms=0.0001")
    assert_like_direct(tiny, "north_cars", reply, [noise(seed) for seed in range(4)])
    assert all(frame["latency_ms"] > 0.0001 for frame in reply.json()["frames"])


@pytest.mark.parametrize(
    ("content", "kind", "told"),
    [
        (b"", "multipart/mixed; boundary=cut", "no end .*--cut-- is missing.*send it whole"),
        (multipart(b"x")[:-8], "multipart/mixed; boundary=cut", "send it whole"),
        (b"--cut--", "multipart/mixed; boundary=cut", "no part; send one picture in each"),
        (multipart(*[b"x"] * 5), "multipart/mixed; boundary=cut", "more than 4 parts; send at most 4"),
        (multipart(b"x"), "multipart/mixed", "name the boundary"),
        (multipart(b"x"), f"multipart/mixed; boundary={'b' * 71}", "name the boundary"),
        (b"--cut\r\nContent-Type: image/png\r\n--cut--", "multipart/mixed; boundary=cut", "no empty line after"),
        (b"--cutter\r\n\r\nx\r\n--cut--", "multipart/mixed; boundary=cut", "part 0 has no empty line"),
        (multipart(picture(0), b"GIF"), "multipart/mixed; boundary=cut", "picture 1 of 2: .*neither JPEG nor PNG"),
        (multipart(picture(0, 101, 100)), "multipart/mixed; boundary=cut", "picture 0 of 1: .*at most 10000"),
        (multipart(*[picture(0, 70, 70)] * 3), "multipart/mixed; boundary=cut", "0 to 2 have more than 10000 pixels"),
    ],
)
def test_a_bad_multipart_body_is_refused_with_the_reason(url, content, kind, told):
    reply = ask(url, content, kind)
    assert reply.status_code == 400, reply.text
    assert re.search(told, reply.json()["error"]), reply.text


def test_a_multipart_body_of_several_mebibytes_is_cut_off_like_any_other(url):
    assert ask(url, multipart(bytes(200_000))).status_code == 413


class Events:
    """Server-Sent Events as their specification says to read them: fields by event, comments apart."""

    def __init__(self, reply):
        self._lines = reply.iter_lines()
        self.comments = []

    def next(self):
        fields = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments.append(line)
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                return fields | {"data": json.loads(fields["data"])}
        raise AssertionError("the stream has ended")

    def comment(self):
        return next(line for line in self._lines if line.startswith(":"))


def listening(url, query="north_cars"):
    return httpx.stream("GET", f"{url}/v1/queries/{query}/results", timeout=PATIENCE_S)


def listeners(url):
    return float(re.search(r"^gemel_result_listeners (\S+)$", httpx.get(f"{url}/metrics").text, re.M)[1])


def test_results_come_as_events_to_all_who_listen_however_they_were_asked_for(url):
    with listening(url) as first, listening(url) as second, listening(url, "south_cars") as other:
        streams, elsewhere = [Events(first), Events(second)], Events(other)
        for stream in (*streams, elsewhere):
            assert stream.comment() == ": listening"
        assert first.headers["content-type"].startswith("text/event-stream")
        given = ask(url, picture(0), "image/png").json()
        several = ask(url, multipart(picture(1), picture(2))).json()["frames"]
        for stream in streams:
            events = [stream.next() for _ in range(3)]
            assert [event["data"] for event in events] == [given, *several]
            assert [(event["event"], event["id"]) for event in events] == [
                ("result", str(frame["frame"])) for frame in (given, *several)
            ]
        only = ask(url, picture(3), "image/png", "south_cars").json()
        assert elsewhere.next()["data"] == only


def test_a_quiet_stream_shows_that_it_lives(server_of, engine, tiny):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), Limits(heartbeat_s=0.05)))
    with listening(url) as reply:
        stream = Events(reply)
        assert [stream.comment() for _ in range(3)] == [": listening", ": heartbeat", ": heartbeat"]


def test_a_listener_who_leaves_is_forgotten(url):
    with listening(url) as reply:
        stream = Events(reply)
        assert stream.comment() == ": listening"
        assert listeners(url) == 1
    deadline = time.monotonic() + PATIENCE_S
    while listeners(url) > 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ask(url, picture(0), "image/png").status_code == 200


def test_a_listener_who_breaks_off_is_forgotten_too(url):
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port)) as caller:
        caller.sendall(b"GET /v1/queries/north_cars/results HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in caller.recv(4096)
    deadline = time.monotonic() + PATIENCE_S
    while listeners(url) > 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_more_listeners_than_there_may_be_are_told_to_come_back(server_of, engine, tiny):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), Limits(max_listeners=1)))
    with listening(url) as reply:
        stream = Events(reply)
        assert stream.comment() == ": listening"
        refused = httpx.get(f"{url}/v1/queries/north_cars/results", timeout=PATIENCE_S)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "1 streams of results are open" in refused.json()["error"]


def test_a_stream_of_an_unknown_query_is_refused_with_the_nearest_name(url):
    reply = httpx.get(f"{url}/v1/queries/north_car/results", timeout=PATIENCE_S)
    assert (reply.status_code, "did you mean 'north_cars'" in reply.json()["error"]) == (404, True)


def test_a_slow_listener_misses_the_oldest_results_and_is_told_how_many():
    results = Results()
    reply = FrameReply(query="q", frame=0, fresh=True, reason=None, latency_ms=1.0, release=1, answer=None)
    with results.listen("q") as slow:
        for frame in range(MOST_WAITING + 3):
            results.publish(reply.model_copy(update={"frame": frame}))
        assert slow.missed == 3
        assert asyncio.run(slow.take(1)).frame == 3


@pytest.mark.parametrize("path", ["/v1/status", "/v9", "/v2/models/north_car"])
def test_a_request_keeps_its_name(url, path):
    reply = httpx.get(url + path, headers={"X-Request-ID": "camera-7/12"}, timeout=PATIENCE_S)
    assert reply.headers["x-request-id"] == "camera-7/12"
    assert reply.status_code == 200 or reply.json()["request_id"] == "camera-7/12"


@pytest.mark.parametrize("given", [{}, {"X-Request-ID": ""}, {"X-Request-ID": "a" * 129}, {"X-Request-ID": "a b"}])
def test_a_request_without_a_sensible_name_is_given_one_of_its_own(url, given):
    names = [httpx.get(f"{url}/v9", headers=given, timeout=PATIENCE_S) for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"]) for reply in names)
    assert [reply.json()["request_id"] for reply in names] == [reply.headers["x-request-id"] for reply in names]
    assert names[0].headers["x-request-id"] != names[1].headers["x-request-id"]


def test_a_server_that_names_requests_itself_gets_no_second_name(server_of, engine, tiny):
    url = server_of(build_api(EngineBackend(engine, tiny.manifest), echo_request_ids=False))
    reply = httpx.get(f"{url}/v9", headers={"X-Request-ID": "7"}, timeout=PATIENCE_S)
    assert "x-request-id" not in reply.headers
    assert reply.json()["request_id"] == "7"


class Broken(EngineBackend):
    """A backend with a bug."""

    async def status(self):
        raise ZeroDivisionError


def test_even_a_bug_is_told_with_the_request_s_name(server_of, engine, tiny):
    url = server_of(build_api(Broken(engine, tiny.manifest)))
    reply = httpx.get(f"{url}/v1/status", headers={"X-Request-ID": "7"}, timeout=PATIENCE_S)
    assert (reply.status_code, reply.json()["request_id"], reply.headers["x-request-id"]) == (500, "7", "7")
