"""find, stats, dump: what they answer, and that they read no more than they must."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.errors import BlobMissing, Damaged, UsageError
from snapfs.repo.marks import FirstComers, Marks
from snapfs.repo.model import Kind, MiB, Node, NodeType
from snapfs.repo.progress import Progress
from snapfs.repo.query import tar
from snapfs.repo.query.compare import DiffStats, diff
from snapfs.repo.query.dump import dump_file, dump_tar
from snapfs.repo.query.find import find
from snapfs.repo.query.stats import Mode, Stats, stats
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from support import repositories as repos
from support.same import differences, on_disk
from support.trees import ODD, SECOND, File, Name, Symlink, Tree, make, noise

# ---- find ------------------------------------------------------------------------------------------------------------

FOUND: Tree = {
    b"docs/readme.md": File(b"r", mtime=10 * SECOND),
    b"docs/deep/Readme.md": File(b"R", mtime=20 * SECOND),
    b"docs/deep/notes": File(b"n", mtime=30 * SECOND),
    b"src/main.c": File(b"c", mtime=40 * SECOND),
    b"src/!odd": File(b"!", mtime=40 * SECOND),
    b"src/deep/main.h": File(b"h", mtime=50 * SECOND),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """(folder, path of the source) with two snapshots; the second has one file more."""
    folder = tmp_path_factory.mktemp("find")
    source = make(folder / "source", FOUND)
    repos.create(folder)
    repos.snapshot(folder, source)
    make(source, {b"src/late.c": File(b"late", mtime=60 * SECOND)})
    repos.snapshot(folder, source)
    return folder, os.fsencode(source)


@pytest.mark.parametrize(
    ("patterns", "options", "expected"),
    [
        (["readme.md"], {}, {b"docs/readme.md"}),
        (["readme.md"], {"ignore_case": True}, {b"docs/readme.md", b"docs/deep/Readme.md"}),
        (["*.c", "*.h"], {}, {b"src/main.c", b"src/deep/main.h", b"src/late.c"}),
        (["src/*.c"], {}, {b"src/main.c", b"src/late.c"}),
        (["docs/deep"], {}, {b"docs/deep", b"docs/deep/Readme.md", b"docs/deep/notes"}),
        (["deep"], {"newest": 25 * SECOND}, {b"docs/deep/Readme.md"}),
        (
            ["*"],
            {"oldest": 40 * SECOND, "newest": 50 * SECOND},
            {b"src/main.c", b"src/!odd", b"src/deep/main.h"},
        ),
        (["!odd"], {}, {b"src/!odd"}),
        (["/source"], {}, set()),
        (["TOP/src/*.c"], {}, {b"src/main.c", b"src/late.c"}),
        (["TOP/*/deep/*"], {}, {b"docs/deep/Readme.md", b"docs/deep/notes", b"src/deep/main.h"}),
        (["TOP/**/main.?"], {}, {b"src/main.c", b"src/deep/main.h"}),
    ],
)
def test_find(
    library: tuple[Path, bytes], patterns: list[str], options: dict[str, int], expected: set[bytes]
) -> None:
    folder, top = library
    with repos.open_(folder) as repository:
        snapshots = repository.snapshots()
        asked = [p.replace("TOP", os.fsdecode(top)) for p in patterns]
        found = list(find(repository, snapshots, asked, **options))  # type: ignore[arg-type]
    for snapshot in snapshots:
        # Directories were touched now, so a time range leaves them out.
        here = {m.path[len(top) + 1 :] for m in found if m.snapshot.id == snapshot.id}
        late = {b"src/late.c"} if snapshot is snapshots[0] else set()
        assert here == expected - late
    assert all(m.node.name == os.path.basename(m.path) for m in found)
    assert [m.path for m in found] == [m.path for s in snapshots for m in found if m.snapshot is s]


def test_find_does_not_open_what_cannot_match(
    library: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, top = library

    def opened(patterns: list[str], times: int) -> int:
        with repos.open_(folder) as repository:
            pages = set()
            get = repository.blobs.get
            monkeypatch.setattr(
                repository.blobs, "get", lambda blob, kind: (pages.add(blob), get(blob, kind))[1]
            )
            list(find(repository, repository.snapshots()[:1] * times, patterns))
            return len(pages)

    everything = opened(["no such"], 1)
    depth = top.count(b"/") + 1
    assert everything == depth + 4, "each directory of the first snapshot is one page"
    assert opened(["/elsewhere/*"], 1) == 1
    assert opened([os.fsdecode(top) + "/docs/x"], 1) == depth + 1


def test_find_passes_over_pages_it_knows(
    library: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = library
    with repos.open_(folder) as repository:
        first, second = repository.snapshots()
        asked: list[bytes] = []
        get = repository.blobs.get
        monkeypatch.setattr(
            repository.blobs, "get", lambda blob, kind: (asked.append(blob), get(blob, kind))[1]
        )
        search = find(repository, [first, second, first], ["no such"])
        assert list(search) == []
    assert len(asked) == len(set(asked)), "no page twice"


def test_find_refuses_bad_patterns(library: tuple[Path, bytes]) -> None:
    with repos.open_(library[0]) as repository:
        for patterns in ([], ["[a"]):
            with pytest.raises(UsageError):
                list(find(repository, repository.snapshots(), patterns))


# ---- stats -----------------------------------------------------------------------------------------------------------

COUNTED: Tree = {
    b"one": File(noise(80_000, 1)),
    b"same as one": File(noise(80_000, 1)),
    b"tiny": File(b"tiny"),
    b"tiny again": File(b"tiny"),
    b"empty": File(),
    b"sub/linked": File(noise(70_000, 2)),
    b"sub/other": Name(of=b"sub/linked"),
    b"sub/many": File(noise(3_000_000, 3)),
    b"pointer": Symlink(target=b"one"),
}
SIZE = 80_000 + 4 + 70_000 + 3_000_000
"""Of distinct contents."""


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(folder, number of directories above the source and it): three snapshots, of which the last two differ in one file."""
    folder = tmp_path_factory.mktemp("stats")
    source = make(folder / "source", COUNTED)
    repos.create(folder)
    repos.snapshot(folder, source)
    repos.snapshot(folder, source, time=2 * 10**18)
    (source / "one").write_bytes(noise(90_000, 4))
    repos.snapshot(folder, source, time=3 * 10**18)
    return folder, len(source.parts) - 1


