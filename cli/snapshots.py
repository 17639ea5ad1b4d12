"""`snapfs snapshots`, `tag`: what is in the list of snapshots, and what it says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from snapfs.cli.opening import adopt_repository, open_repository
from snapfs.cli.options import BYTES, Settings, command, grouping, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import (
    count,
    document,
    iso,
    listed,
    moment,
    named,
    names,
    out,
    size,
    table,
    text,
)
from snapfs.repo.errors import UsageError
from snapfs.repo.select import Filter, Key, choose, find, grouped, parse_tags
from snapfs.repo.state import StoredSnapshot

Grouped = list[tuple[Key, list[StoredSnapshot]]]


def snapshot_json(snapshot: StoredSnapshot) -> dict[str, Any]:
    """A snapshot in restic's words."""
    from snapfs.cli.backup import totals_json

    record = snapshot.record
    return {
        "time": iso(record.time),
        **({} if record.parent is None else {"parent": record.parent.hex()}),
        "tree": None if record.root.root is None else record.root.root.hex(),
        **listed("paths", record.paths),
        **named("hostname", record.host),
        **named("username", record.user),
        "uid": record.uid,
        "gid": record.gid,
        **(listed("excludes", record.excludes) if record.excludes else {}),
        **(listed("tags", snapshot.tags) if snapshot.tags else {}),
        "program_version": text(record.program),
        "summary": totals_json(record.totals)
        | {"total_duration": record.totals.duration / 1e9, "error_count": record.errors},
        "id": snapshot.id.hex(),
        "short_id": snapshot.short,
    }


@command()
@selection
@click.argument("ids", nargs=-1, type=BYTES, metavar="[ID]...")
@click.option("-c", "--compact", is_flag=True, help="Shorter lines.")
@click.option(
    "--forgotten", is_flag=True, help="Those that were forgotten: `snapfs undelete` brings them back."
)
@click.option(
    "--latest", type=click.IntRange(1), metavar="N", help="Only the last N of each host and paths (or group)."
)
@click.option(
    "-g", "--group-by", callback=grouping, default="", metavar="WORDS", help="Group by host,paths,tags."
)
def snapshots(
    settings: Settings,
    ids: tuple[bytes, ...],
    wanted: Filter,
    compact: bool,
    forgotten: bool,
    latest: int | None,
    group_by: tuple[str, ...],
) -> None:
    """List snapshots, the latest last.

    \b
    Examples:
      snapfs snapshots
      snapfs snapshots --host laptop --tag daily --latest 3
      snapfs snapshots --forgotten
      snapfs snapshots --json
    """
    names_of = [name for name in adopt_repository(settings, *ids) if name]
    with open_repository(settings, reporter(settings)) as repository:
        everything = repository.snapshots()
        if forgotten:
            everything = repository.events.load().forgotten_snapshots
    if names_of:
        chosen = sorted(
            {find(everything, name, wanted) for name in names_of}, key=lambda s: (s.record.time, s.id)
        )
    else:
        chosen = choose(everything, wanted)
    groups = grouped(chosen, group_by)
    if latest is not None:
        kept = {s.id for _, group in grouped(chosen, group_by or ("host", "paths")) for s in group[-latest:]}
        groups = [(key, [s for s in group if s.id in kept]) for key, group in groups]
    if settings.json:
        _print_json(groups, group_by)
        return
    for key, group in groups:
        if group_by:
            out(group_title(group_by, key))
        print_table(group, compact)
        if not settings.quiet:
            out(count(len(group), "snapshot"))
    if not groups and not settings.quiet:
        out(f"no {'forgotten ' if forgotten else ''}snapshots{wanted.describe()}")


def _print_json(groups: Grouped, words: Sequence[str]) -> None:
    if not words:
        document([snapshot_json(snapshot) for _, group in groups for snapshot in group])
        return
    keys = {"host": "hostname", "paths": "paths", "tags": "tags"}
    document(
        [
            {
                "group_key": {
                    keys[word]: text(value[0]) if word == "host" else [text(one) for one in value]
                    for word, value in zip(words, key, strict=True)
                },
                "snapshots": [snapshot_json(snapshot) for snapshot in group],
            }
            for key, group in groups
        ]
    )


