"""Releases on Ray Serve."""
