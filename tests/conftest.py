"""What every test shares.  Fixtures of one subject stand with its tests, or in support/."""

from __future__ import annotations

pytest_plugins = ["support.torture", "support.skips", "support.second", "support.scene", "pytester"]
