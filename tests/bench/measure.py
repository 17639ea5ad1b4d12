"""One command, or one daemon, measured from outside: seconds, processor seconds, peak of anonymous memory.

Anonymous memory, since pages of files (LMDB's, libraries') are the kernel's to drop; of the whole process tree, sampled.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    wall: float
    cpu: float
    memory: int
    """Bytes."""


def _tree(pid: int) -> Iterator[int]:
    todo = [pid]
    while todo:
        pid = todo.pop()
        yield pid
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                todo += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())


def _anonymous(processes: set[int]) -> int:
    total = 0
    for one in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) * 1024
    return total


def _processor_seconds(pid: int) -> float:
    total = 0.0
    for one in _tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


class _Peak(threading.Thread):
    """A child counts from the second look on: until it runs another program, the memory of one made by vfork is its parent's."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.bytes, self._over = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        before: set[int] = set()
        while not self._over.wait(_SAMPLE_SECONDS):
            processes = set(_tree(self.pid))
            self.bytes = max(self.bytes, _anonymous(processes & {self.pid, *before}))
            before = processes

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.bytes


def run(command: list[str], environment: dict[str, str], folder: Path | None = None) -> Cost:
    """Run it to its end.  Ends everything if it fails (1 from borg is a warning)."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, cwd=folder, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    peak = _Peak(process.pid)
    said = process.communicate()[0]
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode not in ((0, 1) if os.path.basename(command[0]) == "borg" else (0,)):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, peak.stop())


def run_fed(
    feed: Callable[[Callable[[bytes], object]], object], command: list[str], environment: dict[str, str]
) -> Cost:
    """Run it to its end; `feed` is given what writes to its standard input.  The processor seconds are not known: 0."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    assert process.stdin is not None
    peak = _Peak(process.pid)
    feed(process.stdin.write)
    process.stdin.close()
    if process.wait():
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Cost(time.perf_counter() - begun, 0, peak.stop())


class Daemon:
    """A mount: started, used, and what it cost so far."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._peak = _Peak(self._process.pid)

    def wait_until_mounted(self, top: Path) -> None:
        while not os.path.ismount(top):
            if self._process.poll() is not None or time.perf_counter() - self._begun > 300:
                raise SystemExit(f"{top} was not mounted")
            time.sleep(0.005)

    def since_start(self) -> Cost:
        wall = time.perf_counter() - self._begun
        return Cost(wall, _processor_seconds(self._process.pid), self._peak.bytes)

    def use(self, command: list[str], folder: Path | None = None) -> Cost:
        """Run a reader of the mount; the processor seconds are the daemon's."""
        before, begun = _processor_seconds(self._process.pid), time.perf_counter()
        subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return Cost(
            time.perf_counter() - begun, _processor_seconds(self._process.pid) - before, self._peak.bytes
        )

    def bytes_read(self) -> int:
        """By all its system calls that read, the requests of the kernel among them."""
        lines = Path(f"/proc/{self._process.pid}/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("rchar")))

    def stop(self, top: Path) -> None:
        for _ in range(100):
            if subprocess.run(["fusermount3", "-u", top], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._peak.stop()
