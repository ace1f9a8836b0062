"""A camera that speaks RTSP over TCP: an MPEG transport stream in RTP packets, for one reader at a time."""

import base64
import contextlib
import io
import socket
import struct
import threading

import av
import numpy as np

_DESCRIPTION = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:video\r\n"
_PAYLOAD_BYTES = 7 * 188


def transport_stream(frames):
    """Frames that grow brighter, a hundred of them, and then from dark again, encoded."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            image = np.full((48, 64, 3), 2 * (number % 100), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


class Camera:
    """Answers readers until it is closed; with credentials (user:password), those who give them.

    After its last frame it hangs up, or says nothing more.
    """

    def __init__(self, frames=100, credentials=None, hangs_up=True):
        self._hangs_up = hangs_up
        self._needed = credentials and base64.b64encode(credentials.encode()).decode()
        self._stream = transport_stream(frames)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    @property
    def address(self):
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _answer(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, contextlib.suppress(ConnectionError):
                    self._talk(connection)

    def _talk(self, connection):
        requests = connection.makefile("rb")
        while (line := requests.readline()).strip():
            method = line.split()[0].decode()
            headers = [line.decode(), *iter(lambda: requests.readline().decode(), "\r\n")]
            number = next(header for header in headers if header.startswith("CSeq"))
            state, more, body = self._reply(method, headers)
            told = f"RTSP/1.0 {state}\r\n{number}Session: 1\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}"
            connection.sendall(told.encode())
            if method == "PLAY":
                self._play(connection)
                if self._hangs_up:
                    return

    def _reply(self, method, headers):
        if self._needed and not any(f"Basic {self._needed}" in header for header in headers):
            return "401 Unauthorized", 'WWW-Authenticate: Basic realm="gate"\r\n', ""
        if method == "DESCRIBE":
            return "200 OK", "Content-Type: application/sdp\r\n", _DESCRIPTION
        return "200 OK", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n" if method == "SETUP" else "", ""

    def _play(self, connection):
        for place in range(0, len(self._stream), _PAYLOAD_BYTES):
            payload = self._stream[place : place + _PAYLOAD_BYTES]
            header = struct.pack(">BBHII", 0x80, 33, place // _PAYLOAD_BYTES, 0, 1)
            connection.sendall(struct.pack(">cBH", b"$", 0, len(header + payload)) + header + payload)
