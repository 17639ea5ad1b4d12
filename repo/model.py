"""The values everything else speaks of: blobs, where they lie, nodes of a tree, snapshots.  Frozen, without I/O.

Structs with `array_like` are records: their field order is the order on disk (docs/format.md, "Records"), fields are only
ever added at the end, and a reader ignores what it does not know.
"""

from __future__ import annotations

import enum
import stat
from hashlib import blake2b
from typing import NamedTuple, NewType

import msgspec

BlobId = NewType("BlobId", bytes)
"""32 bytes: keyed BLAKE3 of a blob's plaintext, with the key of its kind."""

KiB = 1024
MiB = 1024 * KiB

MAX_BLOB = 4 * MiB
"""No blob is longer, in bytes."""


class Kind(enum.IntEnum):
    """What a blob is.  Each kind has its own id key, so equal bytes of two kinds are two blobs."""

    CONTENT = 1
    DIRECTORY = 2
    LIST = 3
    HOLES = 4
    XATTR = 5

    @property
    def volume(self) -> VolumeKind:
        return VolumeKind.DATA if self is Kind.CONTENT else VolumeKind.TREE


class VolumeKind(enum.IntEnum):
    DATA = 1
    TREE = 2


class NodeType(enum.IntEnum):
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6
    SOCKET = 7


DEVICES = (NodeType.CHARACTER, NodeType.BLOCK)
UNPRIVILEGED_MODE = 0o1777
"""Bits of a mode that lend nobody's rights."""
PRIVILEGED_XATTRS = (b"security.", b"trusted.")
"""Prefixes of extended attributes that may."""
_FILE, _DIRECTORY = int(NodeType.FILE), int(NodeType.DIRECTORY)
"""Asked of every entry: members of an Enum are slow."""
FORMATS: dict[int, int] = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIRECTORY: stat.S_IFDIR,
    NodeType.SYMLINK: stat.S_IFLNK,
    NodeType.CHARACTER: stat.S_IFCHR,
    NodeType.BLOCK: stat.S_IFBLK,
    NodeType.FIFO: stat.S_IFIFO,
    NodeType.SOCKET: stat.S_IFSOCK,
}
"""Node.type -> the bits of st_mode that say the same."""
TYPES: dict[int, int] = {bits: int(kind) for kind, bits in FORMATS.items()}


class Location(NamedTuple):
    """Where a blob lies: everything needed to read it with one pread."""

    volume: int
    """Number of the volume in this index (Index.volume_name gives its name)."""
    entry: int
    """Position in the volume's directory."""
    frame: int
    """Number of the frame in the volume: its nonce."""
    frame_offset: int
    """Offset of the sealed frame header in the volume, in bytes."""
    sealed: int
    """Length of the sealed body that follows the header, in bytes."""
    offset: int
    """Offset of the blob in the opened body, in bytes."""
    length: int


class Extent(NamedTuple):
    """Part of a file's logical bytes: a blob, or a hole (id is None) that no blob stands for."""

    id: BlobId | None
    length: int


class Xattr(msgspec.Struct, array_like=True, frozen=True):
    """An extended attribute: its value stands here, or, over 1 KiB, in a blob of kind XATTR."""

    name: bytes
    value: bytes | None = None
    blob: bytes | None = None


class Holes(msgspec.Struct, array_like=True, frozen=True):
    """The hole map: `total` bytes in holes; (offset, length) pairs here, or, when many, in pages below `root`."""

    total: int
    extents: tuple[tuple[int, int], ...] | None = None
    root: bytes | None = None


class Below(msgspec.Struct, array_like=True, frozen=True):
    """What is below a directory, itself not counted: nodes of every type, regular files, the sum of their
    sizes in bytes."""

    nodes: int = 0
    files: int = 0
    size: int = 0


class Node(msgspec.Struct, array_like=True, frozen=True):
    """One name in a directory with all that is kept of it.  Times in ns since 1970 (negative before)."""

    name: bytes
    type: int
    mode: int
    """Permission, setuid, setgid and sticky bits: st_mode & 0o7777."""
    uid: int
    gid: int
    user: bytes | None
    group: bytes | None
    mtime: int
    ctime: int
    size: int | None = None
    """Logical bytes; regular files only."""
    data: bytes | None = None
    """A symlink's target; the content of a regular file of at most 64 bytes."""
    blobs: tuple[tuple[bytes | None, int], ...] | None = None
    """A regular file's content as at most 8 extents (id or nil, length); longer lists are pages below `root`."""
    root: bytes | None = None
    """Root page: of a directory (None: empty), or of a regular file's content list."""
    device: tuple[int, int] | None = None
    """Major and minor of a device node."""
    xattrs: tuple[Xattr, ...] | None = None
    """Sorted by name; POSIX ACLs are among them (system.posix_acl_access, system.posix_acl_default)."""
    link: tuple[int, int] | None = None
    """Hard-link group (file system ordinal in the snapshot, inode there); only where the link count exceeds one."""
    holes: Holes | None = None
    below: Below | None = None
    """Directories only."""
    changed: int = 0
    """1: the file changed both times it was read, so the content may be a mixture of versions."""
    atime: int | None = None
    links: int | None = None
    """Link count at the time of the backup, where it exceeds one."""

    @property
    def is_dir(self) -> bool:
        return self.type == _DIRECTORY

    @property
    def is_file(self) -> bool:
        return self.type == _FILE

    @property
    def one_file(self) -> bytes | None:
        """16 bytes that all names of one file share (hard links); None for a file with one name.

        Its content is in them: of a file that changed between the reading of two names, each is a file of its own.
        """
        if self.link is None or self.is_dir:
            return None
        what = msgspec.msgpack.encode((self.link, self.size, self.data, self.blobs, self.root))
        return blake2b(what, digest_size=16).digest()


class Totals(msgspec.Struct, array_like=True, frozen=True):
    """What a backup did; counts of nodes, sizes in bytes."""

    files: int = 0
    directories: int = 0
    others: int = 0
    size: int = 0
    """Logical bytes of all regular files in the snapshot."""
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    dirs_new: int = 0
    dirs_changed: int = 0
    dirs_unmodified: int = 0
    data_blobs: int = 0
    tree_blobs: int = 0
    bytes_added: int = 0
    """Plaintext of new blobs."""
    bytes_stored: int = 0
    """New volumes and events as they lie in the repository."""
    duration: int = 0
    """Nanoseconds."""


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """One moment of some paths of one host.  Never rewritten; tags as shown come from the events (events.State)."""

    version: int
    root: Node
    """The directory "/" of the snapshot (its name is empty); absolute paths hang below it."""
    time: int
    host: bytes
    user: bytes
    paths: tuple[bytes, ...]
    tags: tuple[bytes, ...]
    totals: Totals
    complete: bool
    """False: a checkpoint, hidden from ordinary lists, used as parent only."""
    errors: int
    """Source files that could not be read, or changed while they were."""
    with_xattrs: int
    """Entries that carry extended attributes."""
    filesystems: tuple[bytes, ...]
    """One name an ordinal (Node.link): the mount point's path."""
    excludes: tuple[bytes, ...]
    program: bytes
    parent: bytes | None = None
    """Id of the snapshot this run compared with."""
    uid: int = 0
    gid: int = 0
    signature: bytes | None = None
    """Reserved."""
