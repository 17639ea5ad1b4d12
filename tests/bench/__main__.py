"""`make bench`: makes its data, sends snapfs and every peer on PATH (or named by RESTIC, BORG) through the same steps, in turn,
compares what they give back, and writes the tables in docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from bench import corpora, limits, report
from bench.rounds import one_round
from bench.tools import TOOLS

PAGE = Path(__file__).parent.parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp/snapfs-bench"), help="20 GB free; default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tools", default="snapfs,restic,borg")
    parser.add_argument("--corpora", default="tree,image")
    parser.add_argument(
        "--print", action="store_true", help="print the tables instead of writing them into the page"
    )
    options = parser.parse_args()
    folder = options.folder.resolve()
    corpora.make(folder)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    tools = [tool for name in options.tools.split(",") if (tool := TOOLS[name](work)).program]
    versions = {tool.name: _version(tool.version()) for tool in tools}
    for name in options.corpora.split(","):
        source, later = folder / name, folder / "edited" if name == "image" else None
        rounds: report.Rounds = {tool.name: [] for tool in tools}
        plain = []
        for number in range(options.rounds):
            for tool in tools:
                _warm(source)
                print(f"{name}, round {number + 1} of {options.rounds}: {tool.name}", flush=True)
                rounds[tool.name].append(
                    one_round(TOOLS[tool.name](work), source, later, work, verify=number == 0)
                )
            if name == "tree":
                _warm(source)
                plain.append(limits.limits(source, work))
            text = report.table(rounds, versions) + (limits.table(rounds, plain) if plain else "")
            if not options.print:  # after each round: one that is cut off has not measured for nothing
                report.put_into(PAGE, name, text)
        if options.print:
            print(text)


def _warm(source: Path) -> None:
    """Have the source in the page cache again, whatever the one before has pushed out of it."""
    subprocess.run(
        ["find", source, "-type", "f", "-exec", "cat", "{}", "+"], stdout=subprocess.DEVNULL, check=True
    )


def _version(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return next(word for word in said if word[0].isdigit())


if __name__ == "__main__":
    os.umask(0o077)
    main()
