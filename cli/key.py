"""`snapfs key list`, `add`, `passwd`, `remove`: the passwords that open a repository."""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli import passwords
from snapfs.cli.init import who
from snapfs.cli.opening import open_repository
from snapfs.cli.options import Settings, command, settings_options
from snapfs.cli.progress import reporter
from snapfs.cli.render import document, iso, line, moment, out, table
from snapfs.repo.errors import UsageError
from snapfs.repo.events import KeyNote


@click.group()
@settings_options(hidden=True)
def key() -> None:
    """Manage passwords.  A repository can have several; each opens all of it.

    \b
    Examples:
      snapfs key list
      snapfs key add            a second password, for a colleague
      snapfs key passwd         another password in place of the one you use
    """


def _new_password(settings: Settings, file: str | None, empty: bool) -> bytes:
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


def _note(name: str, note: KeyNote | None, current: bool) -> dict[str, Any]:
    about = {} if note is None else {"label": note.label, "hostName": note.host, "userName": note.user}
    when = {} if note is None else {"created": iso(note.time)}
    return {"id": name, "current": current, **about, **when}


@command(name="list")
def list_keys(settings: Settings) -> None:
    """List the passwords (not what they are): the one in use has a star.

    \b
    Example:
      snapfs key list
    """
    with open_repository(settings, reporter(settings)) as repository:
        slots = repository.key_slots()
        if settings.json:
            document([_note(name, note, name == repository.slot) for name, note in slots])
            return
        rows = [
            (("*" if name == repository.slot else " ") + name[:8],)
            + (
                ("", "", "", "")
                if note is None
                else (line(note.label), line(note.user), line(note.host), moment(note.time))
            )
            for name, note in slots
        ]
        for row in table((" ID", "Label", "User", "Host", "Created"), rows):
            out(row)


@command()
@_new_options
def add(
    settings: Settings, new_password_file: str | None, new_insecure_no_password: bool, label: str
) -> None:
    """Add a password: it opens everything the others open.

    \b
    Examples:
      snapfs key add --label colleague
      snapfs key add --new-password-file /root/second-password
    """
    with open_repository(settings, reporter(settings)) as repository:
        name = repository.add_key(
            _new_password(settings, new_password_file, new_insecure_no_password), label=label, **who()
        )
        _say(settings, f"added the password {name[:8]}", "key_added", name)


@command()
@_new_options
def passwd(
    settings: Settings, new_password_file: str | None, new_insecure_no_password: bool, label: str
) -> None:
    """Replace the password in use by a new one; others stay.

    Whoever knew the old password and kept a copy of the repository's key file can still read what that opens.

    \b
    Example:
      snapfs key passwd
    """
    with open_repository(settings, reporter(settings)) as repository:
        password = _new_password(settings, new_password_file, new_insecure_no_password)
        name = repository.change_password(password, label=label, **who())
        _say(settings, f"changed: the password in use is now {name[:8]}", "key_changed", name)


@command()
@click.argument("id", metavar="ID")
def remove(settings: Settings, id: str) -> None:
    """Remove a password: it opens nothing any more.

    ID is the beginning of what `snapfs key list` shows.  The password in use cannot be removed.

    \b
    Example:
      snapfs key remove 4f1c
    """
    with open_repository(settings, reporter(settings)) as repository:
        fitting = [name for name, _ in repository.key_slots() if name.startswith(id.lower())]
        if len(fitting) != 1:
            many = (
                f"fits {len(fitting)} passwords: give more digits" if fitting else "is none of the passwords"
            )
            raise UsageError(f"{id} {many} (`snapfs key list` lists them)")
        repository.remove_key(fitting[0])
        _say(settings, f"removed the password {fitting[0][:8]}", "key_removed", fitting[0])


def _say(settings: Settings, text: str, kind: str, name: str) -> None:
    if settings.json:
        document({"message_type": kind, "id": name})
    elif not settings.quiet:
        out(text)


for _command in (list_keys, add, passwd, remove):
    key.add_command(_command)
