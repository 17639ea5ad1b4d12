#!/usr/bin/env python3
"""Get files out of a snapfs repository when the program and its local index are gone.

A second reader of the format, written from docs/format.md alone: it shares nothing with the program but that page.  It
never changes a repository.  It needs Linux, Python 3.11 and: python3 -m pip install 'cryptography>=44' zstandard blake3

    python3 reader.py REPO list                               the snapshots: id, time, host, paths, tags
    python3 reader.py REPO extract SNAPSHOT TARGET [PATH]     a snapshot, or what is at PATH in it, below TARGET
    python3 reader.py REPO check                              read and verify everything there is

SNAPSHOT is the beginning of an id, or `latest`.  /home/ann/x comes back as TARGET/home/ann/x.  The password, or recovery key,
comes from SNAPFS_PASSWORD, the first line of the file named in SNAPFS_PASSWORD_FILE, or the terminal.  Only root gets owners
and devices back.  No file that exists is overwritten (folders are merged: choose an empty TARGET), and nothing is written
outside of TARGET or through a symbolic link.  What is damaged is named on stderr and the rest goes on: lost ranges of a
file read as zeros, a volume whose directory is damaged is walked frame by frame.
Memory: the place of every blob is kept in one dict, some 250 bytes each; the content of files is streamed.
Exit: 0 all is well; 1 something is damaged, missing or could not be restored; 2 usage; 10 no repository; 12 wrong password;
13 a key that can only back up.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import hmac
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace as Node
from typing import Any, NoReturn
from unicodedata import category

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_PLAIN, NO_HOLE = 4_198_400, (1 << 63, 1 << 63)
OBJECTS = {1: "data", 2: "tree", 3: "event", 4: "config", 5: "key slot"}  # kinds of object
FOLDERS = {"keys": 5, "events": 3, "trees": 2, "data": 1}
PADDING, BLOBS, DIRECTORY, RECORD = range(4)  # kinds of frame
LABELS = {1: "content", 2: "directory", 3: "list", 4: "holes", 5: "xattr"}  # kinds of blob
SPECIAL = {4: 0o020000, 5: 0o060000, 6: 0o010000, 7: 0o140000}  # types of nodes: S_IFCHR and so on
FLAGS = {1: os.O_WRONLY | os.O_CREAT | os.O_EXCL, 2: os.O_RDONLY | os.O_DIRECTORY}
ACLS = {b"system.posix_acl_access", b"system.posix_acl_default"}
NODE = "name type mode uid gid user group mtime ctime size data blobs root device xattrs link holes below changed atime"
Blobs = list[tuple[int, bytes]]  # length words and blobs, or length words and ids
Place = tuple[int, int, int, int]  # a frame: volume, number, offset, length of the sealed body


class Damaged(Exception):
    def __init__(self, why: str, after: int | None = None) -> None:
        super().__init__(why)
        self.after = after  # where the next frame begins, or how many bytes of a file are lost, if known


BAD = (Damaged, OSError, TypeError, ValueError, LookupError, OverflowError, RecursionError, struct.error)
problems = 0


def stop(code: int, why: str) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(code)


def text(name: bytes) -> str:
    return repr(name.decode("utf-8", "surrogateescape"))[1:-1]


def problem(where: bytes | Path, why: BaseException | str) -> bool:
    global problems
    problems += 1
    shown = text(where) if isinstance(where, bytes) else "/".join(where.parts[-3:])
    print(f"{shown}: {why.strerror if isinstance(why, OSError) else why}", file=sys.stderr)
    if isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        stop(1, "given up")
    return False


NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xDC: ">H", 0xDD: ">I"}  # bin, array
CONSTANTS: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The MessagePack value at this offset, and where the next begins."""
    c, at = data[at], at + 1
    if c < 0x80 or c >= 0xE0 or c in CONSTANTS:
        return CONSTANTS.get(c, c if c < 0x80 else c - 256), at
    n = c & 15
    if c & 0xF0 != 0x90:
        form = NUMBERS.get(c) or LENGTHS[c]
        (n,), at = struct.unpack_from(form, data, at), at + struct.calcsize(form)
        if c in NUMBERS or c < 0xC7:
            return (n, at) if c in NUMBERS else (data[at : at + n], at + n)
    values: list[Any] = []
    while len(values) < n:
        value, at = decode(data, at)
        values.append(value)
    return values, at


