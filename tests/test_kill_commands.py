"""Killed at every libc call that changes something, in every command: nothing committed is lost, the next run needs no help."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.interpose import DIE, Fault
from support.scene import VERBS, Scene, folder
from support.torture import Rounds

pytestmark = pytest.mark.torture


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=folder()) as home:
        made = Scene(Path(home), tmp_path_factory.mktemp("scene") / "source")
        yield made
        made.close()


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_every_call(scene: Scene, rounds: Rounds, verb: str) -> None:
    calls = scene.calls(verb)
    assert calls > 1, "is the seam still there?"
    for number in rounds.some(range(1, calls + 1), 3):
        scene.reset(verb)
        done = scene.run(verb, Fault(DIE, number))
        try:
            scene.sound(verb, done.code)
        except Exception as error:
            raise AssertionError(f"{verb}, killed at call {number} of {calls} ({done}): {error!r}") from error
