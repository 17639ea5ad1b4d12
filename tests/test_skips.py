"""The rule that a skipped test fails the run, tried on small suites of its own."""

from __future__ import annotations

import pytest

from support import skips

SUITE = """
import pytest
def test_runs(): pass
@pytest.mark.skip(reason="no moon")
def test_skips(): pass
@pytest.mark.parametrize("n", [1, 2])
def test_many(n): n == 1 or pytest.skip("two")
@pytest.mark.xfail
def test_expected(): assert False
"""


def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, allowed: str, *args: str
) -> pytest.RunResult:
    monkeypatch.setattr(skips, "ALLOWED", pytester.path / "allowed.txt")
    skips.ALLOWED.write_text(allowed)
    pytester.makepyfile(test_suite=SUITE)
    return pytester.runpytest_inprocess("-p", "support.skips", *args)


def test_without_the_flag_skips_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, monkeypatch, "")
    assert result.ret == 0
    result.assert_outcomes(passed=2, skipped=2, xfailed=1)


def test_a_skip_fails_the_run_and_is_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, monkeypatch, "test_suite.py::test_many  # both\n", "--strict-skips")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["test_suite.py::test_skips: *no moon*", "*2 passed, 2 skipped, 1 xfailed*"])
    result.stdout.no_fnmatch_line("test_suite.py::test_many*: *")


def test_a_skip_that_is_allowed_passes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = "# a list\ntest_suite.py::test_many[2]\ntest_suite.py::test_skips # no moon in summer\n"
    assert run(pytester, monkeypatch, allowed, "--strict-skips").ret == 0


def test_a_module_that_is_skipped_counts(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(test_gone="import pytest\npytest.skip('gone', allow_module_level=True)")
    result = run(
        pytester, monkeypatch, "test_suite.py::test_many\ntest_suite.py::test_skips", "--strict-skips"
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines(["test_gone.py: *gone*"])
