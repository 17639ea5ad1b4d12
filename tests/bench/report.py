"""What was measured, as a table: medians, with the spread, and ratios round by round."""

from __future__ import annotations

import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path

from bench.measure import Cost
from bench.rounds import STEPS

Rounds = dict[str, list[dict[str, Cost | float]]]
"""By tool."""


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} processors ({cpu}), {memory:.0f} GiB, {system}"


def table(rounds: Rounds, versions: dict[str, str]) -> str:
    """Markdown.  The first tool is the one the others are compared with."""
    ours, *peers = rounds
    head = [
        "step",
        f"{ours}, s",
        "spread",
        "cpu, s",
        "MiB",
        *(f"{p}, s" for p in peers),
        *(f"{p} / {ours}" for p in peers),
    ]
    lines = [f"Measured {datetime.now(UTC):%Y-%m-%d}, {len(rounds[ours])} interleaved rounds; {machine()}.",
             "Versions: " + ", ".join(f"{name} {text}" for name, text in versions.items()) + ".", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]  # fmt: skip
    for step, words in STEPS.items():
        costs = {
            t: [c for one in found if isinstance(c := one.get(step), Cost)] for t, found in rounds.items()
        }
        mine = costs[ours]
        if not mine:
            continue
        walls = {tool: [c.wall for c in found] for tool, found in costs.items()}
        least, most = min(walls[ours]), max(walls[ours])
        row = [words, _s(statistics.median(walls[ours])), f"{_s(least)}-{_s(most)}"]
        row += [_s(statistics.median(c.cpu for c in mine)), f"{max(c.memory for c in mine) / 2**20:.0f}"]
        row += [_s(statistics.median(walls[p])) if walls[p] else "" for p in peers]
        row += [_ratio(walls[ours], walls[p]) for p in peers]
        lines.append("| " + " | ".join(row) + " |")
    sizes = {tool: statistics.median(float(one["size"]) for one in found) for tool, found in rounds.items()}  # type: ignore[arg-type]
    row = [
        "repository, MB",
        f"{sizes[ours] / 1e6:.1f}",
        "",
        "",
        "",
        *(f"{sizes[p] / 1e6:.1f}" for p in peers),
    ]
    row += [f"{sizes[p] / sizes[ours]:.2f}" for p in peers]
    return "\n".join([*lines, "| " + " | ".join(row) + " |"]) + "\n"


def put_into(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of this name."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{page}: no place marked {begin} ... {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def _ratio(ours: list[float], theirs: list[float]) -> str:
    if not theirs:
        return ""
    return f"{statistics.median(b / a for a, b in zip(ours, theirs, strict=True)):.2f}"


def _s(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 9.95 else f"{seconds:.2f}"
