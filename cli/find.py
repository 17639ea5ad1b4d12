"""`snapfs find`: names in all snapshots."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import click

from snapfs.cli.backup import parse_time
from snapfs.cli.browse import long_line, node_json
from snapfs.cli.opening import open_repository
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import moment, out, raw, text
from snapfs.repo import select
from snapfs.repo.errors import UsageError
from snapfs.repo.query.find import Match
from snapfs.repo.query.find import find as run_find


@command()
@selection
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option("-i", "--ignore-case", is_flag=True, help="a fits A.")
@click.option("-l", "--long", is_flag=True, help="Show mode, owner, size and time.")
@click.option("--human-readable", is_flag=True, help="With -l: sizes in KiB, MiB ...")
@click.option(
    "-s", "--snapshot", "only", type=BYTES, multiple=True, help="Only in this snapshot; can be repeated."
)
@click.option("-O", "--oldest", metavar="TIME", help="Only what was changed at that time or later.")
@click.option("-N", "--newest", metavar="TIME", help="Only what was changed at that time or earlier.")
@click.option("-R", "--reverse", is_flag=True, help="The newest snapshot first.")
@click.option("-0", "--null", is_flag=True, help="Exact SNAPSHOT:PATH, each ended by a NUL byte.")
def find(
    settings: Settings,
    patterns: tuple[str, ...],
    wanted: select.Filter,
    ignore_case: bool,
    long: bool,
    human_readable: bool,
    only: tuple[bytes, ...],
    oldest: str | None,
    newest: str | None,
    reverse: bool,
    null: bool,
) -> None:
    """Find files by name in all snapshots.

    PATTERN is a name or a path with the wildcards *, ? and [...]; put quotes around it.

    \b
    Examples:
      snapfs find "thesis*.odt"
      snapfs find -l -i --host laptop "*.jpg" --oldest "2026-01-01"
      snapfs find -s latest /home/me/notes.txt
    """
    if null and (settings.json or long):
        raise UsageError("-0 prints bare names: --json and --long contradict it")
    first, last = (None if given is None else parse_time(given) for given in (oldest, newest))
    progress = reporter(settings)
    with open_repository(settings, progress) as repository:
        everything = repository.snapshots()
        chosen = [select.find(everything, name, wanted) for name in only] or select.choose(everything, wanted)
        if reverse:
            chosen.reverse()
        matches = run_find(
            repository,
            chosen,
            [_unicode(one) for one in patterns],
            ignore_case=ignore_case,
            oldest=first,
            newest=last,
        )
        if settings.json:
            _print_json(matches)
        elif null:
            for match in matches:
                raw(match.snapshot.short.encode(), b":", match.path, b"\0")
        else:
            for snapshot, group in groupby(matches, lambda match: match.snapshot):
                out(
                    f"snapshot {snapshot.short} of {moment(snapshot.record.time)}, host {text(snapshot.record.host)}:"
                )
                for match in group:
                    shown = long_line(match.path, match.node, human_readable) if long else text(match.path)
                    out(f"  {shown}")
        progress.close()


def _unicode(pattern: str) -> str:
    """Arguments are decoded by the locale, patterns compared as UTF-8."""
    return os.fsencode(pattern).decode("utf-8", "surrogateescape")


def _print_json(matches: Iterable[Match]) -> None:
    """restic's array, written as it is found."""

    def dumped(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"))

    write = sys.stdout.write
    write("[")
    for number, (snapshot, group) in enumerate(groupby(matches, lambda match: match.snapshot)):
        write(("," if number else "") + '{"matches":[')
        hits = 0
        for match in group:
            write(("," if hits else "") + dumped(node_json(match.path, match.node)))
            hits += 1
        write(f'],"hits":{hits},"snapshot":{dumped(snapshot.id.hex())}}}')
    write("]\n")
