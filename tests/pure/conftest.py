"""What keeps the pure tests pure."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    """Ray may be imported already, by the tests of other folders; none of these may start it."""

    def refuse(*_arguments, **_options):
        raise AssertionError("a pure test may not start Ray; move it to tests/ray")

    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)
