"""URIs as they may be shown to others."""

from __future__ import annotations


def without_secrets(uri: str) -> str:
    """A store's URI as it may be shown to others: s3://key:secret@bucket/store carries what they must not see."""
    scheme, separator, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}" if separator else uri
