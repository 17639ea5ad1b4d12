"""How the engine tells what it is doing.

The engine never prints: it calls one of these, which does nothing by default.
"""

from __future__ import annotations

from snapfs.repo.errors import SnapfsError


class Progress:
    """Base class and the silent one.  Called from the thread that runs the operation."""

    interrupted: bool = False
    """Set by a signal handler: the operation ends at the next safe point with KeyboardInterrupt."""
    wants_totals: bool = False
    """Whether somebody watches, so that counting ahead is worth its time."""

    wants_unchanged: bool = True
    """Whether item() is to be called for each entry that was found unchanged."""

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        """A phase begins ("scan", "index", "check volumes"); totals where they are known."""

    def total(self, files: int, bytes: int) -> None:
        """The totals of this phase, as far as they are known by now."""

    def advance(self, files: int = 0, bytes: int = 0) -> None:
        """So much more is done."""

    def item(self, path: bytes, action: str, size: int = 0) -> None:
        """One entry is done: action is new, changed, unchanged, restored, excluded ..."""

    def error(self, error: SnapfsError) -> None:
        """One entry failed and the rest goes on."""

    def notice(self, text: str) -> None:
        """Something the user should know."""


SILENT = Progress()
