"""The compiled look at a page of an earlier snapshot, held against the records it passes by and the rule of what is unchanged;
and what may be relied on because the whole of an earlier snapshot is known to be there."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from snapfs.repo.backup._earlier import EarlierPage
from snapfs.repo.backup._reading import Status, look
from snapfs.repo.backup.nodes import make_node
from snapfs.repo.backup.parents import EarlierDirectory, KeepingWriter
from snapfs.repo.errors import Damaged, StorageError
from snapfs.repo.format import records
from snapfs.repo.index import Index, IndexBroken
from snapfs.repo.model import Holes, Node, NodeType, Xattr
from snapfs.repo.trees import DirectoryWriter
from support.parts import KEYS, MemoryBlobs
from support.sources import Desk, Watch
from support.trees import File, noise

USERS = {0: b"root", 7: None}


def page_of(nodes: list[Node]) -> bytes:
    return records.encode_page(0, [msgspec.Raw(records.encode(node)) for node in nodes])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Status]]:
    """A real file's status: a Status cannot be made up."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "f").write_bytes(b"x" * 1000)
    os.utime(folder / "f", ns=(0, 1_700_000_000_123_456_789))
    fd = os.open(folder, os.O_RDONLY)
    (status,) = look(fd, [b"f"])
    assert isinstance(status, Status)
    yield fd, status
    os.close(fd)


def name_of(number: int) -> bytes | None:
    return USERS.get(number)


def passed(nodes: list[Node], names: list[bytes], statuses: list[Any]) -> tuple[int, int, int]:
    page = EarlierPage(page_of(nodes))
    found = page.unchanged(names, statuses, name_of, name_of)
    assert page.left == len(nodes) - found[0]
    if page.left:
        assert page.name() == nodes[found[0]].name
        assert page.take() == records.encode(nodes[found[0]])
    return found


def like(status: Status, name: bytes = b"f", **changes: Any) -> Node:
    node = make_node(name, status, size=status.st_size, blobs=((b"i" * 32, status.st_size),))  # type: ignore[arg-type]
    return replace(node, **{"user": name_of(status.st_uid), "group": name_of(status.st_gid), **changes})


def test_unchanged_files_are_passed_by(real: tuple[int, Status]) -> None:
    _, status = real
    names = [b"%04d" % n for n in range(300)]
    assert passed([like(status, name) for name in names], names, [status] * 300) == (300, 300_000, 0)
    assert passed([like(status, name) for name in names], names[:10], [status] * 10) == (10, 10_000, 0)
    assert passed([], names, [status] * 300) == (0, 0, 0)


