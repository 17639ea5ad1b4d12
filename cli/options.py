"""Options that several commands share, and the settings that every command has.

The settings may stand before or behind the verb, as in restic.  Order: flag, then environment word.  Every other option can be
given as SNAPFS_COMMAND__OPTION (SNAPFS_BACKUP__EXCLUDE_CACHES=1).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from snapfs.repo.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?)(?:i?b)?", re.IGNORECASE)


@dataclass
class Settings:
    """What all commands understand; filled while the command line is read."""

    repo: str | None = None
    repository_file: str | None = None
    password_file: str | None = None
    password_command: str | None = None
    insecure_no_password: bool = False
    cache_dir: str | None = None
    no_cache: bool = False
    no_lock: bool = False
    accept_rollback: bool = False
    quiet: bool = False
    verbose: int = 0
    json: bool = False

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        for one, other in (
            ("quiet", "verbose"),
            ("repo", "repository_file"),
            ("password_file", "password_command"),
            ("password_file", "insecure_no_password"),
            ("password_command", "insecure_no_password"),
            ("no_cache", "cache_dir"),
        ):
            if getattr(self, one) and getattr(self, other):
                raise UsageError(f"{_flag(one)} and {_flag(other)} contradict each other: give one of them")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def text(value: str | bytes) -> bytes:
    """An argument as the bytes it is: names of files and tags need not be UTF-8."""
    return os.fsencode(value)


def size_in(unit: int) -> Callable[[str | int], int]:
    """The type of an option that takes "10M" or "1.5 GiB"; a bare number is in `unit` bytes."""

    def size(value: str | int) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise click.BadParameter(f"{value!r} is not a size: give a number, or one with K, M, G or T")
        bare = value.strip()[-1].isdigit()
        return int(float(match[1]) * (unit if bare else 1024 ** " kmgt".index(match[2].lower() or " ")))

    return size


BYTES = text
SIZE = size_in(1)
MIB = size_in(1024 * 1024)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    settings = ctx.ensure_object(Settings)
    name = param.name or ""
    if value == "":
        raise click.BadParameter(f"{_flag(name)} is empty")
    if not value:
        return
    if name == "verbose":
        settings.verbose += value
    elif not getattr(settings, name) or ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
        setattr(settings, name, value)


def settings_options(hidden: bool) -> Callable[[F], F]:
    """The options of every command.  They are shown in the help of `snapfs` itself, not in that of each verb."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _store, "hidden": hidden}
    options = [
        click.option("-r", "--repo", metavar="FOLDER", help="The repository.  [SNAPFS_REPOSITORY]", **shared),
        click.option(
            "--repository-file",
            metavar="FILE",
            help="A file that names the repository.  [SNAPFS_REPOSITORY_FILE]",
            **shared,
        ),
        click.option(
            "-p",
            "--password-file",
            metavar="FILE",
            help="Read the password from a file.  [SNAPFS_PASSWORD_FILE]",
            **shared,
        ),
        click.option(
            "--password-command",
            metavar="COMMAND",
            help="Run a command (without a shell) that prints the password.  [SNAPFS_PASSWORD_COMMAND]",
            **shared,
        ),
        click.option(
            "--insecure-no-password", is_flag=True, help="The empty password: anybody can read it.", **shared
        ),
        click.option(
            "--cache-dir", metavar="FOLDER", help="Keep the index there.  [SNAPFS_CACHE_DIR]", **shared
        ),
        click.option("--no-cache", is_flag=True, help="Build an index for this run only.", **shared),
        click.option(
            "--accept-rollback",
            is_flag=True,
            help="Go on though snapshots that were here are gone, and remember that.",
            **shared,
        ),
        click.option(
            "--no-lock",
            is_flag=True,
            help="Accepted for restic's sake: snapfs readers lock nothing.",
            **{**shared, "hidden": True},
        ),
        click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.", **shared),
        click.option("-v", "--verbose", count=True, help="Print more: names of files; -vv all.", **shared),
        click.option("--json", is_flag=True, help="Print JSON for programs to read.", **shared),
    ]

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A verb: its function gets the Settings first.  Its docstring is the help; "\\b" keeps an example's lines apart."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def call(*args: Any, **values: Any) -> Any:
            settings = click.get_current_context().ensure_object(Settings)
            settings.check()
            return function(settings, *args, **values)

        epilog = "-r, -p, -q, -v, --json and the other options of every command: snapfs --help"
        made: click.Command = click.command(cls=click.Command, epilog=epilog, **attributes)(
            settings_options(hidden=True)(call)
        )
        return made

    return decorate


def selection(function: F) -> F:
    """--host, --tag, --path; the function gets them as `wanted`, a repo.select.Filter."""
    return _selecting(function, "-H")


def selection_without_h(function: F) -> F:
    """The same where -H means something else."""
    return _selecting(function)


def _selecting(function: F, *short: str) -> F:
    @click.option(
        *short, "--host", type=BYTES, multiple=True, envvar="SNAPFS_HOST", help="Only snapshots of this host."
    )
    @click.option(
        "--tag", type=BYTES, multiple=True, help="Only with this tag; a,b needs both; repeat for either."
    )
    @click.option("--path", type=BYTES, multiple=True, help="Only snapshots of this path.")
    @functools.wraps(function)
    def call(
        *args: Any, host: tuple[bytes, ...], tag: tuple[bytes, ...], path: tuple[bytes, ...], **values: Any
    ) -> Any:
        from snapfs.repo.select import Filter, parse_tags

        paths = tuple(os.path.abspath(one) for one in path)
        return function(*args, wanted=Filter(host, parse_tags(tag), paths), **values)

    return call  # type: ignore[return-value]


def grouping(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """The callback of --group-by: words of repo.select.GROUPS."""
    from snapfs.repo.select import GROUPS

    words = tuple(dict.fromkeys(word for word in value.split(",") if word))
    for word in words:
        if word not in GROUPS:
            raise click.BadParameter(f"{word!r}: give some of host, paths, tags, with commas between")
    return words


def contradiction(**given: Any) -> None:
    """Raises UsageError if more than one of these options is there: contradiction(stdin=True, files_from=("x",))."""
    flags = [_flag(name) for name, value in given.items() if value]
    if len(flags) > 1:
        raise UsageError(f"{flags[0]} and {flags[1]} contradict each other: give one of them")
