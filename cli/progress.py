"""What a long operation shows: a bar on a terminal, a line now and then where there is none, JSON lines for programs.

Progress, errors and notices go to stderr, so that nothing mixes with results; with --json, status lines are the results of
backup, restore and check, and go to stdout.  SIGUSR1 asks for a line at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from snapfs.cli import render
from snapfs.cli.options import Settings
from snapfs.repo.errors import SnapfsError, UsageError
from snapfs.repo.progress import Progress

_PATIENCE = 1.0
"""Seconds that a phase may take in silence."""


def reporter(settings: Settings, job: bool = False) -> Reporter:
    """The one that suits these settings and this stderr.  `job`: a long one, which with --json reports as JSON lines."""
    interval = _interval()
    if settings.json and job:
        return JsonLines(settings, interval or 1.0)
    if settings.json:
        return JsonReporter(settings)
    if settings.quiet:
        return Reporter(settings)
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(settings, interval or 0.1)
    return Lines(settings, interval or 5.0)


def _interval() -> float | None:
    text = os.environ.get("SNAPFS_PROGRESS_FPS")
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0
    if not 0.0001 < rate <= 60:
        raise UsageError(
            f"SNAPFS_PROGRESS_FPS={text}: give times a second, up to 60 (0.1: every ten seconds)"
        )
    return 1 / rate


@contextlib.contextmanager
def ending_gently(progress: Reporter) -> Iterator[None]:
    """The first Ctrl-C (SIGTERM, SIGHUP) asks the operation to end at its next safe point, the second one ends it now."""

    def stop(number: int, frame: FrameType | None) -> None:
        if progress.interrupted:
            raise KeyboardInterrupt
        progress.interrupted = True
        if isinstance(progress, (Bar, Lines)):
            with contextlib.suppress(OSError):  # not print(): a handler may run in the middle of one
                os.write(2, b"\ninterrupted: keeping what is done so far; once more stops at once\n")

    old = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stays
            old[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Reporter(Progress):
    """Counts, and says errors and notices; shows no progress."""

    def __init__(self, settings: Settings, interval: float = 1e9) -> None:
        self.errors = 0
        self._settings = settings
        self.wants_unchanged = settings.verbose > 1
        self._interval = interval
        self._begun = time.monotonic()
        self._name = ""
        self._deaf = False
        self.phase("")
        signal.signal(signal.SIGUSR1, self._hurry)

    # ---- what the engine calls -----------------------------------------------------------------------------------

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        self._clear()
        self._name = name
        self._start = time.monotonic()
        self._due = self._start + max(_PATIENCE, self._interval)
        self._files = self._bytes = 0
        self._of_files, self._of_bytes = files, bytes

    def total(self, files: int, bytes: int) -> None:
        self._of_files, self._of_bytes = files, bytes  # from another thread, too: shows nothing

    def advance(self, files: int = 0, bytes: int = 0) -> None:
        self._files += files
        self._bytes += bytes
        self._tick()

    def item(self, path: bytes, action: str, size: int = 0) -> None:
        if self._settings.verbose > (action == "unchanged"):
            self._item(path, action, size)

    def error(self, error: SnapfsError) -> None:
        self.errors += 1
        self._say(f"error: {render.line(str(error))}")

    def notice(self, text: str) -> None:
        if not self._settings.quiet:
            self._say(render.line(text))

    def close(self) -> None:
        """The operation is over: take the bar away."""
        self._clear()

    # ---- how it is shown -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._interval
            self._show()

    def _show(self) -> None:
        pass

    def _clear(self) -> None:
        pass

    def _say(self, line: str) -> None:
        render.complain(line)

    def _item(self, path: bytes, action: str, size: int) -> None:
        self._print(f"{action:<10} {render.text(path)}" + (f", {render.size(size)}" if size else ""))

    def _print(self, line: str) -> None:
        self._write(lambda: render.out(line))

    def _write(self, write: Callable[[], None]) -> None:
        """Stdout that cannot be written is no reason to break off, and must not look like a file that cannot be read; what is
        printed at the end fails again, and is said."""
        if not self._deaf:
            try:
                write()
            except OSError:
                self._deaf = True

    def _hurry(self, *_: object) -> None:
        self._due = 0.0

    def _fraction(self) -> float | None:
        if self._of_bytes:
            return min(self._bytes / self._of_bytes, 1.0)
        return min(self._files / self._of_files, 1.0) if self._of_files else None

    def _remaining(self) -> float | None:
        """Seconds."""
        fraction, spent = self._fraction(), time.monotonic() - self._start
        return spent / fraction - spent if fraction and spent > _PATIENCE else None

    def _status(self) -> str:
        spent = max(time.monotonic() - self._start, 0.001)
        parts = []
        if self._files:
            of = f" of {self._of_files:,}" if self._of_files is not None else ""
            parts.append(f"{self._files:,}{of}")
        if self._bytes or self._of_bytes:
            of = f" of {render.size(self._of_bytes)}" if self._of_bytes is not None else ""
            parts.append(f"{render.size(self._bytes)}{of}, {render.size(int(self._bytes / spent))}/s")
        remaining = self._remaining()
        parts.append(
            f"{render.duration(spent)}" if remaining is None else f"{render.duration(remaining)} left"
        )
        return ", ".join(parts)


class Lines(Reporter):
    """Where stderr is a file, a pipe or a journal."""

    wants_totals = True

    def _show(self) -> None:
        fraction = self._fraction()
        done = "" if fraction is None else f"{fraction:4.0%}  "
        self._say(f"{self._name or 'working'}: {done}{self._status()}")


class Bar(Reporter):
    """On a terminal.  Rich is loaded when there is something to show."""

    wants_totals = True
    _bar: Any = None
    _task: Any = None

    def _show(self) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as Rich

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
            )
            self._bar = Rich(
                *columns,
                console=Console(stderr=True, highlight=False, markup=False, emoji=False),
                transient=True,
                redirect_stdout=False,  # else results printed meanwhile would land on stderr
                redirect_stderr=False,
                auto_refresh=False,
            )
            self._task = self._bar.add_task(self._name or "working", total=None, status="")
            self._bar.start()
        fraction = self._fraction()
        self._bar.update(
            self._task,
            description=self._name or "working",
            total=None if fraction is None else 1.0,
            completed=fraction or 0,
            status=self._status(),
            refresh=True,
        )

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        if self._bar is None:
            render.complain(line)
        else:
            self._bar.console.print(line, soft_wrap=True)

    def _print(self, line: str) -> None:
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(line, soft_wrap=True)
        else:
            super()._print(line)


class JsonReporter(Reporter):
    """No progress; errors and notices as JSON lines on stderr."""

    def error(self, error: SnapfsError) -> None:
        self.errors += 1
        path = getattr(error, "path", None)
        item = {} if path is None else render.named("item", path)
        message = {"message_type": "error", "error": {"message": str(error)}, "during": self._name, **item}
        render.complain(json.dumps(message))

    def notice(self, text: str) -> None:
        if not self._settings.quiet:
            render.complain(json.dumps({"message_type": "notice", "message": text}))


class JsonLines(JsonReporter):
    """restic's message types for a long job: status and verbose_status, too, on stdout."""

    wants_totals = True

    def _show(self) -> None:
        remaining = self._remaining()
        self._document(
            {
                "message_type": "status",
                "phase": self._name,
                "seconds_elapsed": int(time.monotonic() - self._begun),
                **({} if remaining is None else {"seconds_remaining": int(remaining)}),
                "percent_done": round(self._fraction() or 0.0, 4),
                "total_files": self._of_files or 0,
                "files_done": self._files,
                "total_bytes": self._of_bytes or 0,
                "bytes_done": self._bytes,
                "error_count": self.errors,
            }
        )

    def _item(self, path: bytes, action: str, size: int) -> None:
        self._document(
            {
                "message_type": "verbose_status",
                "action": action,
                **render.named("item", path),
                "data_size": size,
            }
        )

    def _document(self, value: dict[str, Any]) -> None:
        def write() -> None:
            render.document(value)
            render.flush()

        self._write(write)