SAME: dict[str, dict[str, Any]] = {
    "as it is": {},
    "another mode, which the change time would tell": {"mode": 0},
    "inline content": {"blobs": None, "data": b"y" * 60},
    "paged content": {"blobs": None, "root": b"r" * 32},
    "a hole map": {"holes": Holes(5, ((0, 5),))},
    "a paged hole map": {"holes": Holes(5, None, b"h" * 32)},
    "attributes": {"xattrs": (Xattr(b"user.a", b"b"), Xattr(b"user.c", None, b"x" * 32))},
}
CHANGED: dict[str, dict[str, Any]] = {
    "another time": {"mtime": 1},
    "a time that fits no 64 bits": {"mtime": 2**63},
    "another change time": {"ctime": -1},
    "another size": {"size": 1001},
    "no size": {"size": None},
    "another type": {"type": NodeType.FIFO},
    "another name": {"name": b"g"},
    "a longer name": {"name": b"f" * 255},
    "another owner": {"uid": 5},
    "another group": {"gid": 2**31},
    "the owner has another name by now": {"user": b"toor"},
    "the owner had no name": {"user": None},
    "the group has another name by now": {"group": b"toor"},
    "it changed while it was read": {"changed": 1},
    "a hard link": {"link": (0, 5), "links": 2},
    "an access time": {"atime": 5},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_what_is_the_same(real: tuple[int, Status], changes: dict[str, Any]) -> None:
    node = like(real[1], **changes)
    assert passed([node], [b"f"], [real[1]]) == (1, 1000, int(node.xattrs is not None))


@pytest.mark.parametrize("changes", CHANGED.values(), ids=CHANGED)
def test_what_is_not(real: tuple[int, Status], changes: dict[str, Any]) -> None:
    """It ends the run, and only those before it are passed by."""
    names = [b"a", b"f", b"z"]
    nodes = [like(real[1], b"a"), like(real[1], **changes), like(real[1], b"z")]
    assert passed(nodes, names, [real[1]] * 3) == (1, 1000, 0)


def test_what_is_no_plain_file_now(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").write_bytes(b"x")
    os.link(tmp_path / "c", tmp_path / "d")
    fd = os.open(tmp_path, os.O_RDONLY)
    for name in (b"a", b"b", b"c"):
        (status,) = look(fd, [name])
        assert isinstance(status, Status)
        assert passed([like(status, name)], [name], [status]) == (0, 0, 0)
    assert passed([like(status, b"x")], [b"x"], [2]) == (0, 0, 0), "an errno"
    os.close(fd)


def test_fields_of_later_versions_are_not_passed_by(real: tuple[int, Status]) -> None:
    raw = msgspec.msgpack.decode(records.encode(like(real[1])))
    page = records.encode_page(0, [msgspec.Raw(msgspec.msgpack.encode([*raw, b"news"]))])
    assert EarlierPage(page).unchanged([b"f"], [real[1]], name_of, name_of) == (0, 0, 0)


numbers = st.integers(-(2**63), 2**64 - 1)


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), numbers, numbers, numbers), max_size=20),
    st.data(),
)
def test_any_page_is_walked_as_it_decodes(
    rows: list[tuple[bytes, int, int, int]], data: st.DataObject
) -> None:
    """Entry by entry the same names and the same bytes as msgspec finds; cut or changed anywhere: Damaged, nothing else."""
    nodes = [
        Node(name, 1, 0o644, 0, 0, b"root", None, m, c, s, None, ((b"i" * 32, s),)) for name, m, c, s in rows
    ]  # type: ignore[arg-type]
    encoded = page_of(nodes)
    page = EarlierPage(encoded)
    for node in nodes:
        assert page.name() == node.name
        assert page.take() == records.encode(node)
    assert page.left == 0
    cut = data.draw(st.integers(0, len(encoded)))
    flipped = bytearray(encoded)
    if encoded:
        flipped[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    for hostile in (encoded[:cut], bytes(flipped)):
        try:
            page = EarlierPage(hostile)
            while page.left and len(page.take()):
                pass
        except Damaged:
            pass


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for hostile in (data, b"\x93\x01\x00" + data, b"\x93\x01\x00\x91" + data):
        try:
            page = EarlierPage(hostile)
            while page.left:
                page.name()
                page.take()
        except Damaged:
            pass


# ---- keeping a directory as it was -----------------------------------------------------------------------------------


def directory(store: MemoryBlobs, nodes: list[Node]) -> Node:
    writer = DirectoryWriter(store.put, KEYS.page)
    for node in nodes:
        writer.add(node)
    root, below = writer.finish()
    return Node(b"", NodeType.DIRECTORY, 0, 0, 0, None, None, 0, 0, root=root, below=below)


@given(
    st.integers(0, 400),
    st.sets(st.integers(0, 400)),
    st.sets(st.integers(0, 400)),
    st.sets(st.integers(0, 400)),
)
def test_a_kept_directory_is_the_one_written_anew(
    count: int, removed: set[int], changed: set[int], added: set[int]
) -> None:
    """Whatever is kept, changed, removed and added: the same root and sums as writing every entry."""
    store = MemoryBlobs()
    old = [Node(b"%03d" % n, 1, 0o644, 0, 0, b"root", None, n, n, 0) for n in range(count)]
    earlier = directory(store, old)
    nodes = {n.name: n for i, n in enumerate(old) if i not in removed}
    nodes |= {name: replace(n, mtime=-1) for name, n in nodes.items() if int(name) in changed}
    nodes |= {b"%03d+" % n: Node(b"%03d+" % n, 1, 0, 0, 0, None, None, 0, 0, 0) for n in added}
    wanted = [nodes[name] for name in sorted(nodes)]

    beside = EarlierDirectory(store, [earlier])  # type: ignore[arg-type]
    writer = KeepingWriter(store.put, KEYS.page, store, beside)  # type: ignore[arg-type]
    for node in wanted:
        was = beside.take(node.name)
        if not was or was[0].node != node or not writer.keep(was[0].ordinal):
            writer.add(node)
    root, below = writer.finish()
    assert (root, below) == ((made := directory(store, wanted)).root, made.below)


# ---- an earlier snapshot that is known to be whole -------------------------------------------------------------------


def test_only_a_snapshot_whose_blobs_are_there_is_relied_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"a/x": File(noise(300_000)), b"a/y": File(noise(5000, 2)), b"z": File(b"1" * 99)})
    first = desk.snapshot()
    with desk.open() as repository:
        assert repository.index.is_whole(first.id)
        assert not repository.index.is_whole(bytes(32))
    again = desk.snapshot()
    with desk.open() as repository:
        assert repository.index.is_whole(again.id)
        assert not repository.index.is_whole(first.id), "one for each chain of snapshots"
    assert again.record.totals.data_blobs == 0


def test_a_lost_volume_ends_the_trust(tmp_path: Path) -> None:
    """Nothing about the files changed, and yet their content is stored anew."""
    desk = Desk(tmp_path, {b"a/x": File(noise(300_000)), b"a/y": File(noise(5000, 2))})
    first = desk.snapshot()
    for kind in ("data", "trees"):
        for path in desk.volumes(kind).values():
            path.unlink()
    result = desk.backup()
    assert result.snapshot is not None
    assert result.totals.data_blobs > 0
    assert desk.differences(result.snapshot) == []
    with desk.open() as repository:
        assert not repository.index.is_whole(first.id)
        assert repository.index.is_whole(result.snapshot.id)


