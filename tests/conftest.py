"""Fixtures that several test files share."""

from __future__ import annotations

import os

# One thread per test process, set before torch is imported: the models of the tests are too small for several threads,
# and on a busy machine waiting threads take longer than the work itself.
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
    """Full-precision fp32 products, for a module of tests."""
    with exact():
        yield


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Replace plots by an empty picture: they are tested elsewhere and take longer than a run of a few steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            plots, "draw_picture", lambda name, caption, *_: plots.Picture(name, caption, "<svg></svg>", b"")
        )
        yield
