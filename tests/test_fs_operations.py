"""The request handlers without a kernel: whatever goes wrong is an errno, and never the end of the loop."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
from pyfuse3 import FUSEError

from snapfs.fs.entry import Entry, Stale
from snapfs.fs.operations import Snapfs
from snapfs.fs.patience import NotAtHand
from snapfs.repo.errors import BlobMissing, Damaged, StorageError
from snapfs.repo.model import Node, NodeType, Xattr

FILE = Entry(7, Node(b"secret name", NodeType.FILE, 0o644, 0, 0, None, None, 0, 0, size=10), True)
REQUESTS: dict[str, tuple[Any, ...]] = {
    "lookup": (1, b"secret name", None), "getattr": (7, None), "readlink": (7, None), "getxattr": (7, b"user.a", None),
    "listxattr": (7, SimpleNamespace(uid=0)), "statfs": (None,), "opendir": (7, None), "open": (7, 0, None), "read": (1, 0, 10),
    "readdir": (1, 0, None),
}  # fmt: skip


def failing(error: BaseException) -> Any:
    def fail(*args: object) -> Any:
        raise error

    blobs = SimpleNamespace(loop_thread=None)
    return SimpleNamespace(
        blobs=blobs,
        entry=fail,
        lookup=fail,
        directory=fail,
        read=fail,
        xattr=fail,
        totals=fail,
        is_lasting=lambda inode: True,
    )


def ask(error: BaseException, request: str) -> int:
    """The errno that a request is answered with when everything below fails."""
    operations = Snapfs(failing(error))
    operations._files[1] = SimpleNamespace(entry=FILE, next=0, ahead=0)  # type: ignore[assignment]
    operations._directories[1] = SimpleNamespace(entry=FILE, run=failing(error).entry)  # type: ignore[assignment]
    arguments = (1, 2, None) if request == "readdir" else REQUESTS[request]

    async def handle() -> int:
        with pytest.raises(FUSEError) as caught:
            await getattr(operations, request)(*arguments)
        return caught.value.errno

    return trio.run(handle)


@pytest.mark.parametrize("request_name", REQUESTS)
def test_every_failure_is_an_errno(request_name: str) -> None:
    errors: list[tuple[BaseException, int]] = [
        (Stale(), errno.ESTALE), (NotADirectoryError(), errno.ENOTDIR), (Damaged("x", "volume"), errno.EIO),
        (BlobMissing(bytes(32)), errno.EIO), (StorageError("x"), errno.EIO), (MemoryError(), errno.EIO),
        (OverflowError(), errno.EIO), (KeyError("x"), errno.EIO), (RecursionError(), errno.EIO), (AssertionError(), errno.EIO),
    ]  # fmt: skip
    for error, number in errors:
        assert ask(error, request_name) == number


def test_the_log_names_blobs_and_never_files(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    damaged = Damaged("file b'secret name' is not as long", "content list")
    for error in (damaged, KeyError("secret name"), BlobMissing(b"\xab" * 32)):
        ask(error, "read")
    assert "secret" not in caplog.text
    assert "ab" * 8 in caplog.text
    assert "content list" in caplog.text


def test_what_is_not_at_hand_is_asked_in_a_thread() -> None:
    seen = []

    def answer(inode: int) -> Entry:
        seen.append(trio.lowlevel.in_trio_run())
        if seen[-1]:
            raise NotAtHand
        return FILE

    operations = Snapfs(SimpleNamespace(entry=answer))  # type: ignore[arg-type]

    async def handle() -> int:
        return int((await operations.getattr(7, None)).st_size)  # type: ignore[arg-type]

    assert trio.run(handle) == 10
    assert seen == [True, False]
    assert not operations.busy()


def test_cancelling_is_no_error() -> None:
    operations = Snapfs(SimpleNamespace(entry=lambda inode: FILE))  # type: ignore[arg-type]

    async def wait(*args: object) -> None:
        await trio.sleep_forever()

    operations._entry = wait  # type: ignore[assignment,method-assign]

    async def handle() -> bool:
        with trio.move_on_after(0) as scope:
            await operations.getattr(7, None)  # type: ignore[arg-type]
        return scope.cancelled_caught

    assert trio.run(handle)


@pytest.mark.parametrize("name", ["setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "create", "write",
                                  "setxattr", "removexattr"])  # fmt: skip
def test_everything_that_writes_is_refused(name: str) -> None:
    handler: Callable[..., Any] = getattr(Snapfs(failing(KeyError())), name)

    async def handle() -> int:
        with pytest.raises(FUSEError) as caught:
            await handler(1, 2, 3, 4, 5)
        return caught.value.errno

    assert trio.run(handle) == errno.EROFS


def test_who_is_not_root_is_not_told_of_trusted_attributes() -> None:
    """The kernel lets no one else read them: a name without a value makes `rsync -X` fail."""
    node = msgspec.structs.replace(FILE.node, xattrs=(Xattr(b"trusted.t", b"1"), Xattr(b"user.a", b"2")))
    view = failing(KeyError())
    view.entry = lambda inode: Entry(7, node, True)
    operations = Snapfs(view)
    for uid, names in ((0, [b"trusted.t", b"user.a"]), (1000, [b"user.a"])):
        assert trio.run(operations.listxattr, 7, SimpleNamespace(uid=uid)) == names


@pytest.mark.parametrize("name", ["forget", "release", "releasedir"])
def test_a_failure_where_nobody_waits_for_an_answer_is_logged(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """pyfuse3 answers nothing there, so that an errno too would end the main loop."""
    operations = Snapfs(failing(KeyError("secret name")))
    broken = SimpleNamespace(
        forget=failing(KeyError("secret name")).entry, pop=failing(KeyError("secret name")).entry
    )
    for attribute in ("_links", "_files", "_directories"):
        setattr(operations, attribute, broken)
    trio.run(getattr(operations, name), 1)
    assert f"{name}: KeyError" in caplog.text
    assert "secret" not in caplog.text