def count(
    folder: Path, mode: Mode, choose: Callable[[list[StoredSnapshot]], list[StoredSnapshot]] = lambda s: s
) -> Stats:
    with repos.open_(folder) as repository:
        return stats(repository, choose(repository.snapshots()), mode)


def test_restore_size(counted: tuple[Path, int]) -> None:
    folder, above = counted
    one = count(folder, Mode.RESTORE_SIZE, lambda s: s[:1])
    assert (one.snapshots, one.files, one.size) == (1, above + 10, SIZE + 80_000 + 4)
    all_ = count(folder, Mode.RESTORE_SIZE)
    assert (all_.snapshots, all_.files, all_.size) == (3, 3 * one.files, 3 * one.size + 10_000)


def test_files_by_contents(counted: tuple[Path, int]) -> None:
    one = count(counted[0], Mode.FILES_BY_CONTENTS, lambda s: s[:1])
    assert (one.files, one.size) == (5, SIZE)
    all_ = count(counted[0], Mode.FILES_BY_CONTENTS)
    assert (all_.files, all_.size) == (6, SIZE + 90_000)


def test_blobs_per_file(counted: tuple[Path, int]) -> None:
    """Inline content has no blob; a path whose content was met elsewhere is not counted."""
    all_ = count(counted[0], Mode.BLOBS_PER_FILE)
    assert (all_.files, all_.size) == (3, SIZE - 4 + 90_000)
    assert all_.blobs > 6, "many has more than a few"


def test_raw_data(counted: tuple[Path, int]) -> None:
    folder, _ = counted
    all_ = count(folder, Mode.RAW_DATA)
    with repos.open_(folder) as repository:
        assert all_.blobs == repository.index.count(), "nothing in this repository is superfluous"
        entries = [at for _, at in repository.index.entries()]
        stored = sum(v.size for v in repository.index.volumes())
    assert all_.plain == sum(at.length for at in entries)
    assert 0.9 * stored < all_.size <= stored
    assert count(folder, Mode.RAW_DATA, lambda s: s[:2]).blobs < all_.blobs


def test_what_another_machine_wrote_is_counted(tmp_path: Path) -> None:
    """Its volumes are not in this machine's index yet."""
    source = make(tmp_path / "source", COUNTED)
    repos.create(tmp_path)
    repos.snapshot(tmp_path, source)
    (tmp_path / "cache").rename(tmp_path / "ours")
    (source / "another").write_bytes(noise(90_000, 5))
    repos.snapshot(tmp_path, source)
    expected = [count(tmp_path, mode) for mode in Mode]
    for mode, same in zip(Mode, expected, strict=True):
        shutil.rmtree(tmp_path / "cache")
        shutil.copytree(tmp_path / "ours", tmp_path / "cache")
        assert count(tmp_path, mode) == same
    shutil.rmtree(tmp_path / "cache")
    shutil.copytree(tmp_path / "ours", tmp_path / "cache")
    with repos.open_(tmp_path) as repository:
        first, second = (one.record.root for one in repository.snapshots())
        changes = DiffStats()
        list(diff(repository, first, second, stats=changes))
    assert changes.added.bytes > 90_000


