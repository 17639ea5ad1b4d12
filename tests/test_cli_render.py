"""How values look."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.cli import render


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes(number: int, shown: str) -> None:
    assert render.size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (12.3, "12 s"), (185, "3:05 min"), (7389, "2:03:09 h")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert render.duration(seconds) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name", "plain name"),
        ("käse".encode(), "käse"),
        (b"a\xffb", "a\\xffb"),
        (b"\x1b[31mred\n", "\\x1b[31mred\\n"),
        ("a\u202eb".encode(), "a\\u202eb"),  # would turn the rest of the line around
    ],
)
def test_names(name: bytes, shown: str) -> None:
    assert render.text(name) == shown


@given(st.binary())
def test_no_name_moves_the_cursor(name: bytes) -> None:
    assert render.text(name).isprintable()
    assert render.line(name.decode("utf-8", "surrogateescape")).isprintable()


@given(st.binary())
def test_json_names_are_exact(name: bytes) -> None:
    found = render.named("path", name)
    exact = base64.b64decode(found["path_b64"]) if "path_b64" in found else found["path"].encode()
    assert exact == name


@given(st.integers(-(2**63), 2**63))
def test_every_time_can_be_shown(time: int) -> None:
    assert render.moment(time)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d(:\d\d)?|@-?\d+\.\d{9}", render.iso(time)
    )


def test_times_before_1970_keep_their_nanoseconds() -> None:
    assert render.iso(-1).partition(".")[2].startswith("999999999")


def test_table() -> None:
    assert render.table(("A", "Size"), [("x", "1"), ("long", "22")], right=(1,)) == [
        "A     Size",
        "----------",
        "x        1",
        "long    22",
    ]
    assert render.table(("A",), []) == []
