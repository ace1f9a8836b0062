"""Opening a feed of any kind."""

from __future__ import annotations

from gemel_ray.spec.feeds import CocoFeed, FeedSpec, ImageFolderFeed, StreetsFeed, TilesFeed, VideoFeed
from gemel_ray.vision.feeds.folders import CocoImages, ImageFolder
from gemel_ray.vision.feeds.frames import Feed
from gemel_ray.vision.feeds.streets import Streets
from gemel_ray.vision.feeds.tiles import Tiles
from gemel_ray.vision.feeds.video import Video


def open_feed(name: str, spec: FeedSpec) -> Feed:
    """Open a feed. Raises FeedError that names the feed, the path and the way out."""
    match spec:
        case StreetsFeed():
            return Streets(name, spec)
        case VideoFeed():
            return Video(name, spec)
        case ImageFolderFeed():
            return ImageFolder(name, spec)
        case TilesFeed():
            return Tiles(name, spec)
        case CocoFeed():
            return CocoImages(name, spec)