def test_a_loss_during_the_run_is_not_forgotten(tmp_path: Path) -> None:
    """A check that runs beside finds damage: the snapshot that is made meanwhile is not taken for whole."""
    desk = Desk(tmp_path, {b"a": File(noise(5000)), b"b": File(noise(5000, 2))})

    class Checker(Watch):
        def item(self, path: bytes, action: str, size: int = 0) -> None:
            with desk.open() as repository:
                repository.index.mark([v.name for v in repository.index.volumes()], False)

    desk.snapshot()
    (desk.source / "a").write_bytes(noise(5000, 3))
    result = desk.backup(progress=Checker())
    assert result.snapshot is not None
    with desk.open() as repository:
        assert not repository.index.is_whole(result.snapshot.id)
    again = desk.backup()
    assert again.snapshot is not None
    assert again.totals.data_blobs > 0
    assert desk.differences(again.snapshot) == []


def test_what_another_process_noticed_first_is_gone_all_the_same(tmp_path: Path) -> None:
    """A volume of the trusted parent vanishes, and whoever looks beside the backup marks it or forgets it."""
    for forget in (False, True):
        desk = Desk(tmp_path / str(forget), {b"a": File(noise(5000)), b"b": File(noise(5000, 2))})
        desk.snapshot()
        (desk.source / "a").write_bytes(noise(5000, 3))

        class Another(Watch):
            def item(self, path: bytes, action: str, size: int = 0) -> None:
                for name, volume in desk.volumes("data").items():  # noqa: B023
                    volume.unlink()
                    with desk.open() as repository:  # noqa: B023
                        if forget:  # noqa: B023
                            repository.index.forget([bytes.fromhex(name)])
                        else:
                            repository.synchronise()

        with pytest.raises(StorageError, match="vanished"):
            desk.backup(progress=Another())
        again = desk.snapshot()
        assert desk.differences(again) == []


def test_what_was_lost_and_read_again_is_stored_though_nothing_changed(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"a": File(noise(5000)), b"b": File(noise(5000, 2))})
    first = desk.snapshot()
    for volume in desk.volumes("data").values():
        volume.unlink()
    assert desk.backup(skip_if_unchanged=True).snapshot is None
    assert desk.differences(first) == []


def test_a_checkpoint_is_no_snapshot_that_could_be_unchanged(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {b"a": File(noise(5000)), b"b": File(noise(5000, 2))})

    class Stops(Watch):
        def item(self, path: bytes, action: str, size: int = 0) -> None:
            self.interrupted = self.interrupted or path.endswith(b"/b")

    with pytest.raises(KeyboardInterrupt):
        desk.backup(progress=Stops())
    made = desk.backup(skip_if_unchanged=True).snapshot
    assert made is not None
    assert made.record.complete
    assert desk.differences(made) == []


def test_a_stream_is_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index breaks after standard input was read: what is left of that is nothing."""
    desk = Desk(tmp_path)
    volumes = Index.volumes
    calls = 0

    def breaking(self: Index) -> Any:
        nonlocal calls
        if stream.tell() == 5000 and not calls:
            calls += 1
            raise IndexBroken("for a test")
        return volumes(self)

    stream = io.BytesIO(noise(5000))
    monkeypatch.setattr(Index, "volumes", breaking)
    with pytest.raises(StorageError, match="cannot be read again"):
        desk.backup(stdin=stream)
    assert calls
    with desk.open() as repository:
        assert repository.snapshots() == []


@pytest.mark.parametrize("names", [[], [b"a/0"], [b"a/5", b"a/7"], [b"a/9"], [b"b"]])
def test_what_changed_is_seen_wherever_it_stands(tmp_path: Path, names: list[bytes]) -> None:
    desk = Desk(tmp_path, {b"a/%d" % n: File(noise(100, n)) for n in range(10)} | {b"b": File(b"1")})
    desk.snapshot()
    for name in names:
        (desk.source / os.fsdecode(name)).write_bytes(noise(100, 77))
    watch = Watch()
    result = desk.backup(progress=watch)
    assert result.totals.files_changed == len(names)
    assert result.totals.files_unmodified == 11 - len(names)
    said = {
        path.removeprefix(os.fsencode(desk.source) + b"/")
        for path, what in watch.items.items()
        if what == "unchanged"
    }
    assert {b"a/%d" % n for n in range(10)} - set(names) <= said
    assert result.snapshot is not None
    assert desk.differences(result.snapshot) == []


def test_a_snapshot_is_safe_although_that_cannot_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, {b"a": File(noise(5000))})

    def full(*_: object, **__: object) -> None:
        raise IndexBroken("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "note_whole", full)
        first = desk.snapshot()
    with desk.open() as repository:
        assert [s.id for s in repository.snapshots()] == [first.id], "one, and not one more"
        assert not repository.index.is_whole(first.id)
    assert desk.differences(desk.snapshot()) == []