def test_stats_of_a_damaged_repository(tmp_path: Path) -> None:
    repos.create(tmp_path)
    repos.snapshot(tmp_path, make(tmp_path / "source", COUNTED))
    shutil.rmtree(tmp_path / "repository/data")
    shutil.rmtree(tmp_path / "cache")
    assert count(tmp_path, Mode.RESTORE_SIZE).size, "needs no content"
    with pytest.raises(BlobMissing):
        count(tmp_path, Mode.RAW_DATA)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000))))
def test_marks_are_a_set(pairs: list[tuple[int, int]]) -> None:
    marks, known = Marks(), set()
    for pair in pairs:
        assert marks.add(*pair) == (pair not in known)
        known.add(pair)
    assert all(marks.has(*pair) for pair in known)
    assert not marks.has(9, 1)
    assert not any(marks.has(v, n) for v in range(4) for n in range(0, 6000, 7) if (v, n) not in known)


def test_first_comers() -> None:
    table = FirstComers()
    assert table.first(b"a", b"1") is None
    assert table.first(b"b", b"\0\xff") is None
    assert table.first(b"a", b"2") == b"1"
    assert table.first(b"b") == b"\0\xff"
    table.close()


# ---- dump ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Repository, Node, Path]]:
    """(repository, node of the source, source): one of everything."""
    folder = tmp_path_factory.mktemp("dump")
    source = make(folder / "source", ODD)
    repos.create(folder)
    taken = repos.snapshot(folder, source)
    with repos.open_(folder) as repository:
        yield repository, repository.trees.resolve(taken.record.root, os.fsencode(source)), source


def test_dump_files(odd: tuple[Repository, Node, Path]) -> None:
    repository, top, source = odd
    seen = 0
    for path, node in repository.trees.walk(top):
        if node.is_file:
            seen += 1
            assert (
                b"".join(dump_file(repository, node))
                == Path(os.fsdecode(os.fsencode(source) + path)).read_bytes()
            ), path
        else:
            with pytest.raises(UsageError):
                list(dump_file(repository, node))
    assert seen > 50


def test_dump_a_file_piece_by_piece(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {b"f": File(noise(2_000_000), size=40_000_000)})
    repos.create(tmp_path)
    taken = repos.snapshot(tmp_path, source)
    with repos.open_(tmp_path) as repository:
        node = repository.trees.resolve(taken.record.root, os.fsencode(source / "f"))
        pieces = list(dump_file(repository, node))
    assert max(map(len, pieces)) <= 4 * MiB
    assert b"".join(pieces) == (source / "f").read_bytes()


def test_dump_a_damaged_file(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {b"f": File(noise(2_000_000))})
    repos.create(tmp_path, volume_size=2 * MiB)
    taken = repos.snapshot(tmp_path, source)
    with repos.open_(tmp_path) as repository:
        node = repository.trees.resolve(taken.record.root, os.fsencode(source / "f"))
        at = repository.index.copies(
            [b for k, b in repository.contents.blobs(node) if k is Kind.CONTENT][-1]
        )[0]
        name = repository.index.volume(at.volume).name.hex()
        with open(tmp_path / "repository/data" / name[:2] / name, "r+b") as file:
            file.seek(at.frame_offset + 50)
            file.write(bytes(8))
        got = 0
        with pytest.raises(Damaged):  # noqa: PT012
            for piece in dump_file(repository, node):
                got += len(piece)
        assert 0 < got < 2_000_000


class Notices(Progress):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def notice(self, text: str) -> None:
        self.seen.append(text)


