"""The steps: every tool goes through the same ones, in turn, so that a machine which drifts drifts for all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Cost, Daemon, run
from bench.tools import Tool
from support.same import differences, on_disk

_LARGE = 100_000_000
_MountCommand = Callable[[Path, Path], list[str] | None]

STEPS = {
    "first": "first backup",
    "again": "again, nothing changed",
    "changed": "changed",
    "find": "mount + `find -printf` on everything",
    "cat": "`cat` of the largest file on the mount",
    "dense": "`cat` of the largest file without holes",
    "tar": "`tar -cf - . \\| cat` on the mount",
    "cp": "`cp -a` from the mount, through `latest`",
    "cp one": "`cp -a` from a mount of that one snapshot",
    "restore": "restore",
    "check": "check with all data",
}


def one_round(
    tool: Tool, source: Path, later: Path | None, work: Path, verify: bool
) -> dict[str, Cost | float]:
    """What each step cost, and "size": bytes of the repository at the end."""
    shutil.rmtree(tool.home, ignore_errors=True)
    tool.home.mkdir(parents=True)
    run(tool.init(), tool.environment)
    found: dict[str, Cost | float] = {}
    found["first"] = run(tool.backup(source), tool.environment)
    found["again"] = run(tool.backup(source), tool.environment)
    if later is not None:
        with _in_place_of(source, later):
            found["changed"] = run(tool.backup(source), tool.environment)
        run(tool.backup(source), tool.environment)
    found |= _mounted(tool, source, work, verify)
    with _target(work) as target:
        found["restore"] = run(tool.restore(target), tool.environment, target)
        if verify:
            _must_be_same(source, target / source.relative_to("/"), f"{tool.name} restore")
    found["check"] = run(tool.check(), tool.environment)
    found["size"] = float(sum(f.stat().st_blocks * 512 for f in tool.repository.rglob("*") if f.is_file()))
    shutil.rmtree(tool.home)
    return found


def _mounted(tool: Tool, source: Path, work: Path, verify: bool) -> dict[str, Cost | float]:
    """Each reader has a fresh mount: what one has read would be in the page cache for the next."""
    found: dict[str, Cost | float] = {}
    files = sorted(
        (f for f in source.rglob("*") if f.is_file() and not f.is_symlink()), key=lambda f: -f.stat().st_size
    )
    dense = next(f for f in files if f.stat().st_blocks * 512 >= f.stat().st_size)
    with _mount(tool, tool.mount, source, work) as (daemon, top):
        daemon.wait_until_mounted(top)
        seen = tool.mounted(top, source)
        subprocess.run(["find", seen, "-printf", "%p %s %m %T@\n"], stdout=subprocess.DEVNULL, check=True)
        found["find"] = daemon.since_start()
        found["cat"] = daemon.use(["cat", str(seen / files[0].relative_to(source))])
    with _mount(tool, tool.mount, source, work) as (daemon, top):
        daemon.wait_until_mounted(top)
        seen = tool.mounted(top, source)
        if dense.stat().st_size > _LARGE:
            found["dense"] = daemon.use(["cat", str(seen / dense.relative_to(source))])
        else:
            found["tar"] = daemon.use(["sh", "-c", 'tar -cf - -C "$0" . | cat', str(seen)])
    found["cp"] = _copied(tool, tool.mount, source, work, verify)
    if tool.mounts_one:
        found["cp one"] = found["cp"]
    elif tool.mount_one(work, source):
        found["cp one"] = _copied(tool, tool.mount_one, source, work, verify)
    return found


def _copied(tool: Tool, command: _MountCommand, source: Path, work: Path, verify: bool) -> Cost:
    with _mount(tool, command, source, work) as (daemon, top), _target(work) as target:
        daemon.wait_until_mounted(top)
        seen = top if command == tool.mount_one else tool.mounted(top, source)
        cost = daemon.use(["cp", "-a", str(seen), str(target / "copy")])
        if verify:
            _must_be_same(source, target / "copy", f"{tool.name} cp -a")
        return cost


@contextmanager
def _mount(tool: Tool, command: _MountCommand, source: Path, work: Path) -> Iterator[tuple[Daemon, Path]]:
    with _target(work) as top:
        words = command(top, source)
        assert words is not None
        daemon = Daemon(words, tool.environment)
        try:
            yield daemon, top
        finally:
            daemon.stop(top)


def _must_be_same(source: Path, copy: Path, what: str) -> None:
    for line in differences(on_disk(source), on_disk(copy), blocks=False)[:5]:
        print(f"   {what} differs: {line}", flush=True)


@contextmanager
def _target(work: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=work))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _in_place_of(source: Path, later: Path) -> Iterator[None]:
    """The later version takes the source's place, so that every tool sees the same path change."""
    aside = source.with_name(source.name + ".aside")
    os.rename(source, aside)
    os.rename(later, source)
    try:
        yield
    finally:
        os.rename(source, later)
        os.rename(aside, source)
