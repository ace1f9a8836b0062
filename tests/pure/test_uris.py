"""What of a URI, and of a command line with one, others may see."""

import pytest

from gemel_ray.spec.uris import shown_command, without_secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@bucket/a/b?region=x", "s3://bucket/a/b"),
        ("s3://key:secret@bucket?region=secret", "s3://bucket"),
        ("s3://key:sec/ret@bucket/a", "s3://bucket/a"),
        ("s3://key:sec@ret@bucket/a", "s3://bucket/a"),
        ("s3://key:sec#ret@bucket/a", "s3://..."),
        ("rtsp://viewer@camera/live", "rtsp://camera/live"),
        ("rtsp://camera?password=secret", "rtsp://camera"),
        ("rtsp://camera?password=s@cret", "rtsp://..."),
        ("rtsp://viewer:s?cret@camera/live", "rtsp://..."),
        ("https://host:8443/store#token=secret", "https://host:8443/store"),
        ("s3://bucket/store@2", "s3://bucket/store@2"),
        ("here/store@2", "here/store@2"),
        ("torchvision:IMAGENET1K_V1", "torchvision:IMAGENET1K_V1"),
    ],
)
def test_secrets_in_a_uri_are_not_shown(uri, shown):
    assert without_secrets(uri) == shown


def test_a_command_line_keeps_all_but_its_secrets():
    arguments = ["gemel", "search", "w.yaml", "--store=s3://key:sec/ret@bucket/store", "rtsp://a:b@c/d", "--seed", "3"]
    assert shown_command(arguments) == "gemel search w.yaml --store=s3://bucket/store rtsp://c/d --seed 3"
