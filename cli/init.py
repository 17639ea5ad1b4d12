"""`snapfs init`."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
from typing import TypedDict

import click

from snapfs.cli import opening, passwords
from snapfs.cli.options import MIB, Settings, command
from snapfs.cli.progress import reporter
from snapfs.cli.render import document, out
from snapfs.repo.creation import default_state_dir
from snapfs.repo.errors import RepositoryExists, UsageError
from snapfs.repo.format.labels import VOLUME_SIZE
from snapfs.repo.repository import Repository


@command()
@click.option(
    "--generate-password",
    is_flag=True,
    help="Make a long random password and print it once, instead of asking for one.",
)
@click.option(
    "--volume-size",
    "--pack-size",
    type=MIB,
    envvar="SNAPFS_PACK_SIZE",
    metavar="MIB",
    help="Size of the files in data/, in MiB (default 64).",
)
@click.option(
    "--parity",
    is_flag=True,
    help="Keep parity: a few bad sectors cost nothing then.  2.3% more room, 4 KiB a volume at least.",
)
def init(settings: Settings, generate_password: bool, volume_size: int | None, parity: bool) -> None:
    """Make a new repository: an empty folder becomes a place for encrypted backups.

    The folder is made if it does not exist.  The password is asked for twice; whoever loses it loses the backups, nobody can
    recover it.

    \b
    Examples:
      snapfs init -r /media/disk/backup
      snapfs init -r /media/disk/backup --parity --generate-password
      snapfs init -r /srv/backup --password-file /root/backup-password
    """
    where = opening.place(settings)
    if os.path.exists(os.path.join(where, "config")):
        raise RepositoryExists(f"{where}: there is a repository here already", where)
    password = passwords.existing(settings, reporter(settings).notice)
    if generate_password:
        if password is not None:
            raise UsageError(
                "--generate-password, but a password is given too (a --password option or SNAPFS_PASSWORD...): use one"
            )
        password = passwords.generate()
    elif password is None:
        password = passwords.ask_new(
            f"new password for the repository {where}: ",
            "--password-file, --password-command, SNAPFS_PASSWORD or --generate-password",
        )
    repository = Repository.create(
        where,
        password,
        volume_size=volume_size or VOLUME_SIZE,
        parity=parity,
        label="init",
        remember_in=default_state_dir(),
        **who(),
    )
    if settings.json:
        secret = {"generated_password": password.decode()} if generate_password else {}
        document(
            {"message_type": "initialized", "id": repository.hex(), "repository": os.path.abspath(where)}
            | secret
        )
        return
    if generate_password:
        out(f"password: {password.decode()}")
        out()
        out(
            "This is the only time it is shown.  Write it down, and keep it somewhere else than this machine."
        )
    if settings.quiet:
        return
    shown = shlex.quote(where)
    out(f"made the repository {repository.hex()[:8]} at {os.path.abspath(where)}")
    out()
    out("Next:")
    for line in ("backup ~/documents", "snapshots", "mount ~/past"):
        out(f"  snapfs -r {shown} {line}")
    out()
    out(
        "The password cannot be recovered: without it nobody, you neither, gets at these backups.\n"
        "Keep a copy of it where a fire or a thief that takes this machine does not find it.\n"
        f"A key for paper, in case it is forgotten:  snapfs -r {shown} key recovery"
    )


class Who(TypedDict):
    host: str
    user: str


def who() -> Who:
    """Host and user, as they are noted beside a key slot."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such account
        user = str(os.getuid())
    return {"host": socket.gethostname(), "user": user}
