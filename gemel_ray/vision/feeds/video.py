"""A video file or live stream, decoded with PyAV."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np

from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.feeds import VideoFeed
from gemel_ray.spec.uris import without_secrets
from gemel_ray.vision.feeds.frames import FeedFrame

# Half a frame of leeway, so that 30 fps sampled at 30 fps loses nothing to rounding of timestamps.
_LEEWAY = 0.5
# Frames by which one may be late without its clock having started anew, as in joined recordings and restarted cameras.
_OUT_OF_ORDER = 4
# How long a camera may say nothing, while it is opened and between two frames.
_PATIENCE_S = 15.0
_NEVER_ENDING = ("rtsp://", "rtsps://", "rtp://", "udp://")
_ENDINGS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"})
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Video:
    """Frames at a set rate, picked by their timestamps. Carries no labels."""

    vocabulary: frozenset[str] | None = None

    def __init__(self, name: str, spec: VideoFeed) -> None:
        self.name = name
        self._uri, self._limit = spec.uri, spec.frames
        # What messages and logs may show.
        self._shown = without_secrets(spec.uri)
        self._sources = [spec.uri] if "://" in spec.uri else self._files(Path(spec.uri))
        if spec.uri.startswith(_NEVER_ENDING) and spec.frames is None:
            raise FeedError(f"feed {name!r}: {self._shown} never ends; say how many 'frames' are to be read from it")
        with self._open(self._sources[0]) as container:
            rate = container.streams.video[0].average_rate
        self._source_fps = float(rate) if rate else 25.0
        self.fps = spec.fps or self._source_fps

    def _files(self, path: Path) -> list[str]:
        """A video file, or a folder's in order of name."""
        if path.is_dir():
            files = [str(file) for file in sorted(path.iterdir()) if file.suffix.lower() in _ENDINGS]
            if files:
                return files
            raise FeedError(
                f"feed {self.name!r}: {path} holds no videos ({', '.join(sorted(_ENDINGS))}); correct 'uri'"
            )
        if not path.is_file():
            raise FeedError(f"feed {self.name!r}: no video file {path}; correct 'uri'")
        return [str(path)]

    def _open(self, source: str) -> av.container.InputContainer:
        is_remote, shown = "://" in source, self._shown if len(self._sources) == 1 else source
        try:
            container = av.open(
                self._with_secrets() if is_remote else source,
                timeout=_PATIENCE_S if is_remote else None,
                # Frames that lose a packet on the way break a merge; cameras that speak UDP alone still can.
                options={"rtsp_flags": "prefer_tcp"} if source.startswith("rtsp") else {},
            )
        except (av.error.FFmpegError, OSError) as error:
            reason = error.strerror or type(error).__name__
            raise FeedError(f"feed {self.name!r}: {shown} cannot be opened as video ({reason})") from None
        if not container.streams.video:
            container.close()
            raise FeedError(f"feed {self.name!r}: {shown} has no video stream")
        return container

    def _with_secrets(self) -> str:
        """The URI with ${NAME} replaced from the environment, so that no workload file need hold a password."""

        def value(found: re.Match[str]) -> str:
            if found[1] not in os.environ:
                raise FeedError(f"feed {self.name!r}: 'uri' names ${{{found[1]}}}, which is not set; export it first")
            return os.environ[found[1]]

        return _VARIABLE.sub(value, self._uri)

    def frames(self) -> Iterator[FeedFrame]:
        """Decoded frames as RGB, of several files as of one. Raises FeedError where decoding breaks off."""
        period_s = 1 / self.fps
        index, due_s = 0, 0.0
        for time_s, frame in self._decoded():
            if time_s + _LEEWAY / self._source_fps < due_s:
                continue
            yield FeedFrame(index, time_s, np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
            index += 1
            due_s = max(due_s + period_s, time_s)
            if self._limit is not None and index >= self._limit:
                return

    def _decoded(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Every frame and its time; a file begins where the one before it ends, as does a clock that starts anew."""
        period_s = 1 / self._source_fps
        begun_s = time_s = 0.0
        for source in self._sources:
            former_s = -math.inf
            for own_s, frame in self._decoded_of(source):
                if own_s < former_s - _OUT_OF_ORDER * period_s:
                    begun_s += former_s - own_s + period_s
                former_s, time_s = own_s, begun_s + own_s
                yield time_s, frame
            begun_s = time_s + period_s

    def _decoded_of(self, source: str) -> Iterator[tuple[float, av.VideoFrame]]:
        """Every frame of one source and the time it carries."""
        position = -1
        with self._open(source) as container:
            try:
                for position, frame in enumerate(container.decode(video=0)):
                    yield position / self._source_fps if frame.time is None else float(frame.time), frame
            except av.error.FFmpegError as error:
                raise FeedError(
                    f"feed {self.name!r}: {self._shown} breaks off after {position + 1} frames ({error.strerror}); "
                    "is the file complete, the camera still there?"
                ) from None
