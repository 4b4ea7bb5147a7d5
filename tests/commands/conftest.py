"""Fixtures of the property tests, which several files share."""

from strategies import quick, world  # noqa: F401
