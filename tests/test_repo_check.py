"""check: sees every kind of damage, names the files, and cries wolf at nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from snapfs.repo.check.engine import CheckResult, check
from snapfs.repo.check.subset import Subset, parse
from snapfs.repo.errors import UsageError
from snapfs.repo.format import records
from snapfs.repo.model import Below, Kind, Location, Node, NodeType, Snapshot, Totals, VolumeKind
from snapfs.repo.page_writer import Sums
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from support import repositories as repos
from support.trees import File, Name, Tree, make, noise

TREE: Tree = {
    b"small": File(b"tiny"),
    b"one": File(noise(100_000, 1)),
    b"sub/two": File(noise(90_000, 2)),
    b"sub/other name": Name(of=b"sub/two"),
    b"sub/large": File(noise(6_000_000, 3)),
    b"attributes": File(b"x" * 100, xattrs={"user.large": noise(3000, 4)}),
}
"""`large` has more blobs than stand in its node."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source", TREE)


@pytest.fixture
def taken(tmp_path: Path, source: Path) -> StoredSnapshot:
    repos.create(tmp_path, volume_size=2 * 1024 * 1024)
    return repos.snapshot(tmp_path, source)


def checked(folder: Path, read_data: bool | Subset = False) -> CheckResult:
    with repos.open_(folder) as repository:
        return check(repository, read_data=read_data)


def volumes(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in (folder / "repository" / kind).rglob("*") if path.is_file())


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def names(result: CheckResult, source: Path) -> set[bytes]:
    """Affected paths below the source."""
    top = os.fsencode(source)
    assert all(a.path.startswith(top) for a in result.affected)
    return {a.path[len(top) + 1 :] for a in result.affected}


def volume_of(folder: Path, path: bytes, snapshot: StoredSnapshot, position: float = 0.5) -> tuple[Path, int]:
    """(volume file, an offset inside the frame) of a blob of the file at `path`."""
    with repos.open_(folder) as repository:
        node = repository.trees.resolve(snapshot.record.root, path)
        blobs = [blob for kind, blob in repository.contents.blobs(node) if kind is Kind.CONTENT]
        at = repository.index.copies(blobs[int(len(blobs) * position)])[0]
        name = repository.index.volume(at.volume).name.hex()
    return folder / "repository" / "data" / name[:2] / name, at.frame_offset + 32 + at.sealed // 2


@pytest.mark.parametrize("read_data", [False, True])
def test_a_sound_repository(tmp_path: Path, taken: StoredSnapshot, read_data: bool) -> None:
    result = checked(tmp_path, read_data)
    assert result.ok
    assert (result.problems, result.affected, result.notes) == ([], [], [])
    files = [*volumes(tmp_path, "data"), *volumes(tmp_path, "trees")]
    size = sum(path.stat().st_size for path in files)
    assert (result.snapshots, result.volumes, result.bytes_stored) == (1, len(files), size)
    assert result.bytes_read == (size if read_data else 0)
    assert result.bytes_plain > 6_190_000


@pytest.mark.parametrize("fresh_index", [False, True])
def test_a_flipped_byte_is_found_and_its_file_named(
    tmp_path: Path, source: Path, taken: StoredSnapshot, fresh_index: bool
) -> None:
    volume, offset = volume_of(tmp_path, os.fsencode(source) + b"/sub/large", taken)
    flip(volume, offset)
    assert checked(tmp_path).ok, "without --read-data nobody looks there"
    if fresh_index:
        os.rename(tmp_path / "cache", tmp_path / "old cache")
    result = checked(tmp_path, True)
    assert {p.kind for p in result.problems} == {"volume", "blob"}
    assert names(result, source) == {b"sub/large"}
    again = checked(tmp_path)
    assert names(again, source) == {b"sub/large"}, "once it is known, every check says so"


def test_names_of_one_damaged_blob_in_all_snapshots(
    tmp_path: Path, source: Path, taken: StoredSnapshot
) -> None:
    (source / "new").write_bytes(b"new")
    later = repos.snapshot(tmp_path, source)
    pages = checked(tmp_path).pages
    volume, offset = volume_of(tmp_path, os.fsencode(source) + b"/sub/two", taken)
    flip(volume, offset)
    result = checked(tmp_path, True)
    assert result.pages == pages, "the directory that both share is walked once"
    found = {(a.snapshot, os.path.basename(a.path)) for a in result.affected}
    assert {(s.short, name) for s in (taken, later) for name in (b"two", b"other name")} <= found
    assert result.affected_count == len(result.affected)


