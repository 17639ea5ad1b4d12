"""`snapfs key list`, `add`, `passwd`, `remove`: what opens a repository.

`key recovery` is in recovery.py, `key export` and `key import` in keyfile.py, `key rotate` in rotate.py.
"""

from __future__ import annotations

import functools
from typing import Any

import click

from snapfs.cli import passwords
from snapfs.cli.init import who
from snapfs.cli.keyfile import export, import_key, slot_named
from snapfs.cli.opening import open_repository
from snapfs.cli.options import MIB, Settings, command, settings_options
from snapfs.cli.progress import reporter
from snapfs.cli.recovery import recovery
from snapfs.cli.render import document, iso, line, moment, out, table
from snapfs.cli.rotate import rotate
from snapfs.repo.errors import UsageError
from snapfs.repo.format import labels as L
from snapfs.repo.format.keyslot import Cost
from snapfs.repo.model import KiB, MiB
from snapfs.repo.state import KeyNote

_USUAL = Cost()
_FLOOR_MIB, _CAP_MIB = L.ARGON2_FLOOR_KIB // KiB, L.ARGON2_CAP_KIB // KiB


@click.group()
@settings_options(hidden=True)
def key() -> None:
    """Manage passwords and recovery keys.  A repository can have several; each opens all of it.

    \b
    Examples:
      snapfs key list
      snapfs key add            a second password, for a colleague
      snapfs key passwd         another password in place of the one you use
      snapfs key recovery       a key for paper, in case all passwords are forgotten
      snapfs key rotate         new keys, after a password or a computer was stolen
    """


def _new_password(settings: Settings, file: str | None, empty: bool) -> passwords.Password:
    password = passwords.given("SNAPFS_NEW_", file, None, empty, reporter(settings).notice)
    return (
        passwords.ask_new("new password: ", "--new-password-file or SNAPFS_NEW_PASSWORD")
        if password is None
        else password
    )


def _new_options(function: Any) -> Any:
    file = click.option(
        "--new-password-file",
        metavar="FILE",
        help="Read the new password from a file.  [SNAPFS_NEW_PASSWORD_FILE]",
    )
    empty = click.option(
        "--new-insecure-no-password", is_flag=True, help="The new password is empty: anybody can read it."
    )
    label = click.option("--label", default="", help="A word that tells this password from others.")
    return file(empty(label(function)))


def _cost_options(function: Any) -> Any:
    """--kdf-memory and --kdf-passes; the function gets what differs from the usual as `cost`, keywords for the repository."""

    @click.option(
        "--kdf-memory",
        type=MIB,
        metavar="MIB",
        help=f"Memory that trying this password takes, in MiB, {_FLOOR_MIB} to {_CAP_MIB} (default {_USUAL.memory_kib // KiB}).",
    )
    @click.option(
        "--kdf-passes",
        type=click.IntRange(L.ARGON2_FLOOR_ITERATIONS, L.ARGON2_CAP_ITERATIONS),
        metavar="N",
        help=f"How often it goes through that memory (default {_USUAL.iterations}).",
    )
    @functools.wraps(function)
    def call(*args: Any, kdf_memory: int | None, kdf_passes: int | None, **values: Any) -> Any:
        if kdf_memory is not None and not _FLOOR_MIB <= kdf_memory / MiB <= _CAP_MIB:
            raise click.BadParameter(f"--kdf-memory takes {_FLOOR_MIB} to {_CAP_MIB} MiB")
        cost = {}
        if kdf_memory is not None or kdf_passes is not None:
            memory = _USUAL.memory_kib if kdf_memory is None else kdf_memory // KiB
            cost["cost"] = Cost(memory, kdf_passes or _USUAL.iterations)
        return function(*args, cost=cost, **values)

    return call


def _note(name: str, note: KeyNote | None, current: bool) -> dict[str, Any]:
    about: dict[str, Any] = {}
    if note is not None:
        about = {
            "kind": note.kind,
            "label": note.label,
            "hostName": note.host,
            "userName": note.user,
            "epoch": note.epoch,
        }
        if note.backs_up is not None:
            about["backsUp"] = note.backs_up
    when = {} if note is None else {"created": iso(note.time)}
    return {"id": name, "current": current, **about, **when}


