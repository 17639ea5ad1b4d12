"""A snapshot's tree without what is lost of it: only the directories that lead there are written anew.

A file whose content cannot be had is left out; one that only lost an attribute or its hole map is kept without that; of a
directory with a lost page, the entries of its other pages are kept.  Everything left out is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from snapfs.repo.blobs import BlobReader
from snapfs.repo.check.treecheck import TreeCheck
from snapfs.repo.content import Contents
from snapfs.repo.errors import Damaged
from snapfs.repo.format import records
from snapfs.repo.index import Index
from snapfs.repo.model import BlobId, Kind, Node
from snapfs.repo.page_writer import Put
from snapfs.repo.trees import DirectoryWriter

Lost = Callable[[bytes, str], None]
_FIELDS = Node.__struct_fields__


@dataclass
class _Directory:
    path: bytes
    node: Node
    raw: msgspec.Raw | bytes
    entries: Iterator[tuple[Node, msgspec.Raw]]
    writer: DirectoryWriter


class TreeMender:
    """Writes trees without what is lost.  Raises StorageError where it cannot be told whether something is lost."""

    def __init__(
        self, index: Index, reader: BlobReader, walked: TreeCheck, put: Put, page_key: bytes, lost: Lost
    ) -> None:
        """`walked` has checked the snapshots; `lost(path, what)` is told what is left out: content, listing, attributes or
        holes."""
        self._index = index
        self._reader = reader
        self._contents = Contents(reader)
        self._walked = walked
        self._put = put
        self._page_key = page_key
        self._lost = lost

    def mend(self, root: Node) -> Node | None:
        """The root directory as it can be had; None if nothing of its listing can."""
        stack = [self._open(root, records.encode(root), b"")]
        while True:
            top = stack[-1]
            entry = next(top.entries, None)
            if entry is None:
                stack.pop()
                page, below = top.writer.finish()
                mended, raw = _edited(top.node, top.raw, root=page, below=below)
                if not stack:
                    return mended if page is not None else None
                stack[-1].writer.add(mended, raw)
                continue
            path = top.path + b"/" + entry[0].name
            kept = self._entry(*entry, path)
            if kept is None:
                continue
            node, raw = kept
            if node.is_dir and node.root is not None and not self._walked.is_whole(node.root):
                stack.append(self._open(node, raw, path))
            else:
                top.writer.add(node, raw)

    def _open(self, node: Node, raw: msgspec.Raw | bytes, path: bytes) -> _Directory:
        return _Directory(
            path, node, raw, self._ascending(node, path), DirectoryWriter(self._put, self._page_key)
        )

    def _ascending(self, node: Node, path: bytes) -> Iterator[tuple[Node, msgspec.Raw]]:
        """The entries that can be had; names that are out of order, or there twice, cannot be told apart."""
        last = b""
        for entry in self._entries(node.root, None, path) if node.root is not None else ():
            if entry[0].name <= last:
                self._lost(path, "listing")
                continue
            last = entry[0].name
            yield entry

    def _entries(self, page_id: bytes, level: int | None, path: bytes) -> Iterator[tuple[Node, msgspec.Raw]]:
        where = page_id.hex()[:16]
        try:
            page = records.decode_page(self._reader.get(BlobId(page_id), Kind.DIRECTORY), where)
            if level is not None and page.level != level:
                raise Damaged("a page on the wrong level", where)
        except Damaged:
            self._lost(path, "listing")
            return
        for raw in page.entries:
            try:
                if page.level == 0:
                    yield records.decode_node(raw, where), raw
                    continue
                below = records.decode_branch(raw, where).id
            except Damaged:
                self._lost(path, "listing")
                continue
            yield from self._entries(below, page.level - 1, path)

    def _entry(self, node: Node, raw: msgspec.Raw, path: bytes) -> tuple[Node, msgspec.Raw | bytes] | None:
        """What can be kept of an entry."""
        kept: tuple[Node, msgspec.Raw | bytes] = node, raw
        if any(attribute.blob is not None for attribute in node.xattrs or ()):
            had = tuple(a for a in node.xattrs or () if a.blob is None or self._is_there(Kind.XATTR, a.blob))
            if len(had) < len(node.xattrs or ()):
                self._lost(path, "attributes")
                kept = _edited(*kept, xattrs=had or None)
        if node.is_file and not self._all_there(msgspec.structs.replace(node, xattrs=None, holes=None)):
            self._lost(path, "content")
            return None
        if node.holes is not None and not self._all_there(
            msgspec.structs.replace(node, xattrs=None, blobs=None, root=None, data=None, size=0)
        ):
            self._lost(path, "holes")
            kept = _edited(*kept, holes=None)
        return kept

    def _all_there(self, node: Node) -> bool:
        try:
            return all(self._is_there(kind, blob) for kind, blob in self._contents.blobs(node))
        except Damaged:
            return False

    def _is_there(self, kind: Kind, blob: bytes) -> bool:
        """In a volume that is to be relied on, or it really reads."""
        if self._index.get(blob) is not None:
            return True
        try:
            self._reader.get(BlobId(blob), kind)
        except Damaged:
            return False
        return True


def _edited(node: Node, raw: msgspec.Raw | bytes, **changes: Any) -> tuple[Node, bytes]:
    """The node with these fields changed, and its encoding; fields that this version does not know are kept."""
    values: list[Any] = msgspec.msgpack.decode(raw)
    for name, value in changes.items():
        at = _FIELDS.index(name)
        values += [None] * (at + 1 - len(values))
        values[at] = value
    return msgspec.structs.replace(node, **changes), records.encode(values)
