"""The options that say what `forget` keeps, and how its decisions look."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from snapfs.cli.options import BYTES
from snapfs.cli.render import count, listed, moment, named, out, size
from snapfs.cli.snapshots import group_title, print_table, snapshot_json
from snapfs.repo.doubts import Doubt, Times
from snapfs.repo.errors import UsageError
from snapfs.repo.retention import (
    PERIODS,
    Decision,
    Duration,
    Group,
    Policy,
    days,
    parse_count,
    parse_duration,
)
from snapfs.repo.select import parse_tags

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_SHORT = {"last": "-l", "hourly": "-H", "daily": "-d", "weekly": "-w", "monthly": "-m", "yearly": "-y"}
_NOUNS = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month", "yearly": "year"}
_NAMED = 10
"""Snapshots whose time is in doubt that are named, at most."""


def _parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The type of an option: a mistake is said with the option's name."""

    def parsed(value: str) -> T:
        try:
            return parse(value)
        except UsageError as error:
            raise click.BadParameter(str(error)) from None

    return parsed


def policy_options(function: F) -> F:
    """--keep-...; the function gets them as `policy`, a repo.retention.Policy."""
    options = [
        click.option(
            "--keep-smart",
            is_flag=True,
            help="Keep one for each of the last 7 days, 4 weeks and 12 months.",
        )
    ]
    for word in ("last", *PERIODS):
        what = "snapshots" if word == "last" else f"{word} snapshots"
        options.append(
            click.option(
                _SHORT[word], f"--keep-{word}", type=_parsed(parse_count), default="0", metavar="N",
                help=f"Keep the last N {what} (or: unlimited).",
            )
        )  # fmt: skip
    options.append(
        click.option(
            "--keep-within", type=_parsed(parse_duration), metavar="DURATION",
            help="Keep all made within this time before the newest: 1y6m14d12h.",
        )
    )  # fmt: skip
    options += [
        click.option(
            f"--keep-within-{word}", type=_parsed(parse_duration), metavar="DURATION",
            help=f"Of those, keep the last of each {noun}.",
        )
        for word, noun in _NOUNS.items()
    ]  # fmt: skip
    options.append(
        click.option(
            "--keep-tag", type=BYTES, multiple=True, metavar="TAG[,TAG...]",
            help="Keep all with this tag; a,b needs both; repeat for either.",
        )
    )  # fmt: skip

    @functools.wraps(function)
    def call(*args: Any, **values: Any) -> Any:
        counts = {word: values.pop(f"keep_{word}") for word in ("last", *PERIODS)}
        each = {word: values.pop(f"keep_within_{word}") or Duration() for word in PERIODS}
        within, tags = values.pop("keep_within") or Duration(), parse_tags(values.pop("keep_tag"))
        policy = Policy(counts.pop("last"), counts, within, each, tags)
        if values.pop("keep_smart"):
            policy = policy.smart()
        return function(*args, policy=policy, **values)

    decorated: Any = call
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def too_few_left(groups: Sequence[Group]) -> str:
    """What to say if a plan leaves snapshots of less than half of the days of which there are some; empty: it does not."""
    before, after = days(groups)
    if 2 * after >= before:
        return ""
    return f"of the {before} days of which there are snapshots, only {after} would be left"


def print_plan(
    groups: Sequence[Group],
    words: Sequence[str],
    frees: dict[bytes, int] | None,
    times: Times,
    compact: bool,
    quiet: bool,
) -> None:
    """A table a group of what is kept and why, and one of what is removed; the newest at the end."""
    for group in groups:
        keep, remove = group.keep[::-1], group.remove[::-1]
        if not quiet and group.key:
            out(group_title(words, group.key))
        if keep and not quiet:
            out(f"keep {count(len(keep), 'snapshot')}:")
            print_table(
                [d.snapshot for d in keep], compact, [("Reasons", ["; ".join(d.reasons) for d in keep])]
            )
            out()
        if remove:
            if not quiet:
                out(f"remove {count(len(remove), 'snapshot')}:")
            column = [] if frees is None else [("Frees", [f"~{size(frees[d.snapshot.id])}" for d in remove])]
            print_table([d.snapshot for d in remove], compact, column, right=True)
            if not quiet:
                out()
    if not quiet:
        for line in _doubts([d for group in groups for d in group.decisions], times):
            out(line)


def _doubts(decisions: Iterable[Decision], times: Times) -> list[str]:
    lines = [_doubt(decision, times) for decision in decisions if decision.doubt is not None]
    if len(lines) > _NAMED:
        lines[_NAMED:] = [f"... and {len(lines) - _NAMED:,} more with a time in doubt"]
    return (
        [*lines, 'These push no other snapshot out (docs/guide.md, "Times in doubt").', ""] if lines else []
    )


def _doubt(decision: Decision, times: Times) -> str:
    snapshot = decision.snapshot
    why = {
        Doubt.UNCONFIRMED: f"this machine first saw it at {moment(times.doubted.get(snapshot.id, 0))}",
        Doubt.FUTURE: "that has not come yet",
        Doubt.BEHIND: "it was made after others that say a later time",
    }
    return f"{snapshot.short} says {moment(snapshot.record.time)}, but {why[decision.doubt or Doubt.FUTURE]}"


def plan_json(
    groups: Sequence[Group], words: Sequence[str], frees: dict[bytes, int] | None
) -> list[dict[str, Any]]:
    """In restic's words; `doubt` and `frees` are ours."""

    def of(decision: Decision) -> dict[str, Any]:
        more: dict[str, Any] = {} if decision.doubt is None else {"doubt": decision.doubt.value}
        if frees is not None and not decision.reasons:
            more["frees"] = frees[decision.snapshot.id]
        return snapshot_json(decision.snapshot) | more

    found = []
    for group in groups:
        key = dict(zip(words, group.key, strict=True))
        found.append(
            {
                **listed("tags", key.get("tags", ())),
                **named("host", key.get("host", (b"",))[0]),
                **listed("paths", key.get("paths", ())),
                "keep": [of(decision) for decision in group.keep],
                "remove": [of(decision) for decision in group.remove],
                "reasons": [
                    {"snapshot": of(decision), "matches": decision.reasons} for decision in group.keep
                ],
            }
        )
    return found