@command(name="list")
def list_keys(settings: Settings) -> None:
    """List the passwords and recovery keys (not what they are): the one in use has a star.

    One with "old keys" was put back after a `snapfs key rotate`: it opens what was there before.

    \b
    Example:
      snapfs key list
    """
    with open_repository(settings, reporter(settings)) as repository:
        slots = repository.slots.notes()
        if settings.json:
            document([_note(name, note, name == repository.slots.current) for name, note in slots])
            return
        rows = [
            (("*" if name == repository.slots.current else " ") + name[:8],)
            + (
                ("",) * 5
                if note is None
                else (
                    note.kind
                    + (f" ({line(note.backs_up)})" if note.backs_up is not None else "")
                    + (" (old keys)" if note.epoch < repository.keys.epoch else ""),
                    line(note.label),
                    line(note.user),
                    line(note.host),
                    moment(note.time),
                )
            )
            for name, note in slots
        ]
        for row in table((" ID", "Kind", "Label", "User", "Host", "Created"), rows):
            out(row)


@command()
@_new_options
@_cost_options
@click.option(
    "--backup-only",
    metavar="HOST",
    help="For a machine that is to add backups of this host and can do nothing else: it reads nothing of the repository.",
)
def add(
    settings: Settings,
    new_password_file: str | None,
    new_insecure_no_password: bool,
    label: str,
    cost: dict[str, Cost],
    backup_only: str | None,
) -> None:
    """Add a password: it opens everything the others open.

    With --backup-only it opens nothing: `snapfs backup` with it adds snapshots, which only the other passwords read and remove.

    \b
    Examples:
      snapfs key add --label colleague
      snapfs key add --new-password-file /root/second-password
      snapfs key add --backup-only web1 --new-password-file /root/password-of-web1
    """
    if backup_only is not None and (not backup_only.strip() or "\0" in backup_only):
        raise UsageError("--backup-only: name the host that is to be backed up")
    with open_repository(settings, reporter(settings)) as repository:
        password = _new_password(settings, new_password_file, new_insecure_no_password)
        if backup_only is not None:
            name = repository.add_backup_only_key(password, backup_only, label=label, **who(), **cost)
            _say(settings, f"added the backup-only key {name[:8]} for {line(backup_only)}", "key_added", name)
            return
        name = repository.slots.add(password, label=label, **who(), **cost)
        _say(settings, f"added the password {name[:8]}", "key_added", name)


@command()
@_new_options
@_cost_options
def passwd(
    settings: Settings,
    new_password_file: str | None,
    new_insecure_no_password: bool,
    label: str,
    cost: dict[str, Cost],
) -> None:
    """Replace the password in use by a new one; others stay.

    Whoever knew the old password and kept a copy of the repository's key file can still read what that opens.

    \b
    Example:
      snapfs key passwd
    """
    with open_repository(settings, reporter(settings)) as repository:
        password = _new_password(settings, new_password_file, new_insecure_no_password)
        name = repository.slots.replace(password, label=label, **who(), **cost)
        _say(settings, f"changed: the password in use is now {name[:8]}", "key_changed", name)


@command()
@click.argument("id", metavar="ID")
def remove(settings: Settings, id: str) -> None:
    """Remove a password or recovery key: it opens nothing any more.

    ID is the beginning of what `snapfs key list` shows.  The one in use cannot be removed.

    \b
    Example:
      snapfs key remove 4f1c
    """
    with open_repository(settings, reporter(settings)) as repository:
        name = slot_named(repository, id)
        note = dict(repository.slots.notes()).get(name)
        what = "password" if note is None else note.kind + (" key" if note.backs_up is not None else "")
        repository.slots.remove(name)
        _say(settings, f"removed the {what} {name[:8]}", "key_removed", name)


def _say(settings: Settings, text: str, kind: str, name: str) -> None:
    if settings.json:
        document({"message_type": kind, "id": name})
    elif not settings.quiet:
        out(text)


for _command in (list_keys, add, passwd, remove, recovery, rotate, export, import_key):
    key.add_command(_command)
