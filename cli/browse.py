"""`snapfs ls`: what is in a snapshot."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from snapfs.cli import opening
from snapfs.cli.options import BYTES, Settings, command, selection
from snapfs.cli.progress import reporter
from snapfs.cli.render import document, iso, moment, named, out, raw, size, text
from snapfs.cli.snapshots import snapshot_json
from snapfs.repo.errors import UsageError
from snapfs.repo.model import FORMATS, Node, NodeType
from snapfs.repo.select import Filter
from snapfs.repo.trees import Trees, Walked

WORDS = {
    NodeType.FILE: "file",
    NodeType.DIRECTORY: "dir",
    NodeType.SYMLINK: "symlink",
    NodeType.CHARACTER: "chardev",
    NodeType.BLOCK: "dev",
    NodeType.FIFO: "fifo",
    NodeType.SOCKET: "socket",
}
"""restic's."""
_SORTS: dict[str, Callable[[Walked], Any]] = {
    "name": lambda entry: entry.path,
    "size": lambda entry: (-(entry.node.size or 0), entry.path),
    "time": lambda entry: (-entry.node.mtime, entry.path),
    "mtime": lambda entry: (-entry.node.mtime, entry.path),
    "ctime": lambda entry: (-entry.node.ctime, entry.path),
    "atime": lambda entry: (
        -(entry.node.mtime if entry.node.atime is None else entry.node.atime),
        entry.path,
    ),
    "extension": lambda entry: (
        entry.node.name.rpartition(b".")[2] if b"." in entry.node.name else b"",
        entry.path,
    ),
}


@command()
@selection
@click.argument("snapshot", type=BYTES, metavar="SNAPSHOT[:PATH]")
@click.argument("folders", nargs=-1, type=BYTES, metavar="[FOLDER]...")
@click.option("-l", "--long", is_flag=True, help="Show mode, owner, size and time.")
@click.option("--human-readable", is_flag=True, help="With -l: sizes in KiB, MiB ...")
@click.option("--recursive", is_flag=True, help="With FOLDER: everything below it, too.")
@click.option(
    "--sort", type=click.Choice(list(_SORTS)), help="Sort (sizes and times: largest and newest first)."
)
@click.option("--reverse", is_flag=True, help="Sort the other way round.")
@click.option(
    "-0", "--null", is_flag=True, help="Exact names, each ended by a NUL byte instead of a line's end."
)
def ls(
    settings: Settings,
    snapshot: bytes,
    folders: tuple[bytes, ...],
    wanted: Filter,
    long: bool,
    human_readable: bool,
    recursive: bool,
    sort: str | None,
    reverse: bool,
    null: bool,
) -> None:
    """List the files in a snapshot: all of them, or what is in a FOLDER.

    With SNAPSHOT:PATH, paths begin there.

    \b
    Examples:
      snapfs ls latest
      snapfs ls -l latest /home/me/documents
      snapfs ls latest:/home/me --sort size | head
    """
    if null and (settings.json or long):
        raise UsageError("-0 prints bare names: --json and --long contradict it")
    (spec,) = opening.adopt_repository(settings, snapshot) or [b""]
    with opening.open_repository(settings, reporter(settings)) as repository:
        chosen, _, root = opening.snapshot_at(repository, spec, wanted)
        if settings.json:
            document({"message_type": "snapshot", "struct_type": "snapshot", **snapshot_json(chosen)})
        entries = _entries(repository.trees, root, spec, folders, recursive)
        if sort is not None or reverse:
            entries = iter(sorted(entries, key=_SORTS[sort or "name"], reverse=reverse))
        for path, node in entries:
            if null:
                raw(path, b"\0")
            elif settings.json:
                document({"message_type": "node", "struct_type": "node", **node_json(path, node)})
            elif long:
                out(long_line(path, node, human_readable))
            else:
                out(text(path))


def _entries(
    trees: Trees, root: Node, spec: bytes, folders: Iterable[bytes], recursive: bool
) -> Iterator[Walked]:
    if not root.is_dir:
        yield Walked(b"/" + root.name, root)
    elif not folders:
        yield from trees.walk(root)
    for folder in folders:
        path = b"/" + b"/".join(name for name in folder.split(b"/") if name not in (b"", b"."))
        node = trees.resolve(root, path)
        if path != b"/":
            yield Walked(path, node)
        if not node.is_dir:
            continue
        above = path.rstrip(b"/")
        if recursive:
            yield from trees.walk(node, above)
        else:
            yield from (Walked(above + b"/" + child.name, child) for child in trees.children(node))


def mode_of(node: Node) -> int:
    """st_mode: type and permissions."""
    return FORMATS[node.type] | node.mode


def long_line(path: bytes, node: Node, human: bool) -> str:
    owner = str(node.uid) if node.user is None else text(node.user)
    group = str(node.gid) if node.group is None else text(node.group)
    if node.device is not None:
        length = f"{node.device[0]},{node.device[1]}"
    else:
        length = size(node.size or 0) if human else str(node.size or 0)
    target = f" -> {text(node.data or b'')}" if node.type == NodeType.SYMLINK else ""
    mode = stat.filemode(mode_of(node))
    return f"{mode} {owner:<8} {group:<8} {length:>11} {moment(node.mtime)} {text(path)}{target}"


def node_json(path: bytes, node: Node) -> dict[str, Any]:
    """An entry in restic's words.  `mode` is st_mode."""
    found: dict[str, Any] = {
        **named("name", node.name),
        "type": WORDS[NodeType(node.type)],
        **named("path", path),
        "uid": node.uid,
        "gid": node.gid,
        **({} if node.user is None else named("user", node.user)),
        **({} if node.group is None else named("group", node.group)),
        **({} if node.size is None else {"size": node.size}),
        "mode": mode_of(node),
        "permissions": stat.filemode(mode_of(node)),
        "mtime": iso(node.mtime),
        "atime": iso(node.mtime if node.atime is None else node.atime),
        "ctime": iso(node.ctime),
    }
    if node.type == NodeType.SYMLINK:
        found |= named("linktarget", node.data or b"")
    if node.device is not None:
        found["device"] = list(node.device)
    if node.links is not None:
        found["links"] = node.links
    return found
