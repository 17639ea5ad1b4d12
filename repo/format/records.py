"""Records <-> bytes: MessagePack arrays of int, bin, array and nil (and bool), in the one encoding msgspec gives (shortest ints).

Whatever is decoded is checked before anyone uses it: names above all, since a repository may be somebody else's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Annotated, TypeVar

import msgspec

from snapfs.repo.errors import Damaged, UnsupportedFormat
from snapfs.repo.format import labels as L
from snapfs.repo.model import MAX_BLOB, KiB, Node, NodeType, Snapshot

VERSION = 1
_FILE = int(NodeType.FILE)


class Page(msgspec.Struct, array_like=True, frozen=True):
    """A page of a directory, content list or hole map.  Level 0 holds nodes, extents or holes; above, Branches.

    Entries stay raw until they are used, so that copying one keeps fields that this version does not know.
    """

    version: int
    level: int
    entries: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=L.PAGE_ENTRIES)]


class Branch(msgspec.Struct, array_like=True, frozen=True):
    """One page, as its parent page names it: sums are over everything below it."""

    first: bytes | None
    """Name of the first entry below (directories); None for lists."""
    entries: int
    """Level-0 entries below."""
    size: int
    """Logical bytes below."""
    id: bytes
    nodes: int = 0
    """Directories: nodes below, those in subdirectories too."""
    files: int = 0


class KeyEntry(msgspec.Struct, array_like=True, frozen=True):
    name: bytes
    epoch: int
    key: bytes


class Bundle(msgspec.Struct, array_like=True, frozen=True):
    """What a key slot wraps: the repository's keys and a copy of the config record."""

    version: int
    role: int
    """1: everything; 2: to back up, and nothing else (L.BACKUP_ONLY_KEYS)."""
    keys: tuple[KeyEntry, ...]
    config: bytes


