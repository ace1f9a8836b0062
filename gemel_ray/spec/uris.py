"""URIs as they may be shown to others."""

from __future__ import annotations

import re
from collections.abc import Iterable


def without_secrets(uri: str) -> str:
    """A URI as it may be shown to others: s3://key:secret@bucket/store carries what they must not see.

    Whatever stands before it stays (--store=s3://...), and so does what is no URI. Passwords that should have been
    written with %2F and the like are cut too: such a URI opens nothing, and is shown in the error about that.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    place, *asked = re.split("[?#]", rest, maxsplit=1)
    if "@" in "".join(asked):
        # Either a password with a '?' in it goes before, or an '@' belongs to what is asked: there is no telling.
        return f"{scheme}://..."
    user, at, path = place.rpartition("@")
    # Without a ':' before it, an '@' further back than the host is part of a path.
    return f"{scheme}://{path if at and (':' in user or '/' not in user) else place}"


def shown_command(arguments: Iterable[str]) -> str:
    """A command line as it may be kept and shown."""
    return " ".join(map(without_secrets, arguments))
