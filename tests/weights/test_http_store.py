"""A store behind a web server: read like any other, never written, and never trusted further than its hashes."""

import contextlib
import functools
import http.server
import threading

import pytest
from family_kit import ORIGINALS, publish_family
from weights_kit import blob_file

from gemel_ray.spec.errors import CorruptBlobError, InputError, MissingReleaseError, StoreError
from gemel_ray.weights.cache import LocalCache
from gemel_ray.weights.maintenance import originals_of
from gemel_ray.weights.store import open_store


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Static files of a folder; remembers what was sent along."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        super().do_GET()

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def web_server(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def family(store):
    return publish_family(store)


@pytest.fixture
def served(family):
    with web_server(functools.partial(Quiet, directory=family.locate())) as (server, url):
        yield server, url


def test_a_store_over_http_is_read_like_the_folder_it_is(family, served, tmp_path):
    store = open_store(served[1] + "/")
    assert store.head() == 3
    assert store.manifest() == family.manifest()
    assert store.manifest(1) == family.manifest(1)
    assert store.lineage(3) == [3, 2, 1]
    cache = LocalCache(store, tmp_path / "edge")
    assert cache.pull() == family.manifest()
    assert all(cache.fetch(sha).read_bytes() == family.read_blob(sha) for sha in family.manifest().blobs)


def test_the_originals_are_found_without_a_listing(family, served):
    assert originals_of(open_store(served[1]), family.manifest()).queries.keys() == ORIGINALS.keys()


def test_what_is_not_there_is_told_with_its_address(served):
    url = served[1]
    store = open_store(url)
    with pytest.raises(MissingReleaseError, match=f"{url}/ has no release 9"):
        store.manifest(9)
    assert not store.has_blob("a" * 64)
    with pytest.raises(StoreError, match="cannot be listed"):
        store.releases()


def test_it_is_never_written(family, served):
    store = open_store(served[1])
    for attempt in (
        lambda: store.put_blob(b"new"),
        lambda: store.set_head(1),
        lambda: store.publish(family.manifest()),
        lambda: store.write_state("s", {}),
    ):
        with pytest.raises(StoreError, match=r"can only be read|cannot be listed"):
            attempt()
    assert family.head() == 3


def test_a_blob_that_was_changed_on_the_way_is_refused(family, served):
    sha = min(family.manifest().blobs)
    blob_file(family, sha).write_bytes(b"something else")
    with pytest.raises(CorruptBlobError, match=sha):
        open_store(served[1]).read_blob(sha)


def test_a_connection_that_ends_early_is_an_error_and_no_short_file(family, served):
    class Short(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"3\n")

        do_HEAD = do_GET

    with web_server(Short) as (_, url), pytest.raises(StoreError, match="before the file was whole"):
        open_store(url).head()


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_server_that_refuses_is_told_with_its_status(status):
    class Refusing(Quiet):
        def do_GET(self):
            self.send_error(status)

        do_HEAD = do_GET

    with web_server(Refusing) as (_, url), pytest.raises(StoreError, match=rf"answers {status}") as caught:
        open_store(url)
    assert ("GEMEL_STORE_TOKEN" in str(caught.value)) == (status in (401, 403))


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\nLast-Modified: never\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_nonsense_is_a_store_error(answer):
    class Nonsense(Quiet):
        def handle(self):
            self.rfile.readline()
            self.wfile.write(answer)

    with web_server(Nonsense) as (_, url), pytest.raises(StoreError):
        open_store(url).manifest()


def test_a_server_that_is_not_there_is_a_store_error():
    with pytest.raises(StoreError, match="cannot be reached"):
        open_store("http://127.0.0.1:9/store")


def test_a_token_goes_to_the_store_and_not_on_to_where_it_redirects(served, monkeypatch):
    target, target_url = served

    class Redirecting(Quiet):
        def do_GET(self):
            self.server.seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(302)
            self.send_header("Location", target_url + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

    monkeypatch.setenv("GEMEL_STORE_TOKEN", "secret-of-the-store")
    with web_server(Redirecting) as (first, url):
        assert open_store(url).head() == 3
        assert first.seen[-1] == ("/HEAD", "Bearer secret-of-the-store")
    assert target.seen[-1] == ("/HEAD", None)


def test_an_empty_folder_behind_a_web_server_holds_no_releases(tmp_path):
    with (
        web_server(functools.partial(Quiet, directory=tmp_path)) as (_, url),
        pytest.raises(StoreError, match="holds no releases"),
    ):
        open_store(url)


@pytest.mark.parametrize("uri", ["http://", "https:///path", "http://me:word@host/store", "http://host/store?token=x"])
def test_an_address_with_a_password_or_without_a_host_is_refused(uri):
    with pytest.raises(InputError, match="write https://host/path"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["http://a..b/store", "http://host:port/store", "http://host:99999/store"])
def test_an_address_that_is_none_is_refused_before_anything_is_asked_of_it(uri):
    with pytest.raises(InputError, match="its host or port is no valid one"):
        open_store(uri)
