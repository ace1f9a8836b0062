"""Everything gemel_ray raises on purpose.

GemelError
├── InputError (also ValueError)   what the user gave is wrong; the command line exits with 2
│   ├── WorkloadError              the workload file
│   ├── ModelError                 an architecture, a factory or a set of weights
│   ├── FeedError                  a camera, clip or folder of images
│   └── FrameError                 one frame or tensor sent to an endpoint (HTTP 400)
├── OverBudgetError                more bytes are needed than the device offers
├── StoreError                     a store cannot be read or written
│   ├── MissingBlobError
│   ├── MissingReleaseError
│   └── CorruptBlobError           a blob's bytes do not hash to its name
├── SearchError                    a merge search cannot start or go on
└── ServingError                   an engine cannot answer (HTTP 503)

A message names what was wrong, the value found, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GemelError(Exception):
    """Base of all errors raised on purpose."""


class InputError(GemelError, ValueError):
    """What the user gave is wrong."""


class WorkloadError(InputError):
    """A workload file is wrong."""


class ModelError(InputError):
    """A model cannot be built or its weights do not fit it."""


class FeedError(InputError):
    """A feed cannot be opened or read."""


class FrameError(InputError):
    """A frame or tensor cannot be used."""


class OverBudgetError(GemelError):
    """More bytes are needed than the device offers."""


class StoreError(GemelError):
    """A store cannot be read or written."""


class MissingBlobError(StoreError):
    """A manifest names a blob that the store does not hold."""


class MissingReleaseError(StoreError):
    """The store holds no such release."""


class CorruptBlobError(StoreError):
    """A blob's bytes do not hash to its name."""


class SearchError(GemelError):
    """A merge search cannot start or go on."""


class ServingError(GemelError):
    """An engine cannot answer."""


def brief(error: BaseException) -> str:
    """'RuntimeError: its first line': what a library's own error says, short enough to be told within one of ours."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known name, else the sorted list of what is known."""
    names = sorted(known)
    if not names:
        return "there are none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}"
