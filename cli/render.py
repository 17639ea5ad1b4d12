"""How values look: sizes, times, names, tables, JSON.  Pure functions, and the one place that writes to stdout.

Names come from a repository that may be somebody else's: whatever could move the cursor or change colours is escaped before a
person sees it.  Exact bytes are for -0 and `dump`; JSON has the exact name in base64 beside a name that is not UTF-8.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

SECOND = 1_000_000_000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def text(name: bytes) -> str:
    """A name for people: UTF-8 where it is, everything that is not printable as \\xNN or \\uNNNN."""
    shown = name.decode("utf-8", "backslashreplace")
    return shown if shown.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in shown)


def line(message: str) -> str:
    """A message as one line that moves no cursor; undecodable bytes in it as \\xNN."""
    message = message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return (
        message if message.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in message)
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def names(values: Iterable[bytes]) -> str:
    return ",".join(text(value) for value in values)


def size(number: int) -> str:
    """ "0 B", "1.5 KiB", "12.3 GiB": at most seven digits and a unit of 1024."""
    sign, value, unit = "-" if number < 0 else "", float(abs(number)), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{sign}{value:.0f} B" if unit == 0 else f"{sign}{value:.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """ "0.4 s", "12 s", "3:05 min", "2:03:09 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def count(number: int, one: str, many: str | None = None) -> str:
    """ "1 file", "12,345 files"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _local(time: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(time // SECOND, UTC).astimezone()
    except (OverflowError, ValueError, OSError):  # years that datetime does not know
        return None


def moment(time: int) -> str:
    """Nanoseconds since 1970 as local time with offset, to the second."""
    local = _local(time)
    return f"@{time // SECOND}" if local is None else local.isoformat(" ", "seconds")


def iso(time: int) -> str:
    """The same for machines, RFC 3339 to the nanosecond; seconds behind an "@" for years it cannot say."""
    local = _local(time)
    if local is None:
        return f"@{time // SECOND}.{time % SECOND:09}"
    whole = local.isoformat("T", "seconds")
    return f"{whole[:19]}.{time % SECOND:09}{whole[19:]}"


def named(key: str, name: bytes) -> dict[str, str]:
    """{key: name}, with key_b64 holding the exact bytes where the name is not UTF-8."""
    try:
        return {key: name.decode()}
    except UnicodeDecodeError:
        return {key: name.decode("utf-8", "replace"), f"{key}_b64": base64.b64encode(name).decode()}


def listed(key: str, values: Iterable[bytes]) -> dict[str, list[str]]:
    """The same for a list; key_b64 then has all of them."""
    values = tuple(values)
    found = {key: [value.decode("utf-8", "replace") for value in values]}
    if any(key + "_b64" in named(key, value) for value in values):
        found[key + "_b64"] = [base64.b64encode(value).decode() for value in values]
    return found


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of aligned columns; `right`: numbers of those aligned to the right."""
    widths = [max(len(row[at]) for row in (titles, *rows)) for at in range(len(titles))]

    def line(row: Sequence[str]) -> str:
        cells = (
            c.rjust(w) if at in right else c.ljust(w)
            for at, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return [line(titles), "-" * len(line(titles)), *map(line, rows)] if rows else []


def out(line: str = "") -> None:
    """One line on stdout."""
    try:
        print(line)
    except OSError as error:
        raise named_stdout(error) from error


def flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise named_stdout(error) from error


def named_stdout(error: OSError) -> OSError:
    """The same with a name, for the message; a closed pipe stays a BrokenPipeError."""
    return OSError(error.errno, error.strerror, "standard output")


def document(value: Any) -> None:
    """One line of JSON on stdout; ASCII, so that no locale can spoil it."""
    out(json.dumps(value, separators=(",", ":")))


def raw(*parts: bytes) -> None:
    """Exact bytes on stdout, behind whatever was printed before."""
    flush()
    sys.stdout.buffer.writelines(parts)


def complain(line: str) -> None:
    """One line on stderr.  Never raises: there is nobody left to tell."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
