"""A store behind a plain web server, to be read and never written: for edge boxes that may only call out.

Any server of static files will do (nginx, a bucket's web address, `python -m http.server`). Blobs are verified as from
any other store, so the server need not be trusted with more than being there. Files cannot be listed.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import IO, Any, NoReturn
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

# Its value goes with every request to the store itself, never on to where that redirects.
TOKEN_VARIABLE = "GEMEL_STORE_TOKEN"

# pyarrow's name for the file system, which it puts "py::" before.
HTTP_TYPE = "py::gemel-http"

# Without a byte for so long, a connection counts as lost.
_TIMEOUT_S = 20.0
# Of one file; what is fetched is held in memory until its hash is known.
_MOST_BYTES = 4 << 30


def http_system(uri: str) -> tuple[fs.FileSystem, str]:
    """A pyarrow file system and the root in it for an http:// or https:// URI. ValueError for one that is none."""
    parts = _parts(uri)
    if not parts.hostname or parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(f"write https://host/path, and a password or token into the variable {TOKEN_VARIABLE}")
    root = urlunsplit((parts.scheme.lower(), parts.netloc, parts.path, "", ""))
    return fs.PyFileSystem(_HttpHandler(root)), root


def _parts(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        # Raises where a label is empty, as in a..b, or the port is no number, and would do so in the middle of a read.
        (parts.hostname or "").encode("idna")
        _ = parts.port
    except ValueError:
        # What is wrong may be a piece of a password, which its message would repeat.
        raise ValueError("its host or port is no valid one") from None
    return parts


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http: whoever sits in between would see what is fetched."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https" and urlsplit(req.full_url).scheme == "https":
            raise OSError(errno.EACCES, f"it redirects from https to {newurl}; ask whoever runs it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _HttpHandler(fs.FileSystemHandler):
    """Implements pyarrow's file system over GET and HEAD; paths are whole addresses."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._opener = urllib.request.build_opener(_NoDowngrade())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _HttpHandler) and other._root == self._root

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return "gemel-http"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> NoReturn:
        raise OSError(errno.ENOTSUP, "a store read over HTTP cannot be listed; do that where the store itself is")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(io.BytesIO(self._get(path)), mode="r")

    def _info(self, path: str) -> fs.FileInfo:
        try:
            with self._open(path, "HEAD") as answer:
                size, written = _count(answer.headers.get("Content-Length")), answer.headers.get("Last-Modified")
        except FileNotFoundError:
            return fs.FileInfo(path, fs.FileType.NotFound)
        return fs.FileInfo(path, fs.FileType.File, size=size, mtime=_time(written))

    def _get(self, path: str) -> bytes:
        with self._open(path, "GET") as answer:
            announced = _count(answer.headers.get("Content-Length"))
            try:
                data: bytes = answer.read(_MOST_BYTES + 1)
            except http.client.HTTPException as error:
                raise OSError(errno.EIO, f"the connection ended before the file was whole ({error!r})") from error
        # A read that is given a limit comes back short without a word.
        if announced is not None and len(data) < announced:
            raise OSError(
                errno.EIO, f"the connection ended before the file was whole: {len(data)} of {announced} bytes"
            )
        if len(data) > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"the file is larger than {_MOST_BYTES} bytes, which no blob is")
        return data

    def _open(self, path: str, method: str) -> Any:  # noqa: ANN401 - urllib's answers have no public type
        request = urllib.request.Request(quote(path, safe=":/[]@%"), method=method)
        if token := os.environ.get(TOKEN_VARIABLE):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            return self._opener.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise FileNotFoundError(errno.ENOENT, "no such file", path) from None
            hint = f"; set {TOKEN_VARIABLE} to a token it takes" if error.code in (401, 403) else ""
            raise OSError(errno.EIO, f"the server answers {error.code} {error.reason}{hint}") from None
        except urllib.error.URLError as error:
            raise OSError(errno.EHOSTUNREACH, f"the server cannot be reached ({error.reason})") from None
        except http.client.HTTPException as error:
            raise OSError(errno.EIO, f"the server's answer makes no sense ({error!r})") from error

    def _refuse(self, *_arguments: object, **_options: object) -> NoReturn:
        raise OSError(errno.EROFS, "a store over HTTP can only be read; write where the store itself is")

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _refuse
    move = open_append_stream = open_output_stream = _refuse


def _count(header: str | None) -> int | None:
    return int(header) if header and header.isascii() and header.isdigit() else None


def _time(written: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(written) if written else None
    except ValueError:
        return None
