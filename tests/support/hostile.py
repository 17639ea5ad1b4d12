"""Repositories as one who has the password, and means harm, could make them; and commands at work on them, watched.

Everything is put together with the project's own functions for the format, so that what is refused is refused for what it says
and not for a tag that does not fit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import msgspec

from snapfs.cli.main import run
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.model import BlobId, Kind, MiB, Node, NodeType, Snapshot, Totals, VolumeKind
from snapfs.repo.repository import Repository
from snapfs.repo.trees import DirectoryWriter
from snapfs.repo.volumes import OBJECTS, object_name
from support import repositories

GiB = 1024 * MiB


def node(name: bytes, kind: NodeType = NodeType.FILE, **fields: Any) -> Node:
    fields = {"size": 0 if kind is NodeType.FILE else None, "mode": 0o644, "uid": os.geteuid(), "gid": os.getegid(),
              "user": None, "group": None, "mtime": 10**18, "ctime": 10**18, **fields}  # fmt: skip
    return Node(name, int(kind), **fields)


class Frame(NamedTuple):
    """One blob frame as it is to be written, whatever it says of itself."""

    ids: Sequence[bytes]
    words: Sequence[int]
    body: bytes
    codec: int = L.ZSTD
    plain: int = 0


class Forge:
    """Writes blobs, volumes and events into the repository in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "repository"
        repositories.create(folder)
        self.repository: Repository = repositories.open_(folder)
        self._writer = self.repository.writer().__enter__()

    def close(self) -> None:
        self._writer.flush()
        self._writer.__exit__(None, None, None)
        self.repository.close()

    def put(self, kind: Kind, data: bytes) -> BlobId:
        return self._writer.put(kind, data)

    def page(self, kind: Kind, level: int, entries: Sequence[bytes]) -> BlobId:
        return self.put(kind, records.encode_page(level, [msgspec.Raw(entry) for entry in entries]))

    def directory(self, name: bytes, *nodes: Node) -> Node:
        writer = DirectoryWriter(self.put, self.repository.keys.page)
        for one in sorted(nodes, key=lambda n: n.name):
            writer.add(one)
        root, below = writer.finish()
        return node(name, NodeType.DIRECTORY, root=root, below=below, mode=0o755)

    def endless(self, kind: Kind, entry: bytes, size: int, fan: int, levels: int) -> tuple[BlobId, int]:
        """(root page, sum) of a sequence in which every page names one page below it `fan` times; `size`: of one entry."""
        page, count = self.page(kind, 0, [entry] * fan), fan
        for level in range(1, levels + 1):
            branch = records.encode(records.Branch(None, count, count * size, page))
            page, count = self.page(kind, level, [branch] * fan), count * fan
        return page, count * size

    def snapshot(self, root: Node, **fields: Any) -> None:
        """Publish it, also if it is none that a reader would take."""
        said = {"version": 1, "time": 10**18, "host": b"host", "user": b"user", "paths": (b"/",), "tags": (), "totals": Totals(),
                "complete": True, "errors": 0, "with_xattrs": 0, "filesystems": (), "excludes": (), "program": b"x",
                **fields}  # fmt: skip
        record = records.encode(Snapshot(root=msgspec.structs.replace(root, name=b""), **said))
        self._writer.flush()
        self.repository.events.publish(records.EventBody(records.EVENT_SNAPSHOT, record))

    def event(self, record: bytes) -> None:
        """An object in events/ that holds these bytes."""
        self._object(L.EVENT, "events", record)

    def _object(self, kind: int, folder: str, record: bytes) -> None:
        keys = self.repository.keys
        data = seal_record(
            Sealer(keys.sealing(kind), kind, self.repository.id, self.repository.system.salt()), record
        )
        self.file(f"{folder}/{hashlib.sha256(data).hexdigest()}", data)

    def file(self, name: str, data: bytes) -> Path:
        path = self.place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def volume(
        self,
        kind: VolumeKind,
        frames: Sequence[Frame],
        *,
        parts: Sequence[bytes] | None = None,
        tail: Callable[[layout.Tail], layout.Tail] = lambda tail: tail,
    ) -> Path:
        """A volume of these frames; `parts`: the plaintexts of its directory frames, where they are not the right ones."""
        object_kind = OBJECTS[kind]
        system = self.repository.system
        sealer = Sealer(
            self.repository.keys.sealing(object_kind), object_kind, self.repository.id, system.salt()
        )
        out = bytearray(sealer.header)
        entries = []
        for frame in frames:
            number = sealer.number()
            head, body = sealer.frame(
                number, L.FRAME_BLOBS, frame.codec, len(frame.ids), frame.plain, frame.body
            )
            entries.append(layout.FrameEntry(number, len(out), len(body), len(frame.ids)))
            out += head + body
        if parts is None:
            words = [word for frame in frames for word in frame.words]
            parts = layout.encode_directory(
                entries, words, [BlobId(one) for frame in frames for one in frame.ids]
            )
        said = tail(layout.Tail(sealer.frames, len(parts), len(out)))
        for part in parts:
            head, body = sealer.frame(sealer.number(), L.FRAME_DIRECTORY, L.STORED, 0, len(part), part)
            out += head + body
        out += sealer.tail(said.encode())
        return self.file(object_name(kind, hashlib.sha256(out).digest()), bytes(out))