def signed_by(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def record(data: bytes | Sealed) -> list[Any]:
    data = data.frame(0, len(data.header))[1][0][1] if isinstance(data, Sealed) else data
    value, end = decode(data)
    if end != len(data) or not isinstance(value, list) or value[0] != 1:
        raise Damaged("a record is malformed, or of a version that this reader does not know")
    return value


def derive(key: bytes, label: str, length: int = 32, salt: bytes | None = None) -> bytes:
    return HKDF(SHA256(), length, salt, label.encode()).derive(key)


class Sealed:
    """A file with its header checked and its key derived."""

    def __init__(self, path: Path, kind: int, rid: bytes | None, key: Callable[[bytes], bytes]) -> None:
        with open(path, "rb") as f:
            h = f.read(136).ljust(136, b"\0")
        self.path, self.size, self.epoch = path, path.stat().st_size, int.from_bytes(h[20:24], "little")
        magic, version, length, features, suite, wrap, found = struct.unpack_from("<8sHHIBBB", h)
        self.backup_only = wrap == 2 and kind < 4  # by a key that can only back up
        want, wraps = (136, 2) if self.backup_only else (116, 1) if kind == 5 else (104, 0)
        h = self.header = h[:want]
        if (magic, length, wrap, found, rid or h[24:40]) != (b"snapfs\r\n", want, wraps, kind, h[24:40]):
            raise Damaged("its header is damaged, or it does not belong here")
        if version != 1 or features or suite != 1:
            raise Damaged(f"version {version}, features {features}, suite {suite}: unknown to this reader")
        sealing, label = key(h), f"object/{OBJECTS[kind]}"
        if self.backup_only:
            private = X25519PrivateKey.from_private_bytes(
                derive(sealing, f"snapfs/1/backup-only/recipient/{OBJECTS[kind]}")
            )
            shared = private.exchange(X25519PublicKey.from_public_bytes(h[104:]))
            sealing, label = (
                shared + h[104:] + private.public_key().public_bytes_raw(),
                f"backup-only/{label}",
            )
        okm = derive(sealing, f"snapfs/1/{label}", 64, h[40:72])
        if not hmac.compare_digest(okm[32:], h[72:104]):
            raise Damaged("the key does not fit")
        self.cipher = AESGCM(okm[:32])

    def open(self, number: int, offset: int, length: int) -> bytes:
        with open(self.path, "rb") as f:
            f.seek(offset)
            data = f.read(length)
        try:
            return self.cipher.decrypt(number.to_bytes(12, "big"), data, self.header)
        except (InvalidTag, ValueError):
            raise Damaged(f"the {length} bytes at {offset} are damaged") from None

    def frame(self, n: int, at: int) -> tuple[int, Blobs, int]:
        """Its kind, its blobs (in frames of other kinds, the plaintext), and where the next begins."""
        kind, codec, _, count, plain, sealed = struct.unpack("<BBHIII", self.open(2 * n, at, 32))
        if kind > RECORD or codec > (kind == BLOBS) or plain > MAX_PLAIN or not 0 <= sealed - 16 <= MAX_PLAIN:
            raise Damaged(f"the header of frame {n} makes no sense")
        try:
            data = self.open(2 * n + 1, at + 32, sealed)
            if codec:
                if zstandard.frame_content_size(data) != plain:
                    raise Damaged("it declares another size than its header")
                data = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompress(data)
            words = struct.unpack_from(f"<{count}I", data) if kind == BLOBS else (plain,)
            start, blobs = (4 * count if kind == BLOBS else 0), []
            for word in words:
                blobs.append((word, data[start : start + (word & 0xFFFFFF)]))
                start += word & 0xFFFFFF
            if start != plain or len(data) != plain or (kind == PADDING and data.count(0) != plain):
                raise Damaged("it is not what its header says")
            return kind, blobs, at + 32 + sealed
        except (Damaged, zstandard.ZstdError, struct.error) as e:
            raise Damaged(f"frame {n}: {e}", at + 32 + sealed) from None


def objects(*folders: Path) -> list[Path]:
    found = [p for f in folders for p in f.glob("*/*" if f.name in ("trees", "data") else "*")]
    return sorted(p for p in found if len(p.name) == 64 and not set(p.name) - set("0123456789abcdef"))


def parse(entry: list[Any]) -> Node:
    return Node(**{**dict.fromkeys(NODE.split()), **dict(zip(NODE.split(), entry, strict=False))})


class Repository:
    def __init__(self, folder: Path, password: Callable[[], bytes]) -> None:
        self.folder, slots = folder, objects(folder / "keys")
        bundle = self.unlock(slots, password()) if slots else stop(10, f"{folder}: no repository")
        if bundle[1] != 1:
            stop(13, "this password opens a key that can only back up: it reads nothing")
        self.keys: dict[tuple[bytes, int], bytes] = {(name, epoch): key for name, epoch, key in bundle[2]}
        self.epoch = max(epoch for _, epoch in self.keys)
        self.closing = {key for name, _, key in bundle[2] if name == b"rotation"}
        self.before = {key for name, _, key in bundle[2] if name == b"before rotation"}
        config = record(bundle[3])  # a copy, good even if the file is not; it names the repository, too
        self.rid: bytes | None = config[1]
        try:
            sealed = self.unseal(folder / "config", 4)
            if sealed.epoch != self.epoch:
                raise Damaged(f"sealed with keys of epoch {sealed.epoch}, those of now are of {self.epoch}")
            config = record(sealed)
        except BAD as e:
            problem(folder / "config", e)
        if set(config[2]) - {b"key epochs"}:
            stop(1, f"the repository has features this reader does not know: {config[2]}")
        self.labels = {k: derive(self.keys[b"id", 1], f"snapfs/1/id/{label}") for k, label in LABELS.items()}
        self.volumes: dict[int, Sealed] = {}
        self.where: dict[bytes, Any] = {}  # id: (Place, which blob of it, length word, another copy's or nil)
        self.broken: set[Place] = set()  # found by check
        self.links: dict[tuple[object, ...], bytes] = {}  # hard links: the path restored first
        self.seen: set[bytes | None] = set()  # root pages of directories
        self.count, self.target = 0, -1
        self.load = lru_cache(32)(lambda place: self.volumes[place[0]].frame(place[1], place[2])[1])

    def unlock(self, slots: list[Path], password: bytes) -> list[Any]:
        def stretch(h: bytes, word: bytes) -> bytes:
            m, t, p = struct.unpack_from("<III", h, 104)
            if not 8 * p <= m <= 2 << 20 or not 1 <= t <= 64 or not 1 <= p <= 64:
                raise Damaged("its Argon2id parameters are out of bounds")
            return Argon2id(salt=h[40:72], length=32, iterations=t, lanes=p, memory_cost=m).derive(word)

        found = []
        for path, word in ((p, w) for p in slots for w in {password, printed(password)}):
            try:
                found.append(record(Sealed(path, 5, None, partial(stretch, word=word))))
            except BAD as e:
                if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                    problem(path, f"this key slot is damaged: {e}")
        if not found:
            stop(12, "the password opens no key slot")
        return max(found, key=lambda bundle: max(key[1] for key in bundle[2]))  # that with the newest keys

    def unseal(self, path: Path, kind: int) -> Sealed:
        key = OBJECTS[kind].encode()

        def named(h: bytes) -> bytes:
            epoch = int.from_bytes(h[20:24], "little")
            if (key, epoch) not in self.keys:
                raise Damaged(f"sealed with keys of epoch {epoch}, which this password does not open")
            return self.keys[key, epoch]

        return Sealed(path, kind, self.rid, named)

    def snapshots(self) -> list[tuple[bytes, list[Any]]]:
        """Id and record of all that are not forgotten, oldest first."""
        key = derive(self.keys[b"id", 1], "snapfs/1/id/snapshot")
        events, claims, epochs, found, forgotten = {}, {}, {}, {}, set[bytes]()
        there = {bytes.fromhex(path.name): path for path in objects(self.folder / "events")}
        for name, path in there.items():
            try:
                sealed = self.unseal(path, 3)
                event, epochs[name] = record(sealed), sealed.epoch
                if not sealed.backup_only:
                    _, _, _, heads, _, _ = events[name] = event[:6]
                elif decode(event[1])[0][0] == 1:  # else it is of a later version
                    message = b"snapfs/1/backup-only/signature" + sealed.header + event[1]
                    claim = record(event[1])[:6]
                    claims[name], _ = (claim, message, event[2]), [h[2] for h in claim[3]] + claim[5][:1]
            except BAD as e:
                problem(path, e)
        if self.epoch > 1:  # an event of earlier keys counts if one of the newest names it, or it was there
            heads = {n: {h[2] for h in e[3]} for n, e in events.items()}
            heads |= {n: {h[2] for h in c[0][3]} & claims.keys() for n, c in claims.items()}
            listed = [set(events[name][5][2]) for name in self.closing & events.keys()]
            newest = {n for n, epoch in epochs.items() if epoch == self.epoch}
            todo, new = (newest & events.keys()).union(self.closing, self.before, *listed), set[bytes]()
            while todo:
                new |= todo
                todo = {h for name in todo for h in heads.get(name, ())} - new
            new |= newest & claims.keys()
            if old := len((events.keys() | claims.keys()) - new):
                print(f"{old} events came after their keys were changed, and do not count", file=sys.stderr)
            events = {name: event for name, event in events.items() if name in new}
            claims = {name: claim for name, claim in claims.items() if name in new}
        events = {n: ({h[2] for h in e[3]}, e[4], e[5]) for n, e in self.granted(events, claims).items()}
        for name in list(events):
            try:
                if events[name][2][0] == 1:
                    found[blake3(events[name][2][1], key=key).digest()] = record(events[name][2][1])
            except BAD as e:
                problem(there[name], e)
        needed = {h for heads, _, _ in events.values() for h in heads} | self.closing | self.before
        for gone in needed - there.keys():
            problem(self.folder / "events" / gone.hex(), "missing, but others name it: damage or tampering")
        depth: dict[bytes, int] = {}
        for name in TopologicalSorter({e: events[e][0] & events.keys() for e in events}).static_order():
            depth[name] = 1 + max((depth[h] for h in events[name][0] if h in depth), default=0)
        for name in sorted(events, key=lambda name: (depth[name], events[name][1], name)):
            kind, _, ids, tags = events[name][2][:4]
            for i in ids if kind == 2 else ():
                if i in found:
                    found[i][6] = tags
            forgotten = forgotten | set(ids) if kind == 3 else forgotten - set(ids if kind == 4 else ())
        return sorted(((i, s) for i, s in found.items() if i not in forgotten), key=lambda x: (x[1][2], x[0]))

    def granted(self, events: dict[bytes, Any], claims: dict[bytes, Any]) -> dict[bytes, Any]:
        """The events that count: those of whole keys, and of the others what they were granted to say."""
        named = {
            n: {h[2] for h in e[3]} for n, e in {**events, **{n: c[0] for n, c in claims.items()}}.items()
        }

        def before(name: bytes) -> set[bytes]:
            seen, todo = set[bytes](), set(named[name])
            while todo:
                seen |= todo
                todo = {h for n in todo for h in named.get(n, ())} - seen
            return seen

        grants: dict[bytes, list[Any]] = {}
        ends: dict[bytes, dict[bytes, set[bytes]]] = {}  # slot: {event that removes it: what that had seen}
        for name, (*_, body) in events.items():
            if body[0] == 6 and body[3][3:4] == [b"backup-only"] and len(body[2]) > 2 and len(body[3]) > 4:
                grants.setdefault(body[2][1], []).append((body[2][0], body[2][2], body[3][4]))
            elif body[0] == 8 and body[2]:
                ends.setdefault(body[2][0], {})[name] = before(name)
        counting = dict(events)
        for name, (event, message, signature) in claims.items():
            with suppress(*BAD):
                _, client, _, heads, _, body = event
                hosts = set()
                for slot, key, host in grants.get(client, ()):
                    gone = ends.get(slot, {})
                    seen = {n for s in gone.values() if not s & gone.keys() for n in s}
                    if (not gone or name in seen) and signed_by(key, message, signature):
                        hosts.add(host)
                own = all(h[0] == client and h[2] not in events for h in heads)
                own &= all(h[2] not in claims or claims[h[2]][0][1] == client for h in heads)
                if own and hosts and body[0] in (1, 5):
                    snapshot = record(body[1])
                    if snapshot[3] in hosts and snapshot[8] == (body[0] == 1):
                        counting[name] = event
        return counting

    def index(self, verify: bool) -> None:
        """Where every blob is, from the directories of all volumes.  To verify, all frames are read, too."""
        for number, path in enumerate(objects(self.folder / "trees", self.folder / "data")):
            listed: dict[Place, Blobs] = {}
            try:
                volume = self.volumes[number] = self.unseal(path, FOLDERS[path.parent.parent.name])
                tail = volume.open((1 << 96) - 1, max(0, volume.size - 32), 32)
                first, count, start = struct.unpack("<IIQ", tail)
                at = start
                for n in range(first, first + count):
                    _, [(_, plain)], at = volume.frame(n, at)
                    _, frames, words, ids = record(plain)[:4]
                    kinds = struct.unpack(f"<{len(words) // 4}I", words)
                    blobs = [(word, ids[32 * i : 32 * i + 32]) for i, word in enumerate(kinds)]
                    if len(ids) != 8 * len(words) or len(blobs) != sum(f[3] for f in frames):
                        raise Damaged("its directory contradicts itself")
                    for frame, offset, sealed, k in frames:
                        listed[number, frame, offset, sealed], blobs = blobs[:k], blobs[k:]
                found = dict(self.walk(number, start, listed)) if verify else listed
                self.broken |= {place for place in listed if listed[place] != found.get(place)}
                if at != volume.size - 32 or found.keys() - listed.keys():
                    raise Damaged("its directory is not complete")
            except BAD as e:
                there = number in self.volumes
                problem(path, f"{e}; {'its frames are walked' if there else 'all in it is lost'}")
                listed |= dict(self.walk(number, volume.size, listed)) if there else {}
            for place, blobs in listed.items():
                for j, (word, i) in enumerate(blobs):
                    self.where[i] = place, j, word, self.where.get(i)

    def walk(self, number: int, end: int, listed: Iterable[Place] = ()) -> Iterator[tuple[Place, Blobs]]:
        """What the directory of a volume should say, from its frames.  Those listed help past a damaged header."""
        volume, n = self.volumes[number], 0
        at = len(volume.header)
        while at < end:
            try:
                kind, blobs, after = volume.frame(n, at)
                if kind == BLOBS:
                    ids = [(w, blake3(b, key=self.labels.get(w >> 24, bytes(32))).digest()) for w, b in blobs]
                    yield (number, n, at, after - at - 32), ids
                elif kind == DIRECTORY:
                    return
            except Damaged as e:
                after = e.after or {p[1]: p[2] for p in listed}.get(n + 1, end)
                problem(volume.path, f"{e}{'' if after < end else ', and nothing after it can be reached'}")
            n, at = n + 1, after

    def blob(self, ident: bytes, kind: int, length: int | None = None, look: bool = True) -> bytes:
        """The first sound copy of a blob.  Without a look, only whether check found one."""
        why = Damaged(f"{LABELS[kind]} blob {ident.hex()[:16]} is missing or damaged")
        at = self.where.get(ident)
        while at is not None:
            place, j, word, at = at
            if word >> 24 == kind and length in (None, word & 0xFFFFFF) and place not in self.broken:
                try:
                    data: bytes = self.load(place)[j][1] if look else b""
                    if not look or blake3(data, key=self.labels[kind]).digest() == ident:
                        return data
                except BAD as e:
                    why = Damaged(f"{why}: {self.volumes[place[0]].path.name[:16]}: {e}")
        raise why

    def entries(self, kind: int, root: Any, few: Any = None) -> Iterator[Any]:
        """The level-0 entries below a root page (or these few); for a lost page, what is wrong with it."""
        yield from few or ()
        todo = [(root, None)] if root is not None else []
        while todo:
            ident, size = todo.pop()
            try:
                _, level, values = record(self.blob(ident, kind))[:3]
                todo += [(b[3], b[2]) for b in reversed(values)] if level else []
            except BAD as e:
                level, values = 0, [Damaged(f"a {LABELS[kind]} page is lost: {e}", size)]
            yield from () if level else values

    def directory(self, root: bytes | None, above: int | None, path: bytes, only: list[bytes]) -> None:
        """Restore what is in a directory (with `only`, what is at that path) into `above`, or only look."""
        if above is None and root in self.seen:
            return
        self.seen.add(root)
        for entry in self.entries(2, root):
            name = b""
            try:
                if isinstance(entry, Damaged):
                    raise entry
                node = parse(entry)
                name = b"/" + node.name
                if not 2 <= len(name) <= 256 or name in (b"/.", b"/..") or set(node.name) & set(b"/\0"):
                    raise Damaged("not a name")
                if not only or (node.name == only[0] and (node.type == 2 or not only[1:])):
                    self.count += not only[1:]
                    self.node(node, above, path + name, only[1:])
            except BAD as e:
                problem(path + name or b"/", e)

    def node(self, node: Node, above: int | None, path: bytes, only: list[bytes]) -> None:
        name, fd, key = node.name, None, ()
        if node.link and node.type != 2:
            key = (*node.link, node.size, node.data, repr(node.blobs), node.root)
        if above is not None:
            if key in self.links:
                with suppress(OSError):  # as when a file can have no more names: then it is one of its own
                    old, top = self.links[key], self.target
                    os.link(old, name, src_dir_fd=top, dst_dir_fd=above, follow_symlinks=False)
                    return
            if node.type == 2:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=above)
            elif node.type == 3:
                os.symlink(node.data, name, dir_fd=above)
            elif node.type != 1:
                device = os.makedev(*node.device or (0, 0))
                os.mknod(name, SPECIAL[node.type] | 0o600, device, dir_fd=above)
            fd = os.open(name, FLAGS.get(node.type, os.O_PATH) | os.O_NOFOLLOW, 0o600, dir_fd=above)
        try:
            if node.type == 1:
                self.content(node, fd, path)
            elif node.type == 2:
                self.directory(node.root, fd, path, only)
            self.attributes(node, fd, path)
        finally:
            if fd is not None:
                os.close(fd)
        if key:
            self.links.setdefault(key, path[1:])

    def content(self, node: Node, fd: int | None, path: bytes) -> None:
        found = self.entries(4, node.holes[2], node.holes[1]) if node.holes else iter(())
        spans = ((h[0], h[0] + h[1]) for h in found if not isinstance(h, Damaged) or problem(path, h))
        size, at = node.size or 0, 0
        start, end = next(spans, NO_HOLE)
        if fd is not None:
            os.ftruncate(fd, size)
        for extent in [node.data] if node.data is not None else self.entries(3, node.root, node.blobs):
            data, length = extent if isinstance(extent, bytes) else b"", size - at
            try:
                if isinstance(extent, Damaged):
                    length = length if extent.after is None else extent.after
                    raise extent
                ident, length = (None, len(extent)) if isinstance(extent, bytes) else extent
                data = self.blob(ident, 1, length, fd is not None) if ident is not None else data
            except BAD as e:
                problem(path, f"bytes {at} to {at + length} are lost: {e}")
            here = at
            while fd is not None and here < at + len(data):
                if end <= here:
                    start, end = next(spans, NO_HOLE)
                else:
                    piece = data[here - at : (start if here < start else end) - at]
                    gap = here >= start and piece.count(0) == len(piece)
                    here += len(piece) if gap else os.pwrite(fd, piece, here)
            at += length
        list(spans)  # to name what is damaged
        if at != size:
            problem(path, f"has {at} bytes instead of {size}")

    def attributes(self, node: Node, fd: int | None, path: bytes) -> None:
        """Owner, extended attributes, mode, times: in this order, for each undoes some of those after it."""

        def attempt(what: str, call: Callable[..., None], *args: Any) -> bool:
            try:
                call(*args)
            except BAD as e:
                return problem(path, f"{what}: {e.strerror if isinstance(e, OSError) else e}")
            return True

        def xattr(name: bytes, value: bytes | None, ident: bytes = b"") -> None:
            value = self.blob(ident, 5, None, fd is not None) if value is None else value
            if fd is not None:
                os.setxattr(where, name, value)

        where: Any = fd if node.type in (1, 2) else f"/proc/self/fd/{fd}"  # for those that take no O_PATH one
        mode, owned = node.mode & 0o7777, (node.uid, node.gid) == (os.geteuid(), os.getegid())
        if fd is not None and os.geteuid() == 0:
            owned = attempt("owner", os.chown, where, node.uid, node.gid)
        if not owned and node.type != 2:
            mode &= 0o1777  # nothing runs as somebody whose it was not
        for acl in ACLS - {x[0] for x in node.xattrs or ()} if fd is not None else ():
            with suppress(OSError):
                os.removexattr(where, acl)  # which the folder above handed down
        for x in node.xattrs or ():
            attempt(f"attribute {text(x[0])}", xattr, *x[:3])
        if fd is not None:
            if node.type != 3:
                attempt("mode", os.chmod, where, mode)
            times = node.mtime if node.atime is None else node.atime, node.mtime
            attempt("times", lambda: os.utime(where, ns=times))


