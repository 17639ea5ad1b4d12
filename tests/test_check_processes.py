"""check --read-data in several processes: says what one process says, loses nothing by a death, and leaves nobody behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from snapfs.repo.check import scrubbers
from support.cli import Cli
from support.trees import noise

SIZE = 48 * 1024 * 1024
"""More than is read by threads."""

PROGRAM = """
import os, sys
from snapfs.cli.main import run
from snapfs.repo.check import scrubbers

def killed(name, kind, size):
    if name[0] & 1:
        os.kill(os.getpid(), 9)
    return there(name, kind, size)

def asleep(*volume):
    import time
    os.write(1, b"%d\\n" % os.getpid())  # in one piece: there are two who write
    time.sleep(600)

mode, *arguments = sys.argv[1:]
scrubbers._processors = lambda: 2
there = scrubbers._examine
def refused():
    raise BlockingIOError(11, "Resource temporarily unavailable")

if mode == "refused":
    os.fork = refused
if mode in ("killed", "asleep"):
    scrubbers._examine = globals()[mode]
if mode == "threads":
    scrubbers._may_fork = lambda: False
enter = scrubbers.Scrubbers.__enter__
def entered(self):
    assert self.apart == (mode != "threads")
    return enter(self)
scrubbers.Scrubbers.__enter__ = entered
sys.exit(run(arguments))
"""


def started(mode: str, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", PROGRAM, mode, *arguments]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checked(mode: str) -> tuple[int, Any]:
    """(exit code, what was said, but for how far it was at some second)."""
    process = started(mode, "check", "--read-data", "--json")
    out, err = process.communicate()
    lines = [json.loads(line) for line in (out + err).splitlines()]
    return process.returncode, sorted(
        json.dumps(line, sort_keys=True) for line in lines if line["message_type"] != "status"
    )


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    cli = Cli(tmp_path, monkeypatch, capsys)
    cli.create()
    (cli.source / "large").write_bytes(noise(SIZE, 1))
    (cli.source / "small").write_bytes(b"small")
    cli.snapshot("--volume-size", "5M")
    return cli


def test_processes_say_what_threads_say(cli: Cli) -> None:
    sound = checked("processes")
    assert sound == checked("threads")
    assert sound[0] == 0
    volumes = sorted(path for path in (cli.repo / "data").rglob("*") if path.is_file())
    assert len(volumes) > 5
    flipped = bytearray(volumes[1].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    volumes[1].write_bytes(flipped)
    os.truncate(volumes[2], 100_000)
    volumes[3].unlink()
    harmed = checked("processes")
    assert harmed == checked("threads")
    assert harmed[0] == 20
    for volume in volumes[1:4]:
        assert any(volume.name in line for line in harmed[1])


def test_what_a_killed_process_had_begun_is_done_by_another(cli: Cli) -> None:
    assert checked("killed") == checked("threads")


def test_where_no_process_can_be_had_threads_do_it(cli: Cli) -> None:
    assert checked("refused") == checked("threads")


def test_nobody_is_left_behind(cli: Cli) -> None:
    process = started("asleep", "check", "--read-data")
    assert process.stdout is not None
    assert process.stderr is not None
    children = [int(process.stdout.readline()) for _ in range(2)]
    assert process.pid not in children
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    until = time.monotonic() + 30
    while any(alive(child) for child in children):
        assert time.monotonic() < until
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_with_another_thread_nothing_is_forked() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert not scrubbers._may_fork()
    finally:
        done.set()
        other.join()
