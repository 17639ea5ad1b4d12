"""The compiled reader of many files: what it says is what os.stat and os.read say, and what is not plain it leaves alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.repo.backup._reading import Status, look, read_small

FIELDS = [name for name in dir(Status) if name.startswith("st_")]
SIZE = 4096


def open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_bytes(b"some words")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long").write_bytes(os.urandom(SIZE))
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("plain")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "socket"))
    sock.close()
    for name, ns in (
        ("plain", -1),
        ("empty", 12_000_000_000 * 10**9 + 1),
        ("long", 1_234_567_890_123_456_789),
    ):
        os.utime(tmp_path / name, ns=(ns, ns))
    os.chmod(tmp_path / "long", 0o4755)
    os.chown(tmp_path / "long", 12345, 54321)
    return tmp_path


def test_status_is_what_lstat_says(folder: Path) -> None:
    fd, names = (
        open_folder(folder),
        sorted((os.fsencode(p.name) for p in folder.iterdir()), key=b"dir".__eq__),
    )
    for name, found in zip(names, look(fd, names), strict=True):
        expected = os.lstat(folder / os.fsdecode(name))
        assert isinstance(found, Status)
        assert {f: getattr(found, f) for f in FIELDS} == {f: getattr(expected, f) for f in FIELDS}, name
    os.close(fd)


def test_what_cannot_be_looked_at_is_an_errno(folder: Path) -> None:
    fd = open_folder(folder)
    gone, there = look(fd, [b"gone", b"plain"])
    assert (gone, isinstance(there, Status)) == (2, True)
    assert look(fd, []) == []
    os.close(fd)


def test_it_looks_no_further_than_a_directory(folder: Path) -> None:
    fd = open_folder(folder)
    assert [type(st) for st in look(fd, [b"plain", b"gone", b"dir", b"empty", b"dir"])] == [
        Status,
        int,
        Status,
    ]
    os.close(fd)


def read(folder: Path, *names: bytes, change: Callable[[], object] = lambda: None) -> list[bytes | None]:
    """The contents, with something happening between look() and read_small()."""
    fd = open_folder(folder)
    try:
        statuses = [look(fd, [name])[0] for name in names]
        assert all(isinstance(st, Status) for st in statuses)
        change()
        found = read_small(fd, list(names), statuses, os.geteuid(), bytearray(4 * SIZE))  # type: ignore[arg-type]
        return [None if pair is None else pair[1] for pair in found]
    finally:
        os.close(fd)


def test_plain_files_are_read(folder: Path) -> None:
    assert read(folder, b"plain", b"empty", b"long") == [b"some words", b"", (folder / "long").read_bytes()]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        read(folder, b"plain", b"fifo", b"link")
    assert len(os.listdir("/proc/self/fd")) == before


def test_their_access_time_stays(folder: Path) -> None:
    os.utime(folder / "plain", ns=(5, 10**18))
    read(folder, b"plain")
    assert os.stat(folder / "plain").st_atime_ns == 5


@pytest.mark.parametrize("name", [b"fifo", b"link", b"dir", b"null", b"socket"])
def test_what_is_no_regular_file_is_left_alone(folder: Path, name: bytes) -> None:
    assert read(folder, name, b"plain") == [None, b"some words"]


def test_extended_attributes_are_left_to_others(folder: Path) -> None:
    os.setxattr(folder / "plain", "user.a", b"b")
    assert read(folder, b"plain", b"empty") == [None, b""]


CHANGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "longer": lambda path: path.write_bytes(b"more than before"),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.unlink(), path.symlink_to("long")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_became_something_else_is_left_alone(folder: Path, change: Callable[[Path], object]) -> None:
    found = read(folder, b"empty", b"plain", b"long", change=lambda: change(folder / "plain"))
    assert found == [b"", None, (folder / "long").read_bytes()]


def test_a_shorter_file_is_read_as_it_is_now(folder: Path) -> None:
    assert read(folder, b"long", b"plain", change=lambda: os.truncate(folder / "long", 3)) == [
        (folder / "long").read_bytes(), b"some words",
    ]  # fmt: skip


def test_more_than_the_buffer_holds_is_refused(folder: Path) -> None:
    fd = open_folder(folder)
    statuses = look(fd, [b"long"])
    with pytest.raises(ValueError, match="buffer"):
        read_small(fd, [b"long"], statuses, 0, bytearray(SIZE - 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many"):
        read_small(fd, [b"long"], [], 0, bytearray(SIZE))
    os.close(fd)
