"""`snapfs diff`: two snapshots, or a snapshot and the files as they are now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from snapfs.cli import opening
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import document, named, out, raw, size, text
from snapfs.repo.errors import UsageError
from snapfs.repo.model import Node
from snapfs.repo.query.compare import Change, DiffStats, Side, diff_live
from snapfs.repo.query.compare import diff as run_diff
from snapfs.repo.repository import Repository
from snapfs.repo.select import Filter, parse_spec

_UNREADABLE, _DIFFERENT = 3, 23


@command()
@selection
@click.argument("a", type=BYTES, metavar="SNAPSHOT[:PATH]")
@click.argument("b", type=BYTES, metavar="OTHER")
@click.option("--metadata", is_flag=True, help="Also what differs in owner, mode, times or attributes only.")
@click.option("--exit-code", is_flag=True, help="Exit with 23 if there is a difference.")
@click.option(
    "-0", "--null", is_flag=True, help="Exact names, each ended by a NUL byte instead of a line's end."
)
def diff(
    settings: Settings, a: bytes, b: bytes, wanted: Filter, metadata: bool, exit_code: bool, null: bool
) -> int:
    """Show what differs between two snapshots, or between a snapshot and a folder as it is now.

    OTHER is another SNAPSHOT[:PATH], or the path of a folder (/home/me, ./src).  "SNAPSHOT:" and a folder compare the folder with
    the same folder in the snapshot.

    \b
    + added   - removed   M content   T type   U metadata only   ? content, though size and times are equal

    \b
    Examples:
      snapfs diff latest~1 latest
      snapfs diff 3f2a:/home/me 91bc:/home/me --metadata
      snapfs diff latest: ~/documents
    """
    if null and settings.json:
        raise UsageError("-0 prints bare names: --json contradicts it")
    a, b = opening.adopt_repository(settings, a or b":", b or b":")
    progress = reporter(settings)
    stats = DiffStats()
    different = False
    with opening.open_repository(settings, progress) as repository:
        for change in _changes(repository, a, b, wanted, metadata, stats, progress):
            different = True
            _print(settings, change, null)
        progress.close()
    if settings.json:
        document(
            {
                "message_type": "statistics",
                **named("source_snapshot", a),
                **named("target_snapshot", b),
                **asdict(stats),
            }
        )
    elif not (settings.quiet or null):
        out()
        out(
            f"files:   {stats.added.files:,} new, {stats.removed.files:,} removed, {stats.changed_files:,} changed"
        )
        out(f"folders: {stats.added.dirs:,} new, {stats.removed.dirs:,} removed")
        if not is_live(b):
            out(f"added:   {_side(stats.added)}")
            out(f"removed: {_side(stats.removed)}")
    return _UNREADABLE if progress.errors else _DIFFERENT if different and exit_code else 0


def is_live(text: bytes) -> bool:
    """Is this the path of a folder, not the name of a snapshot?"""
    return b"::" not in text and (text.startswith((b"/", b"./", b"../")) or text in (b".", b".."))


def _changes(
    repository: Repository,
    a: bytes,
    b: bytes,
    wanted: Filter,
    metadata: bool,
    stats: DiffStats,
    progress: Any,
) -> Iterator[Change]:
    asked = parse_spec(a)
    if is_live(b):
        folder = os.path.abspath(b)
        spec = a if asked.path else asked.name + b":" + folder
        return diff_live(
            repository,
            _folder(repository, spec, wanted),
            folder,
            metadata=metadata,
            stats=stats,
            progress=progress,
        )
    if asked.path == b"":
        raise UsageError(f'"{text(a)}" is followed by a folder (/path or ./path), and {text(b)} is none')
    old, new = _folder(repository, a, wanted), _folder(repository, b, wanted)
    return run_diff(repository, old, new, metadata=metadata, stats=stats)


def _folder(repository: Repository, spec: bytes, wanted: Filter) -> Node:
    _, path, node = opening.snapshot_at(repository, spec, wanted)
    if not node.is_dir:
        raise UsageError(f"{text(path)} is not a folder in the snapshot: compare the folder it is in")
    return node


def _print(settings: Settings, change: Change, null: bool) -> None:
    node = change.new or change.old
    slash = b"/" if node is not None and node.is_dir else b""
    if settings.json:
        document({"message_type": "change", **named("path", change.path + slash), "modifier": change.kind})
    elif null:
        raw(change.kind.encode().ljust(5), change.path, slash, b"\0")
    else:
        out(f"{change.kind:<5}{text(change.path + slash)}")


def _side(side: Side) -> str:
    return f"{side.data_blobs:,} data blobs, {side.tree_blobs:,} tree blobs, {size(side.bytes)}"
