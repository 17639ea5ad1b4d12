"""Entries of a tar archive in the pax format, as bytes: pure functions from a Node.

Everything a ustar header cannot say exactly is in pax records: times in ns, sizes from 8 GiB on, long names, extended
attributes (SCHILY.xattr.*, with the raw bytes of ACLs, and SCHILY.acl.* as text for programs that read those).  Names that are
not UTF-8 are raw, said by hdrcharset=BINARY.  Standard: POSIX.1-2001 pax; attributes as star and GNU tar write them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from snapfs.repo.errors import Damaged
from snapfs.repo.model import MiB, Node, NodeType

BLOCK = 512
END = bytes(2 * BLOCK)

_USTAR = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s167x")
_TYPES = {
    NodeType.FILE: b"0",
    NodeType.SYMLINK: b"2",
    NodeType.CHARACTER: b"3",
    NodeType.BLOCK: b"4",
    NodeType.DIRECTORY: b"5",
    NodeType.FIFO: b"6",
}
_ACLS = {b"system.posix_acl_access": b"SCHILY.acl.access", b"system.posix_acl_default": b"SCHILY.acl.default"}
_ACL_TAGS = {0x01: "user:", 0x02: "user:{}", 0x04: "group:", 0x08: "group:{}", 0x10: "mask:", 0x20: "other:"}

_ATTRIBUTES = 16 * MiB
"""Of one entry, with their names: they all stand in its header, which is in memory."""


def header(
    node: Node, name: bytes, xattrs: Iterable[tuple[bytes, bytes]], link_to: bytes | None = None
) -> bytes:
    """Everything that stands before the content.  `name`: in the archive; `link_to`: name of the entry this is a hard link of.

    A socket has no type in tar: do not ask for one.
    """
    kind = b"1" if link_to is not None else _TYPES[NodeType(node.type)]
    target = link_to if link_to is not None else node.data if node.type == NodeType.SYMLINK else None
    if node.is_dir:
        name += b"/"
    records: list[tuple[bytes, bytes]] = []

    def text(keyword: bytes, value: bytes | None, limit: int) -> bytes:
        if not value or (len(value) <= limit and value.isascii()):
            return value or b""
        records.append((keyword, value))
        return b""

    def number(keyword: bytes, value: int, digits: int) -> bytes:
        if 0 <= value < 8**digits:
            return b"%0*o" % (digits, value)
        records.append((keyword, b"%d" % value))
        return b"0" * digits

    size = node.size or 0 if node.is_file and link_to is None else 0
    major, minor = node.device or (0, 0)
    seconds, rest = divmod(node.mtime, 10**9)
    fields = (
        # A name that stands in a record needs a stand-in all the same, for programs that do not know records.
        text(b"path", name, 100) or (b"pax/" if node.is_dir else b"pax"), b"%07o" % node.mode, number(b"uid", node.uid, 7),
        number(b"gid", node.gid, 7), number(b"size", size, 11), b"%011o" % (seconds if 0 <= seconds < 8**11 else 0), kind,
        text(b"linkpath", target, 100), text(b"uname", node.user, 31), text(b"gname", node.group, 31),
        number(b"SCHILY.devmajor", major, 7), number(b"SCHILY.devminor", minor, 7),
    )  # fmt: skip
    if rest or not 0 <= seconds < 8**11:
        records.append((b"mtime", _decimal(node.mtime)))
    if not all(_is_utf8(value) for _, value in records):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    room = _ATTRIBUTES
    if link_to is None:
        for key, value in xattrs:
            records.append((b"SCHILY.xattr." + key, value))
            room -= len(key) + len(value)
            if room < 0:
                raise Damaged(
                    f"entry {node.name!r} has more attributes than can be put into an archive", "tree"
                )
            acl = _acl_text(value) if key in _ACLS else None
            if acl is not None:
                records.append((_ACLS[key], acl))
    block = _block(*fields)
    return _extended(records) + block if records else block


def padding(size: int) -> bytes:
    """What follows `size` bytes of content."""
    return bytes(-size % BLOCK)


def _block(name: bytes, mode: bytes, uid: bytes, gid: bytes, size: bytes, mtime: bytes, kind: bytes, target: bytes = b"",
           user: bytes = b"", group: bytes = b"", major: bytes = b"", minor: bytes = b"") -> bytes:  # fmt: skip
    """A ustar header; its checksum is the sum of its bytes, with spaces where the checksum stands."""
    fields = (
        name,
        mode,
        uid,
        gid,
        size,
        mtime,
        b" " * 8,
        kind,
        target,
        b"ustar",
        b"00",
        user,
        group,
        major,
        minor,
    )
    block = _USTAR.pack(*fields)
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])


def _extended(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(_record(keyword, value) for keyword, value in records)
    zero = b"0000000"
    return (
        _block(b"././@PaxHeader", zero, zero, zero, b"%011o" % len(body), b"0" * 11, b"x")
        + body
        + padding(len(body))
    )


def _record(keyword: bytes, value: bytes) -> bytes:
    """ "LENGTH KEYWORD=VALUE\\n": the length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, keyword, value)


def _decimal(ns: int) -> bytes:
    seconds, rest = divmod(abs(ns), 10**9)
    return b"%s%d.%09d" % (b"-" if ns < 0 else b"", seconds, rest)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _acl_text(value: bytes) -> bytes | None:
    """A POSIX ACL as the kernel keeps it (version 2; tag, permissions, id) in its short text form; None if it is none."""
    if len(value) % 8 != 4 or value[:4] != b"\x02\0\0\0":
        return None
    entries = []
    for tag, perm, who in struct.iter_unpack("<HHI", value[4:]):
        if tag not in _ACL_TAGS or perm > 7:
            return None
        bits = "".join(letter if perm & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        entries.append(f"{_ACL_TAGS[tag].format(who)}:{bits}")
    return ",".join(entries).encode()