def group_title(words: Sequence[str], key: Key) -> str:
    """ "snapshots of host a; paths /b,/c": what stands above the table of a group."""
    return "snapshots of " + "; ".join(
        f"{word} {names(value)}" for word, value in zip(words, key, strict=True)
    )


def print_table(
    chosen: Sequence[StoredSnapshot],
    compact: bool,
    more: Sequence[tuple[str, Sequence[str]]] = (),
    right: bool = False,
) -> None:
    """`more`: further columns (title, cells) before Paths, or, where lines are compact, at the end.  `right`: numbers."""
    columns: list[tuple[str, Sequence[str]]] = [
        ("ID", [s.short for s in chosen]),
        ("Time", [moment(s.record.time) for s in chosen]),
        ("Host", [text(s.record.host) for s in chosen]),
        ("Tags", [names(s.tags) for s in chosen]),
        *more,
    ]
    numbers = list(range(4, len(columns))) if right else []
    if not compact:
        columns += [
            ("Paths", [names(s.record.paths) for s in chosen]),
            ("Size", [size(s.record.totals.size) for s in chosen]),
        ]
        numbers.append(len(columns) - 1)
    titles, cells = zip(*columns, strict=True)
    for line in table(titles, list(zip(*cells, strict=True)), right=numbers):
        out(line)


@command()
@selection
@click.argument("ids", nargs=-1, type=BYTES, metavar="[ID]...")
@click.option("--add", type=BYTES, multiple=True, metavar="TAG[,TAG...]", help="Add tags; can be repeated.")
@click.option(
    "--remove", type=BYTES, multiple=True, metavar="TAG[,TAG...]", help="Remove tags; can be repeated."
)
@click.option(
    "--set",
    "put",
    type=BYTES,
    multiple=True,
    metavar="TAG[,TAG...]",
    help='Replace all tags (--set "": none).',
)
def tag(
    settings: Settings,
    ids: tuple[bytes, ...],
    wanted: Filter,
    add: tuple[bytes, ...],
    remove: tuple[bytes, ...],
    put: tuple[bytes, ...],
) -> None:
    """Change the tags of snapshots: of those named, or of all that --host, --tag and --path choose.

    The snapshots stay what they are, and keep their ids.

    \b
    Examples:
      snapfs tag --add before-upgrade latest
      snapfs tag --remove daily --host laptop
      snapfs tag --set "" 3f2a
    """
    if put and (add or remove):
        raise UsageError("--set and --add or --remove contradict each other")
    if not (put or add or remove):
        raise UsageError("nothing to change: give --add, --remove or --set")
    all_named(ids)
    if not ids and not wanted:
        raise UsageError("which snapshots? name them, or choose some with --host, --tag or --path")
    added, removed, set_to = (frozenset().union(*parse_tags(given)) for given in (add, remove, put))
    specs = adopt_repository(settings, *ids)
    with open_repository(settings, reporter(settings)) as repository:
        everything = repository.snapshots()
        chosen = [find(everything, name, wanted) for name in specs] if specs else choose(everything, wanted)
        changed = []
        for snapshot in dict.fromkeys(chosen):
            tags = tuple(sorted(set_to if put else (set(snapshot.tags) | added) - removed))
            if tags != tuple(sorted(snapshot.tags)):
                repository.events.set_tags(snapshot.id, tags)
                changed.append((snapshot, tags))
    if settings.json:
        for snapshot, tags in changed:
            document({"message_type": "changed", "id": snapshot.id.hex(), **listed("tags", tags)})
        document({"message_type": "summary", "changed_snapshots": len(changed)})
    elif not settings.quiet:
        for snapshot, tags in changed:
            out(f"{snapshot.short}  tags: {names(tags) or '(none)'}")
        out(f"changed the tags of {count(len(changed), 'snapshot')}")


def all_named(ids: Sequence[bytes]) -> None:
    """Raises UsageError for an empty one: a script's variable that is not set must not stand for all snapshots, or none."""
    if not all(ids):
        raise UsageError("an empty word names no snapshot")
