"""An exported key slot: the text gives the slot back, and whatever is mistyped in it is told."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.repo.errors import UsageError
from snapfs.repo.format.armor import FIRST_LINE, armor, unarmor

SLOT = random.Random(1).randbytes(1024)
REMARKS = ("repository 00ff", "for people")
TEXT = armor(SLOT, REMARKS)


@given(st.integers(1, 8).map(lambda n: random.Random(n).randbytes(1024 * n)))
def test_there_and_back(slot: bytes) -> None:
    assert unarmor(armor(slot, REMARKS).encode()) == slot


@pytest.mark.parametrize(
    "changed",
    [
        TEXT.upper().replace(FIRST_LINE.upper(), FIRST_LINE),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\n\n"),
        TEXT.replace("  ", " "),
        "\n".join("  " + line for line in TEXT.splitlines()),
        re.sub(r"(?<=[0-9a-f]) (?=[0-9a-f]{8} )", "", TEXT),
        TEXT + "\nwritten down by hand\n",
    ],
)
def test_what_does_not_matter(changed: str) -> None:
    assert changed != TEXT
    assert unarmor(changed.encode()) == SLOT


def numbered() -> list[tuple[int, str]]:
    return [(int(line.split()[0]), line) for line in TEXT.splitlines() if line[:3].strip().isdigit()]


def test_every_wrong_digit_is_told_with_its_line() -> None:
    rng = random.Random(2)
    for number, line in numbered():
        for at in [at for at, c in enumerate(line) if at > 3 and c != " "]:
            wrong = line[:at] + rng.choice("0123456789abcdefx".replace(line[at], "")) + line[at + 1 :]
            with pytest.raises(UsageError, match=rf"line {number} of the key slot"):
                unarmor(TEXT.replace(line, wrong).encode())


def test_every_left_out_line_and_digit_is_told_with_its_line() -> None:
    for number, line in numbered():
        for left in ("", line[:5] + line[6:], line[:-1]):
            with pytest.raises(UsageError, match=rf"line {number} of the key slot"):
                unarmor(TEXT.replace(line, left).encode())


def test_lines_that_changed_their_numbers_are_told() -> None:
    with pytest.raises(UsageError, match="lines 2, 3 of the key slot"):
        unarmor(re.sub(r"(?m)^  ([23])  ", lambda m: f"  {5 - int(m[1])}  ", TEXT).encode())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("", "does not begin"),
        (TEXT[1:], "does not begin"),
        (TEXT.replace("slot 1", "slot 2"), "does not begin"),
        (re.sub(r"(?m)^slot .*$", "", TEXT), "missing or damaged"),
        (re.sub(r"(?m)^lines .*$", "", TEXT), "missing or damaged"),
        (re.sub(r"(?m)^lines .*$", "lines 0", TEXT), "missing or damaged"),
        (re.sub(r"(?m)^lines .*$", "lines 99999999999", TEXT), "missing or damaged"),
        (re.sub(r"(?m)^lines .*$", "lines 65", TEXT), "line 65"),
        (re.sub(r"(?m)^lines .*$", "lines 63", TEXT), "its name in the second line"),
        (re.sub(r"(?m)^slot .*$", "slot " + 64 * "0", TEXT), "its name in the second line"),
        (TEXT.encode().hex(), "does not begin"),
    ],
)
def test_what_is_no_exported_slot(changed: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        unarmor(changed.encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    for text in (data, FIRST_LINE.encode() + b"\n" + data, TEXT.encode()[:200] + data):
        with pytest.raises(UsageError):
            unarmor(text)
