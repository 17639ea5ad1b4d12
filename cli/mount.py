"""`snapfs mount`, `snapfs umount`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace

import click

from snapfs.cli import opening
from snapfs.cli.options import BYTES, MIB, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import document, line, out
from snapfs.fs import mountpoint as points
from snapfs.fs.background import default_log_path, mount_in_background
from snapfs.fs.mount import MountOptions, load_ahead
from snapfs.fs.mount import mount as run_mount
from snapfs.repo.errors import UsageError
from snapfs.repo.model import MiB
from snapfs.repo.select import Filter

_CACHE = 96


@command()
@selection
@click.argument("mountpoint", metavar="FOLDER")
@click.argument("snapshot", required=False, type=BYTES, metavar="[SNAPSHOT[:PATH]]")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C unmounts.")
@click.option(
    "--allow-other", is_flag=True, help="Let other users in; what each may read, permissions decide."
)
@click.option(
    "--no-default-permissions", is_flag=True, help="With --allow-other: everybody may read everything."
)
@click.option("--owner-root", is_flag=True, help="Show everything as owned by root.")
@click.option(
    "--cache-size",
    type=MIB,
    metavar="SIZE",
    help=f"Memory for content, in MiB or with a unit (default {_CACHE}).",
)
def mount(
    settings: Settings,
    mountpoint: str,
    snapshot: bytes | None,
    wanted: Filter,
    foreground: bool,
    allow_other: bool,
    no_default_permissions: bool,
    owner_root: bool,
    cache_size: int | None,
) -> None:
    """Show all snapshots as ordinary read-only folders, or one of them, or a part of one.

    FOLDER must exist, and is best empty.  In it: ids/, snapshots/ (by time), hosts/ and tags/, each with the snapshots in them,
    and `latest`.  Copy from there with cp or rsync, compare with diff.  The mount stays in the background until `snapfs umount
    FOLDER`; new snapshots appear by themselves.

    \b
    Examples:
      snapfs mount ~/past
      cp -a ~/past/snapshots/latest/home/me/thesis.odt ~/
      snapfs mount ~/past latest:home/me/documents
      snapfs umount ~/past
    """
    if no_default_permissions and not allow_other:
        raise UsageError("--no-default-permissions means nothing without --allow-other")
    if cache_size is not None and cache_size < MiB:
        raise UsageError("--cache-size: at least 1 MiB, please")
    specs = opening.adopt_repository(settings, snapshot)
    place = opening.place(settings)
    if os.path.isdir(place):
        points.check(mountpoint, place)  # before a password is asked for
    options = MountOptions(
        select=wanted.fits if wanted else None,
        allow_other=allow_other,
        no_default_permissions=no_default_permissions,
        owner_root=owner_root,
        cache_bytes=cache_size or _CACHE * MiB,
    )
    progress = reporter(settings)
    imports = load_ahead()
    with opening.open_repository(settings, progress) as repository:
        imports.join()
        host = os.fsencode(socket.gethostname())
        points.check_sources(
            mountpoint,
            {path for s in repository.snapshots() if s.record.host == host for path in s.record.paths},
        )

        def serve(ready: Callable[[], None]) -> None:
            chosen = options
            if specs and specs[0]:
                shown, _, node = opening.snapshot_at(repository, specs[0], wanted)
                chosen = replace(options, root=node, no_xattrs=not shown.record.with_xattrs)

            def say_ready() -> None:
                progress.close()
                ready()

            try:
                run_mount(repository, mountpoint, chosen, say_ready)
            finally:
                # In the background this is a process of its own, which would leave the index as one that crashed does:
                # a temporary one would stay, and the next command would look at every page of a lasting one.
                repository.close()

        if foreground:
            serve(lambda: _say(settings, mountpoint, "Ctrl-C here, or `snapfs umount`, takes it away"))
        else:
            log = default_log_path(repository.id)
            mount_in_background(serve, log)
            _say(settings, mountpoint, "`snapfs umount` takes it away", log)


def _say(settings: Settings, mountpoint: str, hint: str, log: str | None = None) -> None:
    if settings.json:
        document(
            {
                "message_type": "mounted",
                "mountpoint": os.path.abspath(mountpoint),
                **({} if log is None else {"log": log}),
            }
        )
    elif not settings.quiet:
        out(f"mounted on {line(mountpoint)}; {hint}")
        if log is not None:
            out(f"log: {log}")


@command()
@click.argument("mountpoint", metavar="FOLDER")
def umount(settings: Settings, mountpoint: str) -> None:
    """Take a mount away.

    If a program still uses it, it is named.

    \b
    Example:
      snapfs umount ~/past
    """
    points.unmount(mountpoint)
    if settings.json:
        document({"message_type": "unmounted", "mountpoint": os.path.abspath(mountpoint)})
