"""Fixtures that every test may ask for, and the surroundings that all tests run in."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported, here and in every process that a test starts: one thread, no network, no display.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest

ROOT = Path(__file__).parent.parent

# No test depends on time, and a red test is red again when it is run again.
hypothesis.settings.register_profile("navit_clip", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("navit_clip")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's own folder."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data beside the repository; mark the tests that ask for it `real_data`."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data, and there is no {folder}")
    return folder


@pytest.fixture(scope="session")
def real_shards(real_data: Path) -> Path:
    """The folder of real WebDataset shards."""
    return real_data / "shards"