@pytest.mark.parametrize("where", [0, 60, 110, 140, -1, -33, -70])
@pytest.mark.parametrize("kind", ["data", "trees"])
def test_flips_in_header_frame_directory_and_tail(
    tmp_path: Path, taken: StoredSnapshot, kind: str, where: int
) -> None:
    flip(volumes(tmp_path, kind)[0], where)
    result = checked(tmp_path, True)
    assert not result.ok
    assert any(p.kind == "volume" for p in result.problems)


def test_every_byte_of_a_volume_counts(tmp_path: Path) -> None:
    """Padding too: nothing in a volume may change unseen."""
    repos.create(tmp_path)
    repos.snapshot(tmp_path, make(tmp_path / "source", {b"f": File(b"some content " * 20)}))
    for volume in (*volumes(tmp_path, "data"), *volumes(tmp_path, "trees")):
        for offset in range(0, volume.stat().st_size, 97):
            flip(volume, offset)
            assert not checked(tmp_path, True).ok, f"{volume} at {offset}"
            flip(volume, offset)
    assert checked(tmp_path, True).ok, "put right again"


@pytest.mark.parametrize("length", [0, 50, 104, 5000, -4096, -1])
def test_a_volume_cut_short(tmp_path: Path, source: Path, taken: StoredSnapshot, length: int) -> None:
    volume, _ = volume_of(tmp_path, os.fsencode(source) + b"/sub/large", taken)
    os.truncate(volume, length if length >= 0 else volume.stat().st_size + length)
    result = checked(tmp_path)
    assert any(p.kind == "volume" and volume.name in p.where for p in result.problems)
    if length in (0, 50, 104, 5000):
        assert b"sub/large" in names(result, source)


@pytest.mark.parametrize("fresh_index", [False, True])
def test_a_missing_volume(tmp_path: Path, source: Path, taken: StoredSnapshot, fresh_index: bool) -> None:
    volume, _ = volume_of(tmp_path, os.fsencode(source) + b"/sub/large", taken)
    os.unlink(volume)
    if fresh_index:
        os.rename(tmp_path / "cache", tmp_path / "old cache")
    result = checked(tmp_path)
    assert not result.ok
    assert any(volume.name in p.where for p in result.problems) != fresh_index
    assert b"sub/large" in names(result, source)


def test_all_tree_volumes_missing(tmp_path: Path, taken: StoredSnapshot) -> None:
    for volume in volumes(tmp_path, "trees"):
        os.unlink(volume)
    result = checked(tmp_path)
    assert [(a.snapshot, a.path, a.what) for a in result.affected] == [(taken.short, b"/", "listing")]


def test_a_damaged_list_of_content(tmp_path: Path, source: Path, taken: StoredSnapshot) -> None:
    """A page of the content list is damaged in a tree volume that still looks sound: found without --read-data."""
    with repos.open_(tmp_path) as repository:
        node = repository.trees.resolve(taken.record.root, os.fsencode(source) + b"/sub/large")
        assert node.root is not None
        at = repository.index.copies(node.root)[0]
        name = repository.index.volume(at.volume).name.hex()
    flip(tmp_path / "repository/trees" / name[:2] / name, at.frame_offset + 40)
    result = checked(tmp_path)
    assert not result.ok
    assert result.affected_count > 0


def test_the_next_backup_stores_what_was_lost(tmp_path: Path, source: Path, taken: StoredSnapshot) -> None:
    volume, offset = volume_of(tmp_path, os.fsencode(source) + b"/sub/large", taken)
    flip(volume, offset)
    assert checked(tmp_path, True).affected_count
    repos.snapshot(tmp_path, source, force=True)
    result = checked(tmp_path, True)
    assert [p.kind for p in result.problems] == ["volume"] * len(result.problems), (
        "the file is still there, and still damaged"
    )
    assert result.affected == []
    os.unlink(volume)
    result = checked(tmp_path, True)
    assert result.ok
    assert "no snapshot needs" in result.notes[0]


