"""What a power cut may leave behind: every legal state of the disk, from the log of what a command did.

    before = Before(home); ...; ops = load(log); Disk(before, ops[:n]).cut(chance).make(keep)

The rules are those POSIX gives, which are weaker than what any one file system does: bytes are durable once their file was
fsynced, a name once its folder was; whatever was not may be there or not, each thing for itself, in any order, and of a write
any sectors (512 bytes or 4 KiB) may be missing.  Only a rename never loses a file: the old name goes once the new one is there.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

CREATE, WRITE, FSYNC, RENAME, MKDIR, UNLINK, RMDIR, TRUNCATE, LINK = range(1, 10)
_KINDS = ("", "create", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "truncate", "link")
_HEAD = struct.Struct("<IIQqII")


class Op(NamedTuple):
    """One call.  `durable`: a write that is an fsync too (LMDB's last one of a transaction)."""

    kind: int
    durable: bool
    inode: int
    offset: int
    name: str
    other: bytes
    """What was written, or the new name."""


def load(log: Path) -> list[Op]:
    data, at, ops = log.read_bytes(), 0, []
    while at < len(data):
        kind, flags, inode, offset, names, others = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        name, other = data[at : at + names], data[at + names : at + names + others]
        at += names + others
        ops.append(Op(kind, bool(flags), inode, offset, os.fsdecode(name), other))
    return ops


def site(op: Op, ops: list[Op], home: Path) -> str:
    """Which place of the program this is: "fsync of events/<hash>", whatever the file was called then."""
    name = op.name
    if "/tmp/" in name or re.search(r"/client\.\d+", name):
        name = next((os.fsdecode(o.other) for o in ops if o.kind == RENAME and o.name == name), name)
    name = os.path.relpath(name, home)
    name = re.sub(r"[0-9a-f]{16,}(-[0-9a-f]+)?", "*", name)
    name = re.sub(r"/[0-9a-f]{2}(?=/|$)", "/ab", name)
    name = re.sub(r"open/\d+-[0-9a-f]+", "open/*", name)
    return f"{_KINDS[op.kind]} of {name}"


@dataclass(eq=False)
class _File:
    content: bytes = b""
    """What is durable of it."""
    pending: list[Op] = field(default_factory=list)


_FOLDER = _File()
_Names = dict[str, _File]


class Before:
    """A folder before the command, all of it durable."""

    def __init__(self, home: Path) -> None:
        self.home = str(home)
        self.folders: list[str] = []
        self.files: dict[str, tuple[int, bytes]] = {}
        for folder, folders, files in os.walk(home):
            self.folders += [os.path.join(folder, name) for name in folders]
            for path in (os.path.join(folder, name) for name in files):
                self.files[path] = (os.stat(path).st_ino, Path(path).read_bytes())


class Disk:
    """A folder as it is on the disk, and what is only in memory of what was done to it since."""

    def __init__(self, before: Before, ops: Iterable[Op] = ()) -> None:
        self._home = before.home
        self._inodes = {inode: _File(content) for inode, content in before.files.values()}
        self._durable: _Names = dict.fromkeys(before.folders, _FOLDER)
        self._durable |= {name: self._inodes[inode] for name, (inode, _) in before.files.items()}
        self._now = dict(self._durable)
        self._pending: list[tuple[str, _File | None, tuple[str, _File] | None]] = []
        """(name, what it is from then on, what has to be there before)."""
        for op in ops:
            self.do(op)

    def do(self, op: Op) -> None:
        file = self._inodes.get(op.inode)
        if op.kind == CREATE:
            file = self._inodes[op.inode] = _File()
            self._name(op.name, file)
        elif op.kind in (WRITE, TRUNCATE):
            assert file is not None, op.name
            if op.durable:
                file.content = bytes(_apply(bytearray(file.content), op))
            else:
                file.pending.append(op)
        elif op.kind == FSYNC and self._now.get(op.name, _FOLDER) is _FOLDER:
            self._sync_names(op.name)
        elif op.kind == FSYNC:
            assert file is not None, op.name
            file.content = self._content(file, None)
            file.pending.clear()
        elif op.kind in (RENAME, LINK):
            other, moved = os.fsdecode(op.other), self._now[op.name]
            self._name(other, moved)
            if op.kind == RENAME:
                self._name(op.name, None, (other, moved))
        elif op.kind == MKDIR:
            self._name(op.name, _FOLDER)
        else:
            self._name(op.name, None)

    def _name(self, name: str, file: _File | None, first: tuple[str, _File] | None = None) -> None:
        self._pending.append((name, file, first))
        if file is None:
            self._now.pop(name, None)
        else:
            self._now[name] = file

    def _sync_names(self, folder: str) -> None:
        rest = []
        for name, file, first in self._pending:
            if os.path.dirname(name) != folder:
                rest.append((name, file, first))
            elif file is None:
                self._durable.pop(name, None)
            else:
                self._durable[name] = file
        self._pending = rest

    def cut(self, chance: Random | None) -> State:
        """What is left: by chance, or (None) only what had to be."""
        names, lost = dict(self._durable), set()
        # Some file systems keep the order of names: then all up to a moment are there.  Others need not.
        moment = chance.randrange(len(self._pending) + 1) if chance and chance.random() < 0.5 else None
        for number, (name, file, first) in enumerate(self._pending):
            if chance is None:
                kept = False
            else:
                kept = number < moment if moment is not None else chance.random() < 0.5
            if name in lost or not kept or (first is not None and names.get(first[0]) is not first[1]):
                lost.add(name)
            elif file is None:
                names.pop(name, None)
            else:
                names[name] = file
        return State(self._home, {
            name: None if file is _FOLDER else self._content(file, chance, cut=True)
            for name, file in names.items()
            if self._reached(name, names)
        })  # fmt: skip

    def _reached(self, name: str, names: _Names) -> bool:
        above = os.path.dirname(name)
        return above == self._home or (names.get(above) is _FOLDER and self._reached(above, names))

    def _content(self, file: _File, chance: Random | None, cut: bool = False) -> bytes:
        data = bytearray(file.content)
        for op in file.pending:
            if not cut:
                _apply(data, op)
            elif chance is not None and (fate := chance.random()) < 0.75:
                _apply(data, op, chance if fate < 0.5 else None)
        return bytes(data)


def _apply(data: bytearray, op: Op, torn: Random | None = None) -> bytearray:
    """`torn`: only some sectors of what was written are there, the length in any case."""
    if op.kind == TRUNCATE:
        del data[op.offset :]
        data += bytes(op.offset - len(data))
        return data
    end = op.offset + len(op.other)
    data += bytes(max(end - len(data), 0))
    if torn is None:
        data[op.offset : end] = op.other
        return data
    sector = torn.choice((512, 4096))
    at = op.offset
    while at < end:
        stop = min((at // sector + 1) * sector, end)
        if torn.random() < 0.5:
            data[at:stop] = op.other[at - op.offset : stop - op.offset]
        at = stop
    return data


@dataclass
class State:
    home: str
    files: dict[str, bytes | None]
    """Absolute name -> content; None: a folder."""

    def make(self, keep: tuple[str, ...] = ()) -> None:
        """Put it in place of what is there.  `keep`: folders whose inode stays."""
        for entry in os.scandir(self.home):
            if entry.name not in keep:
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
                continue
            for inner in os.scandir(entry.path):
                shutil.rmtree(inner.path) if inner.is_dir(follow_symlinks=False) else os.unlink(inner.path)
        for name, content in sorted(self.files.items(), key=lambda item: item[0]):
            if content is None:
                os.makedirs(name, 0o700, exist_ok=True)
            else:
                with open(name, "wb") as f:
                    f.write(content)
        self._trust_the_index()

    def _trust_the_index(self) -> None:
        """A new file has a new time, so that no index would be trusted: give it the one that the stamp beside it names."""
        for name in self.files:
            if name.endswith("/data.mdb"):
                stamp = self.files.get(f"{os.path.dirname(os.path.dirname(name))}/stamp") or b""
                found = re.fullmatch(rb"\d+ (\d+) (\d+)", stamp)
                if found and int(found[1]) == len(self.files[name] or b""):
                    os.utime(name, ns=(int(found[2]), int(found[2])))
