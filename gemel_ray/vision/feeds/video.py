"""A video file or live stream, decoded with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np

from gemel_ray.spec.errors import FeedError
from gemel_ray.spec.feeds import VideoFeed
from gemel_ray.vision.feeds.frames import FeedFrame

# Half a frame of leeway, so that 30 fps sampled at 30 fps loses nothing to rounding of timestamps.
_LEEWAY = 0.5


class Video:
    """Frames at a set rate, picked by their timestamps. Carries no labels."""

    vocabulary: frozenset[str] | None = None

    def __init__(self, name: str, spec: VideoFeed) -> None:
        self.name = name
        self._uri, self._limit = spec.uri, spec.frames
        if "://" not in spec.uri and not Path(spec.uri).is_file():
            raise FeedError(f"feed {name!r}: no video file {spec.uri}; correct 'uri'")
        with self._open() as container:
            rate = container.streams.video[0].average_rate
        self._source_fps = float(rate) if rate else 25.0
        self.fps = spec.fps or self._source_fps

    def _open(self) -> av.container.InputContainer:
        try:
            container = av.open(self._uri)
        except (av.error.FFmpegError, OSError) as error:
            raise FeedError(f"feed {self.name!r}: {self._uri} cannot be opened as video ({error})") from error
        if not container.streams.video:
            container.close()
            raise FeedError(f"feed {self.name!r}: {self._uri} has no video stream")
        return container

    def frames(self) -> Iterator[FeedFrame]:
        """Decoded frames as RGB. Raises FeedError where decoding breaks off."""
        period_s = 1 / self.fps
        index, due_s = 0, 0.0
        with self._open() as container:
            try:
                for position, frame in enumerate(container.decode(video=0)):
                    time_s = position / self._source_fps if frame.time is None else float(frame.time)
                    if time_s + _LEEWAY / self._source_fps < due_s:
                        continue
                    yield FeedFrame(index, time_s, np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8))
                    index += 1
                    due_s = max(due_s + period_s, time_s)
                    if self._limit is not None and index >= self._limit:
                        return
            except av.error.FFmpegError as error:
                raise FeedError(
                    f"feed {self.name!r}: {self._uri} breaks off after {index} frames ({error}); is the file complete?"
                ) from error
