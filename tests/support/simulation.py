"""Processes and machines that share a repository, in one process: each runs until its next look at the storage, then another.

    with Simulation(folder, chance, print) as world:
        world.start("backup", work); ...; world.run()

An actor is a thread that runs the real code with a storage that hands the baton back before each call; the seed decides which
one goes on.  It can be killed there (nothing it would do afterwards happens, its locks are free), or frozen.  Worker threads of
an actor run along with it.  Time is the simulation's.  A *blind* actor is on a machine of its own whose locks are not seen, and
that sees none.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest

from snapfs.repo.repository import Repository
from snapfs.repo.storage import local, locks
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.local_object import LocalObject
from snapfs.repo.system import System
from support import repositories

HOUR = 3600 * 10**9
_here = threading.local()


class Killed(BaseException):
    pass


class Actor:
    def __init__(self, world: Simulation, name: str, work: Callable[[Actor], None], blind: bool) -> None:
        self.name = name
        self.blind = blind
        self.dead = self.ended = False
        self.frozen_until = 0
        self.error: BaseException | None = None
        self.steps = 0
        self._world = world
        self._go = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True, name=name)
        self._thread.start()

    def _run(self, work: Callable[[Actor], None]) -> None:
        _here.actor = self
        self._go.acquire()
        try:
            if not self.dead:
                work(self)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  looked at by whoever runs the world
            self.error = error
        finally:
            self.ended = True
            self._world.back.release()

    def turn(self) -> None:
        """Let it go on until its next step, or its end."""
        self._go.release()
        assert self._world.back.acquire(timeout=60), f"{self.name} does not come to a step"

    def step(self) -> None:
        """Called by the actor: others go on first."""
        if threading.current_thread() is self._thread and not self.dead:
            self.steps += 1
            self._world.back.release()
            self._go.acquire()
        if self.dead:
            raise Killed

    def join(self) -> None:
        self._thread.join(60)

    def system(self) -> System:
        world = self._world
        boot = b"another machine" if self.blind else b"this machine"
        return System(now=lambda: 1_700_000_000 * 10**9 + world.time, uptime=lambda: world.time, boot_id=boot)

    def open(self, client: str, password: bytes = repositories.PASSWORD, **options: Any) -> Repository:
        """As a process of this client."""
        folder = self._world.folder
        return Repository.open(
            str(folder / "repository"), password, cache_dir=str(folder / client / "cache"),
            state_dir=str(folder / client / "state"), system=self.system(), **options,
        )  # fmt: skip


class Simulation:
    def __init__(self, folder: Path, chance: Random, told: Callable[[str], None]) -> None:
        """`told` hears what was done to whom."""
        self.folder = folder
        self.told = told
        self.back = threading.Semaphore(0)
        self.time = HOUR
        self.actors: list[Actor] = []
        self._chance = chance
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for attribute in vars(Repository).values():
            if hasattr(
                attribute, "lock"
            ):  # Python 3.11's cached_property: one lock for all "processes" there are here
                self._patch.setattr(attribute, "lock", nullcontext())
        self._patch.setattr("snapfs.repo.repository.LocalStorage", _Storage)
        self._patch.setattr(locks, "_lock", _lock)
        self._patch.setattr(locks, "_machine", _machine)
        self._patch.setattr(locks.Locks, "sees_all", property(_sees_all))
        self._patch.setattr(locks.Lease, "release", _release)
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self.actors:
            if not actor.ended:
                self.kill(actor)
        self._patch.undo()

    def start(self, name: str, work: Callable[[Actor], None], *, blind: bool = False) -> Actor:
        actor = Actor(self, name, work, blind)
        self.actors.append(actor)
        return actor

    def kill(self, actor: Actor) -> None:
        actor.dead = True
        while not actor.ended:
            actor.turn()
        actor.join()

    def run(self, *, kill: float = 0, freeze: float = 0) -> None:
        """Until all have ended.  `kill`, `freeze`: how likely at each step."""
        chance = self._chance
        while running := [actor for actor in self.actors if not actor.ended]:
            awake = [actor for actor in running if actor.frozen_until <= self.time]
            if not awake:
                self.time = min(actor.frozen_until for actor in running)
                continue
            actor = chance.choice(awake)
            self.time += chance.randrange(10**7)
            fate = chance.random()
            if fate < kill:
                self.told(f"{actor.name} killed at step {actor.steps}")
                self.kill(actor)
            elif fate < kill + freeze:
                actor.frozen_until = self.time + chance.choice((10**9, HOUR, 30 * HOUR))
                self.told(
                    f"{actor.name} frozen for {(actor.frozen_until - self.time) // 10**9} s at step {actor.steps}"
                )
            else:
                # Some turns in a row: else no actor ever gets ahead of the others.
                for _ in range(chance.choice((1, 1, 3, 20))):
                    if actor.ended:
                        break
                    actor.turn()
            if actor.ended:
                actor.join()
        for actor in self.actors:
            if actor.error is not None:
                raise actor.error


def _actor() -> Actor | None:
    return getattr(_here, "actor", None)


def _machine() -> str:
    actor = _actor()
    return f"{zlib.crc32(actor.name.encode()):016x}" if actor is not None and actor.blind else "a" * 16


def _sees_all(_: locks.Locks) -> bool:
    """Else a blind one would take its own lease, of which it sees no lock, for that of a dead writer."""
    actor = _actor()
    return actor is None or not actor.blind


def _lock(fd: int, how: int) -> None:
    actor = _actor()
    if actor is None:
        fcntl.flock(fd, how)
        return
    actor.step()
    if actor.blind:
        return
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if how & fcntl.LOCK_NB:
                raise
            actor.step()  # waiting for it
        else:
            return


def _release(self: locks.Lease) -> None:
    actor = _actor()
    if self._fd >= 0:
        if actor is None or not actor.dead:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        self._close()


class _Object(LocalObject):
    def __init__(self, storage: _Storage) -> None:
        storage.step()
        super().__init__(storage)
        self._of = storage

    def publish(self, name: str) -> None:
        self._of.step()
        super().publish(name)


class _Storage(LocalStorage):
    """Hands the baton back before each call."""

    def __init__(self, folder: str, notice: local.Notice | None = None) -> None:
        self._who = _actor()
        super().__init__(folder, notice)

    def step(self) -> None:
        if self._who is not None:
            self._who.step()

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        self.step()
        yield from super().list(folder)

    def size(self, name: str) -> int | None:
        self.step()
        return super().size(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.step()
        return super().read(name, offset, length)

    def create(self) -> LocalObject:
        return _Object(self)

    def sync_names(self) -> None:
        self.step()
        super().sync_names()

    def remove_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.step()
            super().remove_all((name,))

    def set_aside(self, name: str) -> str:
        self.step()
        return super().set_aside(name)

    def sweep(self) -> None:
        self.step()
        super().sweep()


def open_plainly(folder: Path, client: str, **more: Any) -> Repository:
    """Outside of a simulation."""
    return Repository.open(
        str(folder / "repository"), repositories.PASSWORD,
        cache_dir=str(folder / client / "cache"), state_dir=str(folder / client / "state"), **more,
    )  # fmt: skip
