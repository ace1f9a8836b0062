"""When to ask again somebody who does not answer."""

from __future__ import annotations

# Waits are spread by so much either way: a thousand boxes that lost one store must not come back to it at once.
_SPREAD = 0.25


def wait_s(failures: int, *, every_s: float, most_s: float, chance: float) -> float:
    """Seconds to the next attempt after so many failures in a row: `every_s`, doubled for each, at most `most_s`.

    `chance`, uniform from 0 to 1, spreads it by a quarter either way.
    """
    # Beyond that many doublings every wait is the longest one, and powers of two would overflow.
    doubled = every_s * 2.0 ** min(failures, 32)
    return min(doubled, max(most_s, every_s)) * (1 - _SPREAD + 2 * _SPREAD * chance)
