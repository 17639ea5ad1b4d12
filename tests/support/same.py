"""Do two trees have everything in common that a backup must keep?  A tree is a folder on the disk or a directory of a snapshot.

    differences(on_disk(b"/source"), in_snapshot(repository, node)) == []

Compared by name: type, mode, owner and group, size, mtime to the nanosecond, device number, link target, extended attributes
(ACLs are among them), content, which names are one file, and how much of a file is allocated.  Not compared: atime, ctime,
inode numbers, sizes of directories.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Any

from snapfs.repo.model import Node, NodeType
from snapfs.repo.repository import Repository

_PIECE = 1 << 20
_SLACK = 128 * 1024
"""Bytes that two file systems may allocate differently for one sparse file, and 5 % of it."""


@dataclass(frozen=True)
class Seen:
    """One name.  `group`: the first of the names that are this same file; `allocated` in bytes, regular files only."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int | None = None
    digest: str | None = None
    target: bytes | None = None
    device: tuple[int, int] | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    group: bytes | None = None
    allocated: int | None = None


Tree = dict[bytes, Seen]


def differences(want: Tree, got: Tree, *, blocks: bool = True, top: bool = True) -> list[str]:
    """One line a difference; `top`: whether the two roots themselves (b"") are compared."""
    found = []
    for path in sorted(want.keys() | got.keys()):
        if path in (b"", b"/") and not top:
            continue
        if path not in got or path not in want:
            found.append(f"{path!r}: {'missing' if path in want else 'not wanted'}")
            continue
        a, b = want[path], got[path]
        for name in (f.name for f in fields(Seen)):
            x, y = getattr(a, name), getattr(b, name)
            if x != y and not (name == "allocated" and (not blocks or _near(x, y))):
                found.append(f"{path!r}: {name} is {_short(y)}, not {_short(x)}")
    return found


def on_disk(folder: str | bytes | os.PathLike[str], *, xattrs: bool = True) -> Tree:
    top = os.fsencode(folder)
    found: Tree = {}
    groups: dict[tuple[int, int], bytes] = {}
    todo = [b""]
    while todo:
        name = todo.pop()
        path = top + name
        st = os.lstat(path)
        kind = stat.S_IFMT(st.st_mode)
        facts: dict[str, Any] = {}
        if kind == stat.S_IFDIR:
            todo += sorted((name + b"/" + child for child in os.listdir(path)), reverse=True)
        elif st.st_nlink > 1:
            facts["group"] = groups.setdefault((st.st_dev, st.st_ino), name)
        if kind == stat.S_IFREG:
            facts |= {"size": st.st_size, "digest": _digest_of_file(path), "allocated": st.st_blocks * 512}
        elif kind == stat.S_IFLNK:
            facts["target"] = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            facts["device"] = (os.major(st.st_rdev), os.minor(st.st_rdev))
        if xattrs:
            facts["xattrs"] = tuple(
                (os.fsencode(a), os.getxattr(path, a, follow_symlinks=False))
                for a in sorted(os.listxattr(path, follow_symlinks=False), key=os.fsencode)
            )
        found[name] = Seen(
            _TYPES[kind], stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, **facts
        )
    return _regroup(found)


def in_snapshot(repository: Repository, root: Node) -> Tree:
    """What a snapshot holds at and below `root`, every byte of it read."""
    found: Tree = {b"": _seen(repository, root, b"", {})}
    groups: dict[tuple[int, int], bytes] = {}
    for path, node in repository.trees.walk(root):
        found[path] = _seen(repository, node, path, groups)
    return _regroup(found)


def _seen(repository: Repository, node: Node, path: bytes, groups: dict[tuple[int, int], bytes]) -> Seen:
    facts: dict[str, Any] = {}
    if node.link is not None and not node.is_dir:
        facts["group"] = groups.setdefault(node.link, path)
    if node.is_file:
        size = node.size or 0
        digest, at = hashlib.sha256(), 0
        while at < size:
            piece = repository.contents.read(node, at, _PIECE)
            assert piece, f"{path!r}: no bytes at {at} of {size}"
            digest.update(piece)
            at += len(piece)
        holes = sum(length for _, length in repository.contents.holes(node))
        facts |= {"size": size, "digest": digest.hexdigest(), "allocated": size - holes}
    elif node.type == NodeType.SYMLINK:
        facts["target"] = node.data
    facts["device"] = node.device
    facts["xattrs"] = tuple(repository.contents.xattrs(node))
    return Seen(NodeType(node.type).name.lower(), node.mode, node.uid, node.gid, node.mtime, **facts)


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _regroup(tree: Tree) -> Tree:
    """Groups by their first name in order; one whose other names are outside the tree is none."""
    names = defaultdict(list)
    for path, seen in tree.items():
        if seen.group is not None:
            names[seen.group].append(path)
    for paths in names.values():
        first = min(paths) if len(paths) > 1 else None
        for path in paths:
            tree[path] = Seen(**{**vars(tree[path]), "group": first})
    return tree


def _digest_of_file(path: bytes) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _near(x: int | None, y: int | None) -> bool:
    return x is not None and y is not None and abs(x - y) <= max(x, y) // 20 + _SLACK


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:90]}..."
