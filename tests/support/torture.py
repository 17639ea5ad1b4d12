"""A pytest plugin: tests that try to break it, the same code for the short form in the suite and for hours of `make torture`.

    @pytest.mark.torture
    def test_x(rounds):
        for seed in rounds.seeds(5): ...          # 5 seeds in the suite; as many as fit into the minutes of --torture
        for n in rounds.some(range(1000), 20): ...   # 20 of them, spread; all of them with --torture

A failure says the seed it happened with; `--seed N` begins with that one.  `--part 2/8` takes the second eighth of what some()
would take, so that a long list can be gone through in pieces.  How many cases ran is told at the end of a torture.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
_RESERVE = 3600


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--torture", type=float, metavar="MINUTES", help="the long form: so long for each test with seeds"
    )
    parser.addoption("--seed", type=int, help="begin with this seed")
    parser.addoption(
        "--part", metavar="K/N", type=_part, help="with --torture, only every N-th of listed cases"
    )
    parser.addoption("--count-cases", action="store_true", help="say how many cases each torture test ran")


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not 1 <= int(number) <= int(of):
        raise ValueError(text)
    return int(number), int(of)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "torture: faults by the hundred; all of them with --torture")
    config.pluginmanager.register(_Report(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    minutes = config.getoption("--torture")
    if minutes is not None:
        for item in items:
            item.add_marker(pytest.mark.timeout(minutes * 60 + 4 * _RESERVE))


class Rounds:
    def __init__(self, minutes: float | None, first: int | None, part: tuple[int, int] | None = None) -> None:
        self._minutes = minutes
        self._part = part or (1, 1)
        self.long = minutes is not None
        self._first = first if first is not None else int.from_bytes(os.urandom(3)) * 1000 if self.long else 1
        self.seed: int | None = None
        """The one that is being tried."""
        self.cases = 0

    def seeds(self, short: int) -> Iterator[int]:
        """Each counts as a case; more can be added with count()."""
        end = time.monotonic() + 60 * self._minutes if self._minutes is not None else 0
        turn = 0
        while turn < short or time.monotonic() < end:
            self.seed = self._first + turn
            yield self.seed
            turn += 1
            self.cases += 1
        self.seed = None

    def some(self, cases: Sequence[T], short: int, salt: str = "") -> Sequence[T]:
        """At most `short` of the cases in the suite, by chance but with the last, and the first if there are more than three; all
        with --torture, or a part.  Each counts.  Lists of much the same length need a `salt` each, or the choice is the same."""
        chosen = cases
        if self.long:
            number, of = self._part
            chosen = cases[number - 1 :: of]
        elif len(cases) > short:
            self.seed = self._first
            # The first call of a command, say, is one before which nothing has happened: of a few, another shows more.
            ends = {0, len(cases) - 1} if short > 3 else {len(cases) - 1}
            inner = Random(f"{self._first} {salt}" if salt else self._first).sample(
                range(1, len(cases) - 1), max(short - len(ends), 0)
            )
            chosen = [cases[at] for at in sorted({*ends, *inner})]
        self.cases += len(chosen)
        return chosen

    def count(self, cases: int = 1) -> None:
        self.cases += cases


@pytest.fixture
def rounds(request: pytest.FixtureRequest, record_property: Callable[[str, Any], None]) -> Iterator[Rounds]:
    made = Rounds(
        request.config.getoption("--torture"),
        request.config.getoption("--seed"),
        request.config.getoption("--part"),
    )
    request.node.stash[_ROUNDS] = made
    first = made._first
    yield made
    record_property("cases", made.cases)
    record_property("seed", first)


_ROUNDS = pytest.StashKey[Rounds]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    made = item.stash.get(_ROUNDS, None)
    if report.failed and made is not None and made.seed is not None:
        report.sections.append(
            ("seed", f"{made.seed}: to see it again, .venv/bin/pytest '{item.nodeid}' --seed {made.seed}")
        )
    return report


class _Report:
    """Cases as they are reported, by workers too."""

    def __init__(self, config: pytest.Config) -> None:
        self._wanted = config.getoption("--torture") is not None or config.getoption("--count-cases")
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        facts = dict(report.user_properties)
        if report.when == "teardown" and "cases" in facts:
            self._lines.append(f"{facts['cases']:9,}  {report.nodeid}  (first seed {facts['seed']})")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._wanted and self._lines:
            terminalreporter.section("cases tried")
            for text in sorted(self._lines, key=lambda text: text[11:]):
                terminalreporter.line(text)