def test_a_sound_volume_is_relied_on_again(tmp_path: Path, source: Path, taken: StoredSnapshot) -> None:
    volume, offset = volume_of(tmp_path, os.fsencode(source) + b"/one", taken)
    flip(volume, offset)
    assert not checked(tmp_path, True).ok
    still = checked(tmp_path)  # what it needs is somewhere, or it is not: that it says beside
    assert "still are" in still.notes[-1]
    flip(volume, offset)
    first = checked(tmp_path)
    assert first.ok
    assert "1 volumes found damaged earlier are sound now" in first.notes
    assert not first.volumes_read, "the others were not read"
    assert checked(tmp_path).notes == []
    assert checked(tmp_path, True).notes == []


def test_an_index_that_disagrees_is_corrected(tmp_path: Path, taken: StoredSnapshot) -> None:
    with repos.open_(tmp_path) as repository:
        known = repository.index.volumes()[0]
        bogus = Location(0, 9999, 9, 4096, 500, 4, 100)
        repository.index.add(known.name, known.kind, known.size, [(records_id(7), bogus)])
        result = check(repository)
        assert result.ok
        assert "corrected" in result.notes[0]
        assert repository.index.copies(records_id(7)) == []
        assert check(repository).notes == []


def test_volumes_under_one_another_s_names(tmp_path: Path, source: Path, taken: StoredSnapshot) -> None:
    """The index knows where blobs were before; all can be read all the same, so no file is named."""
    one, two = volumes(tmp_path, "data")[:2]
    os.rename(one, tmp_path / "third")
    os.rename(two, one)
    os.rename(tmp_path / "third", two)
    result = checked(tmp_path, True)
    assert {os.path.basename(p.where) for p in result.problems} == {one.name, two.name}
    assert result.affected == []


def test_a_key_slot_of_another_password(tmp_path: Path, taken: StoredSnapshot) -> None:
    with repos.open_(tmp_path) as repository:
        name = repository.slots.add(b"another", cost=repos.CHEAP)
    flip(tmp_path / "repository/keys" / name, 300)
    result = checked(tmp_path)
    assert [(p.kind, p.where) for p in result.problems] == [("key", f"keys/{name}")]


def test_an_index_that_lacks_a_volume(tmp_path: Path, taken: StoredSnapshot) -> None:
    with repos.open_(tmp_path) as repository:
        repository.index.reset()
        assert check(repository).ok


def test_a_missing_event(tmp_path: Path, source: Path, taken: StoredSnapshot) -> None:
    repos.snapshot(tmp_path, source, tags=(b"t",))
    events = sorted((tmp_path / "repository/events").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    os.unlink(events[1])
    result = checked(tmp_path)
    assert [p.kind for p in result.problems] == ["event"]


def test_leftovers_are_a_note(tmp_path: Path, taken: StoredSnapshot) -> None:
    (tmp_path / "repository/tmp/abc").write_bytes(bytes(77))
    result = checked(tmp_path)
    assert result.ok
    assert "77 bytes" in result.notes[0]


# ---- a part of the volumes ------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A repository of a dozen volumes or so."""
    repos.create(tmp_path, volume_size=512 * 1024, chunks=(16 * 1024, 64 * 1024, 256 * 1024))
    repos.snapshot(tmp_path, make(tmp_path / "source", {b"large": File(noise(5_000_000, 9))}))
    return tmp_path


def test_t_parts_together_read_everything_once(many: Path) -> None:
    files = {path.name: path for path in (*volumes(many, "data"), *volumes(many, "trees"))}
    for t in (1, 2, 5, 300):
        found = [checked(many, Subset(part=(n, t))) for n in range(1, t + 1)] if t < 300 else []
        assert sum(result.volumes_read for result in found) == (len(files) if t < 300 else 0)
        parts = [Subset(part=(n, t)).choose(dict.fromkeys(map(bytes.fromhex, files), (0, 1)), os.urandom)  # type: ignore[arg-type]
                 for n in range(1, t + 1)]  # fmt: skip
        assert sorted(name.hex() for part in parts for name in part) == sorted(files)
    for path in files.values():
        flip(path, 200)
    damaged = [checked(many, Subset(part=(n, 4))) for n in range(1, 5)]
    named = [os.path.basename(p.where) for result in damaged for p in result.problems if p.kind == "volume"]
    assert set(named) == set(files), "each damaged volume is found in one of the runs"


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("30%", 3, 5), ("0.001%", 1, 1), ("100%", 11, 14), ("1M", 2, 9), ("1", 1, 1), ("9T", 11, 14)],
)
def test_a_part_by_chance(many: Path, text: str, least: int, most: int) -> None:
    result = checked(many, parse(text))
    assert least <= result.volumes_read <= most, result.volumes
    assert 0 < result.bytes_read <= result.bytes_stored
    assert result.ok


