"""`make demo`'s script, on a small folder with awkward names, through the installed command and a real mount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parent / "demo.sh"


def listing(folder: Path) -> list[tuple[bytes, bytes]]:
    return [
        (os.fsencode(path), path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]


def test_the_demo_runs_and_leaves_nothing(tmp_path: Path) -> None:
    source, temporary = tmp_path / "a source", tmp_path / "tmp"
    (source / "sub").mkdir(parents=True)
    temporary.mkdir()
    (source / "sub" / "it's\n\udcff").write_bytes(b"x" * 100_000)
    (source / "loose end").symlink_to("nowhere")
    before = listing(source)

    commands = Path(sys.executable).parent
    environment = os.environ | {
        "SRC": str(source),
        "TMPDIR": str(temporary),
        "PATH": f"{commands}:{os.environ['PATH']}",
    }
    demo = subprocess.run([DEMO], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    assert demo.returncode == 0, (demo.stdout + demo.stderr).decode(errors="replace")
    assert b"they are equal" in demo.stdout
    assert b"Done." in demo.stdout
    assert not demo.stderr
    assert list(temporary.iterdir()) == []
    assert listing(source) == before
