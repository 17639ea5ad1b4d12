"""What every test shares.  Fixtures of one subject stand with its tests, or in support/."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["support.torture", "support.skips", "support.second", "support.scene", "pytester"]

# How long an example takes says how busy the machine is.
settings.register_profile("snapfs", deadline=None)
settings.load_profile("snapfs")
