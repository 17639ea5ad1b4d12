"""Lists of what to back up: --files-from (globs), --files-from-verbatim (lines), --files-from-raw (ends with NUL).

Whether the paths exist is asked by the walk; only globs look at the file system here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import BinaryIO

from snapfs.repo.backup.globs import BadGlob, Rule, RuleList
from snapfs.repo.backup.patterns import decode_list, glob_component, printable, to_text
from snapfs.repo.errors import UsageError


def files_from(
    patterns: Sequence[str] = (),
    verbatim: Sequence[str] = (),
    raw: Sequence[str] = (),
    stdin: BinaryIO | None = None,
    unmatched: Callable[[bytes], None] | None = None,
) -> list[bytes]:
    """The paths in these list files, in order; "-" is `stdin`, at most once.  `unmatched` hears of globs that fit nothing.
    Raises UsageError."""
    if [*patterns, *verbatim, *raw].count("-") > 1:
        raise UsageError('standard input ("-") can be read by one --files-from option only')
    found: list[bytes] = []
    for name in patterns:
        text = decode_list(_read("--files-from", name, stdin))
        for number, line in enumerate(text.split("\n"), 1):
            line = line.strip()
            if line and not line.startswith("#"):
                paths = _expand(line, f"--files-from {name}:{number}")
                if not paths and unmatched is not None:
                    unmatched(_to_bytes(line))
                found += paths
    for name in verbatim:
        text = decode_list(_read("--files-from-verbatim", name, stdin))
        lines = (
            line.removesuffix("\r") for line in text.split("\n")
        )  # as restic: lists that came from Windows
        found += [_to_bytes(line) for line in lines if line]
    for name in raw:
        found += _split_raw(_read("--files-from-raw", name, stdin), f"--files-from-raw {name}")
    if any(b"\0" in path for path in found):
        raise UsageError(
            "--files-from: a path holds a NUL byte (lists that end paths with NUL are for --files-from-raw)"
        )
    return found


def _read(option: str, name: str, stdin: BinaryIO | None) -> bytes:
    if name == "-" and stdin is not None:
        return stdin.read()
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{option} {printable(name)}: {error.strerror}") from None


def _split_raw(data: bytes, origin: str) -> list[bytes]:
    *paths, rest = data.split(b"\0")
    if rest:
        raise UsageError(f"{printable(origin)}: the last path does not end with NUL, the list may be cut off")
    if b"" in paths:
        raise UsageError(f"{printable(origin)}: path number {paths.index(b'') + 1} is empty")
    return paths


def _expand(pattern: str, origin: str) -> list[bytes]:
    """The existing paths a glob fits, sorted within each directory.  As in Go, "*" also fits names that begin with a dot."""
    top = "/" if pattern.startswith("/") else ""
    paths = [_to_bytes(top)]
    for glob in (part for part in pattern.split("/") if part):
        try:
            part = glob_component(glob)
        except BadGlob as error:
            raise UsageError(f"{printable(origin)}: bad pattern {printable(pattern)}: {error}") from None
        if part.literal is not None:
            paths = [os.path.join(path, _to_bytes(part.literal)) for path in paths]
            paths = [path for path in paths if os.path.lexists(path)]
        else:
            rules = RuleList([Rule((part,), anchored=False, negated=False)])
            paths = [
                os.path.join(path, name)
                for path in paths
                for name in _names(path)
                if rules.last("", to_text(name), True) >= 0
            ]
    return paths


def _names(directory: bytes) -> list[bytes]:
    try:
        return sorted(os.listdir(directory or b"."))
    except OSError:
        return []  # not a directory, or not readable: nothing fits


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
