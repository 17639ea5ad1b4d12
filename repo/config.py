"""Which repository this is, and its parameters: from its config, or, where that is lost, from other objects."""

from __future__ import annotations

import contextlib
import errno
import os

from snapfs.repo.errors import (
    Damaged,
    OldKeys,
    RepositoryError,
    RepositoryNotFound,
    StorageError,
    UnsupportedFormat,
)
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import as_of_this_format, parse_header
from snapfs.repo.format.records import Bundle, Config
from snapfs.repo.format.sealed import open_record
from snapfs.repo.keys import Keys
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.volumes import is_absent


def repository_id(storage: LocalStorage) -> bytes:
    """From the config, or, if that is lost and there are backups, from another object's header."""
    problem: RepositoryError
    try:
        return parse_header(storage.read("config", 0, L.HEADER_SIZE), "config").repository
    except (
        Damaged,
        UnsupportedFormat,
    ) as error:  # the latter may be damage, too: open_config tells, with the keys
        problem = error
    except StorageError as error:
        if error.errno == errno.EIO:  # a bad sector: as damage
            return _repository_id_elsewhere(storage, error)
        if not is_absent(error):
            raise
        half = os.path.isdir(storage.path("keys"))
        problem = RepositoryNotFound(
            f"no repository at {storage.place}: "
            + ("it has no config, so an init was probably interrupted; run `snapfs init` again" if half
               else "there is a folder, but nothing of snapfs in it; check the path, or make one with `snapfs init`"),
            storage.place,
        )  # fmt: skip
    return _repository_id_elsewhere(storage, problem)


def _repository_id_elsewhere(storage: LocalStorage, problem: RepositoryError) -> bytes:
    """From a key slot, or, where none is left, from an event or a volume; but only where there are backups, else raises what is
    wrong with the config."""
    if any(True for folder in ("data", "trees") for _ in storage.list(folder)):
        for folder in ("keys", "events", "trees", "data"):
            for name, _ in storage.list(folder):
                with contextlib.suppress(RepositoryError):
                    return parse_header(storage.read(name, 0, L.HEADER_LIMIT), name).repository
    raise problem


def open_config(
    storage: LocalStorage, keys: Keys, bundle: Bundle, repository: bytes
) -> tuple[Config, str | None]:
    """The config, and what is wrong with its file if the copy in the key slot had to be taken.  A key that can only back up has
    nothing but that copy.  Raises UnsupportedFormat."""
    problem = None
    if not keys.can_read:
        return _checked(bundle.config, repository), None
    try:
        data = storage.read("config", 0, L.RECORD_LIMIT)
        record, epoch = _record(keys, data, repository)
        if epoch != keys.epoch:  # anybody who once had the old keys can write such a one
            problem, record = (
                "config: sealed with keys that were changed; `snapfs key rotate` writes a new one",
                bundle.config,
            )
    except (Damaged, OldKeys, StorageError) as error:
        problem, record = str(error), bundle.config
    return _checked(record, repository), problem


def _checked(record: bytes, repository: bytes) -> Config:
    config = records.check_config(records.decode(Config, record, "config"), "config")
    if config.repository != repository:
        raise Damaged("belongs to another repository", "config")
    return config


def _record(keys: Keys, data: bytes, repository: bytes) -> tuple[bytes, int]:
    """The record, and the epoch of its key.  Raises Damaged, or UnsupportedFormat where it is not a flipped bit that looks like a
    newer format."""
    try:
        return _opened(keys, data, repository)
    except UnsupportedFormat as newer:
        try:
            _opened(keys, as_of_this_format(data), repository)
        except Damaged:
            raise newer from None
    raise Damaged("bad header", "config")


def _opened(keys: Keys, data: bytes, repository: bytes) -> tuple[bytes, int]:
    opener = keys.opener(L.CONFIG, data, "config", repository)
    return open_record(opener, data), opener.epoch


def verify_config(keys: Keys, data: bytes, bundle: Bundle) -> None:
    """Raise Damaged unless a config just written opens as the record that the key slots have."""
    if open_record(keys.opener(L.CONFIG, data, "config"), data) != bundle.config:
        raise Damaged("does not read back as it was meant: is the memory of this machine sound?", "config")
