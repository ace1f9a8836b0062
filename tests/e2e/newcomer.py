"""The environment that a newcomer's commands run in."""

import os


def gemel_environment(**more):
    """The environment of a newcomer: no running cluster is known."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_USAGE_STATS_ENABLED": "0",
        **more,
    }
