"""Entries of a tar archive in the pax format, as bytes: pure functions from a Node.

Everything a ustar header cannot say exactly is in pax records: times in ns, sizes from 8 GiB on, long names, extended
attributes (SCHILY.xattr.*, with the raw bytes of ACLs, and SCHILY.acl.* as text for programs that read those).  Names that are
not UTF-8 are raw, said by hdrcharset=BINARY.  Standard: POSIX.1-2001 pax; attributes as star and GNU tar write them.
"""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterable

from snapfs.repo.model import Node, NodeType

BLOCK = 512
END = bytes(2 * BLOCK)

_TYPES = {
    NodeType.FILE: tarfile.REGTYPE,
    NodeType.DIRECTORY: tarfile.DIRTYPE,
    NodeType.SYMLINK: tarfile.SYMTYPE,
    NodeType.CHARACTER: tarfile.CHRTYPE,
    NodeType.BLOCK: tarfile.BLKTYPE,
    NodeType.FIFO: tarfile.FIFOTYPE,
}
_ACLS = {b"system.posix_acl_access": b"SCHILY.acl.access", b"system.posix_acl_default": b"SCHILY.acl.default"}
_ACL_TAGS = {0x01: "user:", 0x02: "user:{}", 0x04: "group:", 0x08: "group:{}", 0x10: "mask:", 0x20: "other:"}
_SMALL = 8**7 - 1
_LARGEST_SIZE = 8**11 - 1


def header(node: Node, name: bytes, xattrs: Iterable[tuple[bytes, bytes]], link_to: bytes | None = None) -> bytes:
    """Everything that stands before the content.  `name`: in the archive; `link_to`: name of the entry this is a hard link of.

    A socket has no type in tar: do not ask for one.
    """
    info = tarfile.TarInfo()
    info.type = tarfile.LNKTYPE if link_to is not None else _TYPES[NodeType(node.type)]
    info.mode = node.mode
    target = link_to if link_to is not None else node.data if node.type == NodeType.SYMLINK else None
    if node.is_dir:
        name += b"/"
    records: list[tuple[bytes, bytes]] = []

    def text(keyword: bytes, value: bytes, limit: int) -> str:
        if len(value) > limit or not value.isascii():
            records.append((keyword, value))
            return ""
        return value.decode("ascii")

    def number(keyword: bytes, value: int, largest: int) -> int:
        if 0 <= value <= largest:
            return value
        records.append((keyword, b"%d" % value))
        return 0

    # A name that stands in a record still needs a stand-in, for programs that do not know records.
    info.name = text(b"path", name, 100) or ("pax/" if node.is_dir else "pax")
    info.linkname = text(b"linkpath", target or b"", 100)
    info.uname = text(b"uname", node.user or b"", 31)
    info.gname = text(b"gname", node.group or b"", 31)
    info.uid = number(b"uid", node.uid, _SMALL)
    info.gid = number(b"gid", node.gid, _SMALL)
    info.size = number(b"size", node.size or 0, _LARGEST_SIZE) if node.is_file and link_to is None else 0
    seconds, rest = divmod(node.mtime, 10**9)
    info.mtime = seconds if 0 <= seconds <= _LARGEST_SIZE else 0
    if rest or info.mtime != seconds:
        records.append((b"mtime", _decimal(node.mtime)))
    if node.device is not None:
        info.devmajor = number(b"SCHILY.devmajor", node.device[0], _SMALL)
        info.devminor = number(b"SCHILY.devminor", node.device[1], _SMALL)
    if not all(_is_utf8(value) for _, value in records):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    if link_to is None:
        for key, value in xattrs:
            records.append((b"SCHILY.xattr." + key, value))
            acl = _acl_text(value) if key in _ACLS else None
            if acl is not None:
                records.append((_ACLS[key], acl))
    block = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    return _extended(records) + block if records else block


def padding(size: int) -> bytes:
    """What follows `size` bytes of content."""
    return bytes(-size % BLOCK)


def _extended(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(_record(keyword, value) for keyword, value in records)
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    info.size = len(body)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + body + padding(len(body))


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
