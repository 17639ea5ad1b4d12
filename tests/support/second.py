"""The second reader (docs/reader.py) looks at every repository a test leaves behind, and must agree with the program.

Agree: the same snapshots, and either both find damage or neither does.  A plugin: nothing to do in the tests.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from snapfs.repo.check.engine import check
from snapfs.repo.errors import SnapfsError
from snapfs.repo.repository import Repository
from support import cli, repositories

_READER = Path(__file__).parent.parent.parent / "docs" / "reader.py"
_PASSWORDS = (repositories.PASSWORD, cli.PASSWORD)
_LARGEST = 64 << 20
"""Larger repositories are left to the tests that made them."""


@pytest.fixture(autouse=True)
def _second_reader_agrees(request: pytest.FixtureRequest) -> Iterator[None]:
    folder: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is None or any(request.node.get_closest_marker(m) for m in ("sums_and_order", "hostile")):
        return
    for config in [*folder.glob("*/config"), *folder.glob("*/*/config")]:
        if (config.parent / "keys").is_dir() and _size(config.parent) <= _LARGEST:
            first, second = _first(config.parent), _second(config.parent)
            assert first == second, f"the program says {first}, the second reader says {second}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _first(place: Path) -> tuple[list[str], bool] | str:
    """(snapshots, sound?), or the kind of error that opening it gives."""
    with tempfile.TemporaryDirectory() as state:
        for password in _PASSWORDS:
            with (
                contextlib.suppress(SnapfsError),
                Repository.open(str(place), password, cache_dir=state, state_dir=state) as r,
            ):
                return [s.short for s in r.snapshots()], check(r, read_data=True).ok
    return "not opened"


def _second(place: Path) -> tuple[list[str], bool] | str:
    reader = _load()
    for password in _PASSWORDS:
        reader.problems = 0
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                repository = reader.Repository(place, lambda word=password: word)
                names = [snapshot.hex()[:8] for snapshot, _ in repository.snapshots()]
                reader.check(repository)
            except SystemExit:
                continue
            finally:
                for volume in getattr(locals().get("repository"), "volumes", {}).values():
                    with contextlib.suppress(Exception):
                        os.close(volume.fd)
        return names, not reader.problems
    return "not opened"


@functools.cache
def _load() -> ModuleType:
    """Once: it costs as much as looking at a small repository does.  Problems are counted in the module."""
    spec = importlib.util.spec_from_file_location("second_reader", _READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["second_reader"] = module
    spec.loader.exec_module(module)
    return module
