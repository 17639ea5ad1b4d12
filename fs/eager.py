"""Waiting for the kernel's next request with less ceremony: the `trio` that pyfuse3 is given.

pyfuse3 passes a lock from task to task and goes through epoll for every request, which costs more than most answers.  Here
a task may keep its turn, and as long as nothing else is going on it looks for the next request again and again for a moment,
then waits for it in poll(2) for a longer one, before it lets trio look after the other tasks.  A processor that has gone to
sleep in between takes longer to wake, above all a virtual one, than most answers take.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, Self

import trio

_IN_A_ROW = 64
"""Requests after which other tasks (signals, say) get their turn in any case."""
_AWAKE_NS = 100_000 if len(os.sched_getaffinity(0)) > 1 else 0
"""With one processor whoever is to ask next could not run meanwhile."""
_MOMENT_MS = 1
_PATIENCE = 0.1
"""Seconds."""


class _Turn:
    """A lock without fairness: whoever asks first after it was freed has it."""

    def __init__(self) -> None:
        self._taken = False
        self._woken = False
        self._lot = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._taken:
            await self._lot.park()
            self._woken = False
        self._taken = True

    async def __aexit__(self, *_: object) -> None:
        self._taken = False
        if self._lot and not self._woken:
            self._woken = True  # it runs when this task waits for something, and parks again if the turn is taken by then
            self._lot.unpark()


class Alarm:
    """Ends a read(2) of the next request that has nothing to read, while somebody waits for a worker thread's answer.

    A request that was there may be gone: whoever asked was killed.  pyfuse3 then stands in read(2) with the interpreter's lock
    until there is another request, and the workers stand, too.  (It ends the mount if the read would not block.)  A signal makes
    it look around.  A context manager, for the main thread.
    """

    def __init__(self) -> None:
        self._set = False
        self._before: Any = None

    def on(self) -> None:
        self._set = True
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE, _PATIENCE)

    def off(self) -> None:
        if self._set:
            self._set = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        self.off()
        signal.signal(signal.SIGALRM, self._before)


class _EagerLowlevel:
    def __init__(self, busy: Callable[[], bool], alarm: Alarm) -> None:
        self._busy = busy
        self._alarm = alarm
        self._in_a_row = 0
        self._polls: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        self._alarm.off()
        await self._until_readable(fd)
        if self._busy():
            self._alarm.on()

    async def _until_readable(self, fd: int) -> None:
        poll = self._polls.get(fd)
        if poll is None:
            poll = self._polls[fd] = select.poll()
            poll.register(fd, select.POLLIN)
        self._in_a_row += 1
        if self._in_a_row < _IN_A_ROW and not self._busy():
            until = time.perf_counter_ns() + _AWAKE_NS
            while time.perf_counter_ns() < until:
                if poll.poll(0):
                    return
            if poll.poll(_MOMENT_MS):
                return
        self._in_a_row = 0
        await trio.lowlevel.wait_readable(fd)


class EagerTrio:
    """`busy()` tells whether worker threads are at work, whose results must not wait."""

    Lock = _Turn

    def __init__(self, busy: Callable[[], bool], alarm: Alarm) -> None:
        self.lowlevel = _EagerLowlevel(busy, alarm)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