def test_chance_has_a_seam(many: Path) -> None:
    names = {bytes([n]) * 32: (VolumeKind.DATA, 1000) for n in range(200)}
    for subset in (Subset(percent=10), Subset(size=20_000)):
        one, same, other = (
            subset.choose(names, lambda n, seed=seed: bytes([seed]) * n) for seed in (1, 1, 2)
        )  # type: ignore[misc]
        assert one == same != other
        assert len(one) == 20
    assert Subset(percent=10).choose({}, os.urandom) == set()


def test_what_is_damaged_still_is_not_called_sound(many: Path) -> None:
    """A volume that was marked is read whichever part is; mended, its mark goes."""
    path = volumes(many, "data")[0]
    flip(path, 200)
    assert not checked(many, True).ok
    there = bytes.fromhex(path.name)
    other = Subset(part=(2 - int.from_bytes(there[:8], "big") % 2, 2))
    assert "still are" in checked(many, other).notes[0]
    with repos.open_(many) as repository:
        assert [v.name for v in repository.index.volumes() if not v.usable] == [there]
    flip(path, 200)
    assert "sound now" in checked(many, other).notes[0]
    with repos.open_(many) as repository:
        assert all(v.usable for v in repository.index.volumes())


@pytest.mark.parametrize(
    "text",
    [
        "0/3",
        "4/3",
        "1/0",
        "3",
        "x",
        "",
        "-5%",
        "0%",
        "101%",
        "1/2/3",
        "5 M x",
        "0",
        "nan%",
        "1e3%",
        "½",
        "0.0K",
    ],
)
def test_parts_that_cannot_be_meant(text: str) -> None:
    if text == "3":
        assert parse(text) == Subset(size=3)
        return
    with pytest.raises(UsageError, match="--read-data-subset") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


# ---- trees that no honest writer makes -------------------------------------------------------------------------------


def records_id(n: int) -> bytes:
    return bytes([n]) * 32


def plain(name: bytes, **fields: object) -> Node:
    return Node(name, NodeType.FILE, 0o644, 0, 0, None, None, 0, 0, **{"size": 1, "data": b"x", **fields})  # type: ignore[arg-type]


def publish(repository: Repository, entries: Sequence[Node], sums: Sums) -> None:
    with repository.writer() as writer:
        page = writer.put(
            Kind.DIRECTORY, records.encode_page(0, [records.msgspec.Raw(records.encode(n)) for n in entries])
        )
        writer.flush()
    below = Below(sums.nodes, sums.files, sums.bytes)
    root = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0, root=page, below=below)
    repository.events.publish_snapshot(
        Snapshot(1, root, 1, b"h", b"u", (b"/",), (), Totals(), True, 0, 0, (), (), b"test")
    )


@pytest.mark.sums_and_order
@pytest.mark.parametrize(
    ("entries", "sums", "word"),
    [
        ([plain(b"b"), plain(b"a")], Sums(2, 2, 2, 2), "order"),
        ([plain(b"a"), plain(b"a")], Sums(2, 2, 2, 2), "order"),
        ([plain(b"a"), plain(b"b")], Sums(2, 2, 3, 2), "number"),
        ([plain(b"a"), plain(b"b")], Sums(2, 9, 2, 2), "number"),
        ([plain(b"..")], Sums(1, 1, 1, 1), "hostile"),
        ([plain(b"a", data=None, blobs=((records_id(1), 1),))], Sums(1, 1, 1, 1), "no volume"),
    ],
)
def test_hostile_trees(tmp_path: Path, entries: Sequence[Node], sums: Sums, word: str) -> None:
    repos.create(tmp_path)
    with repos.open_(tmp_path) as repository:
        publish(repository, entries, sums)
        result = check(repository)
    assert len(result.problems) == 1
    assert word in result.problems[0].message
    assert result.affected_count == 1
