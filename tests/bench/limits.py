"""How far it is to what the machine can do: the same work done by plain tools that neither encrypt, deduplicate nor verify.

The kernel's squashfs needs root; what is not installed (zstd, mksquashfs, squashfuse_ll) is left out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Cost, run
from bench.report import Rounds

_PAIRS = (
    ("first", "pack", "`tar -cf - . \\| zstd -3 -T2`"),
    ("again", "find", "`find -printf` on the source"),
    ("tar", "squashfs", "`tar` on the kernel's squashfs"),
    ("tar", "squashfuse", "`tar` on squashfuse_ll"),
    ("cp", "cp", "`cp -a` of the source"),
    ("cp one", "cp", "`cp -a` of the source"),
    ("restore", "cp", "`cp -a` of the source"),
)
"""A step, what it is held against, and in words."""


def limits(source: Path, work: Path) -> dict[str, Cost]:
    """What the plain tools need, by name."""
    found = {"find": _shell('find "$0" -printf "%p %s %m %T@\\n" >/dev/null', source)}
    if shutil.which("zstd"):
        found["pack"] = _shell(f'tar -cf - -C "$0" . | zstd -q -3 -T2 >{work / "packed"}', source)
        (work / "packed").unlink()
    with tempfile.TemporaryDirectory(dir=work) as target:
        found["cp"] = _shell(f'cp -a "$0" {target}/copy', source)
    if shutil.which("mksquashfs"):
        image = work / "squashed"
        _shell(f'mksquashfs "$0" {image} -comp zstd -quiet -no-progress', source)
        if os.geteuid() == 0:
            with _mounted(["mount", "-o", "loop,ro", str(image)], ["umount"], work) as top:
                found["squashfs"] = _shell('tar -cf - -C "$0" . | cat >/dev/null', top)
        if shutil.which("squashfuse_ll"):
            with _mounted(["squashfuse_ll", str(image)], ["fusermount3", "-u"], work) as top:
                found["squashfuse"] = _shell('tar -cf - -C "$0" . | cat >/dev/null', top)
        image.unlink()
    return found


def table(rounds: Rounds, plain: list[dict[str, Cost]]) -> str:
    """Markdown: the first tool's steps beside the plain tools, medians."""
    ours = next(iter(rounds.values()))
    lines = ["", "| step | s | held against | s | ratio |", "|---|---|---|---|---|"]
    for step, name, words in _PAIRS:
        mine = [cost.wall for one in ours if isinstance(cost := one.get(step), Cost)]
        other = [one[name].wall for one in plain if name in one]
        if mine and other:
            a, b = statistics.median(mine), statistics.median(other)
            lines.append(f"| {step} | {a:.2f} | {words} | {b:.2f} | {a / b:.1f} |")
    return "\n".join(lines) + "\n"


def _shell(words: str, argument: Path) -> Cost:
    return run(["sh", "-c", words, str(argument)], dict(os.environ))


@contextmanager
def _mounted(mount: list[str], unmount: list[str], work: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=work) as top:
        subprocess.run([*mount, top], check=True)
        try:
            yield Path(top)
        finally:
            subprocess.run([*unmount, top], check=True)
