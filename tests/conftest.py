"""What every test shares.  Fixtures of one subject stand with its tests, or in support/."""

from __future__ import annotations

import pytest
from hypothesis import settings

from snapfs.repo.backup import ticks

pytest_plugins = ["support.torture", "support.skips", "support.second", "support.scene", "pytester"]

# How long an example takes says how busy the machine is.
settings.register_profile("snapfs", deadline=None)
settings.load_profile("snapfs")


@pytest.fixture(autouse=True)
def _clocks_that_do_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests back up what they have just written; on an older kernel all of it would be read again the next time."""
    monkeypatch.setattr(ticks, "tick_of", lambda major, minor: 0)
