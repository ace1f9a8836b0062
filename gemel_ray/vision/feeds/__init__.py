"""Feeds: where frames come from. `open_feed` opens any kind."""

from gemel_ray.vision.feeds.opening import open_feed as open_feed
