"""Which repository, and how to open it: settings, environment and passwords put together."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys

from snapfs.cli import passwords
from snapfs.cli.options import Settings
from snapfs.cli.render import complain
from snapfs.repo.errors import RolledBack, UsageError, WrongPassword
from snapfs.repo.heap import keep_memory
from snapfs.repo.model import Node
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.select import NO_FILTER, Filter, find, parse_spec
from snapfs.repo.state import StoredSnapshot

_REMOTE = re.compile(r"(s3|sftp|ssh|rest|https?|b2|azure|gs|swift|rclone):", re.IGNORECASE)
_TRIES = 3
_SWITCH_SECONDS = 0.001
"""How long a thread may wait for the interpreter's lock before it asks for it (Python's own: 0.005).  The thread that walks a
source, or answers the kernel, gives it up at every system call and every hash, and wants it back from workers at once."""


def place(settings: Settings) -> str:
    """The repository's folder.  Raises UsageError."""
    where, file = settings.repo, settings.repository_file
    if where is None and file is None:
        where, file = os.environ.get("SNAPFS_REPOSITORY"), os.environ.get("SNAPFS_REPOSITORY_FILE")
        if where and file:
            raise UsageError("SNAPFS_REPOSITORY and SNAPFS_REPOSITORY_FILE are both set: set one of them")
    if file:
        try:
            with open(file, "rb") as opened:
                where = os.fsdecode(opened.read().rstrip(b"\r\n"))
        except OSError as error:
            raise UsageError(f"repository file {file}: {error.strerror}") from None
    if not where:
        raise UsageError("no repository: name one with -r FOLDER, or set SNAPFS_REPOSITORY")
    if "\0" in where:
        raise UsageError("the repository's name holds a NUL byte")
    if where.startswith("local:"):
        return where.removeprefix("local:")
    if _REMOTE.match(where) and not os.path.exists(where):
        raise UsageError(
            f"{where}: this version keeps repositories in folders only, mount the other place first"
        )
    return where


def open_repository(
    settings: Settings, progress: Progress, *, even_rolled_back: bool = False, backing_up: bool = False
) -> Repository:
    """Open it, with up to three tries where the password is typed.

    Raises RolledBack if events are gone that were here, unless --accept-rollback or `even_rolled_back`; BackupOnly for a key that
    can do nothing else, unless `backing_up`.
    """
    repository, password = _open(settings, progress, backing_up=backing_up)
    passwords.forget(password)
    try:
        repository.refuse_rollback(settings.accept_rollback)
    except BaseException as error:
        if not (even_rolled_back and isinstance(error, RolledBack)):
            repository.close()
            raise
    return repository


def open_newest(settings: Settings, progress: Progress) -> tuple[Repository, passwords.Password]:
    """The same, with the newest keys that the password opens, and that password."""
    repository, password = _open(settings, progress, newest=True)
    try:
        repository.refuse_rollback(settings.accept_rollback)
    except BaseException:
        repository.close()
        raise
    return repository, password


def _open(
    settings: Settings, progress: Progress, *, newest: bool = False, backing_up: bool = False
) -> tuple[Repository, passwords.Password]:
    prepare_log(settings.json)
    keep_memory()
    sys.setswitchinterval(_SWITCH_SECONDS)
    where = place(settings)

    def attempt(password: passwords.Password) -> tuple[Repository, passwords.Password]:
        cache_dir = settings.cache_dir or os.environ.get("SNAPFS_CACHE_DIR") or None
        repository = Repository.open(
            where, password, cache_dir=cache_dir, no_cache=settings.no_cache, progress=progress, newest=newest,
            backing_up=backing_up,
        )  # fmt: skip
        return repository, password

    if not os.path.exists(os.path.join(where, "config")):
        with contextlib.suppress(WrongPassword):  # then there is a repository, and only its config is lost
            return attempt(b"")  # there is nothing to open: says so without asking for a password
    password = passwords.existing(settings, progress.notice)
    if password is not None:
        return attempt(password)
    for _ in range(_TRIES - 1):
        try:
            return attempt(passwords.ask(f"password for the repository {where}: "))
        except WrongPassword as error:
            complain(f"{error}; please try again")
    return attempt(passwords.ask(f"password for the repository {where}: "))


def snapshot_at(
    repository: Repository, spec: bytes, wanted: Filter = NO_FILTER
) -> tuple[StoredSnapshot, bytes, Node]:
    """SNAP[:PATH] as (snapshot, PATH, the node there).  Raises SnapshotNotFound, UsageError."""
    asked = parse_spec(spec)
    snapshot = find(repository.snapshots(), asked.name, wanted)
    path = b"/" + (asked.path or b"").strip(b"/")
    return snapshot, path, repository.trees.resolve(snapshot.record.root, path)


def adopt_repository(settings: Settings, *specs: bytes | None) -> list[bytes]:
    """Take the repository from borg's REPOSITORY::SNAPSHOT, if one of these is that; returns them without it."""
    plain = []
    for spec in filter(None, specs):
        asked = parse_spec(spec)
        if asked.repository is not None:
            named = os.fsdecode(asked.repository)
            if settings.repo not in (None, named):
                raise UsageError(f"two repositories are named: {settings.repo} and {named}")
            settings.repo = named
            spec = spec[len(asked.repository) + 2 :]
        elif spec.startswith(b"::"):
            spec = spec[2:]
        plain.append(spec)
    return plain


class _JsonLog(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"message_type": "notice", "message": record.getMessage()})


def prepare_log(as_json: bool) -> None:
    """The engine's warnings go to stderr as lines; SNAPFS_DEBUG=1 shows all it says."""
    level = logging.DEBUG if os.environ.get("SNAPFS_DEBUG") else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLog() if as_json else logging.Formatter("snapfs: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