def password() -> bytes:
    if "SNAPFS_PASSWORD" in os.environ:
        return os.fsencode(os.environ["SNAPFS_PASSWORD"])
    if "SNAPFS_PASSWORD_FILE" in os.environ:
        return Path(os.environ["SNAPFS_PASSWORD_FILE"]).read_bytes().split(b"\n")[0].removesuffix(b"\r")
    return os.fsencode(getpass.getpass("password: "))


def printed(password: bytes) -> bytes:
    """If it may be a recovery key: as such keys are printed."""
    letters = [
        c for c in password.decode("utf-8", "replace").upper() if not c.isspace() and category(c) != "Pd"
    ]
    key = "".join(letters).translate({ord("O"): "0", ord("I"): "1", ord("L"): "1"})
    return "-".join(key[i : i + 5] for i in range(0, 40, 5)).encode() if len(key) == 40 else password


def extract(repository: Repository, which: str, target: Path, inside: str = "/") -> None:
    every = repository.snapshots()
    chosen = every[-1:] if which == "latest" else [s for s in every if s[0].hex().startswith(which.lower())]
    if len(chosen) != 1:
        stop(1, f"{which}: {'more than one snapshot begins so' if chosen else 'no such snapshot'}")
    repository.index(verify=False)
    made, root = not target.exists(), parse(chosen[0][1][1])
    target.mkdir(0o700, parents=True, exist_ok=True)
    fd = repository.target = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    only = [part for part in os.fsencode(inside).split(b"/") if part not in (b"", b".")]
    repository.directory(root.root, fd, b"", only)
    if made:
        repository.attributes(root, fd, b"/")
    if not repository.count:
        problem(os.fsencode(inside), "not in this snapshot")
    print(f"{repository.count} files and folders, {problems} problems", file=sys.stderr)


