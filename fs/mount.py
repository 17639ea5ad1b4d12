"""Start a mount, run it under trio until it is unmounted, stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapfs.fs import mountpoint as points
from snapfs.repo.errors import MountError
from snapfs.repo.model import MiB, Node
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot

if TYPE_CHECKING:
    from snapfs.fs.operations import Snapfs

_READ_AHEAD_KIB = 1024


@dataclass(frozen=True)
class MountOptions:
    root: Node | None = None
    """The directory to mount; None: the folders of all snapshots."""
    select: Callable[[StoredSnapshot], bool] | None = None
    """Which snapshots to show in those folders; None: all."""
    allow_other: bool = False
    """Other users may enter; the kernel then checks permissions, ACLs too, unless `no_default_permissions`."""
    no_default_permissions: bool = False
    owner_root: bool = False
    """Show everything as owned by root."""
    no_xattrs: bool = False
    """Nothing below `root` has extended attributes: the kernel need not ask for them, three times for each file that `cp -a`
    copies.  Not for the folders of all snapshots, since the next one may have some."""
    cache_bytes: int = 64 * MiB
    """Memory for opened frames and blobs."""

    @property
    def kernel_checks(self) -> bool:
        return self.allow_other and not self.no_default_permissions


def load_ahead() -> threading.Thread:
    """Import what a mount needs in a thread, while the key is derived from the password.  Join it before forking."""

    def load() -> None:
        with contextlib.suppress(ImportError):  # mount() will say it
            import snapfs.fs.eager
            import snapfs.fs.operations
            import snapfs.fs.view  # noqa: F401

    thread = threading.Thread(target=load, name="imports")
    thread.start()
    return thread


def mount(repository: Repository, mountpoint: str, options: MountOptions = MountOptions(),
          ready: Callable[[], None] = lambda: None) -> None:  # fmt: skip
    """Mount and serve until unmounted, or until SIGINT, SIGTERM or SIGHUP.  Call from the main thread; one mount a process.

    `ready` is called once the file system answers.  Raises MountError, or RepositoryError if the index cannot be had.
    """
    points.check(mountpoint, repository.storage.place)
    if options.root is not None and not options.root.is_dir:
        raise MountError(
            "only a folder can be mounted, and this path of the snapshot is none: use `snapfs dump` for a file"
        )
    try:
        import pyfuse3  # late: it takes a quarter of a second, and fails where libfuse3 is missing
        import trio

        from snapfs.fs.eager import Alarm, EagerTrio
        from snapfs.fs.operations import Snapfs
    except ImportError as error:
        raise MountError(
            f"cannot load the FUSE library ({error}): install libfuse3 (Debian: apt install fuse3)"
        ) from error
    from snapfs.fs.view import View

    operations = Snapfs(
        View(repository, options.root, options.select, options.cache_bytes),
        owner_root=options.owner_root, enable_acl=options.kernel_checks, no_xattrs=options.no_xattrs,
    )  # fmt: skip
    alarm = Alarm()
    vars(pyfuse3)["trio"] = EagerTrio(operations.busy, alarm)  # the seam that its own asyncio support uses
    flags = {"ro", "nosuid", "nodev", "fsname=snapfs", f"subtype={points.SUBTYPE}"}
    flags |= {"allow_other"} if options.allow_other else set()
    flags |= {"default_permissions"} if options.kernel_checks else set()
    with _stderr_as_error(mountpoint):
        pyfuse3.init(operations, mountpoint, flags)
    in_use = False

    def answering() -> None:
        nonlocal in_use
        ready()
        in_use = True

    try:
        with alarm:
            trio.run(_serve, operations, mountpoint, answering)
        in_use = False
    finally:
        # After a crash the mountpoint is left broken: an empty folder would make a running `rsync --delete` wipe the copy.
        pyfuse3.close(unmount=not in_use)


async def _serve(operations: Snapfs, mountpoint: str, ready: Callable[[], None]) -> None:
    import pyfuse3
    import trio

    async def stop_on_signal() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            # To the end: a second one, while the first waits for an answer, must not break off.
            async for _ in signals:
                pyfuse3.terminate()

    async def say_ready() -> None:
        await trio.to_thread.run_sync(_enter, mountpoint, abandon_on_cancel=True)
        ready()

    async with trio.open_nursery() as nursery:
        operations.start(nursery)
        nursery.start_soon(stop_on_signal)
        nursery.start_soon(say_ready)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def _enter(mountpoint: str) -> None:
    """Wait until the file system answers, then have the kernel read in larger pieces where that is allowed (root)."""
    with contextlib.suppress(OSError):
        device = os.stat(mountpoint).st_dev
        with open(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb", "w") as knob:
            knob.write(str(_READ_AHEAD_KIB))


@contextlib.contextmanager
def _stderr_as_error(mountpoint: str) -> Iterator[None]:
    """libfuse and fusermount3 say on the standard error why they refuse: put it into the exception."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as heard, contextlib.ExitStack() as undo:
        kept = os.dup(2)
        undo.callback(os.close, kept)
        os.dup2(heard.fileno(), 2)
        undo.callback(os.dup2, kept, 2)
        try:
            yield
        except RuntimeError as error:
            heard.seek(0)
            said = heard.read().decode("utf-8", "replace").split("\n")[0].strip()
            raise MountError(f"cannot mount on {mountpoint}: {said or error}") from error
