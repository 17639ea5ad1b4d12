"""Changing the keys of small repositories, and somebody who kept the old ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from snapfs.repo.client import Client
from snapfs.repo.events import Events
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import Sealer, parse_header
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Kind, VolumeKind
from snapfs.repo.repository import Repository
from snapfs.repo.rotation import Rotated, rotate
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.system import System
from snapfs.repo.volumes import object_name
from support.repositories import PASSWORD


def opened(folder: Path, password: bytes = PASSWORD, machine: str = "", **options: Any) -> Repository:
    """The repository in folder/repository; each `machine` has an index and a state of its own."""
    return Repository.open(
        str(folder / "repository"), password, cache_dir=str(folder / f"cache{machine}"),
        state_dir=str(folder / f"state{machine}"), **options,
    )  # fmt: skip


def change_keys(
    folder: Path, password: bytes = PASSWORD, *kept: bytes, machine: str = "", **options: Any
) -> Rotated:
    """Seal with new keys from now on; slots stay that one of these passwords opens."""
    with opened(folder, password, machine, newest=True) as repository:
        return rotate(
            repository, password, repository.slots.opened_by(kept), host="host", user="user", **options
        )


def bundle_of(folder: Path, password: bytes = PASSWORD) -> records.Bundle:
    """What somebody has who took it along: the repository wipes its own when it is closed."""
    with opened(folder, password) as repository:
        bundle = repository.slots.bundle
        keys = (records.KeyEntry(key.name, key.epoch, bytes(bytearray(key.key))) for key in bundle.keys)
        return records.Bundle(bundle.version, bundle.role, tuple(keys), bundle.config)


def epochs(folder: Path, *folders: str) -> list[int]:
    """Of the objects in these folders of the repository, as their headers say."""
    paths = [path for name in folders for path in (folder / "repository" / name).rglob("*") if path.is_file()]
    return sorted(parse_header(path.read_bytes()[: L.HEADER_LIMIT], "it").epoch for path in paths)


class Thief:
    """Has the keys that a bundle holds, and may write to the storage; obeys no rule."""

    def __init__(self, folder: Path, bundle: records.Bundle) -> None:
        self.storage = LocalStorage(str(folder / "repository"))
        self.keys = Keys(bundle, "stolen")
        self.repository = parse_header((folder / "repository/config").read_bytes(), "config").repository
        system = System()
        self.events = Events(self.storage, self.keys, self.repository, Client(None, system), system)
        self.publish = self.events._append

    def poison(self, ids: list[BlobId], length: int) -> bytes:
        """A volume whose directory lists these blobs of this length, and that holds none of them; returns its name."""
        sealer = Sealer(
            self.keys.sealing(L.DATA_VOLUME), L.DATA_VOLUME, self.repository, os.urandom(32), epoch=self.keys.epoch
        )  # fmt: skip
        words = [framing.word(Kind.CONTENT, length)] * len(ids)
        plain = framing.join(words, [bytes(length)] * len(ids))
        head, body = sealer.frame(sealer.number(), L.FRAME_BLOBS, L.STORED, len(ids), len(plain), plain)
        out = sealer.header + head + body
        frames = [layout.FrameEntry(0, len(sealer.header), len(body), len(ids))]
        (part,) = layout.encode_directory(frames, words, ids)
        at = len(out)
        head, body = sealer.frame(sealer.number(), L.FRAME_DIRECTORY, L.STORED, 0, len(part), part)
        out += head + body + sealer.tail(layout.Tail(1, 1, at).encode())
        name = hashlib.sha256(out).digest()
        path = Path(self.storage.path(object_name(VolumeKind.DATA, name)))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(out)
        return name
