"""A pytest plugin: with --strict-skips, a test that was skipped fails the run, unless tests/allowed_skips.txt names it.

A skipped test looks like a passed one to whoever reads the last line, and "no /dev/fuse" would silently turn off half
of the suite.  Expected failures (xfail) are not skips.  A whole module that was skipped counts under its path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

ALLOWED = Path(__file__).parent.parent / "allowed_skips.txt"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="fail if a test was skipped that may not be")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--strict-skips"):
        config.pluginmanager.register(StrictSkips(ALLOWED.read_text("utf-8").splitlines()))


class StrictSkips:
    """Collects skips as they are reported (by workers too) and judges them when the session is over."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.allowed = {name for line in lines if (name := line.partition("#")[0].strip())}
        self.refused: list[tuple[str, str]] = []

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        if not {report.nodeid, report.nodeid.partition("[")[0]} & self.allowed:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.refused.append((report.nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section(
                "skipped, and not named in tests/allowed_skips.txt: the run fails", red=True
            )
            for name, reason in self.refused:
                terminalreporter.line(f"{name}: {reason}")
