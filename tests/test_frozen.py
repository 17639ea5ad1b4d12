"""A repository written by the first version is readable for ever: by the program, and by the second reader."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repos.make_v1 import PASSWORD, plain

from snapfs.repo.check.engine import check
from snapfs.repo.repository import Repository
from support import same

REPOS = Path(__file__).parent / "repos"
READER = Path(__file__).parent.parent / "docs" / "reader.py"


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A copy: nothing is written to the original, not even an access time."""
    return Path(shutil.copytree(REPOS / "v1", tmp_path / "v1"))


def test_everything_in_it_is_as_it_was(frozen: Path, tmp_path: Path) -> None:
    expected = json.loads((REPOS / "v1.json").read_text())
    state = str(tmp_path / "state")
    with Repository.open(str(frozen), PASSWORD, cache_dir=state, state_dir=state) as repository:
        snapshots = repository.snapshots()
        assert [s.id.hex() for s in snapshots] == [e["id"] for e in expected]
        assert [s.tags for s in snapshots] == [(b"t0",), (b"kept",)]
        for snapshot, want in zip(snapshots, expected, strict=True):
            node = repository.trees.resolve(snapshot.record.root, os.fsencode(want["path"]))
            assert plain(same.in_snapshot(repository, node)) == want["tree"]
        assert check(repository, read_data=True).ok


def test_second_reader_finds_the_same(frozen: Path, tmp_path: Path) -> None:
    expected = json.loads((REPOS / "v1.json").read_text())
    environment = {**os.environ, "SNAPFS_PASSWORD": PASSWORD.decode()}
    for want in expected:
        target = tmp_path / want["id"][:8]
        subprocess.run(
            [sys.executable, READER, frozen, "extract", want["id"][:8], target], env=environment, check=True
        )
        got = plain(same.on_disk(f"{target}{want['path']}"))
        assert got.keys() == want["tree"].keys()
        if os.geteuid() == 0:
            for path, entry in want["tree"].items():
                found = got[path]
                assert found.pop("allocated") is None or found["type"] == "file"
                entry.pop("allocated")
                assert found == entry, bytes.fromhex(path)
