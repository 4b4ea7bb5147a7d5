"""Fixtures shared by the property tests."""

from strategies import quick, world  # noqa: F401
