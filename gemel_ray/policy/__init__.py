"""Decisions as functions of values: no clock, no I/O, no torch, no Ray."""