class Config(msgspec.Struct, array_like=True, frozen=True):
    """The parameters of a repository, fixed at init.

    Feature sets name what a program must know to read, write or prune.
    """

    version: int
    repository: bytes
    read_features: tuple[bytes, ...]
    write_features: tuple[bytes, ...]
    prune_features: tuple[bytes, ...]
    chunk_minimum: int
    chunk_average: int
    chunk_maximum: int
    volume_size: int
    created: int


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The newest event a client had seen of some chain: (client, sequence number, name of the event's file
    as 32 bytes)."""

    client: bytes
    sequence: int
    name: bytes


class EventBody(msgspec.Struct, array_like=True, frozen=True):
    """What happened: `type` says which of the fields count (see the EVENT_ constants)."""

    type: int
    snapshot: bytes | None = None
    """SNAPSHOT, CHECKPOINT: the encoded Snapshot."""
    ids: tuple[bytes, ...] = ()
    """TAGS, FORGET, UNDELETE: ids of snapshots.  KEY_ADDED, KEY_REMOVED: the slot's name; and where it can only back up, in
    KEY_ADDED, its client id and verifying key.  KEYS_CHANGED: names of events and volumes."""
    tags: tuple[bytes, ...] = ()
    """TAGS: the tags from now on.  KEY_ADDED: label, host and user, and KEY_RECOVERY where it is a recovery key's, or
    KEY_BACKUP_ONLY and the host that it backs up.  KEYS_CHANGED: host and user."""


class Event(msgspec.Struct, array_like=True, frozen=True):
    version: int
    client: bytes
    sequence: int
    heads: tuple[Head, ...]
    time: int
    body: EventBody


class Signed(msgspec.Struct, array_like=True, frozen=True):
    """What an event of a key that can only back up holds: the encoded Event, and its Ed25519 signature (recipient.py)."""

    version: int
    record: bytes
    signature: bytes


class _Versioned(msgspec.Struct, array_like=True, frozen=True):
    """What records of all versions begin with."""

    version: int


class _Begun(msgspec.Struct, array_like=True, frozen=True):
    version: int
    second: bytes


EVENT_SNAPSHOT, EVENT_TAGS, EVENT_FORGET, EVENT_UNDELETE, EVENT_CHECKPOINT, EVENT_KEY_ADDED = range(1, 7)
EVENT_KEYS_CHANGED, EVENT_KEY_REMOVED = 7, 8
EVENT_TYPES = range(EVENT_SNAPSHOT, EVENT_KEY_REMOVED + 1)
KEY_RECOVERY = b"recovery"
KEY_BACKUP_ONLY = b"backup-only"

UNDECODABLE = (msgspec.DecodeError, RecursionError, ValueError)
"""What msgspec raises for bytes that are no such record: the second for arrays in arrays in arrays."""

T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode
encode_into = msgspec.msgpack.Encoder().encode_into
_versioned = msgspec.msgpack.Decoder(_Versioned).decode
_begun = msgspec.msgpack.Decoder(_Begun).decode
_page = msgspec.msgpack.Decoder(Page).decode
_node = msgspec.msgpack.Decoder(Node).decode
_branch = msgspec.msgpack.Decoder(Branch).decode
_extent = msgspec.msgpack.Decoder(tuple[bytes | None, int]).decode
_hole = msgspec.msgpack.Decoder(tuple[int, int]).decode


def decode(kind: type[T], data: bytes | msgspec.Raw, where: str) -> T:
    """Decode a record of this type.  Raises Damaged, or UnsupportedFormat for a newer version of it."""
    try:
        found = msgspec.msgpack.decode(data, type=kind)
    except UNDECODABLE as error:
        _refuse_newer(data, f"{kind.__name__.lower()} record", where)
        raise Damaged(f"{kind.__name__.lower()} record does not decode: {error}", where) from error
    if getattr(found, "version", VERSION) > VERSION:
        _refuse_newer(data, f"{kind.__name__.lower()} record", where)
    return found


def _refuse_newer(data: bytes | msgspec.Raw, what: str, where: str) -> None:
    """Raise UnsupportedFormat for a newer version, whatever shape the fields after it have."""
    with contextlib.suppress(*UNDECODABLE):
        if _versioned(data).version > VERSION:
            raise UnsupportedFormat(f"{where}: a newer kind of {what}: install a newer snapfs")


def second_field(data: bytes) -> bytes:
    """The second field of a record of any version if it is bytes, else nothing."""
    with contextlib.suppress(*UNDECODABLE):
        return _begun(data).second
    return b""


def encode_page(level: int, entries: list[msgspec.Raw]) -> bytes:
    return encode(Page(VERSION, level, entries))


def decode_page(data: bytes, where: str) -> Page:
    try:
        page = _page(data)
    except UNDECODABLE as error:
        _refuse_newer(data, "page", where)
        raise Damaged("a page that does not decode", where) from error
    if page.version > VERSION:
        _refuse_newer(data, "page", where)
    if not 0 <= page.level <= L.PAGE_LEVELS:
        raise Damaged("a page too high above its entries", where)
    return page


def decode_node(raw: msgspec.Raw | bytes, where: str) -> Node:
    """A directory's entry, checked: a type that exists, a name that is one, and sizes that can be."""
    return decode_nodes((raw,), where)[0]


def decode_nodes(raws: Iterable[msgspec.Raw | bytes], where: str) -> list[Node]:
    """The entries of one page.  Listing a mount is for the most part this: calls are spared where nearly all nodes are sound."""
    try:
        nodes = [_node(raw) for raw in raws]
    except UNDECODABLE as error:
        raise Damaged("an entry that does not decode", where) from error
    for node in nodes:
        name = node.name
        if b"/" in name or b"\0" in name or not 0 < len(name) <= L.NAME_LIMIT or name in _NO_NAMES:
            check_name(name, where)
        if not _is_plain_file(node):
            _check_any(node, where)
    return nodes


_NO_NAMES = (b".", b"..")
_FEW_XATTRS = 64


def check_name(name: bytes, where: str) -> None:
    """Raise Damaged unless `name` may be one component of a path."""
    if b"/" in name or b"\0" in name or not 0 < len(name) <= L.NAME_LIMIT or name in _NO_NAMES:
        raise Damaged(f"hostile name {name[:40]!r}", where)


def check_node(node: Node, where: str) -> None:
    """Raise Damaged unless the fields of a node can belong together."""
    if not _is_plain_file(node):
        _check_any(node, where)


def _is_plain_file(node: Node) -> bool:
    """Whether it is what nearly all nodes are: a sound file of one blob or none.  All checks took a fifth of listing a mount."""
    if node.type != _FILE or node.root is not None or node.holes is not None or node.below is not None:
        return False
    if node.mode & ~0o7777 or (node.xattrs is not None and len(node.xattrs) > _FEW_XATTRS):
        return False
    blobs = node.blobs
    if blobs is None:
        return node.size == len(node.data or b"")
    if len(blobs) != 1:
        return False
    ((blob, length),) = blobs
    return blob is not None and len(blob) == L.ID_SIZE and 0 < length <= MAX_BLOB and length == node.size