@pytest.fixture(scope="module")
def archive(odd: tuple[Repository, Node, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository, top, _ = odd
    path = tmp_path_factory.mktemp("tar") / "odd.tar"
    notices = Notices()
    with open(path, "wb") as out:
        dump_tar(repository, top, b"/top", out, notices)
    assert len(notices.seen) == 1
    assert "top/special/socket" in notices.seen[0]
    return path


def test_gnu_tar_extracts_everything(
    odd: tuple[Repository, Node, Path], archive: Path, tmp_path: Path
) -> None:
    command = [
        "tar",
        "-xpf",
        str(archive),
        "-C",
        str(tmp_path),
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
    ]
    quiet = [
        "--warning=no-timestamp",
        "--warning=no-unknown-keyword",
    ]  # before 1970; hdrcharset, which it obeys all the same
    done = subprocess.run(command + quiet, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    want = on_disk(odd[2])
    del want[b"/special/socket"]
    assert differences(want, on_disk(tmp_path / "top"), blocks=False) == []


def test_the_standard_library_reads_it(odd: tuple[Repository, Node, Path], archive: Path) -> None:
    repository, top, _ = odd
    expected = {b"top"} | {
        b"top" + path for path, node in repository.trees.walk(top) if node.type != NodeType.SOCKET
    }
    with tarfile.open(archive, errors="surrogateescape") as opened:
        members = {member.name.encode("utf-8", "surrogateescape"): member for member in opened}
        assert set(members) == expected
        assert members[b"top/links/two"].islnk()
        for path, node in repository.trees.walk(top):
            member = members.get(b"top" + path)
            if member is not None and member.isreg():
                content = opened.extractfile(member)
                assert content is not None
                assert content.read() == b"".join(dump_file(repository, node))
    assert archive.stat().st_size % 512 == 0


def test_the_root_of_a_snapshot_and_a_single_file(odd: tuple[Repository, Node, Path]) -> None:
    repository, top, _ = odd
    for path, names in ((b"/", "./"), (b"", "./"), (b"/a/b/", "a/b/")):
        out = io.BytesIO()
        dump_tar(repository, top, path, out)
        assert (
            out.getvalue()[:100].rstrip(b"\0").decode() == names
            or "@PaxHeader" in out.getvalue()[:100].decode()
        )
        with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as opened:
            first = opened.next()
            assert first is not None
            assert first.isdir()
            assert first.name == names.rstrip("/")
    node = repository.trees.resolve(top, b"sizes/65537")
    out = io.BytesIO()
    dump_tar(repository, node, b"/sizes/65537", out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as opened:
        assert [(m.name, m.size) for m in opened] == [("sizes/65537", 65537)]
    with pytest.raises(UsageError):
        dump_tar(repository, repository.trees.resolve(top, b"special/socket"), b"s", io.BytesIO())


def test_an_untrusted_archive_lends_no_rights(odd: tuple[Repository, Node, Path], archive: Path) -> None:
    """All else is as in one that is trusted."""
    repository, top, _ = odd
    out = io.BytesIO()
    dump_tar(repository, top, b"/top", out, untrusted=True)

    def members(of: BinaryIO) -> dict[str, tuple[Any, ...]]:
        with tarfile.open(fileobj=of, errors="surrogateescape") as opened:
            return {m.name: (m.type, m.mode, m.size, m.mtime, m.linkname, m.pax_headers) for m in opened}

    out.seek(0)
    found = members(out)
    with open(archive, "rb") as f:
        whole = members(f)
    lent = 0
    for name, (kind, mode, *rest, words) in whole.items():
        if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            lent += 1
            continue
        kept = {
            k: v
            for k, v in words.items()
            if not k.startswith(("SCHILY.xattr.security.", "SCHILY.xattr.trusted."))
        }
        lent += (mode & 0o6000 != 0) + (kept != words)
        assert found.pop(name) == (kind, mode & 0o1777, *rest, kept), name
    assert not found
    assert lent >= 2


@given(
    st.binary(max_size=200), st.binary(max_size=200), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1),
    st.integers(0, 2**63 - 1), st.dictionaries(st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=300)),
)  # fmt: skip
def test_headers(
    name: bytes, user: bytes, mtime: int, uid: int, size: int, xattrs: dict[bytes, bytes]
) -> None:
    """What the standard library reads is what was said, to the byte."""
    name = name.replace(b"\0", b"").strip(b"/") or b"n"
    user = user.replace(b"\0", b"")
    node = Node(b"x", NodeType.FILE, 0o4755, uid, 0, user, b"g", mtime, 0, size=size)
    data = tar.header(node, name, xattrs.items())
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data + tar.END), errors="surrogateescape") as opened:
        read = opened.next()
    assert read is not None
    assert read.name.encode("utf-8", "surrogateescape") == name
    assert (read.mode, read.uid, read.size) == (0o4755, uid, size)
    assert read.uname.encode("utf-8", "surrogateescape") == user
    stored = read.pax_headers.get("mtime", "")
    seconds, _, fraction = stored.lstrip("-").partition(".")
    ns = int(seconds) * SECOND + int(fraction) if stored else int(read.mtime) * SECOND
    assert (-ns if stored.startswith("-") else ns) == mtime
    for key, value in xattrs.items():
        assert read.pax_headers["SCHILY.xattr." + key.decode()].encode("utf-8", "surrogateescape") == value


def test_sizes_over_8_gib_and_times_before_1970() -> None:
    node = Node(b"x", NodeType.FILE, 0o644, 0, 0, None, None, -1_500_000_000, 0, size=9 << 30)
    data = tar.header(node, b"big", ())
    assert b" size=9663676416\n" in data
    assert b" mtime=-1.500000000\n" in data