def check(repository: Repository) -> None:
    for path in [repository.folder / "config", *objects(*(repository.folder / f for f in FOLDERS))]:
        try:
            with open(path, "rb") as f:
                if path.name not in ("config", hashlib.file_digest(f, "sha256").hexdigest()):
                    raise Damaged("the SHA-256 of the file is not its name")
            if path.name == "config" or path.parent.name == "events":
                repository.volumes[-1] = repository.unseal(path, FOLDERS.get(path.parent.name, 4))
                list(repository.walk(-1, repository.volumes[-1].size))
        except BAD as e:
            problem(path, e)
    repository.index(verify=True)
    for _, s in (every := repository.snapshots()):
        repository.directory(parse(s[1]).root, None, b"", [])
    print(f"{len(every)} snapshots, {len(repository.where)} blobs, {problems} problems")


def main() -> int:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one open folder for each level of a tree
    sys.setrecursionlimit(1 << 18)
    match sys.argv[1:]:
        case [repo, "list"]:
            for i, s in Repository(Path(repo), password).snapshots():
                when = datetime.fromtimestamp(s[2] // 10**9).astimezone().isoformat(" ")
                print(i.hex()[:8], when, text(s[3]), *map(text, s[5]), f"[{', '.join(map(text, s[6]))}]")
        case [repo, "extract", which, target, *inside] if len(inside) < 2:
            extract(Repository(Path(repo), password), which, Path(target), *inside)
        case [repo, "check"]:
            check(Repository(Path(repo), password))
        case _:
            stop(2, __doc__ or "")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