def _check_any(node: Node, where: str) -> None:
    kind, below = node.type, node.below
    if not NodeType.FILE <= kind <= NodeType.SOCKET:
        raise Damaged(f"entry {node.name!r} is of unknown type {kind}", where)
    if node.mode & ~0o7777:
        raise Damaged(f"entry {node.name!r} has a mode that cannot be", where)
    for blob in (node.root, *(() if node.blobs is None else (b for b, _ in node.blobs))):
        if blob is not None and len(blob) != L.ID_SIZE:
            raise Damaged(f"entry {node.name!r} has a bad id", where)
    if below is not None and min(below.nodes, below.files, below.size) < 0:
        raise Damaged(f"entry {node.name!r} has bad sums", where)
    if node.xattrs is not None and sum(len(a.name) + 1 for a in node.xattrs) > L.XATTR_LIMIT:
        raise Damaged(f"entry {node.name!r} has more attributes than a file can have", where)
    if node.holes is not None and any(
        offset < 0 or length <= 0 for offset, length in node.holes.extents or ()
    ):
        raise Damaged(f"entry {node.name!r} has a bad hole", where)
    if kind == NodeType.FILE:
        if node.size is None or node.size < 0:
            raise Damaged(f"file {node.name!r} without a size", where)
        if node.root is None and _content_length(node) != node.size:
            raise Damaged(f"file {node.name!r} is not as long as it says", where)
    elif kind == NodeType.SYMLINK:
        if not node.data or b"\0" in node.data:
            raise Damaged(f"symbolic link {node.name!r} with a bad target", where)
    elif kind in (NodeType.CHARACTER, NodeType.BLOCK) and node.device is None:
        raise Damaged(f"device {node.name!r} without a number", where)


def _content_length(node: Node) -> int:
    if node.blobs is None:
        return len(node.data or b"")
    if any(length <= 0 or (blob is not None and length > MAX_BLOB) for blob, length in node.blobs):
        return -1
    return sum(length for _, length in node.blobs)


def decode_branch(raw: msgspec.Raw, where: str) -> Branch:
    try:
        branch = _branch(raw)
    except UNDECODABLE as error:
        raise Damaged("a page entry that does not decode", where) from error
    if len(branch.id) != L.ID_SIZE or branch.entries <= 0 or min(branch.size, branch.nodes, branch.files) < 0:
        raise Damaged("a page entry with bad sums", where)
    return branch


def decode_extent(raw: msgspec.Raw, where: str) -> tuple[bytes | None, int]:
    try:
        blob, length = _extent(raw)
    except UNDECODABLE as error:
        raise Damaged("an extent that does not decode", where) from error
    if length <= 0 or (blob is not None and (len(blob) != L.ID_SIZE or length > MAX_BLOB)):
        raise Damaged("a bad extent", where)
    return blob, length


def decode_hole(raw: msgspec.Raw, where: str) -> tuple[int, int]:
    try:
        offset, length = _hole(raw)
    except UNDECODABLE as error:
        raise Damaged("a hole that does not decode", where) from error
    if offset < 0 or length <= 0:
        raise Damaged("a bad hole", where)
    return offset, length


def decode_snapshot(data: bytes, where: str) -> Snapshot:
    snapshot = decode(Snapshot, data, where)
    if not snapshot.root.is_dir or snapshot.root.name:
        raise Damaged("a snapshot whose root is no directory", where)
    check_node(snapshot.root, where)
    return snapshot


def least_volume(largest_blob: int) -> int:
    """The smallest volume size, in bytes: it holds one frame, and the directory of its blobs."""
    return max(largest_blob, L.JOINED_DATA) + 64 * KiB


def check_config(config: Config, where: str) -> Config:
    """Refuse parameters that cannot be, and features this program does not know."""
    unknown = [f.decode("ascii", "replace") for f in config.read_features if f not in L.READ_FEATURES]
    if unknown:
        raise UnsupportedFormat(f"{where}: needs {', '.join(unknown)}: install a newer snapfs")
    if not (
        64 <= config.chunk_minimum < config.chunk_average < config.chunk_maximum <= MAX_BLOB
        and config.chunk_average & (config.chunk_average - 1) == 0
        and least_volume(config.chunk_maximum) <= config.volume_size <= L.VOLUME_SIZE_LIMIT
    ):
        raise Damaged("impossible parameters", where)
    return config
