"""Fixtures that several test files share."""

from __future__ import annotations

import os

# One thread for each test process, set before torch is imported: the models of the tests are too small to share out,
# and threads that wait for each other on a busy machine take longer than the work itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
from worlds import exact

from gpt1cli.reporting import plots


@pytest.fixture(scope="session")
def test_hub() -> str:
    """The folder with real data sets, laid out like the Hugging Face hub."""
    if not os.environ.get("GPT1_TEST_HUB"):
        pytest.skip("needs real data sets: set GPT1_TEST_HUB to a folder laid out like the Hugging Face hub")
    return os.environ["GPT1_TEST_HUB"]


@pytest.fixture(scope="module")
def exact_arithmetic() -> Iterator[None]:
    """fp32 products in fp32, for a module of tests."""
    with exact():
        yield


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Nothing is drawn: what pictures show is tested elsewhere, and they take longer than a run of a few updates."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "draw", lambda name, caption, *_: plots.Picture(name, caption, "<svg></svg>", b""))
        yield
