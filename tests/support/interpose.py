"""Faults at the n-th libc call of a command line: what stands between the process and libc is interpose.c.

    with Commands(home) as commands:
        commands.run("backup", source)                                  # Done(code=0, out=..., err=..., calls=...)
        commands.run("backup", source, fault=Fault(DIE, first=17))      # Done(code=-9, ...)

One process has imported everything and is a fork away from any command line, so that a case takes a fraction of a second and
is nevertheless a real process with a real death.  Calls are those below `home`, in all threads: `what` says whether those that
change something are counted, or those that read, or those that look at names and folders.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

SOURCE = Path(__file__).with_suffix(".c")
NOTHING, DIE, FAIL, SHORT, FAKE, CUT, CLOCK, WRONG = range(8)
"""SHORT: half of a read or write is done, and said; CUT: the file system of `power` is shut down; CLOCK: jumps by `param` s;
WRONG: a bit of what was read is another."""
CHANGES, READS, LOOKS = 1, 2, 4
"""LOOKS: at names (stat, access, readlink) and at what is in folders; they can only fail."""
FOREVER = 1 << 40


@dataclass(frozen=True)
class Fault:
    action: int = NOTHING
    first: int = 1
    last: int | None = None
    """The calls it happens at; None: only the first."""
    param: int = 0
    what: int = CHANGES
    power: Path | None = None


NO_FAULT = Fault()


class Done(NamedTuple):
    code: int
    """Exit code, or minus the signal."""
    out: str
    err: str
    calls: int


class Commands:
    """Runs command lines, each in a process of its own."""

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        self.home = home
        self._folder = tempfile.TemporaryDirectory(prefix="snapfs-interpose-")
        library = Path(self._folder.name) / "interpose.so"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith("SNAPFS_")} | env
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from support.interpose import serve; serve()"], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
            env={**env, "LD_PRELOAD": str(library), "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)
        self._folder.cleanup()

    def run(
        self,
        *args: str | Path,
        fault: Fault = NO_FAULT,
        log: Path | None = None,
        kill_after: float | None = None,
        **env: str,
    ) -> Done:
        """`log`: where every call that changes something is written down, for crash.py; `kill_after`: seconds, by kill -9."""
        request = {
            "args": [str(arg) for arg in args], "home": str(self.home), "log": log and str(log), "env": env,
            "kill_after": kill_after,
            "fault": {**vars(fault), "power": fault.power and str(fault.power)},
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))


def _prepare() -> Any:
    """Import all that any command needs, and make keys cheap and volumes small; returns what runs a command line."""
    import importlib

    from snapfs.cli import init, main
    from snapfs.repo.repository import Repository
    from snapfs.repo.slots import KeySlots
    from support.cli import CHEAP
    from support.sources import CHUNKS

    for module in {module for module, _ in main.VERBS.values()}:
        importlib.import_module(f"snapfs.cli.{module}")
    import snapfs.repo.backup.engine
    import snapfs.repo.check.engine
    import snapfs.repo.restore.engine  # noqa: F401

    for method in (
        Repository.create,
        KeySlots.add,
        KeySlots.replace,
        KeySlots.add_recovery,
    ):
        defaults = method.__kwdefaults__
        assert defaults is not None
        defaults["cost"] = CHEAP
        if "chunks" in defaults:
            defaults["chunks"] = CHUNKS
    init.VOLUME_SIZE = 384 * 1024  # type: ignore[misc]
    return main.run


def serve() -> None:
    """The process that Commands starts."""
    run = _prepare()
    count = mmap.mmap(-1, mmap.PAGESIZE)
    for line in sys.stdin:
        request = json.loads(line)
        count[:8] = bytes(8)
        out, err = (os.memfd_create(name) for name in ("out", "err"))
        child = os.fork()
        if child == 0:
            _child(request, count, out, err, run)
        if request["kill_after"] is not None:
            time.sleep(request["kill_after"])
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = [os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace") for fd in (out, err)]
        os.close(out)
        os.close(err)
        print(json.dumps([code, *said, int.from_bytes(count[:8], "little")]), flush=True)


def _child(request: dict[str, Any], count: mmap.mmap, out: int, err: int, run: Any) -> None:
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ.update(request["env"])
        fault = request["fault"]
        log, power = request["log"], fault["power"]
        # High numbers, and opened before: neither is to be counted, nor to move the descriptors of the command.
        opened = [
            -1 if name is None else _high(os.open(name, flags, 0o600))
            for name, flags in ((log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), (power, os.O_RDONLY))
        ]
        last = fault["first"] if fault["last"] is None else fault["last"]
        at = ctypes.addressof(ctypes.c_char.from_buffer(count))
        ctypes.CDLL(None).arm(
            os.fsencode(os.path.realpath(request["home"])), fault["what"], ctypes.c_long(fault["first"]),
            ctypes.c_long(last), fault["action"], fault["param"], opened[1], opened[0], ctypes.c_void_p(at),
        )  # fmt: skip
        code = run(request["args"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001  this is the end of the process
        traceback.print_exc()
    finally:
        os._exit(code)


def _high(fd: int) -> int:
    import fcntl

    new = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 500)
    os.close(fd)
    return new


def one_line(done: Done) -> bool:
    """Whether a failure was told as it should be: no traceback, no internal error."""
    return "Traceback" not in done.err and "internal error" not in done.err