class Ran(NamedTuple):
    command: str
    code: int
    err: str
    grown: int
    """Bytes by which the process grew at its highest."""
    seconds: float
    """Of CPU."""


_AGAIN = 20.0
"""Seconds between two interruptions of one command: the first has long ended it, if it was heard."""


def watched(
    folder: Path, commands: Sequence[Sequence[str]], *, patience: float = 30.0, memory: int = 2 * GiB
) -> list[Ran]:
    """Run command lines one after the other in one child that may not take `memory` more of addresses, nor write files
    of more than 64 MiB; each is interrupted, as by Ctrl-C, after `patience` seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "w") as report:
                _work(folder, commands, patience, memory, report)
            os._exit(0)
        except BaseException:  # noqa: BLE001  this is the end of the process
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as report:
        lines = report.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ran = [Ran(*json.loads(line)) for line in lines]
    assert len(ran) == len(commands), (
        f"{commands[len(ran)]} ended the process with {status}; before it: {ran}"
    )
    return ran


def _work(
    folder: Path, commands: Sequence[Sequence[str]], patience: float, memory: int, report: io.TextIOBase
) -> None:
    memory += _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * MiB, 64 * MiB))
    os.environ |= {
        "SNAPFS_REPOSITORY": str(folder / "repository"), "SNAPFS_PASSWORD": repositories.PASSWORD.decode(),
        "XDG_CACHE_HOME": str(folder / "home"), "XDG_STATE_HOME": str(folder / "home"), "TZ": "UTC",
    }  # fmt: skip
    signal.signal(signal.SIGALRM, _interrupt)
    nothing = open(os.devnull, "r+")  # noqa: SIM115  until the process ends
    sys.stdin = nothing
    for command in commands:
        error = io.StringIO()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, cpu = _status("VmRSS"), time.process_time()
        output = open(folder / "output", "w", errors="surrogateescape")  # noqa: SIM115  closing it may fail
        sys.stdout = output
        with redirect_stderr(error):
            # Again and again: Python drops what a signal raises amid a finalizer, and a person would press once more.
            signal.setitimer(signal.ITIMER_REAL, patience, _AGAIN)
            code = run(command)
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout = nothing
        with suppress(OSError):  # what did not fit into a file that is full
            output.close()
        said = " ".join(command)[:60]
        grown = _status("VmHWM") - before
        print(
            json.dumps([said, code, error.getvalue()[-3000:], grown, time.process_time() - cpu]),
            file=report,
            flush=True,
        )


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _status(word: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(word + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(word)
