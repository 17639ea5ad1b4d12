"""`snapfs snapshots`, `tag`, `forget`: what is in the list of snapshots, and what it says of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import click

from snapfs.cli.opening import adopt_repository, open_repository
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import (
    complain,
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
from snapfs.repo.events import StoredSnapshot
from snapfs.repo.select import Filter, choose, find, is_name, parse_tags

_GROUPS: dict[str, Callable[[StoredSnapshot], tuple[bytes, ...]]] = {
    "host": lambda snapshot: (snapshot.record.host,),
    "paths": lambda snapshot: tuple(sorted(snapshot.record.paths)),
    "tags": lambda snapshot: tuple(sorted(snapshot.tags)),
}


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


def _grouping(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    words = tuple(word for word in value.split(",") if word)
    for word in words:
        if word not in _GROUPS:
            raise click.BadParameter(f"{word!r}: give some of host, paths, tags, with commas between")
    return words


@command()
@selection
@click.argument("ids", nargs=-1, type=BYTES, metavar="[ID]...")
@click.option("-c", "--compact", is_flag=True, help="Shorter lines.")
@click.option(
    "--latest", type=click.IntRange(1), metavar="N", help="Only the last N of each host and paths (or group)."
)
@click.option(
    "-g", "--group-by", callback=_grouping, default="", metavar="WORDS", help="Group by host,paths,tags."
)
def snapshots(
    settings: Settings,
    ids: tuple[bytes, ...],
    wanted: Filter,
    compact: bool,
    latest: int | None,
    group_by: tuple[str, ...],
) -> None:
    """List snapshots, the latest last.

    \b
    Examples:
      snapfs snapshots
      snapfs snapshots --host laptop --tag daily --latest 3
      snapfs snapshots --json
    """
    names_of = [name for name in adopt_repository(settings, *ids) if name]
    with open_repository(settings, reporter(settings)) as repository:
        everything = repository.snapshots()
    if names_of:
        chosen = sorted(
            {find(everything, name, wanted) for name in names_of}, key=lambda s: (s.record.time, s.id)
        )
    else:
        chosen = choose(everything, wanted)
    groups = _grouped(chosen, group_by)
    if latest is not None:
        kept = {s.id for _, group in _grouped(chosen, group_by or ("host", "paths")) for s in group[-latest:]}
        groups = [(key, [s for s in group if s.id in kept]) for key, group in groups]
    if settings.json:
        _print_json(groups, group_by)
        return
    for key, group in groups:
        if group_by:
            out(
                "snapshots of "
                + "; ".join(f"{word} {names(value)}" for word, value in zip(group_by, key, strict=True))
            )
        _print_table(group, compact)
        if not settings.quiet:
            out(count(len(group), "snapshot"))
    if not groups and not settings.quiet:
        out(f"no snapshots{wanted.describe()}")


Grouped = list[tuple[tuple[tuple[bytes, ...], ...], list[StoredSnapshot]]]


def _grouped(chosen: Sequence[StoredSnapshot], words: Sequence[str]) -> Grouped:
    def key(snapshot: StoredSnapshot) -> tuple[tuple[bytes, ...], ...]:
        return tuple(_GROUPS[word](snapshot) for word in words)

    return [(value, list(group)) for value, group in groupby(sorted(chosen, key=key), key)]


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


def _print_table(chosen: Sequence[StoredSnapshot], compact: bool) -> None:
    if compact:
        rows = [(s.short, moment(s.record.time), text(s.record.host), names(s.tags)) for s in chosen]
        lines = table(("ID", "Time", "Host", "Tags"), rows)
    else:
        full = [
            (
                s.short,
                moment(s.record.time),
                text(s.record.host),
                names(s.tags),
                names(s.record.paths),
                size(s.record.totals.size),
            )
            for s in chosen
        ]
        lines = table(("ID", "Time", "Host", "Tags", "Paths", "Size"), full, right=(5,))
    for line in lines:
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
    _all_named(ids)
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


@command()
@click.argument("ids", nargs=-1, type=BYTES, metavar="ID...")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("-c", "--compact", is_flag=True, help="Shorter lines.")
@click.option("--yes", is_flag=True, help="Do not ask.  Needed where there is no terminal.")
def forget(settings: Settings, ids: tuple[bytes, ...], dry_run: bool, compact: bool, yes: bool) -> None:
    """Remove snapshots from the list.

    They are named one by one: by ids, or latest and latest~N.  Nothing is deleted from the disk by this, and no space becomes
    free.

    \b
    Examples:
      snapfs forget -n 3f2a 91bc
      snapfs forget 3f2a
    """
    if not ids:
        raise UsageError("forget what? name snapshots (`snapfs snapshots` lists them)")
    _all_named(ids)
    specs = adopt_repository(settings, *ids)
    for spec in specs:
        if not is_name(spec):
            raise UsageError(f"{text(spec)}: forget takes whole snapshots, by the first digits of their ids")
    with open_repository(settings, reporter(settings)) as repository:
        everything = repository.snapshots()
        found = {find(everything, spec) for spec in specs}  # one that does not exist: nothing is forgotten
        chosen = sorted(found, key=lambda s: (s.record.time, s.id))
        if not settings.json:
            if not settings.quiet:
                out("would forget:" if dry_run else "to forget:")
            _print_table(chosen, compact)
        if not dry_run:
            _confirm(len(chosen), yes)
            repository.events.forget([snapshot.id for snapshot in chosen])
    if settings.json:
        document(
            {
                "message_type": "summary",
                "dry_run": dry_run,
                "removed_snapshots": [snapshot_json(s) for s in chosen],
            }
        )
    elif not dry_run and not settings.quiet:
        out(f"forgot {count(len(chosen), 'snapshot')}")


def _all_named(ids: Sequence[bytes]) -> None:
    """Raises UsageError for an empty one: a script's variable that is not set must not stand for all snapshots, or none."""
    if not all(ids):
        raise UsageError("an empty word names no snapshot")


def _confirm(number: int, yes: bool) -> None:
    """Ask on a terminal, refuse in a script."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("nothing was forgotten: without a terminal to ask on, this needs --yes")
    complain(f"Forget {'this snapshot' if number == 1 else f'these {number} snapshots'}? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was forgotten")
