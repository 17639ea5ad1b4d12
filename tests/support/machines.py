"""Machines that can only back up: each with a password of its own, and a state and cache that nobody else has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format import recipient, records
from snapfs.repo.format import volume as layout
from snapfs.repo.format.keyslot import open_slot
from snapfs.repo.format.records import Event, EventBody, Signed
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Kind, NodeType, Snapshot, Totals, VolumeKind
from snapfs.repo.progress import Progress
from snapfs.repo.prune.engine import PruneOptions
from snapfs.repo.prune.plan import Unused
from snapfs.repo.repository import Repository
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.system import System
from snapfs.repo.volumes import OBJECTS, object_name
from support import repositories, same
from support.hostile import node
from support.repositories import CHEAP


class Machine:
    """`folder`: where repository, and a folder of this machine's name, lie."""

    def __init__(self, folder: Path, name: str = "web1", host: str | None = None) -> None:
        self.folder, self.own, self.host = folder, folder / name, host or name
        self.password = b"of " + name.encode()
        with repositories.open_(folder) as repository:
            self.slot = repository.add_backup_only_key(self.password, self.host, cost=CHEAP, label=name)

    def open(self, **options: Any) -> Repository:
        return Repository.open(
            str(self.folder / "repository"), self.password, cache_dir=str(self.own / "cache"), state_dir=str(self.own / "state"),
            backing_up=True, **options,
        )  # fmt: skip

    def snapshot(self, *paths: str | Path, progress: Any = None, **options: Any) -> StoredSnapshot:
        options = {"host": os.fsencode(self.host), "user": b"user", **options}
        with self.open() as repository:
            more = {} if progress is None else {"progress": progress}
            result = backup(repository, BackupOptions(tuple(map(os.fsencode, paths)), **options), **more)
        assert result.snapshot is not None
        return result.snapshot

    def thief(self) -> Thief:
        data = (self.folder / "repository" / "keys" / self.slot).read_bytes()
        return Thief(self.folder / "repository", data, self.password)


class Thief:
    """Who has the password of such a machine, and a program of his own: seals and signs whatever he likes."""

    def __init__(self, place: Path, slot: bytes, password: bytes) -> None:
        self.place = place
        header, self.bundle = open_slot(slot, password, "slot")
        self.repository = header.repository
        self.keys = Keys(self.bundle, "slot")

    def publish(
        self, event: Event | bytes, *, seed: bytes | None = None, signature: bytes | None = None
    ) -> bytes:
        """An event of any content, signed with this seed, or with this signature; returns its name."""
        record = event if isinstance(event, bytes) else records.encode(event)
        sealer = self.keys.sealer(L.EVENT, self.repository, System())
        signed = recipient.signed(seed or self.keys.signing, sealer.header, record)
        if signature is not None:
            signed = Signed(1, record, signature)
        data = seal_record(sealer, records.encode(signed))
        name = hashlib.sha256(data).digest()
        (self.place / "events" / name.hex()).write_bytes(data)
        return name

    def event(self, body: EventBody, *, client: bytes | None = None, heads: Any = (), time: int = 5) -> Event:
        return Event(1, client or self.keys.client, 1, tuple(heads), time, body)

    def volume(self, kind: VolumeKind, blobs: list[tuple[Kind, BlobId, bytes]]) -> bytes:
        """A volume that says of each of these bytes that they are the blob of this id; returns its name."""
        sealer = self.keys.sealer(OBJECTS[kind], self.repository, System())
        words = [framing.word(k, len(data)) for k, _, data in blobs]
        plain = framing.join(words, [data for _, _, data in blobs])
        number, begin = sealer.number(), len(sealer.header)
        head, sealed = sealer.frame(number, L.FRAME_BLOBS, L.STORED, len(blobs), len(plain), plain)
        out = sealer.header + head + sealed
        entry = layout.FrameEntry(number, begin, len(sealed), len(blobs))
        tail = layout.Tail(sealer.frames, 1, len(out))
        (part,) = layout.encode_directory([entry], words, [blob for _, blob, _ in blobs])
        out += b"".join(sealer.frame(sealer.number(), L.FRAME_DIRECTORY, L.STORED, 0, len(part), part))
        out += sealer.tail(tail.encode())
        name = hashlib.sha256(out).digest()
        path = self.place / object_name(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(out)
        return name


def brought(thief: Thief, **change: Any) -> bytes:
    """A snapshot's record, by a thief."""
    fields = {
        "version": 1, "root": node(b"", NodeType.DIRECTORY), "time": 5, "host": thief.keys.host, "user": b"u", "paths": (b"/",),
        "tags": (), "totals": Totals(), "complete": True, "errors": 0, "with_xattrs": 0, "filesystems": (), "excludes": (),
        "program": b"thief",
    }  # fmt: skip
    return records.encode(Snapshot(**{**fields, **change}))


# ---- looking at it with the whole key --------------------------------------------------------------------------

ALL = PruneOptions(unused=Unused(bytes=0))
"""Keep nothing that nobody needs."""


class Notices(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)


def state(folder: Path) -> State:
    with repositories.open_(folder) as repository:
        return repository.events.load()


def ids(folder: Path) -> list[bytes]:
    return [s.id for s in state(folder).snapshots]


def reads_back(folder: Path, source: Path, *snapshots: StoredSnapshot) -> None:
    """With the whole key, these snapshots are the source as it is now, and nothing is damaged."""
    with repositories.open_(folder) as repository:
        found = {s.id: s for s in repository.snapshots()}
        for snapshot in snapshots:
            at = repository.trees.resolve(found[snapshot.id].record.root, os.fsencode(source))
            assert same.differences(same.on_disk(source), same.in_snapshot(repository, at)) == []
        result = check(repository, read_data=True)
        assert result.ok, result.problems
