"""A mount in the background: fork, wait until the child says that the file system answers or why not, go on without it."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

import platformdirs

from snapfs.repo.errors import MountError, SnapfsError

_UNKNOWN = "the background process died before the mount was ready"


def default_log_path(repository: bytes) -> str:
    """Where a background mount of this repository logs: in the XDG state folder, or in a temporary one if that is read-only."""
    folder = os.path.join(platformdirs.user_state_dir("snapfs", appauthor=False), "log")
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
    except OSError:
        folder = ""
    if not folder or not os.access(folder, os.W_OK):
        folder = tempfile.mkdtemp(prefix="snapfs-log-")
    return os.path.join(folder, f"mount-{repository.hex()[:8]}.log")


def mount_in_background(serve: Callable[[Callable[[], None]], None], log_path: str) -> int:
    """Run `serve(ready)` in a child process with a session of its own; returns the child's id once it called ready().

    `serve` is to open the index (not before: LMDB does not survive a fork) and to call mount().  Its standard streams stay
    until ready, so that progress is seen; afterwards they are the log.  Raises MountError with what the child raised, and its
    exit code.
    """
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(serve, log, writer)
    os.close(writer)
    os.close(log)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    if said == b"ready":
        return child
    os.waitpid(child, 0)
    message, exit_code = json.loads(said) if said else (f"{_UNKNOWN}; see {log_path}", MountError.exit_code)
    failure = MountError(message)
    failure.exit_code = exit_code
    raise failure


def _run(serve: Callable[[Callable[[], None]], None], log: int, writer: int) -> None:
    """The child: never returns."""
    status, told = 1, False

    def tell(message: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writer, message)
            os.close(writer)

    def ready() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream, target in ((0, nothing), (1, log), (2, log)):
            os.dup2(target, stream)
        os.chdir("/")  # the working directory may be on a disk that is to be unmounted some day
        tell(b"ready")

    try:
        os.setsid()
        _log_to(log)
        serve(ready)
        status = 0
    except SnapfsError as error:
        logging.getLogger(__name__).error("%s", error)
        tell(json.dumps((str(error), error.exit_code)).encode())
    except BaseException as error:  # noqa: BLE001
        # Not the message: it may name files, and the log outlives the mount.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logging.getLogger(__name__).critical("%s\n%s", type(error).__name__, frames)
        tell(json.dumps((f"{_UNKNOWN}: {type(error).__name__}: {error}", MountError.exit_code)).encode())
    finally:
        os._exit(status)


def _log_to(log: int) -> None:
    handler = logging.StreamHandler(open(os.dup(log), "w", errors="backslashreplace"))  # noqa: SIM115
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
